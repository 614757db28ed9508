/* The part of libjpeg's interface, version 62, that is used here; frozen since 1998, and what libjpeg-turbo keeps.
 *
 * Written out here so that building needs a C compiler and nothing else: the library itself is the one that Pillow
 * brings, found at run time. jpeg_CreateDecompress() and jpeg_CreateCompress() compare version and size of their
 * struct before anything else is done, so a library built for another version (70, 80) is noticed and not used. Names
 * and order are the library's own; what is never touched is kept as void pointers and numbers of the right size.
 */
#ifndef TEACHONCE_JPEG62_H
#define TEACHONCE_JPEG62_H

#include <stddef.h>

#define JPEG_LIB_VERSION 62
#define JPEG_HEADER_OK 1

enum { JCS_GRAYSCALE = 1, JCS_RGB = 2, JCS_YCbCr = 3, JCS_EXT_RGBX = 7 };

typedef struct jpeg_decompress_struct *j_decompress_ptr;
typedef struct jpeg_compress_struct *j_compress_ptr;
typedef short jpeg_block[64]; /* coefficients */

struct jpeg_error_mgr {
  void (*error_exit)(j_decompress_ptr);
  void (*emit_message)(j_decompress_ptr, int level);
  void (*output_message)(j_decompress_ptr);
  void (*format_message)(j_decompress_ptr, char *);
  void (*reset_error_mgr)(j_decompress_ptr);
  int msg_code;
  union {
    int i[8];
    char s[80];
  } msg_parm;
  int trace_level;
  long num_warnings;
  const char *const *jpeg_message_table;
  int last_jpeg_message;
  const char *const *addon_message_table;
  int first_addon_message;
  int last_addon_message;
};

struct jpeg_memory_mgr {
  void *unused[7]; /* functions that allocate */
  void *access_virt_sarray;
  jpeg_block **(*access_virt_barray)(void *, void *array, unsigned first_row, unsigned num_rows, int is_writable);
  void *unused_too[2];
  long max_memory_to_use, max_alloc_chunk;
};

struct jpeg_quantization {
  unsigned short steps[64];
  int sent_table;
};

struct jpeg_huffman {
  unsigned char counts[17], symbols[256];
  int sent_table;
};

struct jpeg_component {
  int component_id, component_index, h_samp_factor, v_samp_factor, quant_tbl_no;
  int dc_tbl_no, ac_tbl_no;
  unsigned width_in_blocks, height_in_blocks;
  int DCT_scaled_size;
  unsigned downsampled_width, downsampled_height;
  int component_needed;
  int MCU_width, MCU_height, MCU_blocks, MCU_sample_width, last_col_width, last_row_height;
  struct jpeg_quantization *quant_table; /* as it was when the first scan of the component began; NULL without one */
  void *dct_table;
};

struct jpeg_marker {
  struct jpeg_marker *next;
  unsigned char marker;
  unsigned original_length, data_length;
  unsigned char *data;
};

struct jpeg_source_mgr {
  const unsigned char *next_input_byte;
  size_t bytes_in_buffer;
  void *functions[5];
};

struct jpeg_destination_mgr {
  unsigned char *next_output_byte;
  size_t free_in_buffer;
  void (*init_destination)(j_compress_ptr);
  int (*empty_output_buffer)(j_compress_ptr);
  void (*term_destination)(j_compress_ptr);
};

/* Not of the interface, but of jpegint.h: how it begins. */
struct jpeg_entropy_decoder {
  void (*start_pass)(j_decompress_ptr);
  int (*decode_mcu)(j_decompress_ptr, void *blocks);
};

struct jpeg_decompress_struct {
  struct jpeg_error_mgr *err;
  struct jpeg_memory_mgr *mem;
  void *progress, *client_data;
  int is_decompressor, global_state;

  struct jpeg_source_mgr *src;
  unsigned image_width, image_height;
  int num_components, jpeg_color_space;

  int out_color_space;
  unsigned scale_num, scale_denom;
  double output_gamma;
  int buffered_image, raw_data_out;
  int dct_method, do_fancy_upsampling, do_block_smoothing;
  int quantize_colors, dither_mode, two_pass_quantize, desired_number_of_colors;
  int enable_1pass_quant, enable_external_quant, enable_2pass_quant;

  unsigned output_width, output_height;
  int out_color_components, output_components, rec_outbuf_height;
  int actual_number_of_colors;
  void *colormap;
  unsigned output_scanline;
  int input_scan_number;
  unsigned input_iMCU_row;
  int output_scan_number;
  unsigned output_iMCU_row;
  int (*coef_bits)[64]; /* of each component, how exactly each coefficient is known: 0 is exactly */

  struct jpeg_quantization *quant_tbl_ptrs[4];
  struct jpeg_huffman *dc_huff_tbl_ptrs[4], *ac_huff_tbl_ptrs[4];
  int data_precision;
  struct jpeg_component *comp_info;
  int progressive_mode, arith_code;
  unsigned char arith_dc_L[16], arith_dc_U[16], arith_ac_K[16];
  unsigned restart_interval;
  int saw_JFIF_marker;
  unsigned char JFIF_major_version, JFIF_minor_version, density_unit;
  unsigned short X_density, Y_density;
  int saw_Adobe_marker;
  unsigned char Adobe_transform;
  int CCIR601_sampling;
  struct jpeg_marker *marker_list;
  int max_h_samp_factor, max_v_samp_factor, min_DCT_scaled_size;
  unsigned total_iMCU_rows;
  void *sample_range_limit;
  int comps_in_scan;
  struct jpeg_component *cur_comp_info[4];
  unsigned MCUs_per_row, MCU_rows_in_scan;
  int blocks_in_MCU, MCU_membership[10];
  int Ss, Se, Ah, Al;
  int unread_marker;
  void *modules[6];
  struct jpeg_entropy_decoder *entropy;
  void *more_modules[4];
};

struct jpeg_compress_struct {
  struct jpeg_error_mgr *err;
  struct jpeg_memory_mgr *mem;
  void *progress, *client_data;
  int is_decompressor, global_state;

  struct jpeg_destination_mgr *dest;
  unsigned image_width, image_height;
  int input_components, in_color_space;
  double input_gamma;
  int data_precision, num_components, jpeg_color_space;
  struct jpeg_component *comp_info;
  void *quant_tbl_ptrs[4], *dc_huff_tbl_ptrs[4], *ac_huff_tbl_ptrs[4];
  unsigned char arith_dc_L[16], arith_dc_U[16], arith_ac_K[16];
  int num_scans;
  const void *scan_info;
  int raw_data_in, arith_code, optimize_coding, CCIR601_sampling, smoothing_factor, dct_method;
  unsigned restart_interval;
  int restart_in_rows;
  int write_JFIF_header;
  unsigned char JFIF_major_version, JFIF_minor_version, density_unit;
  unsigned short X_density, Y_density;
  int write_Adobe_marker;
  unsigned next_scanline;
  int progressive_mode, max_h_samp_factor, max_v_samp_factor;
  unsigned total_iMCU_rows;
  int comps_in_scan;
  void *cur_comp_info[4];
  unsigned MCUs_per_row, MCU_rows_in_scan;
  int blocks_in_MCU, MCU_membership[10];
  int Ss, Se, Ah, Al;
  void *modules[9];
  void *script_space;
  int script_space_size;
};

/* The functions of the library, in the order in which teachonce_bind() takes them. */
struct jpeg_library {
  struct jpeg_error_mgr *(*std_error)(struct jpeg_error_mgr *);
  void (*create)(j_decompress_ptr, int version, size_t struct_bytes);
  void (*mem_src)(j_decompress_ptr, const unsigned char *, unsigned long);
  int (*read_header)(j_decompress_ptr, int require_image);
  int (*start)(j_decompress_ptr);
  void (*crop_scanline)(j_decompress_ptr, unsigned *left, unsigned *width);
  unsigned (*skip_scanlines)(j_decompress_ptr, unsigned count);
  unsigned (*read_scanlines)(j_decompress_ptr, unsigned char **rows, unsigned max_rows);
  void (*abort)(j_decompress_ptr);
  void (*destroy)(j_decompress_ptr);
  void (*save_markers)(j_decompress_ptr, int marker, unsigned max_bytes);
  void **(*read_coefficients)(j_decompress_ptr);
  void (*create_compress)(j_compress_ptr, int version, size_t struct_bytes);
  void (*copy_parameters)(j_decompress_ptr, j_compress_ptr);
  void (*write_coefficients)(j_compress_ptr, void **arrays);
  void (*write_marker)(j_compress_ptr, int marker, const unsigned char *data, unsigned num_bytes);
  void (*finish_compress)(j_compress_ptr);
  void (*destroy_compress)(j_compress_ptr);
};

#endif
