/* Numbers, products and packed matrices of packed_attention.c, which says what is what. */

#include <stdlib.h>
#include <string.h>

#include "numbers.h"

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

/* n numbers times `factor` to an array of the call; x has whole vectors. */
INLINE void put(const int half, void *to, long at, const float *x, float factor, long n) {
  for (long i = 0; i < n; i += WIDTH) store_first(half, to, at + i, *(const wide *)(x + i) * factor, n - i);
}
