/* Numbers and products of fused.c: vectors, rounding to bf16, the norm, and y = x W' for few rows. */

#include "vectors.h"

/* A tile has at most TILE rows of y and PANEL columns, two vectors of them: what is read of x serves both. */
enum { LANES = 8, PANEL = 2 * WIDTH, TILE = WIDTH == 16 ? 12 : 6 };

VECTOR(float, 32, 4) vec;
VECTOR(int, 32, 4) ints;
VECTOR(unsigned, 32, 4) unsigneds;
VECTOR(unsigned short, 16, 2) shorts;

#define AT(pointer) (*(vec *)(pointer))
#define SEEN(pointer) (*(const vec *)(pointer))

INLINE float sum(vec v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

NEAREST(nearest, vec, ints)
EXPONENTIAL(exponential, vec, ints)

INLINE vec rounded(vec x, long half) { return half ? (vec)(nearest(x) & HIGH) : x; }

/* Eight numbers from index i on of an array: bf16 if `half`, else floats. */
INLINE vec load(const int half, const void *from, long i) {
  if (!half) return SEEN((const float *)from + i);
  return (vec)(__builtin_convertvector(*(const shorts *)((const bf16 *)from + i), unsigneds) << 16);
}

INLINE void store(const int half, void *to, long i, vec x) {
  if (half)
    *(shorts *)((bf16 *)to + i) = __builtin_convertvector((unsigneds)nearest(x) >> 16, shorts);
  else
    AT((float *)to + i) = x;
}

/* Input rows of products hold floats; with UNITS and bf16 matrices they hold bf16, in the first half of their memory.
   `taken` reads eight numbers of such a row, `take` writes them, rounded to bf16 where the model is bf16. */
INLINE vec taken(const float *row, long i, long half) { return UNITS && half ? load(1, row, i) : SEEN(row + i); }

INLINE void take(float *row, long i, vec x, long half) {
  if (UNITS && half)
    store(1, row, i, x);
  else
    AT(row + i) = rounded(x, half);
}

/* RMS norm of n numbers: y = x / rms(x) * weight. product: whether y is the input row of a product. */
INLINE void norm(const float *x, const float *weight, long n, float eps, long half, const int product, float *y) {
  vec squares = {0};
  for (long i = 0; i < n; i += LANES) squares += SEEN(x + i) * SEEN(x + i);
  float scale = 1.0f / sqrtf(sum(squares) / n + eps);
  for (long i = 0; i < n; i += LANES) {
    vec made = SEEN(x + i) * scale * SEEN(weight + i);
    if (product)
      take(y, i, made, half);
    else
      AT(y + i) = rounded(made, half);
  }
}

/* -- products: y = x W' + b, or y += x W'. W (N, K) comes as panels: (N / PANEL, K, PANEL) of floats, or
   (N / PANEL, K / 2, PANEL, 2) of bf16; where N is no whole number of panels, the last has half the columns. With bf16
   and UNITS a row of x holds bf16 too, in the first half of its memory. */

long panel_columns(void) { return PANEL; }

INLINE long panels_of(long N) { return (N + PANEL - 1) / PANEL; }

/* total += column k of R rows of x times row k of a panel of C vectors; for bf16 with UNITS, two of each at once. */
INLINE void add(const int R, const int C, wide total[][2], const float *x, long K, const wide *of) {
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) total[r][c] += x[r * K] * of[c];
}

INLINE void add_two(const int R, const int C, wide total[][2], const float *x, long k, long K, const wide_ints *two) {
#if UNITS
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    wide_ints mine = (wide_ints){0} + ((const word *)(x + r * K))[k / 2];
    for (int c = 0; c < C; c++)
      total[r][c] = (wide)_mm512_dpbf16_ps((__m512)total[r][c], (__m512bh)mine, (__m512bh)two[c]);
  }
#else
  wide of[2]; /* the second of each two is added first, the order of the bf16 instruction */
  for (int c = 0; c < C; c++) of[c] = (wide)(two[c] & HIGH);
  add(R, C, total, x + k + 1, K, of);
  for (int c = 0; c < C; c++) of[c] = (wide)(two[c] << 16);
  add(R, C, total, x + k, K, of);
#endif
}

INLINE void tile(const int half, const int R, const int C, const float *x, const void *panel, const float *bias, long K,
                 float *y, long N, int adds) {
  wide total[TILE][2];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) total[r][c] = bias ? *(const wide *)(bias + c * WIDTH) : (wide){0};
  if (half)
    for (long k = 0; k < K; k += 2) add_two(R, C, total, x, k, K, (const wide_ints *)panel + k / 2 * C);
  else
    for (long k = 0; k < K; k++) add(R, C, total, x + k, K, (const wide *)panel + k * C);
  for (int r = 0; r < R; r++)
    for (int i = 0; i < C * WIDTH; i += LANES) {
      float *to = y + r * N + i;
      vec made = rounded(SEEN((const float *)total[r] + i), half);
      AT(to) = adds ? rounded(SEEN(to) + made, half) : made;
    }
}

#define TILE_OF(R) \
  case R: tile(half, R <= most ? R : 1, C, from, panel, bias, K, to, N, adds); break

/* Tiles of as many rows as the registers hold, or one less: a tile of few rows reads a panel for little. */
INLINE void rows(const int half, const int C, const float *x, const void *panel, const float *bias, long B, long K,
                 long N, float *y, int adds) {
  const int most = half && !UNITS ? TILE * 2 / 3 : TILE; /* bf16 without UNITS needs registers for what it widens to */
  long tiles = (B + most - 1) / most;
  for (long row = 0, count; row < B; row += count, tiles--) {
    const float *from = x + row * K;
    float *to = y + row * N;
    count = (B - row + tiles - 1) / tiles;
    switch (count) {
      TILE_OF(1);
      TILE_OF(2);
      TILE_OF(3);
      TILE_OF(4);
      TILE_OF(5);
      TILE_OF(6);
      TILE_OF(7);
      TILE_OF(8);
      TILE_OF(9);
      TILE_OF(10);
      TILE_OF(11);
      TILE_OF(12);
    }
  }
}

/* Product with panel p of a matrix of N columns: those of the panel, of B rows of y, which lie `stride` floats apart. */
static void product(long half, const float *x, const void *panels, long p, long N, const float *bias, long B, long K,
                    long stride, float *y, int adds) {
  long first = p * PANEL, whole = first + PANEL <= N;
  const char *panel = (const char *)panels + first * K * (half ? sizeof(bf16) : sizeof(float));
  const float *b = bias ? bias + first : 0;
  y += first;
  if (half && whole)
    rows(1, 2, x, panel, b, B, K, stride, y, adds);
  else if (half)
    rows(1, 1, x, panel, b, B, K, stride, y, adds);
  else if (whole)
    rows(0, 2, x, panel, b, B, K, stride, y, adds);
  else
    rows(0, 1, x, panel, b, B, K, stride, y, adds);
}

static void linear(long half, const float *x, const void *panels, const float *bias, long B, long K, long N, float *y,
                   int adds) {
#pragma omp for schedule(static)
  for (long p = 0; p < panels_of(N); p++) product(half, x, panels, p, N, bias, B, K, N, y, adds);
}

/* silu(g) u of a row (2, F) that holds g and u; the result is the input row of a product. */
static void gate(const float *gate_up, long F, long half, float *out) {
  for (long i = 0; i < F; i += LANES) {
    vec g = SEEN(gate_up + i), silu = rounded(g / (1.0f + exponential(-g)), half);
    take(out, i, silu * SEEN(gate_up + F + i), half);
  }
}
