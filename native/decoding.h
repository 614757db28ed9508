/* What every use of libjpeg here shares: the library that was bound, and how its errors and warnings are caught. */
#ifndef TEACHONCE_DECODING_H
#define TEACHONCE_DECODING_H

#include <setjmp.h>
#include <stdint.h>

#include "jpeg62.h"

/* Of this library alone, whatever the process has of these names. */
#ifdef __GNUC__
#pragma GCC visibility push(hidden)
#endif

#define MAX_SCANS 100 /* of pixels/decode.py, where they are counted exactly */

/* The functions of Pillow's libjpeg, once teachonce_bind() has taken them; all null before. */
extern struct jpeg_library jpeg;

/* A decoder whose errors and warnings end at on_error. The buffer is freed by whoever owns the decoding: what is
 * allocated between setjmp() and an error cannot be kept in a local variable. */
struct decoding {
  struct jpeg_decompress_struct info;
  struct jpeg_error_mgr errors;
  jmp_buf on_error;
  int is_used; /* by an image, or several one after another */
  uint8_t *buffer;
  int (*decode_mcu)(j_decompress_ptr, void *blocks);
  unsigned interval, mcus_left; /* between two restart markers, and until the next */
};

void begin_decoding(struct decoding *decoding);
/* Read the header of the first image, or of the next one; ends at on_error. After an error there is no next one. */
void open_image(struct decoding *decoding, const uint8_t *bytes, int64_t num_bytes);
void end_decoding(struct decoding *decoding);
/* jpeg_start_decompress(), and what makes restart markers cheap where it can be. */
void start_decoding(struct decoding *decoding);
/* Go to on_error. */
void leave(j_decompress_ptr info);
/* Whether bytes end with an end-of-image marker: what is truncated does not. */
int ends_in_order(const uint8_t *bytes, int64_t num_bytes);
int has_many_scans(const struct jpeg_decompress_struct *info, const uint8_t *bytes, int64_t num_bytes);
/* Whether pixels are smoothed across blocks, because scans of a progressive image are missing. */
int is_smoothed(const struct jpeg_decompress_struct *info);
/* Whether an image is one that is decoded here, once its header is read: 8 bits, grayscale or color. */
int is_plain(const struct jpeg_decompress_struct *info);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif

#endif
