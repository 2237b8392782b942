/* Attention of rows on a CPU, forward and backward, tile by tile (FlashAttention-2, arXiv 2307.08691, algorithms 1 and
   2): a tile of keys that no query of a tile sees costs nothing, and scores never leave the processor's cache.

   A task is a key-value head of a row, so that every sum has one order whatever the number of threads. Products of bf16
   are summed in fp32; probabilities and gradients of scores are rounded to bf16 before they are multiplied on.

   Sizes: B rows, T positions, H query heads, G key-value heads, K width of a query or key, V width of a value, D
   either; inside a task widths are rounded up to whole vectors, and positions to whole tiles. Arrays are contiguous:
   (B, T, heads, D). A packed matrix is (panels, rows / 2, COLUMNS, 2) of bf16, two rows of a column side by side, as
   the processor's instruction takes them, or (panels, rows, COLUMNS) of floats. */

#include "attention_tiles.h"

static const float HIDDEN = -1e30f; /* finite: what is seen of a tile later wipes it out, without NaN */

typedef struct {
  long B, T, H, G, K, V, half, mask_rows; /* mask_rows: 1, or B */
  float scale;
  const void *q, *k, *v;
  const unsigned char *mask; /* (mask_rows, T, T), 1 where a query (row) sees a key; null: all keys up to its own */
  void *out;
  float *log_sums; /* (B, H, T) */
  const void *d_out;
  void *d_q, *d_k, *d_v;
} Call;

/* -- what of a tile is seen: 0 nothing, 1 some, 2 everything. Where it is some, bit q of seen[k] says whether query q sees
   key k. */
static int look(const Call *c, long b, long query, long key, unsigned long *seen) {
  long queries = c->T - query < TILE ? c->T - query : TILE, keys = c->T - key < TILE ? c->T - key : TILE;
  if (!c->mask) {
    for (long k = 0; k < TILE; k++) seen[k] = ~0ul << k;
    return key > query ? 0 : key < query ? 2 : 1;
  }
  const unsigned char *mask = c->mask + (c->mask_rows > 1 ? b * c->T * c->T : 0) + query * c->T + key;
  unsigned long any = 0, all = ~0ul;
  unsigned char last[TILE] = {0}; /* keys of a row that ends within the tile */
  memset(seen, 0, TILE * sizeof *seen);
  for (long q = 0; q < queries; q++, mask += c->T) {
    if (keys < TILE) memcpy(last, mask, keys);
    seen[q] = bits_of(keys < TILE ? last : mask);
    any |= seen[q], all &= seen[q];
  }
  if (!any) return 0;
  if (!~all) return 2;
  turn_bits(seen);
  return 1;
}

/* Scores (keys, queries) become exp(score - largest so far) in `weights`, a factor that is read across: floats, or two
   rows of bf16 side by side. Sums so far are brought to the new largest, by what `fades` is filled with. */
INLINE void weigh(const int half, float *scores, const unsigned long *seen, float scale, float *largest, float *sums,
                  float *fades, word *weights) {
  for (long q = 0; q < TILE; q += WIDTH) {
    wide before = *(wide *)(largest + q), most = before, total = {0};
    for (long k = 0; k < TILE; k++) {
      wide x = *(wide *)(scores + k * TILE + q) * scale;
      if (seen) x = shown(x, seen[k] >> q, HIDDEN);
      *(wide *)(scores + k * TILE + q) = x;
      most = larger(most, x);
    }
    for (long k = 0; k < TILE; k += 2) {
      wide x = exponential(*(wide *)(scores + k * TILE + q) - most);
      wide y = exponential(*(wide *)(scores + (k + 1) * TILE + q) - most);
      total += x + y;
      if (half)
        *(wide_ints *)(weights + k / 2 * TILE + q) = side_by_side(x, y);
      else
        *(wide *)(weights + k * TILE + q) = x, *(wide *)(weights + (k + 1) * TILE + q) = y;
    }
    *(wide *)(fades + q) = exponential(before - most);
    *(wide *)(sums + q) = *(wide *)(sums + q) * *(wide *)(fades + q) + total;
    *(wide *)(largest + q) = most;
  }
}

INLINE void fade(float *outputs, long V, const float *fades) {
  for (long q = 0; q < TILE; q++, outputs += V)
    if (fades[q] != 1)
      for (long d = 0; d < V; d += WIDTH) *(wide *)(outputs + d) *= fades[q];
}

INLINE void forward_head(const int half, const Call *c, long b, long h, const char *keys, const char *values,
                         char *rows, char *queries) {
  long T = c->T, tiles = whole(T, TILE) / TILE, K = whole(c->K, WIDTH), V = whole(c->V, WIDTH), size = bytes_of(half),
       of_V = whole(V, COLUMNS);
  float scores[TILE * TILE] ALIGNED, outputs[TILE * V] ALIGNED;
  float largest[TILE] ALIGNED, sums[TILE] ALIGNED, fades[TILE] ALIGNED;
  unsigned long seen[TILE];
  word weights[TILE * TILE] ALIGNED;
  rows_of(half, (const char *)c->q + (b * T * c->H + h) * c->K * size, c->H * c->K, T, c->K, K, rows);
  packed_across(half, rows, tiles, K, queries);
  for (long i = 0; i < tiles; i++) {
    memset(outputs, 0, sizeof outputs);
    for (long q = 0; q < TILE; q++) largest[q] = HIDDEN, sums[q] = 0;
    for (long j = 0; j < tiles; j++) {
      int what = look(c, b, i * TILE, j * TILE, seen);
      if (!what) continue;
      times(half, 1, (const word *)(keys + j * TILE * K * size), K * size / 4, 1, queries + i * TILE * K * size, K,
            scores, TILE);
      weigh(half, scores, what == 1 ? seen : 0, c->scale, largest, sums, fades, weights);
      fade(outputs, V, fades);
      times(half, 0, weights, 1, TILE, values + j * TILE * of_V * size, TILE, outputs, V);
    }
    for (long q = 0; q < TILE && i * TILE + q < T; q++) {
      long t = i * TILE + q, at = ((b * T + t) * c->H + h) * c->V;
      float inverse = 1.0f / sums[q];
      c->log_sums[(b * c->H + h) * T + t] = largest[q] + logf(sums[q]);
      put(half, c->out, at, outputs + q * V, inverse, c->V);
    }
  }
}

INLINE void forward_task(const int half, const Call *c, long b, long g, char *scratch) {
  long T = c->T, padded = whole(T, TILE), tiles = padded / TILE, size = bytes_of(half);
  long K = whole(c->K, WIDTH), V = whole(c->V, WIDTH), of_V = whole(c->V, COLUMNS);
  char *keys = scratch, *values = keys + padded * K * size, *queries = values + padded * of_V * size;
  char *rows = queries + padded * K * size;
  rows_of(half, (const char *)c->k + (b * T * c->G + g) * c->K * size, c->G * c->K, T, c->K, K, keys);
  rows_of(half, (const char *)c->v + (b * T * c->G + g) * c->V * size, c->G * c->V, T, c->V, V, rows);
  packed(half, rows, tiles, V, values);
  for (long h = g * c->H / c->G; h < (g + 1) * c->H / c->G; h++) forward_head(half, c, b, h, keys, values, rows, queries);
}

/* -- gradients. With P = exp(scale S - log-sum) and D = sum over d of dO O, of every query:
   dV = P' dO,  dS = scale P (dO V' - D),  dQ = dS K,  dK = dS' Q. Scores stand with keys as rows, so that P' and dS'
   are factors as they are; dS is read across. */
INLINE void slopes(const int half, const float *scores, const float *products, const unsigned long *seen, float scale,
                   const float *log_sums, const float *dots, char *weights, char *gradients, word *across) {
  for (long k = 0; k < TILE; k += 2)
    for (long q = 0; q < TILE; q += WIDTH) {
      wide made[2];
      for (int n = 0; n < 2; n++) {
        long at = (k + n) * TILE + q;
        wide x = *(const wide *)(scores + at) * scale - *(const wide *)(log_sums + q);
        if (seen) x = shown(x, seen[k + n] >> q, HIDDEN);
        wide p = exponential(x);
        made[n] = p * (*(const wide *)(products + at) - *(const wide *)(dots + q)) * scale;
        store(half, weights, at, p);
        store(half, gradients, at, made[n]);
      }
      if (half) *(wide_ints *)(across + k / 2 * TILE + q) = side_by_side(made[0], made[1]);
    }
}

typedef struct {
  char *k_rows, *k_packed, *v_rows, *q_across, *q_packed, *d_across, *d_packed, *rows;
  float *d_q, *d_k, *d_v, *log_sums, *dots;
} Space;

INLINE void begin_head(const int half, const Call *c, long b, long h, Space *s) {
  long T = c->T, padded = whole(T, TILE), tiles = padded / TILE, size = bytes_of(half);
  long K = whole(c->K, WIDTH), V = whole(c->V, WIDTH), first = (b * T * c->H + h) * c->V, apart = c->H * c->V;
  rows_of(half, (const char *)c->q + (b * T * c->H + h) * c->K * size, c->H * c->K, T, c->K, K, s->rows);
  packed_across(half, s->rows, tiles, K, s->q_across);
  packed(half, s->rows, tiles, K, s->q_packed);
  rows_of(half, (const char *)c->d_out + first * size, apart, T, c->V, V, s->rows);
  packed_across(half, s->rows, tiles, V, s->d_across);
  packed(half, s->rows, tiles, V, s->d_packed);
  for (long t = 0; t < padded; t++) {
    s->dots[t] = t < T ? dot(half, c->d_out, c->out, first + t * apart, c->V) : 0;
    s->log_sums[t] = t < T ? c->log_sums[(b * c->H + h) * T + t] : -HIDDEN;
  }
  memset(s->d_q, 0, padded * K * sizeof(float));
}

INLINE void backward_head(const int half, const Call *c, long b, long h, Space *s) {
  long T = c->T, tiles = whole(T, TILE) / TILE, K = whole(c->K, WIDTH), V = whole(c->V, WIDTH), size = bytes_of(half);
  long of_K = whole(K, COLUMNS), of_V = whole(V, COLUMNS), row = TILE * size / 4;
  float scores[TILE * TILE] ALIGNED, products[TILE * TILE] ALIGNED;
  unsigned long seen[TILE];
  char weights[TILE * TILE * 4] ALIGNED, gradients[TILE * TILE * 4] ALIGNED;
  word across[TILE * TILE / 2] ALIGNED;
  begin_head(half, c, b, h, s);
  for (long j = 0; j < tiles; j++)
    for (long i = 0; i < tiles; i++) {
      int what = look(c, b, i * TILE, j * TILE, seen);
      if (!what) continue;
      times(half, 1, (const word *)(s->k_rows + j * TILE * K * size), K * size / 4, 1, s->q_across + i * TILE * K * size,
            K, scores, TILE);
      times(half, 1, (const word *)(s->v_rows + j * TILE * V * size), V * size / 4, 1, s->d_across + i * TILE * V * size,
            V, products, TILE);
      slopes(half, scores, products, what == 1 ? seen : 0, c->scale, s->log_sums + i * TILE, s->dots + i * TILE,
             weights, gradients, across);
      times(half, 0, (const word *)weights, row, 1, s->d_packed + i * TILE * of_V * size, TILE, s->d_v + j * TILE * V, V);
      times(half, 0, (const word *)gradients, row, 1, s->q_packed + i * TILE * of_K * size, TILE, s->d_k + j * TILE * K,
            K);
      times(half, 0, half ? across : (const word *)gradients, 1, TILE, s->k_packed + j * TILE * of_K * size, TILE,
            s->d_q + i * TILE * K, K);
    }
  for (long t = 0; t < T; t++) put(half, c->d_q, ((b * T + t) * c->H + h) * c->K, s->d_q + t * K, 1.0f, c->K);
}

INLINE void backward_task(const int half, const Call *c, long b, long g, char *scratch) {
  long T = c->T, padded = whole(T, TILE), tiles = padded / TILE, size = bytes_of(half);
  long K = whole(c->K, WIDTH), V = whole(c->V, WIDTH), of_K = whole(K, COLUMNS), of_V = whole(V, COLUMNS);
  Space s;
  float *floats = (float *)scratch;
  s.d_q = floats, s.d_k = s.d_q + padded * K, s.d_v = s.d_k + padded * K;
  s.log_sums = s.d_v + padded * V, s.dots = s.log_sums + padded;
  char *next = (char *)(s.dots + padded);
  s.k_rows = next, next += padded * K * size;
  s.k_packed = next, next += padded * of_K * size;
  s.v_rows = next, next += padded * V * size;
  s.q_across = next, next += padded * K * size;
  s.q_packed = next, next += padded * of_K * size;
  s.d_across = next, next += padded * V * size;
  s.d_packed = next, next += padded * of_V * size;
  s.rows = next;
  rows_of(half, (const char *)c->k + (b * T * c->G + g) * c->K * size, c->G * c->K, T, c->K, K, s.k_rows);
  packed(half, s.k_rows, tiles, K, s.k_packed);
  rows_of(half, (const char *)c->v + (b * T * c->G + g) * c->V * size, c->G * c->V, T, c->V, V, s.v_rows);
  memset(s.d_k, 0, padded * (K + V) * sizeof(float));
  for (long h = g * c->H / c->G; h < (g + 1) * c->H / c->G; h++) backward_head(half, c, b, h, &s);
  for (long t = 0; t < T; t++) {
    put(half, c->d_k, ((b * T + t) * c->G + g) * c->K, s.d_k + t * K, 1.0f, c->K);
    put(half, c->d_v, ((b * T + t) * c->G + g) * c->V, s.d_v + t * V, 1.0f, c->V);
  }
}

/* Bytes that a task needs at most, either way. */
static size_t needed(const Call *c) {
  long padded = whole(c->T, TILE), of_K = whole(c->K, COLUMNS), of_V = whole(c->V, COLUMNS);
  return 64 + (size_t)padded * 4 * (7 * of_K + 5 * of_V + 2);
}

typedef void Task(const Call *, long, long, char *);
static void forward_floats(const Call *c, long b, long g, char *s) { forward_task(0, c, b, g, s); }
static void forward_half(const Call *c, long b, long g, char *s) { forward_task(1, c, b, g, s); }
static void backward_floats(const Call *c, long b, long g, char *s) { backward_task(0, c, b, g, s); }
static void backward_half(const Call *c, long b, long g, char *s) { backward_task(1, c, b, g, s); }

/* 0; 1 where there is not enough memory. */
static int each(Task *task, const Call *c, int threads) {
  int failed = 0;
#pragma omp parallel num_threads(threads)
  {
    char *scratch = aligned_alloc(64, whole(needed(c), 64));
    if (!scratch) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic)
    for (long n = 0; n < c->B * c->G; n++)
      if (scratch) task(c, n / c->G, n % c->G, scratch);
    free(scratch);
  }
  return failed;
}

int forward(const Call *c, int threads) { return each(c->half ? forward_half : forward_floats, c, threads); }
int backward(const Call *c, int threads) { return each(c->half ? backward_half : backward_floats, c, threads); }
