/* libjpeg as it was found in Pillow at run time, and the way out of it where an image is not in order. */
#include "decoding.h"

#include <stdlib.h>
#include <string.h>

#include "layout.h"

#define NUM_TABLES 4 /* of each kind, in baseline files two */
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
  decoding->is_used = 0;
  decoding->buffer = NULL;
}

/* Of the images before: a file without tables of its own would be decoded with theirs. */
static void forget_tables(struct jpeg_decompress_struct *info) {
  for (int i = 0; i < NUM_TABLES; i++) {
    if (info->quant_tbl_ptrs[i]) memset(info->quant_tbl_ptrs[i]->steps, 0, sizeof info->quant_tbl_ptrs[i]->steps);
    if (info->dc_huff_tbl_ptrs[i]) memset(info->dc_huff_tbl_ptrs[i]->counts, 0, sizeof info->dc_huff_tbl_ptrs[i]->counts);
    if (info->ac_huff_tbl_ptrs[i]) memset(info->ac_huff_tbl_ptrs[i]->counts, 0, sizeof info->ac_huff_tbl_ptrs[i]->counts);
  }
}

static int has_codes(struct jpeg_huffman *const *tables, int number) {
  static const unsigned char none[17];
  return number >= 0 && number < NUM_TABLES && tables[number] && memcmp(tables[number]->counts, none, sizeof none) != 0;
}

static int has_steps(struct jpeg_quantization *const *tables, int number) {
  static const unsigned short none[64];
  return number >= 0 && number < NUM_TABLES && tables[number] && memcmp(tables[number]->steps, none, sizeof none) != 0;
}

static int is_one_scan(const struct jpeg_decompress_struct *info) {
  return !info->progressive_mode && !info->arith_code && info->comps_in_scan == info->num_components;
}

/* Whether an image has but one scan, and brought all tables for it. */
static int has_own_tables(const struct jpeg_decompress_struct *info) {
  if (!is_one_scan(info)) return 0;
  for (int i = 0; i < info->comps_in_scan; i++) {
    const struct jpeg_component *component = info->cur_comp_info[i];
    if (!has_steps(info->quant_tbl_ptrs, component->quant_tbl_no)) return 0;
    if (!has_codes(info->dc_huff_tbl_ptrs, component->dc_tbl_no)) return 0;
    if (!has_codes(info->ac_huff_tbl_ptrs, component->ac_tbl_no)) return 0;
  }
  return 1;
}

static void read_header(struct decoding *decoding, const uint8_t *bytes, int64_t num_bytes) {
  jpeg.mem_src(&decoding->info, bytes, (unsigned long)num_bytes);
  if (jpeg.read_header(&decoding->info, 1) != JPEG_HEADER_OK) leave(&decoding->info);
}

/* A new decoder costs more than a small image: libjpeg-turbo 3.2 asks each what the processor can do, and in a virtual
 * machine every CPUID goes through the host (20 us, where decoding 32 x 32 pixels takes 10). So one decodes many
 * images, those that can owe nothing to the ones before. */
void open_image(struct decoding *decoding, const uint8_t *bytes, int64_t num_bytes) {
  if (decoding->is_used) {
    jpeg.abort(&decoding->info);
    forget_tables(&decoding->info);
    read_header(decoding, bytes, num_bytes);
    if (has_own_tables(&decoding->info)) return;
    end_decoding(decoding);
    begin_decoding(decoding);
  }
  jpeg.create(&decoding->info, JPEG_LIB_VERSION, sizeof decoding->info);
  decoding->is_used = 1;
  read_header(decoding, bytes, num_bytes);
}

void end_decoding(struct decoding *decoding) {
  free(decoding->buffer);
  jpeg.destroy(&decoding->info);
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
  decoding->interval = decoding->mcus_left = info->restart_interval;
  if (!counts_units || decoding->interval < 2 || !is_one_scan(info)) {
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

/* Take over the library's functions, and whether units between restart markers are counted here; returns LAYOUT_VERSION,
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
  return LAYOUT_VERSION;
}
