/* A JPEG with restart markers, cut at them: of the segments that a box touches an ordinary JPEG is made. */
#ifndef TEACHONCE_SEGMENTS_H
#define TEACHONCE_SEGMENTS_H

#include <stdint.h>

/* Of this library alone, whatever the process has of these names. */
#ifdef __GNUC__
#pragma GCC visibility push(hidden)
#endif

#define CONTEXT_PX 4 /* around a box that smooth upsampling of color looks at, and to spare */

/* The segments between the markers as a grid over the image. All in pixels but columns, rows and offsets. */
struct segment_grid {
  int width, height;                 /* of the image */
  int segment_width, segment_height; /* of a segment; those at the right and lower edge may be smaller */
  int columns, rows;
  int context_width, context_height; /* pixels around a box that smooth upsampling looks at, and to spare; or 0 */
  int64_t frame_at, data_at; /* where the frame header's size and the coded data begin */
};

/* A rectangle of segments, from column and row up to end_column and end_row. */
struct segment_range {
  int column, row, end_column, end_row;
};

/* 1 where the image can be entered at its markers: baseline, one scan, every row of segments in the same columns. */
int read_segment_grid(const uint8_t *bytes, int64_t num_bytes, struct segment_grid *grid);

/* What is decoded: a JPEG, and where in the image it lies; the image itself, or a part that was cut out of it. */
struct part {
  const uint8_t *bytes;
  int64_t num_bytes;
  int left, top;
  int width, height; /* of the part; 0 until the decoder says them */
};

/* A JPEG of these segments alone, to be freed, and as the part that is decoded; NULL, and the part as it was, where the
 * markers are not in order, or memory ran out. */
uint8_t *cut_segments(const uint8_t *bytes, int64_t num_bytes, const struct segment_grid *grid,
                      const struct segment_range *range, struct part *part);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif

#endif
