/* libjpeg as it was found in Pillow at run time, and the way out of it where an image is not in order. */
#include "decoding.h"

#include <string.h>

#define ABI_VERSION 2

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

/* Take over the library's functions; returns ABI_VERSION, or 0 where it is built for another version of libjpeg. */
int teachonce_bind(const struct jpeg_library *library) {
  struct decoding decoding;
  jpeg = *library;

  begin_decoding(&decoding);
  if (setjmp(decoding.on_error)) {
    memset(&jpeg, 0, sizeof jpeg);
    return 0;
  }
  jpeg.create(&decoding.info, JPEG_LIB_VERSION, sizeof decoding.info);
  jpeg.destroy(&decoding.info);
  return ABI_VERSION;
}
