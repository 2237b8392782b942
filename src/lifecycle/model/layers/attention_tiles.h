/* Numbers, products and packed matrices of packed_attention.c, which says what is what. */

#include <stdlib.h>
#include <string.h>

#include "vectors.h"

VECTOR(unsigned, WIDTH * 4, 4) wide_unsigneds;
VECTOR(unsigned short, WIDTH * 2, 2) wide_shorts;

#define ALIGNED __attribute__((aligned(64)))

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
  return (wide)(__builtin_convertvector(*(const wide_shorts *)((const bf16 *)from + i), wide_unsigneds) << 16);
}

INLINE void store(const int half, void *to, long i, wide x) {
  if (half)
    *(wide_shorts *)((bf16 *)to + i) = rounded(x);
  else
    *(wide *)((float *)to + i) = x;
}

INLINE wide larger(wide x, wide y) {
#if UNITS
  return (wide)_mm512_max_ps((__m512)x, (__m512)y);
#else
  wide_ints less = x < y;
  return (wide)(((wide_ints)y & less) | ((wide_ints)x & ~less));
#endif
}

INLINE float sum_of(wide x) {
  float total = 0;
  for (int i = 0; i < WIDTH; i++) total += x[i];
  return total;
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

/* total + x y; of bf16 of each word both numbers, the upper first. */
INLINE wide plus_product(const int half, wide total, wide_ints x, wide_ints y) {
  if (!half) return total + (wide)x * (wide)y;
#if UNITS
  return (wide)_mm512_dpbf16_ps((__m512)total, (__m512bh)x, (__m512bh)y);
#else
  total += (wide)(x & HIGH) * (wide)(y & HIGH);
  return total + (wide)(x << 16) * (wide)(y << 16);
#endif
}

enum { TILE = 64, COLUMNS = 2 * WIDTH, ROWS = WIDTH == 16 ? 8 : 4 };
#if WIDTH == 16
static const wide_ints LANES = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
#else
static const wide_ints LANES = {1, 2, 4, 8, 16, 32, 64, 128};
#endif
static const float HIDDEN = -1e30f; /* finite: what is seen of a tile later wipes it out, without NaN */

/* x where the bit of its number is 1. */
INLINE wide shown(wide x, unsigned long bits) {
#if UNITS
  return (wide)_mm512_mask_mov_ps(_mm512_set1_ps(HIDDEN), (__mmask16)bits, (__m512)x);
#else
  wide_ints sees = ((int)bits & LANES) != 0;
  wide hidden = (wide){0} + HIDDEN;
  return (wide)(((wide_ints)x & sees) | ((wide_ints)hidden & ~sees));
#endif
}

/* 64 bytes, each 0 or 1, as bits: the product brings byte i of a word to bit 56 + i. */
INLINE unsigned long bits_of(const unsigned char *bytes) {
#if UNITS
  __m512i row = _mm512_loadu_si512(bytes);
  return _mm512_test_epi8_mask(row, row);
#else
  unsigned long bits = 0, word;
  for (long i = 0; i < 64; i += 8) {
    memcpy(&word, bytes + i, 8);
    bits |= (word * 0x0102040810204080ul >> 56) << i;
  }
  return bits;
#endif
}

/* Bit c of word r becomes bit r of word c (Hacker's Delight, section 7-3). */
INLINE void turn_bits(unsigned long *words) {
  unsigned long mask = 0x00000000FFFFFFFFul;
  for (int apart = 32; apart; apart >>= 1, mask ^= mask << apart)
    for (int r = 0; r < 64; r = ((r | apart) + 1) & ~apart) {
      unsigned long swapped = ((words[r] >> apart) ^ words[r | apart]) & mask;
      words[r] ^= swapped << apart, words[r | apart] ^= swapped;
    }
}

INLINE long whole(long n, long of) { return (n + of - 1) / of * of; }
INLINE long bytes_of(long half) { return half ? 2 : 4; }

/* -- products: y (R, N) = a x, or y += a x where it is not fresh, for a of R rows and a packed x of N columns. Of a, the word of row r and step s (two
   neighbouring numbers of bf16, or a float) stands at a[r * by_row + s * by_step]. */
INLINE void some(const int half, const int fresh, const int R, const int C, const word *a, long by_row, long by_step, const wide_ints *x,
                 long by_panel, long steps, float *y, long N) {
  wide sums[ROWS][2];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) sums[r][c] = fresh ? (wide){0} : *(const wide *)(y + r * N + c * WIDTH);
  for (long s = 0; s < steps; s++, x += by_panel)
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      wide_ints mine = (wide_ints){0} + a[r * by_row + s * by_step];
      for (int c = 0; c < C; c++) sums[r][c] = plus_product(half, sums[r][c], mine, x[c]);
    }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) *(wide *)(y + r * N + c * WIDTH) = sums[r][c];
}

INLINE void times(const int half, const int fresh, const word *a, long by_row, long by_step, const char *x, long depth, float *y,
                  long N) {
  long steps = half ? depth / 2 : depth, panel = depth * COLUMNS * bytes_of(half);
  for (long n = 0; n < N; n += COLUMNS, x += panel)
    for (long r = 0; r < TILE; r += ROWS) {
      const word *rows = a + r * by_row;
      if (N - n >= COLUMNS)
        some(half, fresh, ROWS, 2, rows, by_row, by_step, (const wide_ints *)x, 2, steps, y + r * N + n, N);
      else
        some(half, fresh, ROWS, 1, rows, by_row, by_step, (const wide_ints *)x, 2, steps, y + r * N + n, N);
    }
}

/* -- packing. `from` is one head of an array, whose positions lie `apart` numbers apart; D of `wide_D` numbers are
   there, the rest are zeros, and so are the positions from T to the end of a tile. */
INLINE void rows_of(const int half, const void *from, long apart, long T, long D, long wide_D, char *to) {
  long size = bytes_of(half);
  memset(to, 0, whole(T, TILE) * wide_D * size);
  for (long t = 0; t < T; t++) memcpy(to + t * wide_D * size, (const char *)from + t * apart * size, D * size);
}

/* Tile by tile, from rows: as a packed matrix of the positions (TILE, D) ... */
INLINE void packed(const int half, const char *rows, long tiles, long D, char *to) {
  for (long n = 0; n < tiles; n++)
    for (long p = 0; p < D; p += COLUMNS)
      for (long t = 0; t < TILE; t += half ? 2 : 1, to += COLUMNS * 4) {
        long columns = D - p < COLUMNS ? D - p : COLUMNS;
        if (half) {
          const bf16 *upper = (const bf16 *)rows + (n * TILE + t) * D + p, *lower = upper + D;
          unsigned *words = (unsigned *)to;
          for (long d = 0; d < columns; d++) words[d] = upper[d] | (unsigned)lower[d] << 16;
        } else
          memcpy(to, (const float *)rows + (n * TILE + t) * D + p, columns * 4);
      }
}

/* ... and of their transpose (D, TILE). */
INLINE void packed_across(const int half, const char *rows, long tiles, long D, char *to) {
  long words = half ? D / 2 : D; /* of a position */
  for (long n = 0; n < tiles; n++)
    for (long p = 0; p < TILE; p += COLUMNS)
      for (long s = 0; s < words; s++)
        for (long t = 0; t < COLUMNS; t++, to += 4) *(word *)to = ((const word *)rows)[(n * TILE + p + t) * words + s];
}

/* n numbers times `factor` to an array of the call. */
INLINE void put(const int half, void *to, long at, const float *x, float factor, long n) {
  long i = 0;
  for (; i + WIDTH <= n; i += WIDTH) store(half, to, at + i, *(const wide *)(x + i) * factor);
  if (i < n) { /* x has whole vectors, the array of the call has not */
    float rest[WIDTH];
    store(half, rest, 0, *(const wide *)(x + i) * factor);
    memcpy((char *)to + (at + i) * bytes_of(half), rest, (n - i) * bytes_of(half));
  }
}
