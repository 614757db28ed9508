/* Frames of TFRecord files, read by position and checked, many in one call: for small images the calls from Python, and
 * the handing over of its lock at each, take longer than what they do.
 *
 * Only good news is final here. A frame that could not be read in full is UNREAD, one whose length or checksums do not
 * hold, or that is not checked here, UNCHECKED: batch_frames.py reads and checks these itself, and says what is wrong.
 */
#include <stdint.h>
#include <string.h>

#include "layout.h"

#ifndef _WIN32
#include <unistd.h>
#endif
#if defined(__x86_64__) && defined(__GNUC__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

#define HEADER_BYTES 12
#define FRAME_BYTES 16
/* Longer frames are left to the crc32c package, which checks several parts of one at the same time. */
#define MOST_CHECKED_BYTES (16 << 10)

enum { GOOD = 0, UNCHECKED = 1, UNREAD = 2 };

/* Where a frame is in a file, by the index, and where it goes. See batch_frames.py. */
struct frame {
  int64_t descriptor; /* of an open file; below 0: there is none, it is for Python to read */
  int64_t offset, num_bytes;
  uint8_t *bytes;
};
_Static_assert(sizeof(struct frame) == 32, "as FRAME of Python");

/* Asked before anything else of this library is called. */
int64_t teachonce_layout(void) { return LAYOUT_VERSION; }

#if defined(__x86_64__) && defined(__GNUC__)
static int can_check(void) { return __builtin_cpu_supports("sse4.2"); }

__attribute__((target("sse4.2"))) static uint32_t crc32c(const uint8_t *bytes, int64_t num_bytes) {
  uint64_t crc = 0xFFFFFFFF, word;
  for (; num_bytes >= 8; bytes += 8, num_bytes -= 8) {
    memcpy(&word, bytes, 8);
    crc = _mm_crc32_u64(crc, word);
  }
  for (; num_bytes > 0; bytes++, num_bytes--) crc = _mm_crc32_u8((uint32_t)crc, *bytes);
  return ~(uint32_t)crc;
}
#elif defined(__ARM_FEATURE_CRC32)
static int can_check(void) { return 1; }

static uint32_t crc32c(const uint8_t *bytes, int64_t num_bytes) {
  uint32_t crc = 0xFFFFFFFF;
  uint64_t word;
  for (; num_bytes >= 8; bytes += 8, num_bytes -= 8) {
    memcpy(&word, bytes, 8);
    crc = __crc32cd(crc, word);
  }
  for (; num_bytes > 0; bytes++, num_bytes--) crc = __crc32cb(crc, *bytes);
  return ~crc;
}
#else
static int can_check(void) { return 0; }

static uint32_t crc32c(const uint8_t *bytes, int64_t num_bytes) {
  (void)bytes, (void)num_bytes;
  return 0;
}
#endif

static int read_frame(const struct frame *frame) {
#ifdef _WIN32
  return 0;
#else
  for (int64_t done = 0; done < frame->num_bytes;) {
    const ssize_t count =
        pread((int)frame->descriptor, frame->bytes + done, (size_t)(frame->num_bytes - done), frame->offset + done);
    if (count <= 0) return 0; /* a signal too: Python tries again */
    done += count;
  }
  return 1;
#endif
}

static int holds(const uint8_t *bytes, int64_t num_bytes, const uint8_t *stored) {
  const uint32_t crc = crc32c(bytes, num_bytes);
  const uint32_t masked = ((crc >> 15) | (crc << 17)) + 0xA282EAD8;
  const uint8_t expected[4] = {masked & 0xFF, masked >> 8 & 0xFF, masked >> 16 & 0xFF, masked >> 24};
  return memcmp(expected, stored, 4) == 0;
}

static int is_good(const uint8_t *bytes, int64_t num_bytes) {
  uint64_t length = 0;
  if (num_bytes < FRAME_BYTES || num_bytes > MOST_CHECKED_BYTES) return 0;
  for (int i = 0; i < 8; i++) length |= (uint64_t)bytes[i] << 8 * i;
  return length == (uint64_t)(num_bytes - FRAME_BYTES) && holds(bytes, 8, bytes + 8) &&
         holds(bytes + HEADER_BYTES, num_bytes - FRAME_BYTES, bytes + num_bytes - 4);
}

void teachonce_read_frames(const struct frame *frames, int64_t count, int32_t *statuses) {
  const int checks = can_check();
  for (int64_t i = 0; i < count; i++) {
    if (frames[i].descriptor < 0 || !read_frame(frames + i))
      statuses[i] = UNREAD;
    else
      statuses[i] = checks && is_good(frames[i].bytes, frames[i].num_bytes) ? GOOD : UNCHECKED;
  }
}
