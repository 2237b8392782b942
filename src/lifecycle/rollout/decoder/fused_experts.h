/* Mixture of experts of fused.c, see moe.py: a router chooses A experts for every row; the rows of one expert are
   multiplied together.

   A row's results are summed over its own experts in the order of their numbers, so that its bits do not depend on
   which other rows the same experts process.

   E experts, A of them for a row, X their width, M = B A visits (a row at an expert), in the order of experts. */

typedef int number __attribute__((may_alias));

/* Arrays in the scratch memory of the experts. */
typedef struct {
  float *scores, *ranks, *weights;        /* (B, E rounded up) twice, (B, A) */
  float *rows, *gate_up, *inner, *made;   /* of every visit: (M, D), (M, 2 X), (M, X), (M, D) */
  number *chosen, *place, *starts;        /* (B, A) expert numbers, (B, A) visit numbers, (E + 1) first visits */
} Visits;

static long rounded_up(long n) { return (n + LANES - 1) / LANES * LANES; }

static Visits visits_in(const Model *m, long B, float *scratch) {
  long M = B * m->A;
  Visits v = {.scores = scratch};
  v.ranks = v.scores + B * rounded_up(m->E);
  v.weights = v.ranks + B * rounded_up(m->E);
  v.rows = v.weights + M;
  v.gate_up = v.rows + M * m->D;
  v.inner = v.gate_up + M * 2 * m->X;
  v.made = v.inner + M * m->X;
  v.chosen = (number *)(v.made + M * m->D);
  v.place = v.chosen + M;
  v.starts = v.place + M;
  return v;
}

static long experts_size(const Model *m, long B) {
  return m->E ? 2 * B * rounded_up(m->E) + B * m->A * (2 * m->D + 3 * m->X + 3) + m->E + 1 : 0;
}

static float score_of(float logit, long sigmoid) {
  vec x = {logit};
  return sigmoid ? (1.0f / (1.0f + exponential(-x)))[0] : logit;
}

static void softmax(float *x, long n) {
  float top = x[0], mass = 0;
  for (long i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
  for (long i = 0; i < n; i += LANES) AT(x + i) = exponential(SEEN(x + i) - top); /* also the padding after them */
  for (long i = 0; i < n; i++) mass += x[i];
  for (long i = 0; i < n; i++) x[i] /= mass;
}

/* Exclude the groups of experts that are not among the best `active_groups`: their ranks become -inf. */
static void close_groups(const Model *m, float *ranks) {
  long size = m->E / m->groups;
  float worth[m->groups];
  for (long g = 0; g < m->groups; g++) {
    float best = -INFINITY, second = -INFINITY;
    for (const float *rank = ranks + g * size; rank < ranks + (g + 1) * size; rank++) {
      second = *rank > best ? best : *rank > second ? *rank : second;
      best = *rank > best ? *rank : best;
    }
    worth[g] = m->sigmoid ? best + second : best;
  }
  for (long g = 0; g < m->groups; g++) {
    long better = 0;
    for (long other = 0; other < m->groups; other++)
      better += worth[other] > worth[g] || (worth[other] == worth[g] && other < g);
    for (long e = g * size; better >= m->active_groups && e < (g + 1) * size; e++) ranks[e] = -INFINITY;
  }
}

/* The experts with the A highest of E ranks, in the order of their numbers. */
static void choose(float *ranks, long E, long A, number *chosen) {
  for (long a = 0; a < A; a++) {
    long best = 0, to = a;
    for (long e = 1; e < E; e++) best = ranks[e] > ranks[best] ? e : best;
    ranks[best] = -INFINITY;
    for (; to > 0 && chosen[to - 1] > best; to--) chosen[to] = chosen[to - 1];
    chosen[to] = best;
  }
}

/* The experts of row b and their weights. y: the input row of a product. */
static void route(const Model *m, const Layer *layer, const float *y, long b, const Visits *v) {
  long E = m->E, A = m->A;
  float *scores = v->scores + b * rounded_up(E), *ranks = v->ranks + b * rounded_up(E), *weights = v->weights + b * A;
  float mass = 0, nothing = 0; /* `nothing`: 0, or NaN where a rank is NaN or infinite */
  for (long e = 0; e < E; e++) {
    vec products = {0};
    for (long i = 0; i < m->D; i += LANES) products += taken(y, i, m->half) * SEEN(layer->router + e * m->D + i);
    scores[e] = score_of(sum(products), m->sigmoid);
  }
  for (long e = E; e < rounded_up(E); e++) scores[e] = -INFINITY;
  if (!m->sigmoid) softmax(scores, E);
  for (long e = 0; e < E; e++) {
    ranks[e] = layer->router_bias ? scores[e] + layer->router_bias[e] : scores[e];
    nothing += ranks[e] - ranks[e];
  }
  if (m->active_groups < m->groups) close_groups(m, ranks);
  choose(ranks, E, A, v->chosen + b * A);
  for (long a = 0; a < A; a++) mass += weights[a] = scores[v->chosen[b * A + a]] + nothing;
  for (long a = 0; a < A; a++) {
    if (m->normalise) weights[a] /= mass + 1e-20f;
    weights[a] = rounded((vec){weights[a] * m->routed_scale}, m->half)[0];
  }
}

/* Count the visits of each expert, and number all visits in the order of experts. One thread. */
static void sort(const Model *m, long B, const Visits *v) {
  for (long e = 0; e <= m->E; e++) v->starts[e] = 0;
  for (long i = 0; i < B * m->A; i++) v->starts[v->chosen[i] + 1]++;
  for (long e = 0; e < m->E; e++) v->starts[e + 1] += v->starts[e];
  for (long i = 0; i < B * m->A; i++) v->place[i] = v->starts[v->chosen[i]]++;
  for (long e = m->E; e > 0; e--) v->starts[e] = v->starts[e - 1];
  v->starts[0] = 0;
}

/* x += the weighted outputs of each row's experts for y, and `shared` (B, D; or null) times its gate. */
static void visit(const Model *m, const Layer *layer, long B, const float *y, const float *shared, float *scratch,
                  float *x) {
  long D = m->D, X = m->X, half = m->half, bytes = half ? 2 : 4;
  Visits v = visits_in(m, B, scratch);
#pragma omp for schedule(static)
  for (long b = 0; b < B; b++) {
    route(m, layer, y + b * D, b, &v);
    for (long a = b * m->A; layer->chosen && a < (b + 1) * m->A; a++) layer->chosen[a] = v.chosen[a];
  }
#pragma omp single
  sort(m, B, &v);
#pragma omp for schedule(static)
  for (long i = 0; i < B * m->A; i++)
    for (long k = 0; k < D; k += LANES) AT(v.rows + v.place[i] * D + k) = SEEN(y + i / m->A * D + k);
#pragma omp for schedule(dynamic, 4) collapse(2)
  for (long e = 0; e < m->E; e++)
    for (long p = 0; p < panels_of(2 * X); p++) {
      long start = v.starts[e], n = v.starts[e + 1] - start;
      product(half, v.rows + start * D, (const char *)layer->experts_gate_up + e * 2 * X * D * bytes, p, 2 * X, 0, n, D,
              2 * X, v.gate_up + start * 2 * X, 0);
    }
#pragma omp for schedule(static)
  for (long i = 0; i < B * m->A; i++) gate(v.gate_up + i * 2 * X, X, half, v.inner + i * X);
#pragma omp for schedule(dynamic, 4) collapse(2)
  for (long e = 0; e < m->E; e++)
    for (long p = 0; p < panels_of(D); p++) {
      long start = v.starts[e], n = v.starts[e + 1] - start;
      product(half, v.inner + start * X, (const char *)layer->experts_down + e * D * X * bytes, p, D, 0, n, X, D,
              v.made + start * D, 0);
    }
#pragma omp for schedule(static)
  for (long b = 0; b < B; b++) {
    float open = 1;
    if (layer->shared_gate) {
      vec products = {0};
      for (long i = 0; i < D; i += LANES) products += taken(y + b * D, i, half) * SEEN(layer->shared_gate + i);
      vec logit = rounded((vec){sum(products)}, half);
      open = rounded(1.0f / (1.0f + exponential(-logit)), half)[0];
    }
    for (long i = 0; i < D; i += LANES) {
      vec total = {0};
      for (long a = b * m->A; a < (b + 1) * m->A; a++)
        total += rounded(SEEN(v.made + v.place[a] * D + i) * v.weights[a], half);
      total = rounded(total, half);
      if (shared) total = rounded(total + rounded(open * SEEN(shared + b * D + i), half), half);
      AT(x + b * D + i) = rounded(SEEN(x + b * D + i) + total, half);
    }
  }
}
