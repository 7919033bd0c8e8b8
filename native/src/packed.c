/* Small maps: the windows of a tile's pixels are put together first, so that it holds pixels of
 * several rows and images, and what becomes of the sums is done for many at a time. */
#include <string.h>

#include "plan.h"

enum { NEAR_BYTES = 1 << 14, WIDEST = 4 };

/* Bytes of a window, and pixels at a time. */
static size_t window_bytes(const qsd_dot *dot) {
  return (size_t)dot->positions * qsd_position_bytes(dot);
}

/* Of scratch memory. */
typedef struct {
  size_t sums, residual, out, counts, windows, size; /* in bytes */
} places;

static places find_places(int pixels, const qsd_dot *dot) {
  size_t values = (size_t)pixels * WIDEST * LANES;
  places p = {.residual = 4 * values};
  p.out = p.residual + 4 * values;
  p.counts = p.out + 4 * values;
  p.windows = p.counts + values;
  p.size = p.windows + (size_t)pixels * window_bytes(dot) + 64;
  return p;
}

uint64_t qsd_plan_packed(const qsd_plan *plan, qsd_step *step) {
  step->packed = 0;
  if (step->kind != STEP_DOT || step->flat || step->steps > 1 || step->vectors > WIDEST ||
      step->dot.planes > 1 || qsd_widens(plan, step) || 2 * step->width >= TILE)
    return 0;
  int tile = qsd_tile_pixels(step), all = step->outer * step->rows * step->width;
  int64_t most = qsd_max(NEAR_BYTES / (int64_t)window_bytes(&step->dot) / tile * tile, tile);
  step->packed = (int)qsd_min(qsd_min(most, SPAN), all);
  return find_places(step->packed, &step->dot).size;
}

/* Where pixels lie in a map. */
typedef struct {
  uint8_t *at[SPAN];
} pixels_of;

static void find_pixels(const qsd_map *map, const qsd_step *step, int first, int count,
                        pixels_of *found) {
  if (!map->first) return;
  int x = first % step->width, y = first / step->width % step->rows;
  int n = first / step->width / step->rows;
  uint8_t *row = qsd_at_pixel(map, n, y, 0, 0);
  for (int i = 0; i < count; i++) {
    found->at[i] = row + (size_t)x * map->pixel;
    if (++x < step->width) continue;
    x = 0;
    if (++y == step->rows) y = 0, n++;
    row = qsd_at_pixel(map, n, y, 0, 0);
  }
}

static void take(const pixels_of *from, int count, size_t at, size_t bytes, uint8_t *to) {
  for (int i = 0; i < count; i++, to += bytes) memcpy(to, from->at[i] + at, bytes);
}

static void put(const pixels_of *to, int count, size_t at, size_t bytes, const uint8_t *from) {
  for (int i = 0; i < count; i++, from += bytes) memcpy(to->at[i] + at, from, bytes);
}

void qsd_run_packed(const qsd_runner *r, int part, int parts) {
  const qsd_step *step = r->step;
  const int all = step->outer * step->rows * step->width;
  static const size_t START[1];
  qsd_dot dot = step->dot; /* all positions of a window are one */
  dot.positions = 1;
  dot.groups *= step->dot.positions;
  dot.tile_groups = qsd_tile_groups(dot.groups);
  dot.offsets = START;
  const places p = find_places(step->packed, &step->dot);
  const size_t window = window_bytes(&step->dot);
  uint8_t *scratch = (uint8_t *)r->scratch;
  pixels_of in, residual, out, counts;
  for (int first = 0; first < all; first += step->packed) {
    const int pixels = (int)qsd_min(step->packed, all - first);
    find_pixels(&r->in, step, first, pixels, &in);
    find_pixels(&r->residual, step, first, pixels, &residual);
    find_pixels(&r->out, step, first, pixels, &out);
    find_pixels(&r->counts, step, first, pixels, &counts);
    r->kernels->gather(&step->dot, (const uint8_t *const *)in.at, pixels, window, scratch + p.windows);
    for (int block = step->blocks * part / parts; block < step->blocks * (part + 1) / parts; block++) {
      const int channel = block * step->vectors * LANES;
      const int vectors = (int)qsd_min(step->vectors, r->all_vectors - block * step->vectors);
      const int made = qsd_made_vectors(vectors);
      const int8_t *codes = dot.codes + (size_t)block * dot.block_codes;
      const size_t c = (size_t)channel, wide = (size_t)vectors * LANES;
      qsd_tile t = {.sums = r->scratch, .sums_pixel = (size_t)made * LANES, .steps = 1,
                    .pixels = pixels, .vectors = vectors, .channel = channel};
      r->kernels->dots(&dot, scratch + p.windows, window, pixels, made, codes,
                       dot.start ? dot.start + channel : NULL, r->scratch);
      if (r->residual.first) {
        t.residual_pixel = r->residual.bytes * wide;
        take(&residual, pixels, r->residual.bytes * c, t.residual_pixel, scratch + p.residual);
        t.residual = scratch + p.residual;
      }
      if (r->out.first) {
        t.out = scratch + p.out;
        t.out_pixel = r->out.bytes * wide;
      }
      if (r->counts.first) {
        t.counts = scratch + p.counts;
        t.counts_pixel = wide;
      }
      r->kernels->finish(step->finish, &t);
      if (r->out.first) put(&out, pixels, r->out.bytes * c, t.out_pixel, scratch + p.out);
      if (r->counts.first) put(&counts, pixels, c, wide, scratch + p.counts);
    }
  }
}
