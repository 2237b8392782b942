/* One decode step of a dense decoder on a CPU, all blocks in one call; fused.py says what goes in.

   Every number of a row is summed in an order that depends on the sizes of the model alone, so that a row comes out with
   the same bits whoever stands beside it. Vectors are GCC's: the compiler turns them into what the machine has.

   A model in bf16 keeps its matrices in bf16, half the bytes, and rounds where torch rounds; sums are fp32. The cache may
   be bf16 by itself. Processors with bf16 products make two at a time (below: UNITS); the others widen by a shift and add
   in the same order, so that both come to the same bits.

   Sizes: B rows, D width, H query heads, G key-value heads, K width of a head, P rotated part of it, F width of the
   feed-forward part, V vocabulary, C slots of a row of the cache. */

#include <math.h>

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define UNITS 1
#else
#define UNITS 0
#endif

#ifdef __AVX512F__
#define WIDTH 16 /* floats of the widest vector */
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

typedef struct {
  const float *attention_norm, *qkv_bias, *q_norm, *k_norm, *ffn_norm;
  const void *qkv, *o, *gate_up, *down; /* panels, see `tile` */
  void *keys, *values;                  /* (rows, G, C, K) */
  long window;                          /* 0: none */
} Layer;

typedef struct {
  long layers, D, H, G, K, P, F, V, C;
  long half;       /* matrices are bf16, and every result is rounded to it */
  long half_cache; /* keys and values are bf16 */
  float eps;
  const float *norm;
  const void *head;
} Model;

typedef struct {
  long B;
  const long *rows;             /* of the cache */
  const long *positions;        /* -1: at rest */
  const long *lenders, *shared; /* the first `shared` positions are read from another row that holds the same; or null */
  const float *cos, *sin;       /* of every position, (., P) */
  float *x;                     /* (B, D): embeddings */
  float *logits;                /* (B, V) */
  float *scratch;               /* see `scratch_size` */
} Step;

INLINE float sum(vec v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

INLINE ints nearest(vec x) { /* the nearest bf16 in the upper half of each number, to even between two */
  ints bits = (ints)x;
  return bits + 0x7FFF + ((bits >> 16) & 1);
}

INLINE vec rounded(vec x, long half) { return half ? (vec)(nearest(x) & HIGH) : x; }

/* Eight numbers from place i on of an array of floats or of bf16. */
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
  const float shift = 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to a whole number */
  vec whole = (x * 1.44269504f + shift) - shift;
  vec r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  ints power = (__builtin_convertvector(whole, ints) + 127) << 23;
  ints small = x <= -87.0f, large = x >= 88.0f; /* neither for what is not a number, which stays that */
  ints bits = (ints)(y * (vec)power) & ~small;
  return (vec)((bits & ~large) | (large & 0x7F800000));
}

/* taken: whether a product reads the result, which `store`s it as UNITS want it. */
INLINE void norm(const float *x, const float *weight, long n, float eps, long half, const int taken, float *y) {
  vec squares = {0};
  for (long i = 0; i < n; i += LANES) squares += SEEN(x + i) * SEEN(x + i);
  float scale = 1.0f / sqrtf(sum(squares) / n + eps);
  if (taken && UNITS && half)
    for (long i = 0; i < n; i += LANES) store(1, y, i, SEEN(x + i) * scale * SEEN(weight + i));
  else
    for (long i = 0; i < n; i += LANES) AT(y + i) = rounded(SEEN(x + i) * scale * SEEN(weight + i), half);
}

/* -- products: y = x W' + b, or y += x W'. W (N, K) comes as panels: (N / PANEL, K, PANEL) of floats, or
   (N / PANEL, K / 2, PANEL, 2) of bf16. With those and UNITS a row of x holds bf16 too, in the first half of its place. */

/* Column k of R rows times row k of a panel, and in bf16 with UNITS two of each. */
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
  wide of[PARTS]; /* the second of the two first, as the units have it */
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
  const int most = half && PARTS > 1 ? 4 : TILE; /* what sixteen registers hold beside the two of bf16 */
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

static void linear(long half, const float *x, const void *panels, const float *bias, long B, long K, long N, float *y,
                   int adds) {
#pragma omp for schedule(static)
  for (long p = 0; p < N / PANEL; p++) {
    const float *b = bias ? bias + p * PANEL : 0;
    if (half)
      rows(1, x, (const bf16 *)panels + p * PANEL * K, b, B, K, N, y + p * PANEL, adds);
    else
      rows(0, x, (const float *)panels + p * PANEL * K, b, B, K, N, y + p * PANEL, adds);
  }
}

/* -- attention */

static void rotate(float *x, const float *cos, const float *sin, long P, long half) {
  for (long i = 0; i < P / 2; i++) {
    float first = x[i], second = x[i + P / 2];
    x[i] = first * cos[i] + second * sin[i];
    x[i + P / 2] = second * cos[i + P / 2] + first * sin[i + P / 2];
  }
  if (half)
    for (long i = 0; i < P; i++) x[i] = rounded((vec){x[i]}, 1)[0];
}

/* Normalise and rotate the queries and keys of one row in place, and store keys and values at its position. */
static void place(const Model *m, const Layer *layer, const Step *s, long b, float *q) {
  long position = s->positions[b], K = m->K, slot = position < 0 ? m->C - 1 : position;
  const float *cos = s->cos + (position < 0 ? 0 : position) * m->P, *sin = s->sin + (position < 0 ? 0 : position) * m->P;
  for (long head = 0; head < m->H + m->G; head++) {
    const float *weight = head < m->H ? layer->q_norm : layer->k_norm;
    if (weight) norm(q + head * K, weight, K, m->eps, m->half, 0, q + head * K);
    rotate(q + head * K, cos, sin, m->P, m->half);
  }
  for (long g = 0; g < m->G; g++) {
    long at = ((s->rows[b] * m->G + g) * m->C + slot) * K;
    for (long i = 0; i < K; i += LANES) {
      vec key = SEEN(q + (m->H + g) * K + i), value = SEEN(q + (m->H + m->G + g) * K + i);
      if (m->half_cache) {
        store(1, layer->keys, at + i, key);
        store(1, layer->values, at + i, value);
      } else {
        store(0, layer->keys, at + i, key);
        store(0, layer->values, at + i, value);
      }
    }
  }
}

typedef struct { /* one row's keys and values of one head; positions before `shared` are read from another row's */
  const void *keys, *values, *lent_keys, *lent_values;
  long shared, first, last;
} Past;

INLINE const void *at(const int half, const void *own, const void *lent, const Past *past, long j, long K) {
  const char *from = past->first + j < past->shared ? lent : own;
  return from + (past->first + j) * K * (half ? sizeof(bf16) : sizeof(float));
}

/* N vectors, from place i on, of the sum of values by their weights. */
INLINE void weigh(const int half, const int N, const Past *past, const float *weights, float share, long i, long K,
                  long rounds, float *out) {
  vec total[N];
  for (int n = 0; n < N; n++) total[n] = (vec){0};
  for (long j = 0; j <= past->last - past->first; j++) {
    const void *value = at(half, past->values, past->lent_values, past, j, K);
    for (int n = 0; n < N; n++) total[n] += weights[j] * load(half, value, i + n * LANES);
  }
  for (int n = 0; n < N; n++) {
    if (UNITS && rounds)
      store(1, out, i + n * LANES, total[n] * share);
    else
      AT(out + i + n * LANES) = rounded(total[n] * share, rounds);
  }
}

/* softmax(q k' / sqrt(K)) v of one query over positions [first, last]; out: as a product reads it. */
INLINE void attend(const int half, const float *q, const Past *past, long K, long rounds, float *scores, float *out) {
  float scale = 1.0f / sqrtf((float)K), top = -INFINITY;
  long n = past->last - past->first + 1;
  for (long j = 0; j < n; j++) {
    const void *key = at(half, past->keys, past->lent_keys, past, j, K);
    const char *value = at(half, past->values, past->lent_values, past, j, K);
    for (long i = 0; i < K * (half ? 2 : 4); i += 64) __builtin_prefetch(value + i);
    vec products = {0};
    for (long i = 0; i < K; i += LANES) products += SEEN(q + i) * load(half, key, i);
    scores[j] = sum(products) * scale;
    top = scores[j] > top ? scores[j] : top;
  }
  for (long j = n; j < n + LANES; j++) scores[j] = -INFINITY;
  vec mass = {0};
  for (long j = 0; j < n; j += LANES) {
    AT(scores + j) = exponential(SEEN(scores + j) - top);
    mass += SEEN(scores + j);
  }
  float share = 1.0f / sum(mass);
  long i = 0;
  for (; i + 8 * LANES <= K; i += 8 * LANES) weigh(half, 8, past, scores, share, i, K, rounds, out);
  for (; i + 2 * LANES <= K; i += 2 * LANES) weigh(half, 2, past, scores, share, i, K, rounds, out);
  if (i < K) weigh(half, 1, past, scores, share, i, K, rounds, out);
}

static void attend_all(const Model *m, const Layer *layer, const Step *s, const float *qkv, float *scores, float *out) {
  long K = m->K, group = m->H / m->G, row = m->C * K * (m->half_cache ? sizeof(bf16) : sizeof(float));
  long head = UNITS && m->half ? K / 2 : K; /* floats that one takes up in `out` */
  const char *keys = layer->keys, *values = layer->values;
#pragma omp for schedule(static) collapse(2)
  for (long g = 0; g < m->G; g++)
    for (long b = 0; b < s->B; b++) {
      long last = s->positions[b] < 0 ? 0 : s->positions[b];
      long first = layer->window && last >= layer->window ? last - layer->window + 1 : 0;
      long own = (s->rows[b] * m->G + g) * row, lent = s->lenders ? (s->lenders[b] * m->G + g) * row : own;
      Past past = {keys + own, values + own, keys + lent, values + lent, s->lenders ? s->shared[b] : 0, first, last};
      for (long h = g * group; h < (g + 1) * group; h++) {
        const float *q = qkv + (b * (m->H + 2 * m->G) + h) * K;
        float *mine = scores + (b * m->H + h) * (m->C + LANES), *to = out + b * m->H * K + h * head;
        if (m->half_cache)
          attend(1, q, &past, K, m->half, mine, to);
        else
          attend(0, q, &past, K, m->half, mine, to);
      }
    }
}

static void gate(const float *gate_up, long F, long half, float *out) {
  for (long i = 0; i < F; i += LANES) {
    vec g = SEEN(gate_up + i), silu = rounded(g / (1.0f + exponential(-g)), half);
    vec made = silu * SEEN(gate_up + F + i);
    if (UNITS && half)
      store(1, out, i, made);
    else
      AT(out + i) = rounded(made, half);
  }
}

/* -- all of it */

/* How many floats `Step.scratch` holds. */
long scratch_size(const Model *m, long B) {
  return B * (m->D + (2 * m->H + 2 * m->G) * m->K + 3 * m->F + m->H * (m->C + LANES));
}

void decode(const Model *m, const Layer *layers, const Step *s, int threads) {
  long B = s->B, D = m->D, F = m->F, half = m->half, of_q = m->H * m->K, of_qkv = (m->H + 2 * m->G) * m->K;
  float *y = s->scratch, *qkv = y + B * D, *seen = qkv + B * of_qkv, *gate_up = seen + B * of_q;
  float *inner = gate_up + B * 2 * F, *scores = inner + B * F;
#pragma omp parallel num_threads(threads)
  {
    for (const Layer *layer = layers; layer < layers + m->layers; layer++) {
#pragma omp for schedule(static)
      for (long b = 0; b < B; b++) norm(s->x + b * D, layer->attention_norm, D, m->eps, half, 1, y + b * D);
      linear(half, y, layer->qkv, layer->qkv_bias, B, D, of_qkv, qkv, 0);
#pragma omp for schedule(static)
      for (long b = 0; b < B; b++) place(m, layer, s, b, qkv + b * of_qkv);
      attend_all(m, layer, s, qkv, scores, seen);
      linear(half, seen, layer->o, 0, B, of_q, D, s->x, 1);
#pragma omp for schedule(static)
      for (long b = 0; b < B; b++) norm(s->x + b * D, layer->ffn_norm, D, m->eps, half, 1, y + b * D);
      linear(half, y, layer->gate_up, 0, B, D, 2 * F, gate_up, 0);
#pragma omp for schedule(static)
      for (long b = 0; b < B; b++) gate(gate_up + b * 2 * F, F, half, inner + b * F);
      linear(half, inner, layer->down, 0, B, F, D, s->x, 1);
    }
#pragma omp for schedule(static)
    for (long b = 0; b < B; b++) norm(s->x + b * D, m->norm, D, m->eps, half, 1, y + b * D);
    linear(half, y, m->head, 0, B, D, m->V, s->logits, 0);
  }
}
