/* Of a chunk of logits, on a CPU: loss, cross-entropy and penalty of each token, and the gradient in place of them. The
   formulas are those of cross_entropy.py.

   Each row is read twice, the second time from the processor's cache, and no other array of that size is made.

   Sizes: C tokens of a chunk, V vocabulary. */

#include <stdlib.h>

#include "numbers.h"

typedef struct {
  long C, V, half, differentiate, dft, ignored;
  float z_loss, softcap; /* softcap: 0 where there is none */
  void *logits;
  const long *labels;
  const float *weights; /* null: all 1 */
  float *out;           /* (3, C): loss, cross-entropy, penalty */
} Call;

/* Logits of one vector from index i on; what lies behind the row counts for nothing. inverse: 1 / softcap. */
INLINE wide logits_of(const int half, const int capped, const Call *c, const float inverse, const char *row, long i) {
  long there = c->V - i;
  wide x = widened_first(half, row, i, there);
  if (capped) x = c->softcap * hyperbolic_tangent(x * inverse);
  return there < WIDTH ? shown(x, (1ul << there) - 1, -INFINITY) : x;
}

/* exponentials (V, in whole vectors) becomes exp(logit - largest logit); returns the logarithm of their sum. It is kept
   apart from the largest logit: beside a large number it would lose the digits that the probabilities are made of. */
INLINE float log_sum_of(const int half, const int capped, const Call *c, const float inverse, const char *row,
                        float *exponentials, float *largest) {
  wide most = (wide){0} - INFINITY, total[4] = {0};
  for (long i = 0; i < c->V; i += WIDTH) {
    wide x = logits_of(half, capped, c, inverse, row, i);
    *(wide *)(exponentials + i) = x;
    most = larger(most, x);
  }
  *largest = largest_of(most);
  for (long i = 0, n = 0; i < c->V; i += WIDTH, n = (n + 1) % 4) {
    wide x = exponential(*(wide *)(exponentials + i) - *largest);
    *(wide *)(exponentials + i) = x;
    total[n] += x;
  }
  return logf(sum_of((total[0] + total[1]) + (total[2] + total[3])));
}

INLINE void token(const int half, const int capped, const Call *c, long t, float *exponentials) {
  char *row = (char *)c->logits + t * c->V * bytes_of(half);
  long label = c->labels[t], trained = label != c->ignored;
  const float inverse = capped ? 1 / c->softcap : 0;
  float largest, log_rest = log_sum_of(half, capped, c, inverse, row, exponentials, &largest);
  float log_sum = largest + log_rest;
  float at_label = one(half, row, trained ? label : 0);
  float slope = tanhf(at_label * inverse);
  if (capped) at_label = c->softcap * slope;
  float logp = at_label - largest - log_rest, weight = trained ? c->weights ? c->weights[t] : 1 : 0;
  float scale = c->dft ? weight * expf(logp) : weight;
  c->out[t] = -logp * scale;
  c->out[c->C + t] = -logp * weight;
  c->out[2 * c->C + t] = c->z_loss * log_sum * log_sum * weight;
  if (!c->differentiate) return;
  float factor = (scale + weight * 2 * c->z_loss * log_sum) * expf(-log_rest);
  float of_label = exponentials[trained ? label : 0] * factor - scale;
  for (long i = 0; i < c->V; i += WIDTH) {
    wide grad = *(wide *)(exponentials + i) * factor;
    if (capped) {
      wide x = hyperbolic_tangent(widened_first(half, row, i, c->V - i) * inverse);
      grad *= 1 - x * x;
    }
    store_first(half, row, i, grad, c->V - i);
  }
  if (capped) of_label *= 1 - slope * slope;
  if (trained) store_first(half, row, label, (wide){0} + of_label, 1);
}

INLINE void tokens(const int half, const int capped, const Call *c, float *exponentials) {
#pragma omp for schedule(static)
  for (long t = 0; t < c->C; t++)
    if (exponentials) token(half, capped, c, t, exponentials);
}

/* 0; 1 where there is not enough memory. */
int terms(const Call *c, int threads) {
  int failed = 0;
#pragma omp parallel num_threads(threads)
  {
    float *exponentials = aligned_alloc(64, whole(c->V, 16) * sizeof(float));
    if (!exponentials) {
#pragma omp atomic write
      failed = 1;
    }
    if (c->half)
      c->softcap ? tokens(1, 1, c, exponentials) : tokens(1, 0, c, exponentials);
    else
      c->softcap ? tokens(0, 1, c, exponentials) : tokens(0, 0, c, exponentials);
    free(exponentials);
  }
  return failed;
}
