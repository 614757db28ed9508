/* A JPEG with restart markers, cut at them (ITU-T T.81, annexes B.2 and E.1.4).
 *
 * At a restart marker a decoder starts over: the bits are aligned to a byte, and no coefficient is predicted from one
 * before. So the segments between the markers can be put together in another way: those of some columns and rows,
 * behind the same tables and a frame header with the smaller size, are an ordinary JPEG of that part of the image. Only
 * the markers' numbers, which count modulo 8, have to be other ones. Decoded blocks are the same bit for bit; pixels at
 * the new edges are not, where smooth upsampling of color takes in a neighbor: whoever cuts takes a few pixels more.
 *
 * Nothing is decoded here and nothing is trusted: what is not in order is left to the decoder, as the image that it is.
 */
#include "segments.h"

#include <stdlib.h>
#include <string.h>

enum { SOF0 = 0xC0, SOF1 = 0xC1, DHT = 0xC4, RST0 = 0xD0, EOI = 0xD9, SOS = 0xDA, DQT = 0xDB, DRI = 0xDD };
enum { APP0 = 0xE0, APP14 = 0xEE, APP15 = 0xEF, COM = 0xFE };

#define MAX_SIDE_PX 65500 /* of libjpeg */

static int read_16(const uint8_t *at) { return at[0] << 8 | at[1]; }

static void write_16(uint8_t *at, int value) { at[0] = value >> 8, at[1] = value & 0xFF; }

static int ceil_div(int a, int b) { return (a + b - 1) / b; }

/* The grid of a frame of 8 bits a sample, one component or three, at its segment's length; 0 for any other. */
static int read_frame(const uint8_t *segment, int length, int interval, struct segment_grid *grid) {
  const int num_components = length > 7 ? segment[7] : 0;
  if ((num_components != 1 && num_components != 3) || length != 8 + 3 * num_components || segment[2] != 8) return 0;
  grid->height = read_16(segment + 3), grid->width = read_16(segment + 5);
  if (grid->height < 1 || grid->width < 1 || interval < 1) return 0;
  if (grid->height > MAX_SIDE_PX || grid->width > MAX_SIDE_PX) return 0; /* a part of it would not be too large */
  int across = 1, down = 1;
  for (int i = 0; i < num_components; i++) {
    const int factors = segment[9 + 3 * i], own_across = factors >> 4, own_down = factors & 15;
    if (own_across < 1 || own_across > 4 || own_down < 1 || own_down > 4) return 0;
    if (own_across > across) across = own_across;
    if (own_down > down) down = own_down;
  }
  if (num_components == 1) across = down = 1; /* a scan of one component is coded block by block */
  grid->context_width = across > 1 ? CONTEXT_PX : 0, grid->context_height = down > 1 ? CONTEXT_PX : 0;
  const int mcus_across = ceil_div(grid->width, 8 * across), mcus_down = ceil_div(grid->height, 8 * down);
  const int rows = interval / mcus_across;
  if (mcus_across % interval == 0) {
    grid->segment_width = 8 * across * interval, grid->segment_height = 8 * down;
    grid->columns = mcus_across / interval, grid->rows = mcus_down;
  } else if (interval % mcus_across == 0) {
    grid->segment_width = grid->width, grid->segment_height = 8 * down * rows;
    grid->columns = 1, grid->rows = ceil_div(mcus_down, rows);
  } else {
    return 0;
  }
  return 1;
}

/* Whether a scan has all components of the frame, and all of their coefficients. */
static int is_whole_scan(const uint8_t *segment, int length, int num_components) {
  const uint8_t *end = segment + length;
  return length == 6 + 2 * num_components && segment[2] == num_components && end[-3] == 0 && end[-2] == 63 &&
         end[-1] == 0;
}

int read_segment_grid(const uint8_t *bytes, int64_t num_bytes, struct segment_grid *grid) {
  int64_t at = 2, frame_at = 0;
  int interval = 0;
  if (num_bytes < 4 || bytes[0] != 0xFF || bytes[1] != 0xD8) return 0;
  while (at + 4 <= num_bytes && bytes[at] == 0xFF) {
    const int marker = bytes[at + 1], length = read_16(bytes + at + 2);
    const uint8_t *segment = bytes + at + 2; /* from its length on */
    if (length < 2 || at + 2 + length > num_bytes) return 0;
    if (marker == SOF0 || marker == SOF1) {
      if (frame_at) return 0;
      frame_at = at + 2;
    } else if (marker == DRI) {
      if (length != 4) return 0;
      interval = read_16(segment + 2);
    } else if (marker == SOS) {
      if (!frame_at || !read_frame(bytes + frame_at, read_16(bytes + frame_at), interval, grid)) return 0;
      grid->frame_at = frame_at + 3, grid->data_at = at + 2 + length;
      return is_whole_scan(segment, length, bytes[frame_at + 7]);
    } else if (marker != DHT && marker != DQT && marker != COM && (marker < APP0 || marker > APP15)) {
      return 0;
    }
    at += 2 + length;
  }
  return 0;
}

/* The tests build with TEACHONCE_NO_AVX2 too: then as on any other processor. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(TEACHONCE_NO_AVX2)
#include <emmintrin.h>
#define HAS_SSE2_CODE 1
#endif

/* The next marker in coded data; NULL where there is none. Of ones among the data 0 follows each. */
static const uint8_t *find_marker(const uint8_t *at, const uint8_t *end) {
#ifdef HAS_SSE2_CODE
  const __m128i ones = _mm_set1_epi8(-1), zero = _mm_setzero_si128();
  for (; end - at >= 17; at += 16) {
    const __m128i here = _mm_loadu_si128((const __m128i *)at), next = _mm_loadu_si128((const __m128i *)(at + 1));
    const int found = _mm_movemask_epi8(_mm_andnot_si128(_mm_cmpeq_epi8(next, zero), _mm_cmpeq_epi8(here, ones)));
    if (found) return at + __builtin_ctz(found);
  }
#endif
  while (end - at >= 2 && (at = memchr(at, 0xFF, end - at - 1))) {
    if (at[1] != 0) return at;
    at += 2;
  }
  return NULL;
}

/* The header without what no decoder needs (EXIF, profiles, comments), and with another size; returns its end. */
static uint8_t *copy_header(uint8_t *out, const uint8_t *bytes, const struct segment_grid *grid, int width,
                            int height) {
  int64_t at = 2;
  memcpy(out, bytes, 2), out += 2;
  while (at < grid->data_at) {
    const int marker = bytes[at + 1], length = 2 + read_16(bytes + at + 2);
    const int is_needed = marker < APP0 || marker == APP0 || marker == APP14; /* these two say what the colors are */
    if (is_needed) {
      memcpy(out, bytes + at, length);
      if (at + 5 == grid->frame_at) write_16(out + 5, height), write_16(out + 7, width);
      out += length;
    }
    at += length;
  }
  return out;
}

uint8_t *cut_segments(const uint8_t *bytes, int64_t num_bytes, const struct segment_grid *grid,
                      const struct segment_range *range, struct part *part) {
  const int left = range->column * grid->segment_width, right = range->end_column * grid->segment_width;
  const int top = range->row * grid->segment_height, bottom = range->end_row * grid->segment_height;
  const int width = (right < grid->width ? right : grid->width) - left;
  const int height = (bottom < grid->height ? bottom : grid->height) - top;
  const int64_t num_segments = (int64_t)grid->columns * grid->rows;
  uint8_t *cut = malloc(num_bytes + 2), *out;
  if (!cut) return NULL;
  out = copy_header(cut, bytes, grid, width, height);
  const uint8_t *at = bytes + grid->data_at, *end = bytes + num_bytes;
  int64_t segment = 0, num_kept = 0;
  for (int row = 0; row < range->end_row; row++) {
    for (int column = 0; column < grid->columns; column++, segment++) {
      const uint8_t *marker = find_marker(at, end);
      const int expected = segment + 1 == num_segments ? EOI : RST0 + segment % 8;
      if (!marker || marker[1] != expected) {
        free(cut);
        return NULL;
      }
      if (row >= range->row && column >= range->column && column < range->end_column) {
        memcpy(out, at, marker - at);
        out += marker - at;
        out[0] = 0xFF, out[1] = RST0 + num_kept++ % 8;
        out += 2;
      }
      at = marker + 2;
    }
  }
  out[-1] = EOI; /* behind the last segment, in place of a marker */
  *part = (struct part){cut, out - cut, left, top, width, height};
  return cut;
}
