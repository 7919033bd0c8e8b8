/* What products cost here, dense and by events: measured once for each instruction set. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "plan.h"

/* In a network codes and sums come from farther, and finishing them has nothing to hide behind. */
#define WORSE 1.25
#define FIXED_WORSE 1.6
enum { GROUPS = 64, PIXELS = 112, REPEATS = 7, KINDS = 4, MOST_VECTORS = 8 };

/* Nanoseconds for a pixel of GROUPS groups. */
typedef struct {
  double dense, listed;    /* and a vector: all groups, and by lists of them */
  double fixed[KINDS];     /* of 1, 2, 4 and 8 vectors by events, whatever is active */
  double groups[KINDS];    /* and for every active group */
} costs;

typedef struct { /* what vectors read first, and in whole cache lines */
  int8_t codes[MOST_VECTORS * LANES * GROUPS * 4];
  int32_t sums[PIXELS * MOST_VECTORS * LANES], scratch[TILE * MOST_VECTORS * LANES];
  uint8_t values[PIXELS * GROUPS * 4 + 64];
  uint64_t mask[PIXELS + 2];
  uint32_t ranks[PIXELS + 2];
  uint16_t list[PIXELS * GROUPS + 64];
} bench;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Values of which about `of_eight` eighths of the groups are active. */
static void fill(bench *b, const qsd_kernels *kernels, unsigned of_eight) {
  uint32_t state = 1;
  memset(b->values, 0, sizeof b->values);
  for (int i = 0; i < PIXELS * GROUPS; i++) {
    state = state * 1664525u + 1013904223u;
    b->values[4 * i] = (state >> 24) % 8 < of_eight;
  }
  kernels->find_active(b->values, PIXELS * GROUPS * 4, b->mask);
  b->ranks[PIXELS] = kernels->list_active(b->mask, PIXELS, 0, b->ranks, b->list);
}

static double time_events(bench *b, const qsd_kernels *kernels, const qsd_dot *dot, int vectors) {
  static const uint16_t NONE[1];
  qsd_events events = {.dot = dot, .codes = b->codes, .vectors = vectors, .row = b->values,
                       .mask = b->mask, .ranks = b->ranks, .row_bytes = sizeof b->values,
                       .list = b->list, .part = GROUPS, .in_pixel = GROUPS * 4, .rows_at = NONE, .bits_at = NONE,
                       .rows = 1, .pixels = PIXELS, .sums = b->sums};
  double best = 1e12;
  for (int i = 0; i < REPEATS; i++) {
    double from = now();
    kernels->events(&events);
    double took = now() - from;
    if (took < best) best = took;
  }
  return best / PIXELS;
}

/* By lists of all groups where these are given. */
static double time_dense(bench *b, const qsd_kernels *kernels, const qsd_dot *dot,
                         const qsd_common *common) {
  qsd_finish finish = {.small = true, .store = true};
  qsd_step step = {.kind = STEP_DOT, .finish = &finish, .dot = *dot, .vectors = dot->vectors};
  size_t wide = (size_t)dot->vectors * LANES;
  double best = 1e12;
  for (int i = 0; i < REPEATS; i++) {
    qsd_row row = {.step = &step, .common = common, .in = b->values, .in_pixel = GROUPS * 4, .scratch = b->scratch,
                   .tile = {.out = (uint8_t *)b->sums, .out_pixel = 4 * wide, .steps = 1, .pixels = PIXELS,
                            .vectors = dot->vectors}};
    double from = now();
    kernels->row(&row);
    double took = now() - from;
    if (took < best) best = took;
  }
  return best / PIXELS / dot->vectors;
}

static double time_listed(bench *b, const qsd_kernels *kernels, const qsd_dot *dot) {
  enum { TILES = PIXELS / TILE, PITCH = GROUPS + LANES };
  uint16_t *lists = b->list, counts[TILES];
  for (int i = 0; i < TILES; i++) {
    counts[i] = GROUPS;
    for (int g = 0; g < GROUPS; g++) lists[i * PITCH + g] = (uint16_t)g;
  }
  qsd_common common = {.lists = lists, .counts = counts, .pitch = PITCH, .row = TILES};
  return time_dense(b, kernels, dot, &common);
}

static bool measure(const qsd_kernels *kernels, costs *found) {
  bench *b = aligned_alloc(64, (sizeof *b + 63) / 64 * 64);
  if (!b) return false;
  memset(b, 0, sizeof *b);
  static const size_t START[1];
  for (int k = 0; k < KINDS; k++) {
    int vectors = 1 << k, each = (int)qsd_min(vectors, 2);
    qsd_dot dot = {.vectors = each, .blocks = vectors / each, .positions = 1, .groups = GROUPS,
                   .tile_groups = qsd_tile_groups(GROUPS),
                   .planes = 1, .offsets = START, .codes = b->codes,
                   .block_codes = (size_t)GROUPS * (size_t)each * LANES * 4};
    fill(b, kernels, 2);
    double few = time_events(b, kernels, &dot, vectors), count_few = b->ranks[PIXELS];
    fill(b, kernels, 6);
    double many = time_events(b, kernels, &dot, vectors), count_many = b->ranks[PIXELS];
    found->groups[k] = (many - few) / (count_many - count_few) * PIXELS;
    found->fixed[k] = qsd_max(0, (int64_t)(few - found->groups[k] * count_few / PIXELS));
    if (each != 2 || vectors != 2) continue;
    found->dense = time_dense(b, kernels, &dot, NULL);
    if (kernels->tiles) found->listed = time_listed(b, kernels, &dot);
  }
  free(b);
  return true;
}

/* One entry for each instruction set, written once. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
  const qsd_kernels *kernels;
  costs costs;
} known[5];

static costs costs_of(const qsd_kernels *kernels) {
  costs found = {0};
  pthread_mutex_lock(&lock);
  size_t i = 0;
  while (i < 4 && known[i].kernels && known[i].kernels != kernels) i++;
  if (!known[i].kernels && measure(kernels, &known[i].costs)) known[i].kernels = kernels;
  if (known[i].kernels == kernels) found = known[i].costs;
  pthread_mutex_unlock(&lock);
  return found;
}

bool qsd_event_costs(const qsd_kernels *kernels, qsd_step *step) {
  costs cost = costs_of(kernels);
  int kind = step->event_vectors == 8 ? 3 : step->event_vectors == 4 ? 2 : step->event_vectors - 1;
  if (cost.groups[kind] <= 0) return false;
  const qsd_dot *dot = &step->dot;
  if (kernels->tiles) { /* they may be filled in part */
    const int pixels = step->band_pixels * (step->flat ? step->band_rows : 1);
    double share = qsd_tile_rows(pixels) * dot->tile_groups / 256.0;
    if (!qsd_tiles_pay(dot, pixels)) share = 0;
    step->dense_gain = fmax(1, cost.listed / cost.dense * share);
    cost.dense = cost.listed / step->dense_gain;
  }
  double groups = (double)dot->positions * dot->groups;
  double dense = groups / GROUPS * cost.dense * step->event_vectors;
  double near = 8.0 * qsd_near_groups();
  double runs = ceil(step->dot.groups * step->event_vectors / near); /* of a position */
  double fixed = cost.fixed[kind] * step->dot.positions * runs;
  step->event_runs = runs;
  step->event_fixed = FIXED_WORSE * WORSE * fixed / dense;
  step->event_slope = WORSE * groups * cost.groups[kind] / dense;
  return true;
}

int qsd_near_groups(void) {
  long bytes = 0;
#ifdef _SC_LEVEL1_DCACHE_SIZE
  bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#endif
  if (bytes < 1 << 14 || bytes > 1 << 20) bytes = 1 << 15;
  return (int)bytes / (MOST_VECTORS * LANES * 4);
}
