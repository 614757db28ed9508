/* libjpeg as it was found in Pillow at run time, and the way out of it where an image is not in order. */
#include "decoding.h"

#include <string.h>

#define ABI_VERSION 2
#define MAX_LIBRARY_BYTES (16 << 20)
#ifndef FIRST_COUNT /* the tests build with another one too, which does not hold */
#define FIRST_COUNT 2
#endif

struct jpeg_library jpeg;

void leave(j_decompress_ptr info) { longjmp(((struct decoding *)info->client_data)->on_error, 1); }

/* Level -1 is a warning: damaged data, of which Pillow makes what it can. */
static void leave_if_damaged(j_decompress_ptr info, int level) {
  if (level < 0) leave(info);
}

void begin_decoding(struct decoding *decoding) {
  memset(&decoding->info, 0, sizeof decoding->info);
  decoding->info.err = jpeg.std_error(&decoding->errors);
  decoding->info.client_data = decoding;
  decoding->errors.error_exit = leave;
  decoding->errors.emit_message = leave_if_damaged;
  decoding->buffer = NULL;
}

/* libjpeg-turbo decodes an image that has a restart interval with its slower Huffman decoder, which takes 1.22 of the
 * time. Before each unit (MCU) it looks at the interval: 0 means the fast decoder and no marker. So that is what it is
 * told here, except at both ends of a segment: at the first unit 2, with which it reads the marker and begins to count
 * down from 2; at the last unit 1, which completes the count (the fast decoder would give up near the marker, in vain).
 * Its entropy decoder's second entry is the function that decodes a unit, as ever since version 6 (jpegint.h). Nothing
 * of this is an interface: it is tried out before it is used (kernel.py), and left out where it does not hold. */
static int counts_units;

static int decode_mcu(j_decompress_ptr info, void *blocks) {
  struct decoding *decoding = (struct decoding *)info->client_data;
  if (decoding->mcus_left == 0) {
    decoding->mcus_left = decoding->interval;
    info->restart_interval = FIRST_COUNT;
  } else {
    info->restart_interval = decoding->mcus_left == 1;
  }
  decoding->mcus_left--;
  return decoding->decode_mcu(info, blocks);
}

void start_decoding(struct decoding *decoding) {
  struct jpeg_decompress_struct *info = &decoding->info;
  const int is_one_scan = !info->progressive_mode && !info->arith_code && info->comps_in_scan == info->num_components;
  decoding->interval = decoding->mcus_left = info->restart_interval;
  if (!counts_units || decoding->interval < 2 || !is_one_scan) {
    jpeg.start(info);
    return;
  }
  info->restart_interval = 1; /* for the count of the first segment, at whose beginning there is no marker */
  jpeg.start(info);
  decoding->decode_mcu = info->entropy->decode_mcu;
  /* Never call what is no function of the library. */
  const intptr_t distance = (intptr_t)decoding->decode_mcu - (intptr_t)jpeg.start;
  if (distance < -MAX_LIBRARY_BYTES || distance > MAX_LIBRARY_BYTES) leave(info);
  info->entropy->decode_mcu = decode_mcu;
}

int ends_in_order(const uint8_t *bytes, int64_t num_bytes) {
  return num_bytes > 4 && bytes[num_bytes - 2] == 0xFF && bytes[num_bytes - 1] == 0xD9;
}

/* Of several scans each costs a pass over all blocks: where there may be more than MAX_SCANS, pixels/decode.py counts
 * them and decides. Their marker may stand in metadata too, so that this finds too many rather than too few. */
int has_many_scans(const struct jpeg_decompress_struct *info, const uint8_t *bytes, int64_t num_bytes) {
  if (!info->progressive_mode && info->comps_in_scan == info->num_components) return 0;
  const uint8_t *at = bytes, *end = at + num_bytes - 1;
  int num_scans = 0;
  while (at < end && (at = memchr(at, 0xFF, end - at))) num_scans += *++at == 0xDA;
  return num_scans > MAX_SCANS;
}

/* Of a progressive image some of whose scans are missing, blocks are smoothed from what their neighbors have, and at
 * the edge of cropped columns the library knows no neighbors: such an image is decoded in its whole width. */
int is_smoothed(const struct jpeg_decompress_struct *info) {
  if (!info->coef_bits) return 0;
  for (int i = 0; i < info->num_components; i++)
    for (int k = 0; k < 64; k++)
      if (info->coef_bits[i][k] != 0) return 1;
  return 0;
}

int is_plain(const struct jpeg_decompress_struct *info) {
  const int space = info->jpeg_color_space, is_gray = info->num_components == 1 && space == JCS_GRAYSCALE;
  const int is_color = info->num_components == 3 && (space == JCS_YCbCr || space == JCS_RGB);
  return info->data_precision == 8 && (is_gray || is_color);
}

/* Take over the library's functions, and whether units between restart markers are counted here; returns ABI_VERSION,
 * or 0 where it is built for another version of libjpeg. */
int teachonce_bind(const struct jpeg_library *library, int32_t count_units) {
  struct decoding decoding;
  jpeg = *library;
  counts_units = count_units;

  begin_decoding(&decoding);
  if (setjmp(decoding.on_error)) {
    memset(&jpeg, 0, sizeof jpeg);
    return 0;
  }
  jpeg.create(&decoding.info, JPEG_LIB_VERSION, sizeof decoding.info);
  jpeg.destroy(&decoding.info);
  return ABI_VERSION;
}
