/* From image bytes to the pixels of views: decode what a view needs, antialiased resize, flip, into a given buffer.
 *
 * The pixels are those of Pillow, bit for bit: decoding is done by the very library that Pillow decodes with (accurate
 * integer DCT, smooth chroma upsampling), resizing by the arithmetic of Pillow's Image.resize (weights in 22 bits,
 * columns first, 8 bits between the passes). What is faster is what is left out: rows above and below the box are not
 * decoded, columns beside it get no inverse DCT, a row is resampled as soon as it is there, and no image is ever
 * allocated. Of a JPEG with restart markers the segments beside the box are not even read (segments.c).
 * tests/pixels/test_kernel.py holds both together on random images, boxes and sizes.
 *
 * Only what is in order is done here. An image that is no 8-bit grayscale or color JPEG, that makes the library warn,
 * that does not end with an end-of-image marker, or whose box lies outside gets the status LEFT_TO_PILLOW: the caller
 * asks Pillow then, which says what is wrong or does what it can. (Damage in what no view needs is not seen; Pillow
 * refuses some of it, about one in 300 damaged files of the tests.) There is no global state but the bound
 * library, so any number of threads may call.
 */
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "decoding.h"
#include "layout.h"
#include "segments.h"

#define PRECISION_BITS 22 /* of a weight, as in Pillow */
#define MAX_READ_ROWS 4
#define BLOCK_BYTES 32
#define ALIGNMENT 64
#define OFF_BYTES 8 /* rows that begin at a vector's bound libjpeg-turbo writes past the cache: they are read next */
#define HALF (1 << (PRECISION_BITS - 1))

enum { DONE = 0, LEFT_TO_PILLOW = 1 };
enum { BOX = 0, BILINEAR = 1, BICUBIC = 2 };

/* A box of a source, resized to width x height, of which a window is wanted. All in pixels; see kernel.py. */
struct view {
  uint8_t *out; /* [window_height, window_width, 3] */
  int32_t left, top, right, bottom;
  int32_t width, height;
  int32_t window_left, window_top, window_width, window_height;
  int32_t flip, filter;
};
_Static_assert(sizeof(struct view) == 56, "as VIEW of Python");

/* One image and its views: a JPEG, or a binary PPM with 8 bits a channel. */
struct source {
  const uint8_t *bytes;
  int64_t num_bytes;
  int32_t width, height;
  int32_t first_view, num_views;
  int32_t status, unused;
};
_Static_assert(sizeof(struct source) == 40, "as SOURCE of Python");

/* The tests build with TEACHONCE_NO_AVX2 too: the plain loops then run on any processor. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(TEACHONCE_NO_AVX2)
#include <immintrin.h>
#define HAS_AVX2_CODE 1
#endif

/* Weights of one direction: output i is the sum of taps source lines from first[i] on. */
struct resampling {
  int num_out, taps;
  int first_needed, end_needed; /* source lines that any output looks at */
  int32_t *first, *weights;     /* [num_out], [num_out, taps]; weights beyond an output's own taps are 0 */
};

/* A view at work: its weights, and the rows that have been resampled horizontally. */
struct rendering {
  const struct view *view;
  struct resampling across, down;
  int32_t *pairs; /* weights of two columns, four channels each: [window_width, taps / 2, 8] */
  uint8_t *rows; /* [rows needed, window_width * 3], padded */
  size_t stride;
};

static double weight_at(double x, int filter) {
  x = fabs(x);
  if (filter == BILINEAR) return x < 1.0 ? 1.0 - x : 0.0;
  const double a = -0.5; /* bicubic: Keys' cubic convolution */
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

/* Weights of outputs window .. window + num_out - 1 of num_in lines resized to num_resized. 0 where memory ran out. */
static int plan_resampling(struct resampling *plan, int num_in, int num_resized, int window, int num_out, int filter,
                           int is_reversed) {
  const double scale = (double)num_in / num_resized, widening = scale < 1.0 ? 1.0 : scale;
  const double support = (filter == BOX ? 0.5 : filter == BILINEAR ? 1.0 : 2.0) * widening;
  const int max_taps = (int)ceil(support) * 2 + 1;
  int most = 1;
  double *weights = malloc(sizeof(double) * max_taps);
  plan->num_out = num_out;
  plan->taps = (max_taps + 1) & ~1;
  plan->first = malloc(sizeof(int32_t) * num_out);
  plan->weights = calloc((size_t)num_out * plan->taps, sizeof(int32_t));
  plan->first_needed = INT_MAX;
  plan->end_needed = 0;
  if (!weights || !plan->first || !plan->weights) {
    free(weights);
    return 0;
  }
  for (int i = 0; i < num_out; i++) {
    const double center = (window + i + 0.5) * scale, unit = 1.0 / widening;
    int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
    double sum = 0.0;
    if (first < 0) first = 0;
    if (end > num_in) end = num_in;
    for (int t = 0; t < end - first; t++) {
      const double x = (t + first - center + 0.5) * unit;
      weights[t] = filter == BOX ? (x > -0.5 && x <= 0.5 ? 1.0 : 0.0) : weight_at(x, filter);
      sum += weights[t];
    }
    const int at = is_reversed ? num_out - 1 - i : i;
    int32_t *kept = plan->weights + (size_t)at * plan->taps;
    for (int t = 0; t < end - first; t++) {
      const double weight = (sum != 0.0 ? weights[t] / sum : weights[t]) * (1 << PRECISION_BITS);
      kept[t] = (int)(weight < 0 ? weight - 0.5 : weight + 0.5);
      if (kept[t] != 0 && t + 1 > most) most = t + 1;
    }
    plan->first[at] = first;
    if (first < plan->first_needed) plan->first_needed = first;
    if (end > plan->end_needed) plan->end_needed = end;
  }
  free(weights);
  /* Keep an even number of taps, and only as many as any output uses. */
  most = (most + 1) & ~1;
  if (most < plan->taps) {
    for (int i = 0; i < num_out; i++)
      memmove(plan->weights + (size_t)i * most, plan->weights + (size_t)i * plan->taps, sizeof(int32_t) * most);
    plan->taps = most;
  }
  return 1;
}

static inline uint8_t clip(int32_t sum) {
  sum >>= PRECISION_BITS;
  return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

/* One source row [.., 4] to one row of the view [window_width, 3]. */
static void resample_row(const struct rendering *rendering, const uint8_t *row, uint8_t *out) {
  const int num_out = rendering->across.num_out, taps = rendering->across.taps;
  const int32_t *weights = rendering->across.weights;
  for (int i = 0; i < num_out; i++, weights += taps, out += 3) {
    const uint8_t *pixels = row + 4 * (size_t)rendering->across.first[i];
    int32_t sums[4] = {HALF, HALF, HALF, HALF};
    for (int t = 0; t < taps; t++)
      for (int c = 0; c < 4; c++) sums[c] += pixels[4 * t + c] * weights[t];
    for (int c = 0; c < 3; c++) out[c] = clip(sums[c]);
  }
}

/* BLOCK_BYTES of one row of the view from num_taps resampled source rows. */
static void resample_block(const uint8_t *rows, size_t stride, const int32_t *weights, int num_taps, uint8_t *out) {
  int32_t sums[BLOCK_BYTES];
  for (int x = 0; x < BLOCK_BYTES; x++) sums[x] = HALF;
  for (int t = 0; t < num_taps; t++)
    for (int x = 0; x < BLOCK_BYTES; x++) sums[x] += rows[t * stride + x] * weights[t];
  for (int x = 0; x < BLOCK_BYTES; x++) out[x] = clip(sums[x]);
}

#ifdef HAS_AVX2_CODE
/* The same two for processors with AVX2; the compilers at hand do not find these instructions by themselves. */
#define AVX2 __attribute__((target("avx2")))

AVX2 static inline __m256i widen(const uint8_t *bytes) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
}

AVX2 static void resample_row_avx2(const struct rendering *rendering, const uint8_t *row, uint8_t *out) {
  const int num_out = rendering->across.num_out, num_pairs = rendering->across.taps / 2;
  const __m256i half = _mm256_setr_epi32(HALF, HALF, HALF, HALF, 0, 0, 0, 0);
  const __m256i *pairs = (const __m256i *)rendering->pairs;
  for (int i = 0; i < num_out; i++, pairs += num_pairs, out += 3) {
    const uint8_t *pixels = row + 4 * (size_t)rendering->across.first[i];
    __m256i sums = half;
    for (int t = 0; t < num_pairs; t++)
      sums = _mm256_add_epi32(sums, _mm256_mullo_epi32(widen(pixels + 8 * t), _mm256_loadu_si256(pairs + t)));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    sum = _mm_srai_epi32(sum, PRECISION_BITS);
    sum = _mm_packus_epi16(_mm_packs_epi32(sum, sum), sum); /* both packings clip */
    const int32_t rounded = _mm_cvtsi128_si32(sum);
    memcpy(out, &rounded, 4); /* the fourth byte is overwritten by the next pixel, or lies in the padding */
  }
}

AVX2 static void resample_block_avx2(const uint8_t *rows, size_t stride, const int32_t *weights, int num_taps,
                                     uint8_t *out) {
  __m256i sums[4];
  for (int j = 0; j < 4; j++) sums[j] = _mm256_set1_epi32(HALF);
  for (int t = 0; t < num_taps; t++) {
    const __m256i weight = _mm256_set1_epi32(weights[t]);
    for (int j = 0; j < 4; j++)
      sums[j] = _mm256_add_epi32(sums[j], _mm256_mullo_epi32(widen(rows + t * stride + 8 * j), weight));
  }
  for (int j = 0; j < 4; j++) sums[j] = _mm256_srai_epi32(sums[j], PRECISION_BITS);
  /* Packing works within halves of 128 bits: the last step puts the groups of four back into their order. */
  const __m256i low = _mm256_packs_epi32(sums[0], sums[1]), high = _mm256_packs_epi32(sums[2], sums[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256((__m256i *)out, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order));
}

static int has_avx2(void) { return __builtin_cpu_supports("avx2"); }
#endif

/* All rows of the view from the resampled source rows. */
static void resample_down(const struct rendering *rendering) {
  const size_t num_bytes = (size_t)rendering->view->window_width * 3;
  void (*block)(const uint8_t *, size_t, const int32_t *, int, uint8_t *) = resample_block;
#ifdef HAS_AVX2_CODE
  if (has_avx2()) block = resample_block_avx2;
#endif
  for (int y = 0; y < rendering->down.num_out; y++) {
    const int first = rendering->down.first[y];
    const int available = rendering->down.end_needed - first;
    const int num_taps = rendering->down.taps < available ? rendering->down.taps : available;
    const int32_t *weights = rendering->down.weights + (size_t)y * rendering->down.taps;
    const uint8_t *rows = rendering->rows + (first - rendering->down.first_needed) * rendering->stride;
    uint8_t *out = rendering->view->out + y * num_bytes;
    size_t x = 0;
    for (; x + BLOCK_BYTES <= num_bytes; x += BLOCK_BYTES)
      block(rows + x, rendering->stride, weights, num_taps, out + x);
    if (x < num_bytes) {
      uint8_t rest[BLOCK_BYTES];
      block(rows + x, rendering->stride, weights, num_taps, rest);
      memcpy(out + x, rest, num_bytes - x);
    }
  }
}

static void end_rendering(struct rendering *rendering) {
  free(rendering->across.first), free(rendering->across.weights);
  free(rendering->down.first), free(rendering->down.weights);
  free(rendering->pairs), free(rendering->rows);
}

/* 0 where the view makes no sense for an image of this size, or memory ran out. */
static int begin_rendering(struct rendering *rendering, const struct view *view, int width, int height) {
  memset(rendering, 0, sizeof *rendering);
  rendering->view = view;
  if (view->left < 0 || view->top < 0 || view->right > width || view->bottom > height) return 0;
  if (view->left >= view->right || view->top >= view->bottom) return 0;
  if (view->window_width < 1 || view->window_height < 1 || view->window_left < 0 || view->window_top < 0) return 0;
  if (view->window_width > view->width || view->window_left > view->width - view->window_width) return 0;
  if (view->window_height > view->height || view->window_top > view->height - view->window_height) return 0;
  if (!plan_resampling(&rendering->across, view->right - view->left, view->width, view->window_left, view->window_width,
                       view->filter, view->flip))
    return 0;
  if (!plan_resampling(&rendering->down, view->bottom - view->top, view->height, view->window_top, view->window_height,
                       view->filter, 0))
    return 0;
  const int taps = rendering->across.taps;
  rendering->stride = ((size_t)view->window_width * 3 + 63) & ~(size_t)31;
  rendering->rows = malloc(rendering->stride * (rendering->down.end_needed - rendering->down.first_needed) + 64);
  rendering->pairs = malloc(sizeof(int32_t) * 4 * view->window_width * taps);
  if (!rendering->rows || !rendering->pairs) return 0;
  for (size_t i = 0; i < (size_t)view->window_width * taps; i++)
    for (int c = 0; c < 4; c++) rendering->pairs[4 * i + c] = rendering->across.weights[i];
  return 1;
}

/* Give a source row, whose first column is left and which is padded, to every view that needs it. */
static void take_row(struct rendering *renderings, int num_renderings, const uint8_t *row, int left, int y) {
  for (int i = 0; i < num_renderings; i++) {
    struct rendering *rendering = renderings + i;
    const int line = y - rendering->view->top;
    if (line < rendering->down.first_needed || line >= rendering->down.end_needed) continue;
    const uint8_t *from = row + 4 * (size_t)(rendering->view->left - left);
    uint8_t *to = rendering->rows + (line - rendering->down.first_needed) * rendering->stride;
#ifdef HAS_AVX2_CODE
    if (has_avx2()) {
      resample_row_avx2(rendering, from, to);
      continue;
    }
#endif
    resample_row(rendering, from, to);
  }
}

/* The rectangle of the source that the views need. A row of it must be followed by taps more pixels: an output whose own
 * taps end at the image's edge has weights of 0 behind them, and the pixels there are read. */
struct region {
  int left, top, right, bottom, taps;
};

static struct region needed_region(const struct rendering *renderings, int num_renderings) {
  struct region region = {INT_MAX, INT_MAX, 0, 0, 0};
  for (int i = 0; i < num_renderings; i++) {
    const struct view *view = renderings[i].view;
    const struct resampling *across = &renderings[i].across, *down = &renderings[i].down;
    const int left = view->left + across->first_needed, right = view->left + across->end_needed;
    const int top = view->top + down->first_needed, bottom = view->top + down->end_needed;
    if (left < region.left) region.left = left;
    if (top < region.top) region.top = top;
    if (right > region.right) region.right = right;
    if (bottom > region.bottom) region.bottom = bottom;
    if (across->taps > region.taps) region.taps = across->taps;
  }
  return region;
}

/* Views of one source, from the moment that its size is known. Returns 0 if one of them cannot be. */
static int begin_renderings(struct rendering *renderings, int num_renderings, const struct view *views, int width,
                            int height) {
  for (int i = 0; i < num_renderings; i++)
    if (!begin_rendering(renderings + i, views + i, width, height)) return 0;
  return 1;
}

/* A number of at most 5 digits and the one white space behind it; 0 where there is none. */
static const uint8_t *read_number(const uint8_t *at, const uint8_t *end, int *number) {
  int digits = 0;
  for (*number = 0; at < end && *at >= '0' && *at <= '9' && digits < 5; at++, digits++) *number = *number * 10 + *at - '0';
  return digits > 0 && at < end && (*at == '\n' || *at == ' ') ? at + 1 : NULL;
}

/* The pixels [height, width, 3] of a PPM as pixels/in_memory.py writes it; NULL for any other bytes. */
static const uint8_t *ppm_pixels(const struct source *source, int *width, int *height) {
  const uint8_t *at = source->bytes, *end = at + source->num_bytes;
  int maximum;
  if (source->num_bytes < 3 || memcmp(at, "P6\n", 3) != 0) return NULL;
  if (!(at = read_number(at + 3, end, width)) || !(at = read_number(at, end, height))) return NULL;
  if (!(at = read_number(at, end, &maximum)) || maximum != 255 || *width < 1 || *height < 1) return NULL;
  return end - at == (int64_t)*width * *height * 3 ? at : NULL;
}

static int render_pixels(const uint8_t *pixels, int width, int height, int num_views, const struct view *views,
                         struct rendering *renderings, int64_t max_pixels) {
  if ((int64_t)width * height > max_pixels) return LEFT_TO_PILLOW;
  if (!begin_renderings(renderings, num_views, views, width, height)) return LEFT_TO_PILLOW;
  const struct region region = needed_region(renderings, num_views);
  const int needed = region.right - region.left;
  uint8_t *row = needed > 0 ? calloc((size_t)needed + region.taps, 4) : NULL;
  if (!row) return LEFT_TO_PILLOW;
  for (int y = region.top; y < region.bottom; y++) {
    const uint8_t *from = pixels + ((size_t)y * width + region.left) * 3;
    /* The fourth byte is never looked at, and four are copied faster than three; behind the last pixel there is none. */
    for (int x = 0; x < needed - 1; x++) memcpy(row + 4 * x, from + 3 * x, 4);
    memcpy(row + 4 * (needed - 1), from + 3 * (needed - 1), 3);
    take_row(renderings, num_views, row, region.left, y);
  }
  free(row);
  return DONE;
}

static void decode_rows(struct decoding *decoding, const struct part *part, int num_views,
                        struct rendering *renderings) {
  struct jpeg_decompress_struct *info = &decoding->info;
  struct region region = needed_region(renderings, num_views);
  region.left -= part->left, region.right -= part->left;
  region.top -= part->top, region.bottom -= part->top;
  info->out_color_space = JCS_EXT_RGBX;
  start_decoding(decoding);
  const unsigned end = (unsigned)region.right + CONTEXT_PX;
  unsigned left = 0, width = info->output_width;
  if (!is_smoothed(info)) {
    left = region.left > CONTEXT_PX ? region.left - CONTEXT_PX : 0;
    width = (end < info->output_width ? end : info->output_width) - left;
    if (width < info->output_width) jpeg.crop_scanline(info, &left, &width);
  }
  if (region.top > CONTEXT_PX) jpeg.skip_scanlines(info, region.top - CONTEXT_PX);
  const size_t row_bytes = (4 * ((size_t)width + region.taps) + ALIGNMENT) & ~(size_t)(ALIGNMENT - 1);
  decoding->buffer = calloc(MAX_READ_ROWS, row_bytes + ALIGNMENT);
  if (!decoding->buffer) leave(info);
  uint8_t *first = decoding->buffer + (ALIGNMENT + OFF_BYTES - (uintptr_t)decoding->buffer % ALIGNMENT) % ALIGNMENT;
  uint8_t *rows[MAX_READ_ROWS];
  for (int i = 0; i < MAX_READ_ROWS; i++) rows[i] = first + i * row_bytes;
  while ((int)info->output_scanline < region.bottom) {
    const int y = info->output_scanline;
    const int num_rows = jpeg.read_scanlines(info, rows, MAX_READ_ROWS);
    if (num_rows == 0) leave(info);
    for (int i = 0; i < num_rows; i++)
      take_row(renderings, num_views, rows[i], part->left + left, part->top + y + i);
  }
}

/* setjmp is called below the frame that owns the decoding: what is changed in it in between is then well defined. Of a
 * part that was cut out the renderings are begun already. */
static int try_render(struct decoding *decoding, const struct part *part, const struct view *views, int num_views,
                      struct rendering *renderings, int64_t max_pixels) {
  if (setjmp(decoding->on_error)) return LEFT_TO_PILLOW;
  struct jpeg_decompress_struct *info = &decoding->info;
  open_image(decoding, part->bytes, part->num_bytes);
  if ((int64_t)info->image_width * info->image_height > max_pixels) leave(info);
  if (!is_plain(info) || has_many_scans(info, part->bytes, part->num_bytes)) leave(info);
  if (!part->width) {
    if (!begin_renderings(renderings, num_views, views, info->image_width, info->image_height)) leave(info);
  } else if ((int)info->image_width != part->width || (int)info->image_height != part->height) {
    leave(info);
  }
  decode_rows(decoding, part, num_views, renderings);
  return DONE;
}

/* Cut out of an image with restart markers what its views need, with the pixels around that smooth upsampling looks at;
 * NULL where the image has no markers to enter at, or where nothing is left out but what decoding leaves out too. */
static uint8_t *cut_part(const struct source *source, const struct rendering *renderings,
                         const struct segment_grid *grid, struct part *part) {
  const struct region region = needed_region(renderings, source->num_views);
  const int left = region.left - grid->context_width, right = region.right + grid->context_width;
  const int top = region.top - grid->context_height, bottom = region.bottom + grid->context_height;
  struct segment_range range = {
      (left < 0 ? 0 : left) / grid->segment_width, (top < 0 ? 0 : top) / grid->segment_height,
      (right - 1) / grid->segment_width + 1, (bottom - 1) / grid->segment_height + 1};
  if (range.end_column > grid->columns) range.end_column = grid->columns;
  if (range.end_row > grid->rows) range.end_row = grid->rows;
  if (range.column == 0 && range.row == 0 && range.end_column == grid->columns) return NULL;
  return cut_segments(source->bytes, source->num_bytes, grid, &range, part);
}

static int render_jpeg(struct decoding *decoding, const struct source *source, const struct view *views,
                       struct rendering *renderings, int64_t max_pixels) {
  struct segment_grid grid;
  struct part part = {source->bytes, source->num_bytes, 0, 0, 0, 0};
  uint8_t *cut = NULL;
  if (!ends_in_order(source->bytes, source->num_bytes)) return LEFT_TO_PILLOW;
  if (read_segment_grid(source->bytes, source->num_bytes, &grid) && (int64_t)grid.width * grid.height <= max_pixels) {
    if (!begin_renderings(renderings, source->num_views, views, grid.width, grid.height)) return LEFT_TO_PILLOW;
    part.width = grid.width, part.height = grid.height;
    cut = cut_part(source, renderings, &grid, &part);
  }
  const int status = try_render(decoding, &part, views, source->num_views, renderings, max_pixels);
  free(cut);
  free(decoding->buffer);
  decoding->buffer = NULL;
  if (status != DONE) {
    end_decoding(decoding);
    begin_decoding(decoding);
  }
  return status;
}

/* Fill the outputs of all views of all sources; each source's status says whether it was done. */
void teachonce_render(struct source *sources, int64_t num_sources, const struct view *views, int64_t max_pixels) {
  struct decoding decoding;
  if (jpeg.create) begin_decoding(&decoding);
  for (int64_t i = 0; i < num_sources; i++) {
    struct source *source = sources + i;
    struct rendering *renderings = calloc(source->num_views > 0 ? source->num_views : 1, sizeof *renderings);
    const uint8_t *pixels;
    int width, height;
    source->status = LEFT_TO_PILLOW;
    if (!renderings) continue;
    const struct view *own = views + source->first_view;
    if (source->num_views < 1)
      source->status = DONE;
    else if ((pixels = ppm_pixels(source, &width, &height)))
      source->status = render_pixels(pixels, width, height, source->num_views, own, renderings, max_pixels);
    else if (jpeg.create)
      source->status = render_jpeg(&decoding, source, own, renderings, max_pixels);
    for (int v = 0; v < source->num_views; v++) {
      if (source->status == DONE) resample_down(renderings + v);
      end_rendering(renderings + v);
    }
    free(renderings);
  }
  if (jpeg.create) end_decoding(&decoding);
}

static int try_measure(struct decoding *decoding, struct source *source) {
  if (setjmp(decoding->on_error)) return LEFT_TO_PILLOW;
  open_image(decoding, source->bytes, source->num_bytes);
  source->width = decoding->info.image_width;
  source->height = decoding->info.image_height;
  return DONE;
}

static int measure(struct source *source) {
  struct decoding decoding;
  if (ppm_pixels(source, &source->width, &source->height)) return DONE;
  if (!jpeg.create || !ends_in_order(source->bytes, source->num_bytes)) return LEFT_TO_PILLOW;
  begin_decoding(&decoding);
  const int status = try_measure(&decoding, source);
  end_decoding(&decoding);
  return status;
}

/* Width and height of images, from their headers. */
void teachonce_measure(struct source *sources, int64_t num_sources) {
  for (int64_t i = 0; i < num_sources; i++) sources[i].status = measure(sources + i);
}
