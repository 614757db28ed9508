/* Where the image, the label and the logits lie in serialized tf.train.Examples.
 *
 * example.py reads any layout that protobuf allows; this reads the one that every known writer produces (each feature
 * once, key before value, one value or one packed list) some twenty times as fast, which matters for small images.
 * Anything else, and anything out of order, gets the status LEFT_TO_PYTHON. tests/records/tfrecord/test_tf_example.py holds both together.
 */
#include <stdint.h>
#include <string.h>

#include "layout.h"

enum { DONE = 0, LEFT_TO_PYTHON = 1 };

/* Offsets from the payload's beginning; start = end = 0 for what is not there. See kernel.py. */
struct found {
  int64_t image_start, image_end;
  int64_t name_start, name_end;
  int64_t logits_start, logits_end;
  int64_t body_start, body_end; /* the entries of the map */
  int64_t splice_start, splice_end; /* what a new entry image/logit takes the place of, in a sorted map */
  int64_t label, encoded_xxh3, original_key;
  int32_t has_label, has_encoded_xxh3, has_original_key, status;
};
_Static_assert(sizeof(struct found) == 120, "as FOUND of Python");

struct span {
  const uint8_t *at, *end;
};

static int read_varint(struct span *span, uint64_t *value) {
  *value = 0;
  for (int shift = 0; shift < 64 && span->at < span->end; shift += 7) {
    const uint8_t byte = *span->at++;
    *value |= (uint64_t)(byte & 0x7F) << shift;
    if (byte < 0x80) return 1;
  }
  return 0;
}

/* The next field, which must have this tag (number and wire type "length") and lie in the span. */
static int read_field(struct span *span, uint8_t tag, struct span *value) {
  uint64_t length;
  if (span->at >= span->end || *span->at != tag) return 0;
  span->at++;
  if (!read_varint(span, &length) || length > (uint64_t)(span->end - span->at)) return 0;
  value->at = span->at;
  value->end = span->at += length;
  return 1;
}

/* A span that is one field and nothing else. */
static int read_only_field(struct span span, uint8_t tag, struct span *value) {
  return read_field(&span, tag, value) && span.at == span.end;
}

static int comes_after(struct span key, const char *name) {
  const size_t size = key.end - key.at, length = strlen(name);
  const int order = memcmp(key.at, name, size < length ? size : length);
  return order > 0 || (order == 0 && size > length);
}

static int is_named(struct span key, const char *name) {
  return (size_t)(key.end - key.at) == strlen(name) && memcmp(key.at, name, strlen(name)) == 0;
}

/* Feature { bytes_list { value } } with one value. */
static int read_bytes(struct span feature, const uint8_t *base, int64_t *start, int64_t *end) {
  struct span list, value;
  if (*end != 0) return 0; /* twice */
  if (!read_only_field(feature, 0x0A, &list) || !read_only_field(list, 0x0A, &value)) return 0;
  *start = value.at - base;
  *end = value.end - base;
  return *end > *start;
}

/* Feature { int64_list { value } } with one value, packed or not. */
static int read_integer(struct span feature, int64_t *integer, int32_t *has_integer) {
  struct span list, value;
  uint64_t number;
  if (*has_integer || !read_only_field(feature, 0x1A, &list)) return 0;
  if (read_only_field(list, 0x0A, &value)) {
    if (!read_varint(&value, &number) || value.at != value.end) return 0;
  } else if (list.at < list.end && *list.at == 0x08) {
    list.at++;
    if (!read_varint(&list, &number) || list.at != list.end) return 0;
  } else {
    return 0;
  }
  *integer = (int64_t)number;
  *has_integer = 1;
  return 1;
}

static int find(const uint8_t *payload, int64_t num_bytes, struct found *found) {
  struct span example = {payload, payload + num_bytes}, features;
  if (!read_only_field(example, 0x0A, &features)) return 0;
  found->body_start = features.at - payload;
  found->body_end = found->splice_start = found->splice_end = features.end - payload;
  while (features.at < features.end) {
    struct span entry, key, feature, list, value;
    const int64_t begin = features.at - payload;
    if (!read_field(&features, 0x0A, &entry) || !read_field(&entry, 0x0A, &key)) return 0;
    if (!read_only_field(entry, 0x12, &feature)) return 0;
    if (comes_after(key, "image/logit") && found->splice_start == found->body_end)
      found->splice_start = found->splice_end = begin;
    if (is_named(key, "image/encoded")) {
      if (!read_bytes(feature, payload, &found->image_start, &found->image_end)) return 0;
    } else if (is_named(key, "image/filename")) {
      if (!read_bytes(feature, payload, &found->name_start, &found->name_end)) return 0;
    } else if (is_named(key, "image/class/label")) {
      if (!read_integer(feature, &found->label, &found->has_label)) return 0;
    } else if (is_named(key, "image/encoded_xxh3")) {
      if (!read_integer(feature, &found->encoded_xxh3, &found->has_encoded_xxh3)) return 0;
    } else if (is_named(key, "image/original_key")) {
      if (!read_integer(feature, &found->original_key, &found->has_original_key)) return 0;
    } else if (is_named(key, "image/logit")) {
      if (found->logits_end != 0) return 0;
      if (!read_only_field(feature, 0x12, &list) || !read_only_field(list, 0x0A, &value)) return 0;
      if ((value.end - value.at) % 4 != 0 || value.end == value.at) return 0;
      if (found->splice_start != found->body_end) return 0; /* not where a sorted map has it */
      found->logits_start = value.at - payload;
      found->logits_end = value.end - payload;
      found->splice_start = begin;
      found->splice_end = features.at - payload;
    }
  }
  return found->image_end != 0 && found->has_label;
}

void teachonce_find(const uint8_t *const *payloads, const int64_t *num_bytes, int64_t count, struct found *found) {
  for (int64_t i = 0; i < count; i++) {
    memset(found + i, 0, sizeof *found);
    found[i].status = find(payloads[i], num_bytes[i], found + i) ? DONE : LEFT_TO_PYTHON;
  }
}
