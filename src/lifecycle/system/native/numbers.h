/* What is done to a wide vector of numbers: exponentials, rounding to bf16 and back, sums. `half`: an array is of bf16, else
   of floats. */

#include <string.h>

#include "vectors.h"

VECTOR(unsigned, WIDTH * 4, 4) wide_unsigneds;
VECTOR(unsigned short, WIDTH * 2, 2) wide_shorts;

#define ALIGNED __attribute__((aligned(64)))

INLINE long whole(long n, long of) { return (n + of - 1) / of * of; }
INLINE long bytes_of(long half) { return half ? 2 : 4; }

NEAREST(nearest, wide, wide_ints)
EXPONENTIAL(portable, wide, wide_ints)

/* exp(x), and numbers as bf16: where there are instructions for the steps, they take a third of the time. */
INLINE wide exponential(wide x) {
#if UNITS
  __m512 low = _mm512_set1_ps(-104.0f), high = _mm512_set1_ps(89.0f); /* beyond them 0 and inf; NaN, second, stays */
  __m512 given = _mm512_min_ps(high, _mm512_max_ps(low, (__m512)x));
  __m512 power = _mm512_roundscale_ps(given * 1.44269504f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return (wide)_mm512_scalef_ps((__m512)portable_near((wide)given, (wide)power), power);
#else
  return portable(x);
#endif
}

INLINE wide_shorts rounded(wide x) {
#if UNITS
  return (wide_shorts)_mm512_cvtneps_pbh((__m512)x);
#else
  return __builtin_convertvector((wide_unsigneds)nearest(x) >> 16, wide_shorts);
#endif
}

/* Two rows as words of bf16, the first in the lower halves. */
INLINE wide_ints side_by_side(wide x, wide y) {
#if UNITS
  __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x), order = (__m512i)(wide_ints){
      0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
      0x180008, 0x190009, 0x1A000A, 0x1B000B, 0x1C000C, 0x1D000D, 0x1E000E, 0x1F000F};
  return (wide_ints)_mm512_permutexvar_epi16(order, both);
#else
  return (nearest(y) & HIGH) | (wide_ints)((wide_unsigneds)nearest(x) >> 16);
#endif
}

INLINE float one(const int half, const void *from, long i) {
  if (!half) return ((const float *)from)[i];
  union {
    unsigned bits;
    float number;
  } made = {(unsigned)((const bf16 *)from)[i] << 16};
  return made.number;
}

INLINE wide widened(const int half, const void *from, long i) {
  if (!half) return *(const wide *)((const float *)from + i);
  wide_shorts upper = *(const wide_shorts *)((const bf16 *)from + i);
#if UNITS
  return (wide)(_mm512_cvtepu16_epi32((__m256i)upper) << 16);
#else
  return (wide)(__builtin_convertvector(upper, wide_unsigneds) << 16);
#endif
}

/* Of the n numbers that are left, or of a whole vector where n is larger; zeros behind them. */
INLINE wide widened_first(const int half, const void *from, long i, long n) {
  if (n >= WIDTH) return widened(half, from, i);
  float rest[WIDTH] = {0};
  memcpy(rest, (const char *)from + i * bytes_of(half), n * bytes_of(half));
  return widened(half, rest, 0);
}

INLINE void store(const int half, void *to, long i, wide x) {
  if (half)
    *(wide_shorts *)((bf16 *)to + i) = rounded(x);
  else
    *(wide *)((float *)to + i) = x;
}

/* Of x the first n numbers, or all where n is larger: arrays of a call need not have whole vectors. */
INLINE void store_first(const int half, void *to, long i, wide x, long n) {
  if (n >= WIDTH) {
    store(half, to, i, x);
    return;
  }
  float made[WIDTH];
  store(half, made, 0, x);
  memcpy((char *)to + i * bytes_of(half), made, n * bytes_of(half));
}

INLINE wide larger(wide x, wide y) {
#if UNITS
  return (wide)_mm512_max_ps((__m512)x, (__m512)y);
#else
  wide_ints less = x < y;
  return (wide)(((wide_ints)y & less) | ((wide_ints)x & ~less));
#endif
}

#if WIDTH == 16
static const wide_ints LANES = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
#else
static const wide_ints LANES = {1, 2, 4, 8, 16, 32, 64, 128};
#endif

/* x where the bit of its number is 1. */
INLINE wide shown(wide x, unsigned long bits, float otherwise) {
#if UNITS
  return (wide)_mm512_mask_mov_ps(_mm512_set1_ps(otherwise), (__mmask16)bits, (__m512)x);
#else
  wide_ints sees = ((int)bits & LANES) != 0;
  wide hidden = (wide){0} + otherwise;
  return (wide)(((wide_ints)x & sees) | ((wide_ints)hidden & ~sees));
#endif
}

INLINE float sum_of(wide x) {
  float total = 0;
  for (int i = 0; i < WIDTH; i++) total += x[i];
  return total;
}

INLINE float largest_of(wide x) {
  float most = x[0];
  for (int i = 1; i < WIDTH; i++) most = x[i] > most ? x[i] : most;
  return most;
}

/* 1 - 2 / (1 + exp(2 x)); for |x| < 0.625, where that loses the digits of x, a polynomial in x x (Cephes). */
INLINE wide hyperbolic_tangent(wide x) {
  wide square = x * x, far = 1 - 2 / (1 + exponential(2 * x));
  wide near = square * -5.70498872745e-3f + 2.06390887954e-2f;
  near = near * square - 5.37397155531e-2f;
  near = near * square + 1.33314422036e-1f;
  near = near * square - 3.33332819422e-1f;
  near = near * square * x + x;
#if UNITS
  __mmask16 small = _mm512_cmp_ps_mask((__m512)square, _mm512_set1_ps(0.390625f), _CMP_LT_OQ);
  return (wide)_mm512_mask_mov_ps((__m512)far, small, (__m512)near);
#else
  wide_ints small = square < 0.390625f; /* not where x is no number */
  return (wide)(((wide_ints)near & small) | ((wide_ints)far & ~small));
#endif
}

/* The inner product of n numbers of two arrays. */
INLINE float dot(const int half, const void *x, const void *y, long from, long n) {
  wide total = {0};
  long i = 0;
  for (; i + WIDTH <= n; i += WIDTH) total += widened(half, x, from + i) * widened(half, y, from + i);
  float sum = sum_of(total);
  for (; i < n; i++) sum += one(half, x, from + i) * one(half, y, from + i);
  return sum;
}
