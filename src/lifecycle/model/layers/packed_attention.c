/* Attention of rows on a CPU, forward and backward, tile by tile (FlashAttention-2, arXiv 2307.08691, algorithms 1 and
   2): a tile of keys that no query of a tile sees costs nothing, and scores never leave the processor's cache.

   A task is a key-value head of a row, so that every sum has one order whatever the number of threads. Products of bf16
   are summed in fp32; probabilities and gradients of scores are rounded to bf16 before they are multiplied on.

   Sizes: B rows, T positions, H query heads, G key-value heads, K width of a query or key, V width of a value, D
   either; inside a task widths are rounded up to whole vectors, and positions to whole tiles. Arrays are contiguous:
   (B, T, heads, D). A packed matrix is (panels, rows / 2, COLUMNS, 2) of bf16, two rows of a column side by side, as
   the processor's instruction takes them, or (panels, rows, COLUMNS) of floats. */

#include "attention_tiles.h"

VECTOR(unsigned char, TILE, 1) tile_row;
VECTOR(unsigned long, TILE, 1) tile_words;

INLINE int holds_one(tile_row row) {
  tile_words words = (tile_words)row;
  return (words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] | words[7]) != 0;
}

INLINE int holds_zero(tile_row row) { return holds_one(row ^ 1); }

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

/* -- what of a tile is seen: 0 nothing, 1 some, 2 everything. seen (TILE, TILE) is filled where it is some. */
static int look(const Call *c, long b, long query, long key, unsigned char *seen) {
  long queries = c->T - query < TILE ? c->T - query : TILE, keys = c->T - key < TILE ? c->T - key : TILE;
  const unsigned char *mask = c->mask + (c->mask_rows > 1 ? b * c->T * c->T : 0) + query * c->T + key;
  if (!c->mask && key > query) return 0;
  if (!c->mask && key < query) return 2;
  if (c->mask && keys == TILE) {
    tile_row any = {0}, all = (tile_row){0} + 1;
    for (long q = 0; q < queries; q++) {
      tile_row row = *(const tile_row *)(mask + q * c->T);
      any |= row, all &= row;
    }
    if (!holds_one(any)) return 0;
    if (!holds_zero(all)) return 2;
  }
  memset(seen, 0, TILE * TILE);
  for (long q = 0; q < queries; q++)
    if (c->mask)
      memcpy(seen + q * TILE, mask + q * c->T, keys);
    else
      memset(seen + q * TILE, 1, q + 1 < keys ? q + 1 : keys);
  return 1;
}

INLINE wide shown(wide x, const unsigned char *seen) {
  wide_ints sees = __builtin_convertvector(*(const wide_bytes *)seen, wide_ints) != 0;
  wide hidden = (wide){0} + HIDDEN;
  return (wide)(((wide_ints)x & sees) | ((wide_ints)hidden & ~sees));
}

/* Scores of a tile of queries become exp(score - largest so far), rounded to the dtype of products; sums and outputs so
   far are brought to the new largest. */
INLINE void weigh(const int half, float *scores, const unsigned char *seen, float scale, float *largest, float *sums,
                  float *outputs, long V, char *weights) {
  for (long q = 0; q < TILE; q++, scores += TILE, outputs += V) {
    wide most = (wide){0} + largest[q], total = {0};
    for (long k = 0; k < TILE; k += WIDTH) {
      wide x = *(wide *)(scores + k) * scale;
      if (seen) x = shown(x, seen + q * TILE + k);
      *(wide *)(scores + k) = x;
      most = larger(most, x);
    }
    float now = largest_of(most), fades = expf(largest[q] - now);
    for (long k = 0; k < TILE; k += WIDTH) {
      wide x = exponential(*(wide *)(scores + k) - now);
      total += x;
      store(half, weights, q * TILE + k, x);
    }
    sums[q] = sums[q] * fades + sum_of(total);
    if (now > largest[q])
      for (long d = 0; d < V; d += WIDTH) *(wide *)(outputs + d) *= fades;
    largest[q] = now;
  }
}

INLINE void forward_head(const int half, const Call *c, long b, long h, const char *keys, const char *values,
                         char *rows) {
  long T = c->T, tiles = whole(T, TILE) / TILE, K = whole(c->K, WIDTH), V = whole(c->V, WIDTH), size = bytes_of(half),
       of_V = whole(V, COLUMNS);
  float scores[TILE * TILE] ALIGNED, outputs[TILE * V] ALIGNED, largest[TILE], sums[TILE];
  unsigned char seen[TILE * TILE] ALIGNED;
  char weights[TILE * TILE * 4] ALIGNED;
  rows_of(half, (const char *)c->q + (b * T * c->H + h) * c->K * size, c->H * c->K, T, c->K, K, rows);
  for (long i = 0; i < tiles; i++) {
    memset(outputs, 0, sizeof outputs);
    for (long q = 0; q < TILE; q++) largest[q] = HIDDEN, sums[q] = 0;
    for (long j = 0; j < tiles; j++) {
      int what = look(c, b, i * TILE, j * TILE, seen);
      if (!what) continue;
      memset(scores, 0, sizeof scores);
      times(half, (const word *)(rows + i * TILE * K * size), K * size / 4, 1, keys + j * TILE * K * size, K, scores,
            TILE);
      weigh(half, scores, what == 1 ? seen : 0, c->scale, largest, sums, outputs, V, weights);
      times(half, (const word *)weights, TILE * size / 4, 1, values + j * TILE * of_V * size, TILE, outputs, V);
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
  long K = whole(c->K, WIDTH), V = whole(c->V, WIDTH), of_K = whole(c->K, COLUMNS), of_V = whole(c->V, COLUMNS);
  char *keys = scratch, *values = keys + padded * of_K * size, *rows = values + padded * of_V * size;
  rows_of(half, (const char *)c->k + (b * T * c->G + g) * c->K * size, c->G * c->K, T, c->K, K, rows);
  packed_across(half, rows, tiles, K, keys);
  rows_of(half, (const char *)c->v + (b * T * c->G + g) * c->V * size, c->G * c->V, T, c->V, V, rows);
  packed(half, rows, tiles, V, values);
  for (long h = g * c->H / c->G; h < (g + 1) * c->H / c->G; h++) forward_head(half, c, b, h, keys, values, rows);
}

/* -- gradients. With P = exp(scale S - log-sum) and D = sum over d of dO O, of every query:
   dV = P' dO,  dS = scale P (dO V' - D),  dQ = dS K,  dK = dS' Q. Scores stand with keys as rows, so that P' and dS'
   are factors as they are; dS is read across. */
INLINE void slopes(const int half, const float *scores, const float *products, const unsigned char *seen, float scale,
                   const float *log_sums, const float *dots, char *weights, char *gradients, word *across) {
  for (long k = 0; k < TILE; k += 2)
    for (long q = 0; q < TILE; q += WIDTH) {
      wide made[2];
      for (int n = 0; n < 2; n++) {
        long at = (k + n) * TILE + q;
        wide x = *(const wide *)(scores + at) * scale - *(const wide *)(log_sums + q);
        if (seen) x = shown(x, seen + at);
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
    float dot = 0;
    for (long d = 0; t < T && d < c->V; d++)
      dot += one(half, c->d_out, first + t * apart + d) * one(half, c->out, first + t * apart + d);
    s->dots[t] = dot;
    s->log_sums[t] = t < T ? c->log_sums[(b * c->H + h) * T + t] : -HIDDEN;
  }
  memset(s->d_q, 0, padded * K * sizeof(float));
}

INLINE void backward_head(const int half, const Call *c, long b, long h, Space *s) {
  long T = c->T, tiles = whole(T, TILE) / TILE, K = whole(c->K, WIDTH), V = whole(c->V, WIDTH), size = bytes_of(half);
  long of_K = whole(K, COLUMNS), of_V = whole(V, COLUMNS), row = TILE * size / 4;
  float scores[TILE * TILE] ALIGNED, products[TILE * TILE] ALIGNED;
  unsigned char seen[TILE * TILE] ALIGNED, turned[TILE * TILE] ALIGNED;
  char weights[TILE * TILE * 4] ALIGNED, gradients[TILE * TILE * 4] ALIGNED;
  word across[TILE * TILE / 2] ALIGNED;
  begin_head(half, c, b, h, s);
  for (long j = 0; j < tiles; j++)
    for (long i = 0; i < tiles; i++) {
      int what = look(c, b, i * TILE, j * TILE, seen);
      if (!what) continue;
      if (what == 1)
        for (long k = 0; k < TILE; k++)
          for (long q = 0; q < TILE; q++) turned[k * TILE + q] = seen[q * TILE + k];
      memset(scores, 0, sizeof scores);
      memset(products, 0, sizeof products);
      times(half, (const word *)(s->k_rows + j * TILE * K * size), K * size / 4, 1, s->q_across + i * TILE * K * size,
            K, scores, TILE);
      times(half, (const word *)(s->v_rows + j * TILE * V * size), V * size / 4, 1, s->d_across + i * TILE * V * size,
            V, products, TILE);
      slopes(half, scores, products, what == 1 ? turned : 0, c->scale, s->log_sums + i * TILE, s->dots + i * TILE,
             weights, gradients, across);
      times(half, (const word *)weights, row, 1, s->d_packed + i * TILE * of_V * size, TILE, s->d_v + j * TILE * V, V);
      times(half, (const word *)gradients, row, 1, s->q_packed + i * TILE * of_K * size, TILE, s->d_k + j * TILE * K,
            K);
      times(half, half ? across : (const word *)gradients, 1, TILE, s->k_packed + j * TILE * of_K * size, TILE,
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
