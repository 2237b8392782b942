/* Of a block, on a CPU: RMS norm, the gate of SwiGLU and rotary positions, forward and backward, each one pass over its
   arrays, in fp32 inside. The formulas are those of norm_swiglu.py and rope.py.

   An array is its address and the distance between its rows, so that parts of a product are read where they stand.
   The same bits whatever the number of threads.

   Sizes: N rows, D numbers of a row; for rotation H heads, K width of a head, P rotated part of it: D is H K. */

#include <stdlib.h>

#include "numbers.h"

/* Each function returns 0, or 1 where there is not enough memory. */

typedef struct {
  char *at;
  long row; /* numbers from one row to the next */
} Array;

INLINE char *row_of(const int half, Array x, long n) { return x.at + n * x.row * bytes_of(half); }

/* Threads for an array of so many numbers: for few, a second one costs more than it brings. */
INLINE int team(int threads, long numbers) { return numbers < 32768 ? 1 : threads; }

/* The numbers of a row, a vector at a time; behind its end vectors hold zeros and stores write nothing. */
#define EACH_VECTOR(i, D) for (long i = 0; i < (D); i += WIDTH)

typedef struct {
  long N, D, half; /* half: of x, out, grad and d_x */
  float eps;
  Array x, out, grad, d_x;
  const float *weight;
  float *scale;    /* (N): 1 / sqrt(mean(x^2) + eps) */
  float *d_weight; /* (D) */
} Norm;

INLINE void norm_row(const int half, const Norm *c, long n) {
  const char *x = row_of(half, c->x, n);
  char *out = row_of(half, c->out, n);
  wide total[2] = {{0}, {0}};
  EACH_VECTOR(i, c->D) {
    wide from = widened_first(half, x, i, c->D - i);
    total[i / WIDTH % 2] += from * from;
  }
  float scale = c->scale[n] = 1 / sqrtf(sum_of(total[0] + total[1]) / c->D + c->eps);
  EACH_VECTOR(i, c->D) {
    wide weight = widened_first(0, c->weight, i, c->D - i);
    store_first(half, out, i, widened_first(half, x, i, c->D - i) * scale * weight, c->D - i);
  }
}

/* With n = x scale: d x = scale (g weight - n mean(g n weight)); g n is added to d_weight (D, in whole vectors). */
INLINE void norm_row_back(const int half, const Norm *c, long n, float *d_weight) {
  const char *x = row_of(half, c->x, n), *grad = row_of(half, c->grad, n);
  char *d_x = row_of(half, c->d_x, n);
  float scale = c->scale[n];
  wide total[2] = {{0}, {0}};
  EACH_VECTOR(i, c->D) {
    long rest = c->D - i;
    wide product = widened_first(half, grad, i, rest) * widened_first(half, x, i, rest) * scale;
    *(wide *)(d_weight + i) += product;
    total[i / WIDTH % 2] += product * widened_first(0, c->weight, i, rest);
  }
  float mean = sum_of(total[0] + total[1]) / c->D;
  EACH_VECTOR(i, c->D) {
    long rest = c->D - i;
    wide pulled = widened_first(half, grad, i, rest) * widened_first(0, c->weight, i, rest);
    store_first(half, d_x, i, (pulled - widened_first(half, x, i, rest) * scale * mean) * scale, rest);
  }
}

int norm_forward(const Norm *c, int threads) {
#pragma omp parallel for schedule(static) num_threads(team(threads, c->N * c->D))
  for (long n = 0; n < c->N; n++) c->half ? norm_row(1, c, n) : norm_row(0, c, n);
  return 0;
}

/* Rows are summed in so many parts, and then the parts in their order, whatever the number of threads. */
#define PARTS 32

int norm_backward(const Norm *c, int threads) {
  long D = whole(c->D, 16), rows = whole(c->N, PARTS) / PARTS;
  float *sums = aligned_alloc(64, PARTS * D * sizeof(float));
  if (!sums) return 1;
  memset(sums, 0, PARTS * D * sizeof(float));
#pragma omp parallel for schedule(static) num_threads(team(threads, c->N * c->D))
  for (long part = 0; part < PARTS; part++)
    for (long n = part * rows; n < c->N && n < (part + 1) * rows; n++)
      c->half ? norm_row_back(1, c, n, sums + part * D) : norm_row_back(0, c, n, sums + part * D);
  for (long i = 0; i < c->D; i++) {
    float total = 0;
    for (long part = 0; part < PARTS; part++) total += sums[part * D + i];
    c->d_weight[i] = total;
  }
  free(sums);
  return 0;
}

typedef struct {
  long N, D, half;
  Array gate, up, out, grad, d_gate, d_up;
} Gate;

INLINE wide sigmoid(wide x) { return 1 / (1 + exponential(-x)); }

INLINE void gate_row(const int half, const Gate *c, long n) {
  const char *gate = row_of(half, c->gate, n), *up = row_of(half, c->up, n);
  char *out = row_of(half, c->out, n);
  EACH_VECTOR(i, c->D) {
    wide x = widened_first(half, gate, i, c->D - i);
    store_first(half, out, i, x * sigmoid(x) * widened_first(half, up, i, c->D - i), c->D - i);
  }
}

/* With s = sigmoid(gate): d gate = grad up s (1 + gate (1 - s)), d up = grad gate s. */
INLINE void gate_row_back(const int half, const Gate *c, long n) {
  const char *gate = row_of(half, c->gate, n), *up = row_of(half, c->up, n), *grad = row_of(half, c->grad, n);
  char *d_gate = row_of(half, c->d_gate, n), *d_up = row_of(half, c->d_up, n);
  EACH_VECTOR(i, c->D) {
    long rest = c->D - i;
    wide x = widened_first(half, gate, i, rest), s = sigmoid(x), g = widened_first(half, grad, i, rest);
    store_first(half, d_gate, i, g * widened_first(half, up, i, rest) * s * (1 + x * (1 - s)), rest);
    store_first(half, d_up, i, g * x * s, rest);
  }
}

int gate_forward(const Gate *c, int threads) {
#pragma omp parallel for schedule(static) num_threads(team(threads, c->N * c->D))
  for (long n = 0; n < c->N; n++) c->half ? gate_row(1, c, n) : gate_row(0, c, n);
  return 0;
}

int gate_backward(const Gate *c, int threads) {
#pragma omp parallel for schedule(static) num_threads(team(threads, c->N * c->D))
  for (long n = 0; n < c->N; n++) c->half ? gate_row_back(1, c, n) : gate_row_back(0, c, n);
  return 0;
}

typedef struct {
  long N, D, half, H, K, P;
  long angles, back; /* angles: rows of cos and sin, of which N is a multiple; back: the gradient */
  Array x, out;
  const float *cos, *sin; /* (angles, P), sin with its sign */
} Turn;

/* A pair (a, b) becomes (a cos + b sin, b cos' + a sin'), ' of the second half; its gradient has the sines changed
   about. */
INLINE void turn_row(const int half, const Turn *c, long n) {
  const float *cos = c->cos + n % c->angles * c->P, *sin = c->sin + n % c->angles * c->P;
  long pairs = c->P / 2, first = c->back ? pairs : 0, second = pairs - first;
  for (long h = 0; h < c->H; h++) {
    const char *x = row_of(half, c->x, n) + h * c->K * bytes_of(half);
    char *out = row_of(half, c->out, n) + h * c->K * bytes_of(half);
    EACH_VECTOR(i, pairs) {
      long rest = pairs - i, j = pairs + i;
      wide a = widened_first(half, x, i, rest), b = widened_first(half, x, j, rest);
      wide cos_a = widened_first(0, cos, i, rest), cos_b = widened_first(0, cos, j, rest);
      wide sin_a = widened_first(0, sin, first + i, rest), sin_b = widened_first(0, sin, second + i, rest);
      store_first(half, out, i, a * cos_a + b * sin_a, rest);
      store_first(half, out, j, b * cos_b + a * sin_b, rest);
    }
    memcpy(out + c->P * bytes_of(half), x + c->P * bytes_of(half), (c->K - c->P) * bytes_of(half));
  }
}

int turn(const Turn *c, int threads) {
#pragma omp parallel for schedule(static) num_threads(team(threads, c->N * c->D))
  for (long n = 0; n < c->N; n++) c->half ? turn_row(1, c, n) : turn_row(0, c, n);
  return 0;
}
