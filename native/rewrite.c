/* JPEGs rewritten without loss, so that they can be entered in their middle (see segments.c).
 *
 * The coefficients are read and written again, as jpegtran does it: nothing is decoded to pixels and nothing is
 * quantized again. The result is a baseline JPEG of one scan with restart markers and Huffman tables of its own; every
 * other marker segment (JFIF, EXIF, color profiles, comments) is copied as it is. It is then read back, and what
 * decides about pixels is compared: coefficients, quantization, sizes, sampling, color space.
 *
 * What is not in order is left alone: an image that is no 8-bit grayscale or color JPEG, that makes the library warn,
 * that has bytes behind its end, that lacks scans, or that would not fit into the room given.
 */
#include <stdlib.h>
#include <string.h>

#include "decoding.h"

#define FIRST_APPLICATION 0xE0
#define COMMENT 0xFE
#define MAX_MARKER_BYTES 0xFFFF
#define LEAST_INTERVAL 4 /* MCUs: shorter segments cost more bytes, longer ones leave less out */
#define MOST_INTERVAL 8

struct rewriting {
  struct decoding source, result; /* errors of all three end at the source's on_error */
  struct jpeg_compress_struct out;
  struct jpeg_destination_mgr destination;
  uint8_t *bytes;
  int64_t capacity;
};

static void begin_output(j_compress_ptr out) {
  struct rewriting *rewriting = (struct rewriting *)out->client_data;
  out->dest->next_output_byte = rewriting->bytes;
  out->dest->free_in_buffer = rewriting->capacity;
}

static int refuse_more(j_compress_ptr out) {
  leave((j_decompress_ptr)out);
  return 0;
}

static void end_output(j_compress_ptr out) { (void)out; }

static void open_jpeg(struct decoding *decoding, const uint8_t *bytes, int64_t num_bytes, int64_t max_pixels) {
  struct jpeg_decompress_struct *info = &decoding->info;
  jpeg.create(info, JPEG_LIB_VERSION, sizeof *info);
  jpeg.mem_src(info, bytes, (unsigned long)num_bytes);
  for (int i = 0; i < 16; i++) jpeg.save_markers(info, FIRST_APPLICATION + i, MAX_MARKER_BYTES);
  jpeg.save_markers(info, COMMENT, MAX_MARKER_BYTES);
  if (jpeg.read_header(info, 1) != JPEG_HEADER_OK) leave(info);
  if ((int64_t)info->image_width * info->image_height > max_pixels) leave(info);
  if (!is_plain(info) || has_many_scans(info, bytes, num_bytes)) leave(info);
}

/* MCUs between two markers: the largest divisor of a row's from 8 down to 4, else all of a row's. */
static unsigned choose_interval(const struct jpeg_decompress_struct *info, int is_by_row) {
  const unsigned mcu_width = 8 * (info->num_components == 1 ? 1 : info->max_h_samp_factor);
  const unsigned mcus_across = (info->image_width + mcu_width - 1) / mcu_width;
  for (unsigned interval = MOST_INTERVAL; interval >= LEAST_INTERVAL && !is_by_row; interval--)
    if (mcus_across % interval == 0) return interval;
  return mcus_across;
}

static int64_t write_jpeg(struct rewriting *rewriting, void **coefficients, unsigned interval) {
  struct jpeg_compress_struct *out = &rewriting->out;
  const struct jpeg_decompress_struct *source = &rewriting->source.info;
  jpeg.create_compress(out, JPEG_LIB_VERSION, sizeof *out);
  out->dest = &rewriting->destination;
  jpeg.copy_parameters(&rewriting->source.info, out);
  out->optimize_coding = 1;
  out->restart_interval = interval;
  out->write_JFIF_header = out->write_Adobe_marker = 0; /* copied with the others, where they are there */
  jpeg.write_coefficients(out, coefficients);
  for (const struct jpeg_marker *marker = source->marker_list; marker; marker = marker->next)
    jpeg.write_marker(out, marker->marker, marker->data, marker->data_length);
  jpeg.finish_compress(out);
  return out->dest->next_output_byte - rewriting->bytes;
}

static int has_same_markers(const struct jpeg_marker *a, const struct jpeg_marker *b) {
  for (; a && b; a = a->next, b = b->next)
    if (a->marker != b->marker || a->data_length != b->data_length || memcmp(a->data, b->data, a->data_length) != 0)
      return 0;
  return !a && !b;
}

static int is_same_component(struct jpeg_decompress_struct *source, void *source_blocks,
                             struct jpeg_decompress_struct *result, void *result_blocks, int index) {
  const struct jpeg_component *a = source->comp_info + index, *b = result->comp_info + index;
  if (a->component_id != b->component_id || a->h_samp_factor != b->h_samp_factor) return 0;
  if (a->v_samp_factor != b->v_samp_factor || a->width_in_blocks != b->width_in_blocks) return 0;
  if (a->height_in_blocks != b->height_in_blocks || !a->quant_table || !b->quant_table) return 0;
  if (memcmp(a->quant_table->steps, b->quant_table->steps, sizeof a->quant_table->steps) != 0) return 0;
  for (unsigned y = 0; y < a->height_in_blocks; y++) {
    jpeg_block **own = source->mem->access_virt_barray(source, source_blocks, y, 1, 0);
    jpeg_block **other = result->mem->access_virt_barray(result, result_blocks, y, 1, 0);
    if (memcmp(*own, *other, sizeof(jpeg_block) * a->width_in_blocks) != 0) return 0;
  }
  return 1;
}

static int is_same_image(struct jpeg_decompress_struct *source, void **source_blocks,
                         struct jpeg_decompress_struct *result, void **result_blocks) {
  if (source->image_width != result->image_width || source->image_height != result->image_height) return 0;
  if (source->num_components != result->num_components) return 0;
  if (source->jpeg_color_space != result->jpeg_color_space) return 0;
  if (!has_same_markers(source->marker_list, result->marker_list)) return 0;
  for (int i = 0; i < source->num_components; i++)
    if (!is_same_component(source, source_blocks[i], result, result_blocks[i], i)) return 0;
  return 1;
}

/* setjmp is called below the frame that owns the rewriting, as in views.c. */
static int64_t try_rewrite(struct rewriting *rewriting, const uint8_t *bytes, int64_t num_bytes, int is_by_row,
                           int64_t max_pixels) {
  if (setjmp(rewriting->source.on_error)) return 0;
  struct jpeg_decompress_struct *source = &rewriting->source.info, *result = &rewriting->result.info;
  open_jpeg(&rewriting->source, bytes, num_bytes, max_pixels);
  void **source_blocks = jpeg.read_coefficients(source);
  if (is_smoothed(source) || source->src->bytes_in_buffer) leave(source);
  const unsigned interval = choose_interval(source, is_by_row);
  const int64_t written = write_jpeg(rewriting, source_blocks, interval);
  open_jpeg(&rewriting->result, rewriting->bytes, written, max_pixels);
  void **result_blocks = jpeg.read_coefficients(result);
  if (result->restart_interval != interval || result->progressive_mode) leave(source);
  if (!is_same_image(source, source_blocks, result, result_blocks)) leave(source);
  return written;
}

/* Write the rewritten JPEG into room for capacity bytes; returns its size, 0 where the image is left alone. One marker
 * a row of MCUs with is_by_row, else also within the rows. */
int64_t teachonce_rewrite(const uint8_t *bytes, int64_t num_bytes, int32_t is_by_row, int64_t max_pixels, uint8_t *out,
                          int64_t capacity) {
  if (!ends_in_order(bytes, num_bytes)) return 0;
  struct rewriting *rewriting = calloc(1, sizeof *rewriting);
  if (!rewriting) return 0;
  begin_decoding(&rewriting->source);
  begin_decoding(&rewriting->result);
  rewriting->result.info.client_data = &rewriting->source;
  rewriting->out.err = rewriting->source.info.err;
  rewriting->out.client_data = rewriting; /* begins with the source, where leave() finds the way out */
  rewriting->destination.init_destination = begin_output;
  rewriting->destination.empty_output_buffer = refuse_more;
  rewriting->destination.term_destination = end_output;
  rewriting->bytes = out;
  rewriting->capacity = capacity;
  const int64_t written = try_rewrite(rewriting, bytes, num_bytes, is_by_row, max_pixels);
  end_decoding(&rewriting->source);
  end_decoding(&rewriting->result);
  jpeg.destroy_compress(&rewriting->out);
  free(rewriting);
  return written;
}
