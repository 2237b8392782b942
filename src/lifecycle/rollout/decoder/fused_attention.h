/* Attention of fused.c: one query a row over the keys and values in the cache, plain or latent. */

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

typedef struct { /* one row's keys and values of one head; those of positions before `shared` are in another row */
  const void *keys, *values, *shared_keys, *shared_values;
  long shared, first, last;
} Past;

INLINE const void *at(const int half, const void *own, const void *shared, const Past *past, long j, long K) {
  const char *from = past->first + j < past->shared ? shared : own;
  return from + (past->first + j) * K * (half ? sizeof(bf16) : sizeof(float));
}

/* out[i ..]: N vectors of the weighted sum of values, times `share`. */
INLINE void weigh(const int half, const int N, const Past *past, const float *weights, float share, long i, long K,
                  long rounds, float *out) {
  vec total[N];
  for (int n = 0; n < N; n++) total[n] = (vec){0};
  for (long j = 0; j <= past->last - past->first; j++) {
    const void *value = at(half, past->values, past->shared_values, past, j, K);
    for (int n = 0; n < N; n++) total[n] += weights[j] * load(half, value, i + n * LANES);
  }
  for (int n = 0; n < N; n++) take(out, i + n * LANES, total[n] * share, rounds);
}

/* softmax(scale q k') v of one query over positions [first, last], with the first `width` numbers of each value; `out`
   is the input row of a product. */
INLINE void attend(const int half, const float *q, const Past *past, long K, long width, float scale, long rounds,
                   float *scores, float *out) {
  float top = -INFINITY;
  long n = past->last - past->first + 1;
  for (long j = 0; j < n; j++) {
    const void *key = at(half, past->keys, past->shared_keys, past, j, K);
    const char *value = at(half, past->values, past->shared_values, past, j, K);
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
  for (; i + 8 * LANES <= width; i += 8 * LANES) weigh(half, 8, past, scores, share, i, K, rounds, out);
  for (; i + 2 * LANES <= width; i += 2 * LANES) weigh(half, 2, past, scores, share, i, K, rounds, out);
  if (i < width) weigh(half, 1, past, scores, share, i, K, rounds, out);
}

/* The positions that row b sees in one of `heads` heads of the cache. */
static Past seen_by(const Model *m, const Layer *layer, const Step *s, long b, long head, long heads, long K) {
  long row = m->C * K * (m->half_cache ? sizeof(bf16) : sizeof(float)), own = (s->rows[b] * heads + head) * row;
  long shared = s->prefix_rows ? (s->prefix_rows[b] * heads + head) * row : own;
  long length = s->prefix_rows ? s->prefix_lengths[b] : 0, last = s->positions[b] < 0 ? 0 : s->positions[b];
  long first = layer->window && last >= layer->window ? last - layer->window + 1 : 0;
  const char *keys = layer->keys, *values = layer->values ? layer->values : layer->keys;
  return (Past){keys + own, values + own, keys + shared, values + shared, length, first, last};
}

static void attend_one(const Model *m, const float *q, const Past *past, long K, long width, float scale, float *scores,
                       float *out) {
  if (m->half_cache)
    attend(1, q, past, K, width, scale, m->half, scores, out);
  else
    attend(0, q, past, K, width, scale, m->half, scores, out);
}

static void attend_all(const Model *m, const Layer *layer, const Step *s, const float *qkv, float *scores, float *out) {
  long K = m->K, group = m->H / m->G;
  long head = UNITS && m->half ? K / 2 : K; /* floats in `out` that one head takes */
  float scale = 1.0f / sqrtf((float)K);
#pragma omp for schedule(static) collapse(2)
  for (long g = 0; g < m->G; g++)
    for (long b = 0; b < s->B; b++) {
      Past past = seen_by(m, layer, s, b, g, m->G, K);
      for (long h = g * group; h < (g + 1) * group; h++)
        attend_one(m, qkv + (b * (m->H + 2 * m->G) + h) * K, &past, K, K, scale,
                   scores + (b * m->H + h) * (m->C + LANES), out + b * m->H * K + h * head);
    }
}

/* -- latent attention, see latent.py: all heads look at the same L + P numbers of a position, the first L are the value */

/* Queries (B, H, N + P) -> their unrotated parts (H, B, N), as input of a product; the rotated parts go to `q`, after L
   numbers of (B, H, L + P). What the row keeps is normalised, rotated and stored. */
static void place_latent(const Model *m, const Layer *layer, const Step *s, long b, const float *queries, float *kept,
                         float *plain, float *q) {
  long position = s->positions[b], slot = position < 0 ? m->C - 1 : position, N = m->nope, P = m->P, L = m->rank;
  const float *cos = s->cos + (position < 0 ? 0 : position) * P, *sin = s->sin + (position < 0 ? 0 : position) * P;
  for (long h = 0; h < m->H; h++) {
    const float *query = queries + h * (N + P);
    for (long i = 0; i < N; i += LANES) take(plain + (h * s->B + b) * N, i, SEEN(query + i), m->half);
    for (long i = 0; i < P; i++) q[h * (L + P) + L + i] = query[N + i];
    rotate(q + h * (L + P) + L, cos, sin, P, m->half);
  }
  norm(kept, layer->k_norm, L, m->inner_eps, m->half, 0, kept);
  rotate(kept + L, cos, sin, P, m->half);
  for (long i = 0; i < L + P; i += LANES) {
    long to = (s->rows[b] * m->C + slot) * (L + P) + i;
    if (m->half_cache)
      store(1, layer->keys, to, SEEN(kept + i));
    else
      store(0, layer->keys, to, SEEN(kept + i));
  }
}

/* scratch: `latent_size` floats. out: (B, H, values), the input of a product. */
static void attend_latent(const Model *m, const Layer *layer, const Step *s, const float *y, float *scratch,
                          float *scores, float *out) {
  long B = s->B, H = m->H, N = m->nope, L = m->rank, J = L + m->P, half = m->half, queries = H * (N + m->P);
  float *down = scratch, *wide_q = down + B * m->q_rank, *kept = wide_q + B * queries, *plain = kept + B * m->kept;
  float *q = plain + B * H * N, *seen = q + B * H * J;
  if (m->q_rank) {
    linear(half, y, layer->q_down, 0, B, m->D, m->q_rank, down, 0);
#pragma omp for schedule(static)
    for (long b = 0; b < B; b++)
      norm(down + b * m->q_rank, layer->q_norm, m->q_rank, m->inner_eps, half, 1, down + b * m->q_rank);
    linear(half, down, layer->qkv, 0, B, m->q_rank, queries, wide_q, 0);
  } else {
    linear(half, y, layer->qkv, 0, B, m->D, queries, wide_q, 0);
  }
  linear(half, y, layer->kv_down, 0, B, m->D, m->kept, kept, 0);
#pragma omp for schedule(static)
  for (long b = 0; b < B; b++)
    place_latent(m, layer, s, b, wide_q + b * queries, kept + b * m->kept, plain, q + b * H * J);
#pragma omp for schedule(static) collapse(2)
  for (long h = 0; h < H; h++)
    for (long p = 0; p < panels_of(L); p++)
      product(half, plain + h * B * N, (const char *)layer->k_up + h * L * N * (half ? 2 : 4), p, L, 0, B, N,
              H * J, q + h * J, 0);
#pragma omp for schedule(static) collapse(2)
  for (long b = 0; b < B; b++)
    for (long h = 0; h < H; h++) {
      Past past = seen_by(m, layer, s, b, 0, 1, J);
      attend_one(m, q + (b * H + h) * J, &past, J, L, m->scale, scores + (b * H + h) * (m->C + LANES),
                 seen + (h * B + b) * L);
    }
#pragma omp for schedule(static) collapse(2)
  for (long h = 0; h < H; h++)
    for (long p = 0; p < panels_of(m->value); p++)
      product(half, seen + h * B * L, (const char *)layer->v_up + h * m->value * L * (half ? 2 : 4), p, m->value, 0, B,
              L, H * m->value, out + h * m->value, 0);
#pragma omp for schedule(static)
  for (long b = 0; b < B; b++)
    for (long i = 0; i < H * m->value; i += LANES)
      take(out + b * H * m->value, i, SEEN(out + b * H * m->value + i), half);
}

static long latent_size(const Model *m, long B) {
  return B * (m->q_rank + m->H * (m->nope + m->P) + m->kept + m->H * (m->nope + m->rank + m->P + m->rank));
}
