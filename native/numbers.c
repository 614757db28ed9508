/* Decimal numbers in a text, with a comma between them.
 *
 * Only what is exact by one multiplication or division: up to 2^53 without its point, times a power of ten that a double
 * holds (Clinger 1990, "How to read floating point numbers accurately"): every float32 in its shortest form. Any other
 * number, and whatever is none, is left to the caller's general reader. tests/interop/test_csv_files.py holds both together.
 */
#include <stdint.h>

enum { MAX_DIGITS = 19, MAX_EXPONENT = 22 };

static const double POWERS[MAX_EXPONENT + 1] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

static const char *read_digits(const char *at, const char *end, uint64_t *value, int *num_digits) {
  for (*num_digits = 0; at < end && *at >= '0' && *at <= '9' && *num_digits < MAX_DIGITS; at++, ++*num_digits)
    *value = *value * 10 + (uint64_t)(*at - '0');
  return at;
}

/* Behind the number that begins at ``at``; 0 where it is left to the caller. */
static const char *read_number(const char *at, const char *end, double *number) {
  uint64_t digits = 0, exponent_digits = 0;
  int num_whole, num_fraction = 0, num_exponent = 0, exponent = 0;
  const int is_negative = at < end && *at == '-';
  at = read_digits(at + is_negative, end, &digits, &num_whole);
  if (num_whole == 0) return 0;
  if (at < end && *at == '.') {
    at = read_digits(at + 1, end, &digits, &num_fraction);
    if (num_fraction == 0 || num_whole + num_fraction > MAX_DIGITS) return 0;
  }
  if (at < end && (*at == 'e' || *at == 'E')) {
    at++;
    const int is_less = at < end && *at == '-';
    at = read_digits(at + (at < end && (*at == '-' || *at == '+')), end, &exponent_digits, &num_exponent);
    if (num_exponent == 0 || num_exponent > 3) return 0;
    exponent = is_less ? -(int)exponent_digits : (int)exponent_digits;
  }
  /* 900719940000000.0, as a float32 may be written */
  for (; num_fraction > 0 && digits > (uint64_t)1 << 53 && digits % 10 == 0; digits /= 10) num_fraction--;
  exponent -= num_fraction;
  if (digits > (uint64_t)1 << 53 || exponent < -MAX_EXPONENT || exponent > MAX_EXPONENT) return 0;
  const double value = exponent < 0 ? (double)digits / POWERS[-exponent] : (double)digits * POWERS[exponent];
  *number = is_negative ? -value : value;
  return at;
}

/* How many there are, all of the text and at most ``capacity``; -1 where one is left to the caller. */
int64_t teachonce_read_numbers(const char *text, int64_t num_bytes, double *numbers, int64_t capacity) {
  const char *end = text + num_bytes;
  for (int64_t count = 0; count < capacity;) {
    text = read_number(text, end, numbers + count++);
    if (text == end) return count;
    if (text == 0 || *text++ != ',') return -1;
  }
  return -1;
}
