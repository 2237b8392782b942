/* One decode step of a dense decoder on a CPU, all blocks in one call; fused.py says what goes in.

   Every number of a row is summed in an order that depends on the sizes of the model alone, so that a row comes out with
   the same bits whoever stands beside it. Vectors are GCC's: the compiler turns them into what the machine has.

   Sizes: B rows, D width, H query heads, G key-value heads, K width of a head, P rotated part of it, F width of the
   feed-forward part, V vocabulary, C slots of a row of the cache. */

#include <math.h>

enum { LANES = 8, PANEL = 16, TILE = 6 };

typedef float vec __attribute__((vector_size(32), aligned(4)));
typedef int ints __attribute__((vector_size(32), aligned(4)));

#define INLINE static inline __attribute__((always_inline))
#define AT(pointer) (*(vec *)(pointer))
#define SEEN(pointer) (*(const vec *)(pointer))

typedef struct {
  const float *attention_norm, *qkv, *qkv_bias, *q_norm, *k_norm, *o, *ffn_norm, *gate_up, *down;
  float *keys, *values; /* (rows, G, C, K) */
  long window;          /* 0: none */
} Layer;

typedef struct {
  long layers, D, H, G, K, P, F, V, C;
  long rounds; /* every result is rounded to bf16 */
  float eps;
  const float *norm, *head;
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

INLINE vec rounded(vec x, long rounds) { /* to the nearest bf16, to even between two */
  if (!rounds) return x;
  ints bits = (ints)x;
  return (vec)((bits + 0x7FFF + ((bits >> 16) & 1)) & (int)0xFFFF0000);
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

INLINE void norm(const float *x, const float *weight, long n, float eps, long rounds, float *y) {
  vec squares = {0};
  for (long i = 0; i < n; i += LANES) squares += SEEN(x + i) * SEEN(x + i);
  float scale = 1.0f / sqrtf(sum(squares) / n + eps);
  for (long i = 0; i < n; i += LANES) AT(y + i) = rounded(SEEN(x + i) * scale * SEEN(weight + i), rounds);
}

/* -- products: y = x W' + b, or y += x W'. W (N, K) comes as panels (N / PANEL, K, PANEL). */

INLINE void tile(const int R, const float *x, const float *panel, const float *bias, long K, float *y, long N, int adds,
                 long rounds) {
  vec total[R][2];
  for (int r = 0; r < R; r++)
    for (int half = 0; half < 2; half++) total[r][half] = bias ? SEEN(bias + half * LANES) : (vec){0};
  for (long k = 0; k < K; k++) {
    vec left = SEEN(panel + k * PANEL), right = SEEN(panel + k * PANEL + LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      float one = x[r * K + k];
      total[r][0] += one * left;
      total[r][1] += one * right;
    }
  }
  for (int r = 0; r < R; r++)
    for (int half = 0; half < 2; half++) {
      float *to = y + r * N + half * LANES;
      vec made = rounded(total[r][half], rounds);
      AT(to) = adds ? rounded(SEEN(to) + made, rounds) : made;
    }
}

static void linear(const float *x, const float *panels, const float *bias, long B, long K, long N, float *y, int adds,
                   long rounds) {
#pragma omp for schedule(static)
  for (long p = 0; p < N / PANEL; p++) {
    const float *panel = panels + p * PANEL * K, *b = bias ? bias + p * PANEL : 0;
    for (long row = 0; row < B; row += TILE) {
      const float *from = x + row * K;
      float *to = y + row * N + p * PANEL;
      switch (B - row) {
        case 1: tile(1, from, panel, b, K, to, N, adds, rounds); break;
        case 2: tile(2, from, panel, b, K, to, N, adds, rounds); break;
        case 3: tile(3, from, panel, b, K, to, N, adds, rounds); break;
        case 4: tile(4, from, panel, b, K, to, N, adds, rounds); break;
        case 5: tile(5, from, panel, b, K, to, N, adds, rounds); break;
        default: tile(TILE, from, panel, b, K, to, N, adds, rounds);
      }
    }
  }
}

/* -- attention */

static void rotate(float *x, const float *cos, const float *sin, long P, long rounds) {
  for (long i = 0; i < P / 2; i++) {
    float first = x[i], second = x[i + P / 2];
    x[i] = first * cos[i] + second * sin[i];
    x[i + P / 2] = second * cos[i + P / 2] + first * sin[i + P / 2];
  }
  if (rounds)
    for (long i = 0; i < P; i++) x[i] = rounded((vec){x[i]}, 1)[0];
}

/* Normalise and rotate the queries and keys of one row in place, and store keys and values at its position. */
static void place(const Model *m, const Layer *layer, const Step *s, long b, float *q) {
  long position = s->positions[b], K = m->K, slot = position < 0 ? m->C - 1 : position;
  const float *cos = s->cos + (position < 0 ? 0 : position) * m->P, *sin = s->sin + (position < 0 ? 0 : position) * m->P;
  for (long head = 0; head < m->H + m->G; head++) {
    const float *weight = head < m->H ? layer->q_norm : layer->k_norm;
    if (weight) norm(q + head * K, weight, K, m->eps, m->rounds, q + head * K);
    rotate(q + head * K, cos, sin, m->P, m->rounds);
  }
  for (long g = 0; g < m->G; g++) {
    long at = ((s->rows[b] * m->G + g) * m->C + slot) * K;
    for (long i = 0; i < K; i += LANES) {
      AT(layer->keys + at + i) = SEEN(q + (m->H + g) * K + i);
      AT(layer->values + at + i) = SEEN(q + (m->H + m->G + g) * K + i);
    }
  }
}

/* softmax(q k' / sqrt(K)) v of one query over positions [first, last]; those before `shared` lie in `lent`. */
static void attend(const float *q, const float *keys, const float *values, const float *lent_keys,
                   const float *lent_values, long shared, long first, long last, long K, long rounds, float *scores,
                   float *out) {
  float scale = 1.0f / sqrtf((float)K), top = -INFINITY;
  long n = last - first + 1;
  for (long j = 0; j < n; j++) {
    const float *key = (first + j < shared ? lent_keys : keys) + (first + j) * K;
    const float *value = (first + j < shared ? lent_values : values) + (first + j) * K;
    for (long i = 0; i < K; i += 16) __builtin_prefetch(value + i);
    vec products = {0};
    for (long i = 0; i < K; i += LANES) products += SEEN(q + i) * SEEN(key + i);
    scores[j] = sum(products) * scale;
    top = scores[j] > top ? scores[j] : top;
  }
  for (long j = n; j < n + LANES; j++) scores[j] = -INFINITY;
  vec mass = {0};
  for (long j = 0; j < n; j += LANES) {
    AT(scores + j) = exponential(SEEN(scores + j) - top);
    mass += SEEN(scores + j);
  }
  for (long i = 0; i < K; i += LANES) AT(out + i) = (vec){0};
  for (long j = 0; j < n; j++) {
    const float *value = (first + j < shared ? lent_values : values) + (first + j) * K;
    for (long i = 0; i < K; i += LANES) AT(out + i) += scores[j] * SEEN(value + i);
  }
  float share = 1.0f / sum(mass);
  for (long i = 0; i < K; i += LANES) AT(out + i) = rounded(SEEN(out + i) * share, rounds);
}

static void attend_all(const Model *m, const Layer *layer, const Step *s, const float *qkv, float *scores, float *out) {
  long K = m->K, group = m->H / m->G, length = m->C * K;
#pragma omp for schedule(static) collapse(2)
  for (long g = 0; g < m->G; g++)
    for (long b = 0; b < s->B; b++) {
      long last = s->positions[b] < 0 ? 0 : s->positions[b];
      long first = layer->window && last >= layer->window ? last - layer->window + 1 : 0;
      long own = (s->rows[b] * m->G + g) * length, lent = s->lenders ? (s->lenders[b] * m->G + g) * length : own;
      for (long h = g * group; h < (g + 1) * group; h++)
        attend(qkv + (b * (m->H + 2 * m->G) + h) * K, layer->keys + own, layer->values + own, layer->keys + lent,
               layer->values + lent, s->lenders ? s->shared[b] : 0, first, last, K, m->rounds,
               scores + (b * m->H + h) * (m->C + LANES), out + (b * m->H + h) * K);
    }
}

static void gate(const float *gate_up, long F, long rounds, float *out) {
  for (long i = 0; i < F; i += LANES) {
    vec g = SEEN(gate_up + i), silu = rounded(g / (1.0f + exponential(-g)), rounds);
    AT(out + i) = rounded(silu * SEEN(gate_up + F + i), rounds);
  }
}

/* -- all of it */

/* How many floats `Step.scratch` holds. */
long scratch_size(const Model *m, long B) {
  return B * (m->D + (2 * m->H + 2 * m->G) * m->K + 3 * m->F + m->H * (m->C + LANES));
}

void decode(const Model *m, const Layer *layers, const Step *s, int threads) {
  long B = s->B, D = m->D, F = m->F, rounds = m->rounds, of_q = m->H * m->K, of_qkv = (m->H + 2 * m->G) * m->K;
  float *y = s->scratch, *qkv = y + B * D, *seen = qkv + B * of_qkv, *gate_up = seen + B * of_q;
  float *inner = gate_up + B * 2 * F, *scores = inner + B * F;
#pragma omp parallel num_threads(threads)
  {
    for (const Layer *layer = layers; layer < layers + m->layers; layer++) {
#pragma omp for schedule(static)
      for (long b = 0; b < B; b++) norm(s->x + b * D, layer->attention_norm, D, m->eps, rounds, y + b * D);
      linear(y, layer->qkv, layer->qkv_bias, B, D, of_qkv, qkv, 0, rounds);
#pragma omp for schedule(static)
      for (long b = 0; b < B; b++) place(m, layer, s, b, qkv + b * of_qkv);
      attend_all(m, layer, s, qkv, scores, seen);
      linear(seen, layer->o, 0, B, of_q, D, s->x, 1, rounds);
#pragma omp for schedule(static)
      for (long b = 0; b < B; b++) norm(s->x + b * D, layer->ffn_norm, D, m->eps, rounds, y + b * D);
      linear(y, layer->gate_up, 0, B, D, 2 * F, gate_up, 0, rounds);
#pragma omp for schedule(static)
      for (long b = 0; b < B; b++) gate(gate_up + b * 2 * F, F, rounds, inner + b * F);
      linear(inner, layer->down, 0, B, F, D, s->x, 1, rounds);
    }
#pragma omp for schedule(static)
    for (long b = 0; b < B; b++) norm(s->x + b * D, m->norm, D, m->eps, rounds, y + b * D);
    linear(y, m->head, 0, B, D, m->V, s->logits, 0, rounds);
  }
}
