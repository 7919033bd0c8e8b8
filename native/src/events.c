/* Sums by the active groups alone: bits say which these are, and bands of pixels are run this way
 * where so few are active that it pays. */
#include <string.h>

#include "plan.h"

#define SPARSE 0.06
#define NEVER 1e9
/* By the groups that a tile has in common: more than dense products cost, cycles of a tile, and for
 * finding these groups, for 64 of a position and for each pixel. */
#define TILES_WORSE 1.04
#define TILE_CYCLES 200.
#define WORD_CYCLES 40.
#define PIXEL_CYCLES 5.
/* Either way, for a band: looking for active groups. */
#define BAND_CYCLES 600.
enum { BAND = 112, PIECE = 28, EVENT_VECTORS = 8, KEPT = 1 << 17 }; /* bytes of lists */
enum { UNKNOWN, DENSE, BY_PIXELS, BY_TILES };

static int mask_rows(const qsd_tensor *in) { return in->height + 2 * in->pad; }

static size_t row_bytes(const qsd_tensor *in) {
  return (size_t)(in->width + 2 * in->pad) * (size_t)in->stride;
}

/* One word more, so that bits can be read from any place on. */
static size_t row_words(const qsd_tensor *in) {
  return row_bytes(in) / 256 + 2;
}

static size_t sums_size(const qsd_step *step) {
  size_t sums = (size_t)(step->band_rows * step->band_pixels) * EVENT_VECTORS * LANES;
  return (size_t)step->steps * (size_t)qsd_max((int64_t)sums, 2 * TILE * 8 * LANES); /* of both ways */
}

static bool may_run(const qsd_plan *plan, const qsd_step *step) {
  const qsd_tensor *in = &plan->tensors[step->source];
  return step->kind == STEP_DOT && !step->pairs && step->vectors <= 4 && in->planes == 1 &&
         !in->bias && in->stride % 4 == 0 && row_bytes(in) / 4 <= UINT16_MAX &&
         !qsd_widens(plan, step);
}

typedef struct {
  const qsd_runner *r;
  const qsd_tensor *in;
  bool listed;
  uint64_t *mask;
  int64_t *active; /* of each row */
  uint32_t *ranks; /* active groups before each word */
  uint16_t *list, *common, *counts; /* counts: of the lists in common */
  uint8_t *ways;                    /* of bands, where their lists are kept */
  int rows;
  size_t words;
} finder;

/* Where the parts of scratch memory begin, in bytes, and its size. */
typedef struct {
  size_t mask, active, ranks, list, common, counts, ways, size;
} places;

static size_t common_pitch(const qsd_step *step) { return (size_t)step->dot.groups + LANES; }

/* Of a row of a band, what each of its tiles has in common, position by position. */
static size_t row_lists(const qsd_step *step) {
  int tile = qsd_tile_pixels(step);
  return (size_t)(step->band_pixels / tile + 1) * (size_t)(step->steps * step->dot.positions);
}

static size_t band_lists(const qsd_step *step) { return row_lists(step) * (size_t)step->band_rows; }

/* How many bands there are, of pixels and maps. */
static int64_t band_count(const qsd_step *step) {
  int64_t rows = (step->pad_op->height + step->band_rows - 1) / step->band_rows;
  return rows * step->maps * ((step->pad_op->width + step->band_pixels - 1) / step->band_pixels);
}

static places find_places(const qsd_step *step, const qsd_tensor *in) {
  places p = {.mask = sums_size(step) * sizeof(int32_t)};
  size_t rows = (size_t)in->n * (size_t)mask_rows(in), words = rows * row_words(in);
  p.active = p.mask + 8 * words;
  p.ranks = p.active + 8 * rows;
  p.list = p.ranks + 4 * words;
  p.common = (p.list + 2 * (rows * row_bytes(in) / 4) + 127) / 64 * 64;
  size_t bands = step->keeps_lists ? (size_t)band_count(step) : 1;
  p.counts = p.common + 2 * bands * band_lists(step) * common_pitch(step);
  p.ways = p.counts + 2 * bands * band_lists(step);
  p.size = p.ways + bands + 64;
  return p;
}

static bool find_positions(qsd_pool *pool, qsd_step *step, const qsd_tensor *in) {
  uint64_t count = (uint64_t)step->dot.positions;
  uint16_t *rows = qsd_alloc(pool, count, sizeof *rows), *bits = qsd_alloc(pool, count, sizeof *bits);
  if (!rows || !bits) return false;
  size_t bytes = row_bytes(in);
  for (uint64_t i = 0; i < count; i++) {
    rows[i] = (uint16_t)(step->dot.offsets[i] / bytes);
    bits[i] = (uint16_t)(step->dot.offsets[i] % bytes / 4);
  }
  step->rows_at = rows;
  step->bits_at = bits;
  return true;
}

/* What events cost, where dense products cost 1. */
static double cost_of_events(const qsd_step *step, double share) {
  double fixed = share < SPARSE ? step->event_fixed / step->event_runs : step->event_fixed;
  return step->event_looking + fixed + step->event_slope * share;
}

bool qsd_plan_events(qsd_pool *pool, const qsd_kernels *kernels, qsd_events_mode mode,
                     qsd_plan *plan) {
  plan->near_groups = qsd_near_groups();
  for (int i = 0; i < plan->step_count; i++) {
    qsd_step *step = &plan->steps[i];
    if (!kernels->find_active || mode == EVENTS_NEVER || step->kind != STEP_DOT ||
        !may_run(plan, step))
      continue;
    const qsd_tensor *in = &plan->tensors[step->source];
    int most = (int)qsd_max(1, BAND / step->steps), width = step->pad_op->width;
    step->band_pixels = (int)qsd_min(width, most);
    step->band_rows = (int)qsd_min(step->pad_op->height, qsd_max(1, most / width));
    int all = step->blocks * step->vectors;
    step->event_vectors = all >= 8 ? 8 : all >= 4 ? 4 : all >= 2 ? 2 : 1;
    step->dense_gain = 1;
    if (kernels->events && !qsd_event_costs(kernels, step)) continue;
    if (!kernels->events) step->event_runs = 1;
    step->tile_slope = TILES_WORSE * step->dense_gain;
    int tile = qsd_tile_pixels(step), words = (step->dot.groups + 63) / 64;
    double groups = (double)step->dot.groups * tile;
    step->tile_fixed = words * (WORD_CYCLES + PIXEL_CYCLES * tile) / (groups * step->event_vectors) +
                       TILE_CYCLES / (groups * step->dot.positions * step->vectors);
    step->tile_fixed *= step->dense_gain;
    if (width < tile) step->tile_fixed = 1;
    double looking = step->dense_gain * BAND_CYCLES / ((double)step->band_rows * step->band_pixels * step->steps *
                                    step->dot.positions * step->dot.groups * all);
    step->event_looking = kernels->events ? looking : NEVER;
    step->tile_fixed += looking;
    if (mode == EVENTS_ALWAYS && kernels->events)
      step->event_fixed = step->event_slope = step->event_looking = 0;
    if (mode == EVENTS_TILES) step->tile_fixed = step->tile_slope = 0, step->event_looking = NEVER;
    step->by_events = cost_of_events(step, 0) < 1 || step->tile_fixed < 1;
    if (!step->by_events) continue;
    double lists = (double)band_count(step) * (double)band_lists(step) * (double)common_pitch(step);
    step->keeps_lists = 2 * lists <= KEPT;
    size_t bytes = find_places(step, in).size;
    if (bytes > plan->scratch) plan->scratch = bytes;
    if (!find_positions(pool, step, in)) return false;
  }
  return true;
}

static void find_all(finder *f) {
  const qsd_runner *r = f->r;
  size_t bytes = row_bytes(f->in);
  const uint8_t *from = r->arena + f->in->offset;
  for (int i = 0; i < f->in->n * f->rows; i++) {
    uint64_t *mask = f->mask + (size_t)i * f->words;
    mask[f->words - 1] = mask[f->words - 2] = 0;
    f->active[i] = r->kernels->find_active(from + (size_t)i * bytes, bytes, mask);
  }
}

/* The active groups, one row after the other. */
static void list_all(finder *f) {
  if (f->listed) return;
  f->listed = true;
  uint32_t before = 0;
  for (int i = 0; i < f->in->n * f->rows; i++) {
    size_t at = (size_t)i * f->words;
    before = f->r->kernels->list_active(f->mask + at, f->words, before, f->ranks + at, f->list);
  }
}

/* The first row of the input that a row of the output reads. */
static int first_row(const qsd_step *step, const qsd_tensor *in, int y) {
  return y * step->stride - (int)step->pad_op->f[F_PADDING] + in->pad;
}

/* The share of active groups in what rows y.. of the output read. */
static double share_of(const finder *f, int n, int y, int rows) {
  const qsd_step *step = f->r->step;
  int kernel = (int)ARRAY(step->pad_op, A_CODES)->side[2];
  int from = first_row(step, f->in, y), to = first_row(step, f->in, y + rows - 1) + kernel;
  int64_t active = 0;
  for (int s = 0; s < step->steps; s++)
    for (int i = from; i < to; i++) active += f->active[(n + s) * f->rows + i];
  /* Groups that may be active: borders and padding are not. */
  int inner = (int)(qsd_min(to, f->in->pad + f->in->height) - qsd_max(from, f->in->pad));
  double groups = (double)step->steps * (f->in->channels + 3) / 4 * f->in->width *
                  inner;
  return (double)active / groups;
}

/* In a flat step all rows are one. */
static int row_of(const qsd_step *step, int y) { return step->flat ? 0 : y; }
static int pixel_of(const qsd_step *step, int y, int x) {
  return step->flat ? y * step->pad_op->width + x : x;
}

/* Where the windows of row `y` of map `n` begin, from pixel `x` on. */
static qsd_events window(const finder *f, int n, int y, int x) {
  const qsd_step *step = f->r->step;
  const qsd_tensor *in = f->in;
  size_t at = (size_t)(n * f->rows + first_row(step, in, y)), bytes = row_bytes(in);
  int pad = in->pad - (int)step->pad_op->f[F_PADDING];
  return (qsd_events){.dot = &step->dot,
                      .row = f->r->arena + in->offset + at * bytes,
                      .mask = f->mask + at * f->words,
                      .ranks = f->ranks + at * f->words,
                      .row_bytes = bytes,
                      .mask_row = f->words,
                      .list = f->list,
                      .in_row = bytes * (size_t)step->stride,
                      .mask_step = f->words * (size_t)step->stride,
                      .in_pixel = (size_t)(step->stride * in->stride),
                      .bit = (size_t)(x * step->stride + pad) * (size_t)in->stride / 4,
                      .rows_at = step->rows_at,
                      .bits_at = step->bits_at};
}

static void run_piece(const finder *f, int block, int vectors, int n, int y, int rows, int x,
                     int pixels, int part) {
  const qsd_runner *r = f->r;
  const qsd_step *step = r->step;
  size_t wide = (size_t)vectors * LANES, all = (size_t)(rows * pixels) * wide;
  for (int s = 0; s < step->steps; s++) {
    qsd_events events = window(f, n + s, y, x);
    events.codes = step->dot.codes + (size_t)block * step->dot.block_codes;
    events.vectors = vectors;
    events.part = part;
    events.rows = rows;
    events.pixels = pixels;
    events.sums = r->scratch + (size_t)s * all;
    r->kernels->events(&events);
  }
  int left = qsd_round_up(step->channels, LANES) / LANES - block * step->vectors;
  qsd_tile tile = {.sums_pixel = wide, .sums_step = all, .steps = step->steps, .pixels = pixels,
                   .vectors = (int)qsd_min(vectors, left), .channel = block * step->vectors * LANES};
  for (int i = 0; i < rows; i++) {
    tile.sums = r->scratch + (size_t)(i * pixels) * wide;
    qsd_find_tile(r, n, row_of(step, y + i), pixel_of(step, y + i, x), &tile);
    r->kernels->finish(step->finish, &tile);
  }
}

/* Pixels whose codes are in the nearest cache in any case, or are not worth it, go by few. */
static void run_band(const finder *f, int block, int vectors, int n, int y, int rows, int x,
                     int pixels, double share) {
  const qsd_dot *dot = &f->r->step->dot;
  const int part = share < SPARSE ? 0 : f->r->plan->near_groups;
  if (part && dot->positions * dot->groups * vectors > 8 * part) {
    run_piece(f, block, vectors, n, y, rows, x, pixels, part);
    return;
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < pixels; j += PIECE)
      run_piece(f, block, vectors, n, y + i, 1, x + j, (int)qsd_min(PIECE, pixels - j), part);
}

/* The groups that whole tiles of a band have in common, and their share of all. */
static double find_common(const finder *f, size_t band, int n, int y, int rows, int x,
                          int pixels) {
  const qsd_step *step = f->r->step;
  const int tile = qsd_tile_pixels(step);
  const size_t positions = (size_t)step->dot.positions, pitch = common_pitch(step);
  size_t found = 0, tiles = 0;
  for (int i = 0; i < rows; i++) {
    size_t at = band * band_lists(step) + (size_t)i * row_lists(step);
    for (int j = 0; j + tile <= pixels; j += tile)
      for (int s = 0; s < step->steps; s++, at += positions, tiles++) {
        qsd_events e = window(f, n + s, y + i, x + j);
        e.pixels = tile;
        found += f->r->kernels->list_common(&e, pitch, f->common + at * pitch, f->counts + at);
      }
  }
  if (!tiles) return 1;
  return (double)found / ((double)tiles * (double)positions * step->dot.groups);
}

/* What tiles cost, where that may be less than `most`: one tile is looked at before all are. */
static double cost_of_tiles(const finder *f, size_t band, double share, double most, int n, int y,
                            int rows, int x, int pixels) {
  const qsd_step *step = f->r->step;
  const int tile = qsd_tile_pixels(step);
  double cost = step->tile_fixed + step->tile_slope * share; /* or more */
  if (cost < most && step->tile_slope > 0 && pixels >= tile)
    cost = step->tile_fixed + step->tile_slope * find_common(f, band, n, y + rows / 2, 1,
                                                             x + (pixels - tile) / 2, tile);
  if (cost < most)
    cost = step->tile_fixed + step->tile_slope * find_common(f, band, n, y, rows, x, pixels);
  return cost;
}

/* What a band costs at least, where dense products cost 1. */
static double least_cost(const finder *f, int n, int y, int rows) {
  double share = share_of(f, n, y, rows), events = cost_of_events(f->r->step, share);
  double tiles = f->r->step->tile_fixed + f->r->step->tile_slope * share; /* or more groups */
  return events < tiles ? events : tiles;
}

/* The way that costs least; the lists of tiles are there where it is theirs. */
static int find_way(const finder *f, size_t band, double share, int n, int y, int rows, int x,
                    int pixels) {
  if (!(share <= 1)) return DENSE; /* there is nothing to read */
  double events = cost_of_events(f->r->step, share), most = events < 1 ? events : 1;
  double tiles = cost_of_tiles(f, band, share, most, n, y, rows, x, pixels);
  return tiles < most ? BY_TILES : events < 1 ? BY_PIXELS : DENSE;
}

/* Several blocks of a band. */
static void run_blocks(finder *f, size_t band, int block, int count, int outer, int y, int rows,
                       int x, int pixels) {
  const qsd_step *step = f->r->step;
  const int n = outer * step->steps;
  const size_t kept = step->keeps_lists ? band : 0;
  const double share = share_of(f, n, y, rows);
  if (!step->keeps_lists || f->ways[kept] == UNKNOWN)
    f->ways[kept] = (uint8_t)find_way(f, kept, share, n, y, rows, x, pixels);
  if (f->ways[kept] == BY_PIXELS) {
    list_all(f);
    run_band(f, block, count * step->vectors, n, y, rows, x, pixels, share);
    return;
  }
  if (f->ways[kept] == DENSE && step->flat && pixels == step->pad_op->width) {
    pixels *= rows; /* all rows are one */
    rows = 1;
  }
  const size_t at = kept * band_lists(step), pitch = common_pitch(step);
  const qsd_common common = {f->common + at * pitch, f->counts + at, pitch, row_lists(step)};
  for (int b = block; b < block + count; b++)
    qsd_run_span(f->r, b, outer, row_of(step, y), rows, pixel_of(step, y, x), pixels, true,
                 f->ways[kept] == BY_TILES ? &common : NULL);
}

/* Blocks from `block` on that are run together: as many vectors as the kernels have names for. */
static int together(const qsd_step *step, int block) {
  int vectors = (int)qsd_min(step->event_vectors, (step->blocks - block) * step->vectors);
  int power = step->vectors;
  while (2 * power <= vectors) power *= 2;
  return power / step->vectors;
}

bool qsd_run_events(const qsd_runner *r, int part, int parts) {
  const qsd_step *step = r->step;
  if (!step->by_events) return false;
  const qsd_tensor *in = &r->plan->tensors[step->source];
  finder f = {.r = r, .in = in, .rows = mask_rows(in), .words = row_words(in)};
  places p = find_places(step, in);
  uint8_t *scratch = (uint8_t *)r->scratch;
  f.mask = (uint64_t *)(void *)(scratch + p.mask);
  f.active = (int64_t *)(void *)(scratch + p.active);
  f.ranks = (uint32_t *)(void *)(scratch + p.ranks);
  f.list = (uint16_t *)(void *)(scratch + p.list);
  f.common = (uint16_t *)(void *)(scratch + p.common);
  f.counts = (uint16_t *)(void *)(scratch + p.counts);
  f.ways = scratch + p.ways;
  if (step->keeps_lists) memset(f.ways, UNKNOWN, (size_t)band_count(step));
  find_all(&f);
  const int height = step->pad_op->height, width = step->pad_op->width;
  int bands = (height + step->band_rows - 1) / step->band_rows;
  int spans = (width + step->band_pixels - 1) / step->band_pixels;
  int groups = 0;
  bool any = false;
  for (int block = 0; block < step->blocks; block += together(step, block)) groups++;
  for (int i = 0; i < step->maps * bands && !any; i++) {
    int y = i % bands * step->band_rows;
    any = least_cost(&f, i / bands * step->steps, y, (int)qsd_min(step->band_rows, height - y)) < 1;
  }
  if (!any) return false;
  const int64_t each = band_count(step);
  for (int block = 0, group = 0; block < step->blocks; block += together(step, block), group++) {
    int64_t first, last;
    qsd_share(r, each, groups, group, part, parts, &first, &last);
    for (int64_t i = first; i < last; i++) {
      int y = (int)(i / spans % bands) * step->band_rows, span = (int)(i % spans);
      int x = width * span / spans, pixels = width * (span + 1) / spans - x;
      run_blocks(&f, (size_t)i, block, together(step, block), (int)(i / (bands * spans)), y,
                 (int)qsd_min(step->band_rows, height - y), x, pixels);
    }
  }
  return true;
}
