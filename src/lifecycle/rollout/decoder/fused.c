/* One decode step of a decoder on a CPU, all blocks in one call; fused.py makes its inputs.

   Every number of a row is summed in an order that depends on the sizes of the model alone, so that a row has the same
   bits whatever rows are decoded with it. Vectors are GCC's vector types, which any machine can compile.

   A model in bf16 keeps its matrices in bf16, half the bytes, and rounds where torch rounds; sums are fp32. The cache may
   be bf16 whatever the model is. Processors with bf16 instructions multiply two numbers at a time (UNITS); the others
   widen to fp32 by a shift and add in the same order, so that both give the same bits.

   Sizes: B rows, D width, H query heads, G key-value heads, K width of a head, P rotated part of it, F width of the
   feed-forward part, V vocabulary, C slots of a row of the cache. */

#include "fused_arithmetic.h"

typedef struct {
  const float *attention_norm, *qkv_bias, *q_norm, *k_norm, *ffn_norm, *router, *router_bias, *shared_gate;
  const void *qkv, *o, *gate_up, *down; /* panels, see `tile`; with latent attention `qkv` gives only the queries */
  const void *q_down, *kv_down, *k_up, *v_up, *experts_gate_up, *experts_down;
  void *keys, *values; /* (rows, G, C, K); latent: (rows, C, rank + P), and null */
  long window;         /* 0: none */
  long F;              /* width of the feed-forward part, or of the shared experts; 0: none */
  int *chosen; /* (B, A): the experts of every row are written there; or null */
} Layer;

typedef struct {
  long layers, D, H, G, K, P, V, C;
  long F;                                    /* the largest F of any layer */
  long rank, q_rank, nope, value, kept;      /* latent attention; kept: rank + P, rounded up; rank 0: plain attention */
  long E, A, X, groups, active_groups;       /* experts; 0: none */
  long sigmoid, normalise;                   /* router: sigmoid scores (else softmax); weights of a row sum to 1 */
  long half;       /* matrices are bf16, and every result is rounded to it */
  long half_head;  /* ... and so is the head; its results are fp32 either way */
  long half_cache; /* keys and values are bf16 */
  float eps, inner_eps, scale, routed_scale; /* of norms, those inside latent attention, its scores, experts */
  const float *norm;
  const void *head;
} Model;

typedef struct {
  long B;
  const long *rows;             /* of the cache */
  const long *positions;        /* -1: an inactive row */
  const long *prefix_rows, *prefix_lengths; /* (B,) row of the shared prefix, and its number of positions; or null */
  const float *cos, *sin;       /* of every position, (., P) */
  float *x;                     /* (B, D): embeddings */
  float *logits;                /* (B, V) */
  float *scratch;               /* see `scratch_size` */
} Step;

#include "fused_attention.h"
#include "fused_experts.h"

/* The number of floats that `Step.scratch` must hold. */
long scratch_size(const Model *m, long B) {
  long plain = (2 * m->H + 2 * m->G) * m->K;
  long attention = m->rank ? latent_size(m, B) + B * m->H * m->value : B * plain;
  return B * (2 * m->D + 3 * m->F + m->H * (m->C + LANES)) + attention + experts_size(m, B);
}

/* x += the feed-forward part of y: dense, experts, or both. */
static void feed_forward(const Model *m, const Layer *layer, const Step *s, const float *y, float *shared,
                         float *scratch) {
  long B = s->B, F = layer->F, experts = layer->router != 0;
  float *gate_up = scratch, *inner = gate_up + B * 2 * F;
  if (F) {
    linear(m->half, y, layer->gate_up, 0, B, m->D, 2 * F, gate_up, 0);
#pragma omp for schedule(static)
    for (long b = 0; b < B; b++) gate(gate_up + b * 2 * F, F, m->half, inner + b * F);
    linear(m->half, inner, layer->down, 0, B, F, m->D, experts ? shared : s->x, !experts);
  }
  if (experts) visit(m, layer, B, y, F ? shared : 0, scratch + B * 3 * m->F, s->x);
}

void decode(const Model *m, const Layer *layers, const Step *s, int threads) {
  long B = s->B, D = m->D, half = m->half, of_qkv = (m->H + 2 * m->G) * m->K;
  long of_seen = m->rank ? m->H * m->value : m->H * m->K;
  float *y = s->scratch, *shared = y + B * D, *scores = shared + B * D, *seen = scores + B * m->H * (m->C + LANES);
  float *qkv = seen + B * of_seen, *rest = qkv + (m->rank ? latent_size(m, B) : B * of_qkv);
#pragma omp parallel num_threads(threads)
  {
    for (const Layer *layer = layers; layer < layers + m->layers; layer++) {
#pragma omp for schedule(static)
      for (long b = 0; b < B; b++) norm(s->x + b * D, layer->attention_norm, D, m->eps, half, 1, y + b * D);
      if (m->rank) {
        attend_latent(m, layer, s, y, qkv, scores, seen);
      } else {
        linear(half, y, layer->qkv, layer->qkv_bias, B, D, of_qkv, qkv, 0);
#pragma omp for schedule(static)
        for (long b = 0; b < B; b++) place(m, layer, s, b, qkv + b * of_qkv);
        attend_all(m, layer, s, qkv, scores, seen);
      }
      linear(half, seen, layer->o, 0, B, of_seen, D, s->x, 1);
#pragma omp for schedule(static)
      for (long b = 0; b < B; b++) norm(s->x + b * D, layer->ffn_norm, D, m->eps, half, 1, y + b * D);
      feed_forward(m, layer, s, y, shared, rest);
    }
#pragma omp for schedule(static)
    for (long b = 0; b < B; b++)
      if (m->half_head == half)
        norm(s->x + b * D, m->norm, D, m->eps, half, 1, y + b * D);
      else /* bf16 numbers, as the floats that the product with an fp32 head reads */
        norm(s->x + b * D, m->norm, D, m->eps, half, 0, y + b * D);
    linear(m->half_head, y, m->head, 0, B, D, m->V, s->logits, 0);
  }
}
