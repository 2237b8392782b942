/* Numbers and products of fused.c: vectors, rounding to bf16, the norm, and y = x W' for few rows. */

#include <math.h>

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define UNITS 1
#else
#define UNITS 0
#endif

#ifdef __AVX512F__
#define WIDTH 16 /* floats in the machine's widest vector */
#else
#define WIDTH 8
#endif

enum { LANES = 8, PANEL = 16, PARTS = PANEL / WIDTH, TILE = 6, HIGH = (int)0xFFFF0000 };

#define VECTOR(type, bytes, least) typedef type __attribute__((vector_size(bytes), aligned(least), may_alias))
VECTOR(float, 32, 4) vec;
VECTOR(int, 32, 4) ints;
VECTOR(unsigned, 32, 4) unsigneds;
VECTOR(unsigned short, 16, 2) shorts;
VECTOR(float, WIDTH * 4, 4) wide;
VECTOR(int, WIDTH * 4, 4) wide_ints;
typedef int word __attribute__((may_alias, aligned(2)));
typedef unsigned short bf16;

#define INLINE static inline __attribute__((always_inline))
#define AT(pointer) (*(vec *)(pointer))
#define SEEN(pointer) (*(const vec *)(pointer))

INLINE float sum(vec v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

INLINE ints nearest(vec x) { /* the upper half of each number becomes the nearest bf16, ties to even */
  ints bits = (ints)x;
  return bits + 0x7FFF + ((bits >> 16) & 1);
}

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

INLINE vec exponential(vec x) { /* Cody and Waite's reduction and a polynomial; 0 below -87, inf above 88.7 */
  const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
  vec whole = (x * 1.44269504f + shift) - shift;
  vec r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  ints power = (__builtin_convertvector(whole, ints) + 127) << 23;
  ints small = x <= -87.0f, large = x >= 88.0f; /* both false for NaN, so that NaN stays NaN */
  ints bits = (ints)(y * (vec)power) & ~small;
  return (vec)((bits & ~large) | (large & 0x7F800000));
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
   (N / PANEL, K / 2, PANEL, 2) of bf16. With bf16 and UNITS a row of x holds bf16 too, in the first half of its memory. */

/* total += column k of R rows of x times row k of a panel; for bf16 with UNITS, two of each at once. */
INLINE void add(const int R, wide total[][PARTS], const float *x, long K, const wide *of) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
    for (int part = 0; part < PARTS; part++) total[r][part] += x[r * K] * of[part];
}

INLINE void add_two(const int R, wide total[][PARTS], const float *x, long k, long K, const wide_ints *two) {
#if UNITS
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    wide_ints mine = (wide_ints){0} + ((const word *)(x + r * K))[k / 2];
    total[r][0] = (wide)_mm512_dpbf16_ps((__m512)total[r][0], (__m512bh)mine, (__m512bh)two[0]);
  }
#else
  wide of[PARTS]; /* the second of each two is added first, the order of the bf16 instruction */
  for (int part = 0; part < PARTS; part++) of[part] = (wide)(two[part] & HIGH);
  add(R, total, x + k + 1, K, of);
  for (int part = 0; part < PARTS; part++) of[part] = (wide)(two[part] << 16);
  add(R, total, x + k, K, of);
#endif
}

INLINE void tile(const int half, const int R, const float *x, const void *panel, const float *bias, long K, float *y,
                 long N, int adds) {
  wide total[TILE][PARTS];
  for (int r = 0; r < R; r++)
    for (int part = 0; part < PARTS; part++)
      total[r][part] = bias ? *(const wide *)(bias + part * WIDTH) : (wide){0};
  if (half)
    for (long k = 0; k < K; k += 2) add_two(R, total, x, k, K, (const wide_ints *)panel + k / 2 * PARTS);
  else
    for (long k = 0; k < K; k++) add(R, total, x + k, K, (const wide *)panel + k * PARTS);
  for (int r = 0; r < R; r++)
    for (int i = 0; i < PANEL; i += LANES) {
      float *to = y + r * N + i;
      vec made = rounded(SEEN((const float *)total[r] + i), half);
      AT(to) = adds ? rounded(SEEN(to) + made, half) : made;
    }
}

INLINE void rows(const int half, const float *x, const void *panel, const float *bias, long B, long K, long N, float *y,
                 int adds) {
  const int most = half && PARTS > 1 ? 4 : TILE; /* rows whose sums fit sixteen registers beside the two for bf16 */
  for (long row = 0; row < B; row += most) {
    const float *from = x + row * K;
    float *to = y + row * N;
    switch (B - row < most ? B - row : most) {
      case 1: tile(half, 1, from, panel, bias, K, to, N, adds); break;
      case 2: tile(half, 2, from, panel, bias, K, to, N, adds); break;
      case 3: tile(half, 3, from, panel, bias, K, to, N, adds); break;
      case 4: tile(half, 4, from, panel, bias, K, to, N, adds); break;
      case 5: tile(half, 5, from, panel, bias, K, to, N, adds); break;
      default: tile(half, TILE, from, panel, bias, K, to, N, adds);
    }
  }
}

/* Product with panel p of a matrix: PANEL columns of B rows of y, which lie `stride` floats apart. */
static void product(long half, const float *x, const void *panels, long p, const float *bias, long B, long K,
                    long stride, float *y, int adds) {
  const float *b = bias ? bias + p * PANEL : 0;
  if (half)
    rows(1, x, (const bf16 *)panels + p * PANEL * K, b, B, K, stride, y + p * PANEL, adds);
  else
    rows(0, x, (const float *)panels + p * PANEL * K, b, B, K, stride, y + p * PANEL, adds);
}

static void linear(long half, const float *x, const void *panels, const float *bias, long B, long K, long N, float *y,
                   int adds) {
#pragma omp for schedule(static)
  for (long p = 0; p < N / PANEL; p++) product(half, x, panels, p, bias, B, K, N, y, adds);
}

/* silu(g) u of a row (2, F) that holds g and u; the result is the input row of a product. */
static void gate(const float *gate_up, long F, long half, float *out) {
  for (long i = 0; i < F; i += LANES) {
    vec g = SEEN(gate_up + i), silu = rounded(g / (1.0f + exponential(-g)), half);
    take(out, i, silu * SEEN(gate_up + F + i), half);
  }
}
