/* Runs a step of sums and what becomes of them, tile by tile. */
#include <string.h>

#include "plan.h"

enum { FETCHED = 1024 }; /* bytes of codes that are fetched at a time */

/* Zeros around every map of a tensor; of byte planes, the bias that stands for zero. The end of a
 * row and the beginning of the next lie side by side. */
void qsd_clear_border(const qsd_tensor *t, uint8_t *memory) {
  if (!t->pad) return;
  const size_t pixel = (size_t)t->stride * (size_t)t->bytes;
  const size_t row = (size_t)(t->width + 2 * t->pad) * pixel, edge = (size_t)t->pad * pixel;
  const size_t outer = (size_t)t->pad * row + edge, inner = (size_t)t->width * pixel;
  for (int n = 0; n < t->n * t->planes; n++) {
    int fill = (int)(t->bias >> (8 * (n / t->n)) & 255);
    memset(memory, fill, outer);
    memory += outer + inner;
    for (int y = 1; y < t->height; y++, memory += 2 * edge + inner) memset(memory, fill, 2 * edge);
    memset(memory, fill, outer);
    memory += outer;
  }
}

static qsd_map find_map(const qsd_plan *plan, uint8_t *arena, int number) {
  if (number < 0) return (qsd_map){0};
  const qsd_tensor *t = &plan->tensors[number];
  size_t bytes = (size_t)t->bytes, pixel = (size_t)t->stride * bytes;
  return (qsd_map){.first = arena + t->offset + qsd_place(t, 0, 0, 0) * bytes,
                   .bytes = bytes,
                   .pixel = pixel,
                   .row = (size_t)(t->width + 2 * t->pad) * pixel,
                   .image = qsd_image_size(t) * bytes};
}

/* Bytes as 32-bit numbers, [steps][pixels][channels of the tile], in scratch memory. */
static const uint8_t *widened(const qsd_map *map, const uint8_t *from, qsd_tile *tile, int32_t *to,
                              size_t *pixel, size_t *step) {
  size_t channels = (size_t)tile->vectors * LANES;
  *pixel = 4 * channels;
  *step = *pixel * (size_t)tile->pixels;
  for (int s = 0; s < tile->steps; s++)
    for (int p = 0; p < tile->pixels; p++) {
      const uint8_t *x = from + (size_t)s * map->image + (size_t)p * map->pixel;
      int32_t *y = to + ((size_t)s * (size_t)tile->pixels + (size_t)p) * channels;
      for (size_t c = 0; c < channels; c++) y[c] = x[c];
    }
  return (const uint8_t *)to;
}

/* Values in 16 or 32 bits, and how far pixels and time steps are apart in bytes. */
static const uint8_t *operand(const qsd_map *map, int n, int y, int x, qsd_tile *tile,
                              int32_t *scratch, size_t *pixel, size_t *step) {
  const uint8_t *from = qsd_at_pixel(map, n, y, x, tile->channel);
  if (map->bytes == 1) return widened(map, from, tile, scratch, pixel, step);
  *pixel = map->pixel;
  *step = map->image;
  return from;
}

void qsd_find_tile(const qsd_runner *r, int n, int y, int x, qsd_tile *tile) {
  if (r->residual.first) {
    int32_t *second = r->scratch + (size_t)r->step->steps * TILE * 8 * LANES;
    tile->residual = operand(&r->residual, n, y, x, tile, second, &tile->residual_pixel,
                             &tile->residual_step);
  }
  if (r->out.first) {
    tile->out = qsd_at_pixel(&r->out, n, y, x, tile->channel);
    tile->out_pixel = r->out.pixel;
    tile->out_step = r->out.image;
  }
  if (r->counts.first) {
    tile->counts = qsd_at_pixel(&r->counts, n, y, x, tile->channel);
    tile->counts_pixel = r->counts.pixel;
    tile->counts_step = r->counts.image;
  }
}

/* A span of rows: where its pixels lie in everything that the step reads and writes. */
void qsd_run_span(const qsd_runner *r, int block, int outer, int y, int rows, int x, int pixels,
                  bool fresh, const qsd_common *common) {
  const qsd_step *step = r->step;
  int n = outer * step->steps;
  qsd_row row;
  row.step = step;
  row.block = block;
  row.y = y;
  row.fresh = fresh;
  row.scratch = r->scratch;
  qsd_common lists;
  if (common) lists = *common;
  row.common = common ? &lists : NULL;
  qsd_tile *tile = &row.tile;
  tile->residual = NULL;
  tile->out = NULL;
  tile->counts = NULL;
  tile->steps = step->steps;
  tile->pixels = pixels;
  tile->channel = block * step->vectors * LANES;
  tile->vectors = (int)qsd_min(step->vectors, r->all_vectors - block * step->vectors);
  if (step->kind == STEP_LOAD) {
    row.in = operand(&r->in, n, y, x, tile, r->scratch, &row.in_pixel, &row.in_step);
    tile->sums = (const int32_t *)(const void *)row.in;
    tile->sums_pixel = row.in_pixel / sizeof(int32_t);
    tile->sums_step = row.in_step / sizeof(int32_t);
  } else {
    row.in = qsd_at_pixel(&r->in, n, y, x, 0);
    row.in_pixel = r->in.pixel;
    row.in_step = r->in.image;
    row.rows = r->in_rows - y * step->stride;
  }
  qsd_find_tile(r, n, y, x, tile);
  const uint8_t *residual = tile->residual;
  uint8_t *out = tile->out, *counts = tile->counts;
  for (;;) {
    r->kernels->row(&row);
    if (--rows == 0) return;
    row.y++;
    row.fresh = false;
    tile->pixels = pixels;
    if (common) {
      lists.lists += lists.row * lists.pitch;
      lists.counts += lists.row;
    }
    row.in += r->in.row;
    if (step->kind == STEP_LOAD) tile->sums = (const int32_t *)(const void *)row.in;
    else row.rows -= step->stride;
    if (residual) tile->residual = residual += r->residual.row;
    if (out) tile->out = out += r->out.row;
    if (counts) tile->counts = counts += r->counts.row;
  }
}

bool qsd_widens(const qsd_plan *plan, const qsd_step *step) {
  return (step->kind == STEP_LOAD && plan->tensors[step->source].bytes == 1) ||
         (step->residual >= 0 && plan->tensors[step->residual].bytes == 1);
}

/* Codes that are needed next come nearer meanwhile. */
static void fetch(const int8_t *codes, size_t from, size_t bytes, size_t end) {
  for (size_t at = from; at < from + bytes && at < end; at += 64) __builtin_prefetch(codes + at, 0, 2);
}

/* A part's share of `each` units in each of `blocks` blocks: the same rows of all blocks where maps
 * are larger than codes, as other threads' rows are far away, and otherwise blocks. */
void qsd_share(const qsd_runner *r, int64_t each, int blocks, int block, int part, int parts,
               int64_t *first, int64_t *last) {
  const qsd_step *step = r->step;
  size_t codes = step->kind == STEP_DOT ? step->dot.block_codes * (size_t)step->blocks : 0;
  if (each >= parts && r->plan->tensors[step->source].size >= codes) {
    *first = each * part / parts;
    *last = each * (part + 1) / parts;
    return;
  }
  int64_t units = each * blocks, before = each * block;
  *first = qsd_max(units * part / parts - before, 0);
  *last = qsd_min(units * (part + 1) / parts - before, each);
}

static void run_block(const qsd_runner *r, int block, int64_t first, int64_t last, int64_t each) {
  const qsd_step *step = r->step;
  const int rows = step->rows, spans = step->spans;
  const bool widens = qsd_widens(r->plan, step);
  const int most = widens ? TILE : step->width;
  const size_t codes = step->kind == STEP_DOT ? step->dot.block_codes : 0;
  const size_t share = (codes / (size_t)each + 63) / 64 * 64; /* of a unit */
  const int8_t *ahead = block + 1 < step->blocks ? step->dot.codes + (size_t)(block + 1) * codes
                                                 : step->ahead;
  int outer = (int)(first / (rows * spans)), row = (int)(first % rows);
  int span = (int)(first / rows % spans);
  bool fresh = true;
  const bool pieces = most < step->width; /* only the last one has its rows still interleaved */
  const int64_t once = widens ? 1 : qsd_max(1, FETCHED / qsd_max((int64_t)share, 1)); /* rows */
  for (int64_t unit = first; unit < last;) {
    int from = step->width * span / spans, to = step->width * (span + 1) / spans;
    int count = (int)qsd_min(qsd_min(once, rows - row), last - unit);
    if (codes && ahead) fetch(ahead, (size_t)unit * share, (size_t)count * share, codes);
    for (int x = from; x < to; x += most)
      qsd_run_span(r, block, outer, row, count, x, (int)qsd_min(most, to - x), fresh || pieces,
                   NULL);
    fresh = false;
    unit += count;
    if ((row += count) < rows) continue;
    row = 0;
    fresh = true;
    if (++span < spans) continue;
    span = 0;
    outer++;
  }
}

static void run_dense(const qsd_runner *r, int part, int parts) {
  const qsd_step *step = r->step;
  const int64_t each = (int64_t)step->outer * step->rows * step->spans;
  for (int block = 0; block < step->blocks; block++) {
    int64_t first, last;
    qsd_share(r, each, step->blocks, block, part, parts, &first, &last);
    if (first < last) run_block(r, block, first, last, each);
  }
}

void qsd_run_group(const qsd_kernels *kernels, const qsd_plan *plan, const qsd_step *step,
                   uint8_t *arena, int32_t *scratch, int part, int parts) {
  qsd_runner r = {.kernels = kernels,
                  .plan = plan,
                  .step = step,
                  .arena = arena,
                  .scratch = scratch,
                  .all_vectors = qsd_round_up(step->channels, LANES) / LANES,
                  .in = find_map(plan, arena, step->source),
                  .residual = find_map(plan, arena, step->residual),
                  .out = find_map(plan, arena, step->out),
                  .counts = find_map(plan, arena, step->counts)};
  const qsd_tensor *in = &plan->tensors[step->source];
  if (step->kind != STEP_LOAD) { /* where windows begin; a border may be wider than they need */
    int pad = (int)step->pad_op->f[F_PADDING];
    r.in.first -= (size_t)pad * (r.in.row + r.in.pixel);
    r.in.row *= (size_t)step->stride;
    r.in.pixel *= (size_t)step->stride;
    r.in_rows = in->height + in->pad + pad;
  }
  if (part == 0 && step->out >= 0) qsd_clear_border(&plan->tensors[step->out], arena + plan->tensors[step->out].offset);
  if (part == 0 && step->counts >= 0)
    qsd_clear_border(&plan->tensors[step->counts], arena + plan->tensors[step->counts].offset);
  if (qsd_run_events(&r, part, parts)) return;
  if (step->packed) qsd_run_packed(&r, part, parts);
  else run_dense(&r, part, parts);
}
