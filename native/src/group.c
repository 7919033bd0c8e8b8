/* Runs a step of sums and what becomes of them, tile by tile. */
#include <string.h>

#include "plan.h"

static void zero(uint8_t *memory, size_t from, size_t count, int bytes) {
  memset(memory + from * (size_t)bytes, 0, count * (size_t)bytes);
}

/* Zeros around every map of a tensor; of byte planes, the bias that stands for zero. */
void qsd_clear_border(const qsd_tensor *t, uint8_t *memory) {
  if (!t->pad) return;
  size_t width = (size_t)(t->width + 2 * t->pad) * (size_t)t->stride;
  size_t edge = (size_t)t->pad * (size_t)t->stride, all = qsd_image_size(t);
  for (int n = 0; n < t->n * t->planes; n++) {
    int fill = (int)(t->bias >> (8 * (n / t->n)) & 255);
    size_t base = (size_t)n * all;
    if (fill) {
      memset(memory + base, fill, width * (size_t)t->pad);
      memset(memory + base + all - width * (size_t)t->pad, fill, width * (size_t)t->pad);
    } else {
      zero(memory, base, width * (size_t)t->pad, t->bytes);
      zero(memory, base + all - width * (size_t)t->pad, width * (size_t)t->pad, t->bytes);
    }
    for (int y = 0; y < t->height; y++) {
      size_t row = base + (size_t)(y + t->pad) * width;
      if (fill) {
        memset(memory + row, fill, edge);
        memset(memory + row + width - edge, fill, edge);
      } else {
        zero(memory, row, edge, t->bytes);
        zero(memory, row + width - edge, edge, t->bytes);
      }
    }
  }
}

/* Where a pixel of the step's map begins in a tensor, in elements. */
static size_t pixel_place(const qsd_runner *r, int number, int n, int y, int x) {
  const qsd_tensor *t = &r->plan->tensors[number];
  return r->step->flat ? qsd_place(t, n, x / t->width, x % t->width) : qsd_place(t, n, y, x);
}

/* Bytes as 32-bit numbers, [steps][pixels][channels of the tile], in scratch memory. */
static const int32_t *widened(const qsd_tensor *t, const uint8_t *from, qsd_tile *tile,
                              int32_t *to, size_t *pixel, size_t *step) {
  size_t channels = (size_t)tile->vectors * LANES;
  *pixel = channels;
  *step = channels * (size_t)tile->pixels;
  for (int s = 0; s < tile->steps; s++)
    for (int p = 0; p < tile->pixels; p++) {
      const uint8_t *x = from + (size_t)s * qsd_image_size(t) + (size_t)p * (size_t)t->stride;
      int32_t *y = to + (size_t)s * *step + (size_t)p * channels;
      for (size_t c = 0; c < channels; c++) y[c] = x[c];
    }
  return to;
}

static const int32_t *operand(const qsd_runner *r, int number, int n, int y, int x, qsd_tile *tile,
                              int32_t *scratch, size_t *pixel, size_t *step) {
  const qsd_tensor *t = &r->plan->tensors[number];
  const uint8_t *memory = r->arena + t->offset;
  size_t place = pixel_place(r, number, n, y, x) + (size_t)tile->channel;
  if (t->bytes == 1) return widened(t, memory + place, tile, scratch, pixel, step);
  *pixel = (size_t)t->stride;
  *step = qsd_image_size(t);
  return (const int32_t *)(const void *)memory + place;
}

void qsd_find_tile(const qsd_runner *r, int n, int y, int x, qsd_tile *tile) {
  const qsd_step *step = r->step;
  int32_t *second = r->scratch + (size_t)step->steps * TILE * 8 * LANES;
  if (step->residual >= 0)
    tile->residual = operand(r, step->residual, n, y, x, tile, second, &tile->residual_pixel,
                             &tile->residual_step);
  if (step->out >= 0) {
    const qsd_tensor *t = &r->plan->tensors[step->out];
    tile->out = (int32_t *)(void *)(r->arena + t->offset) +
                pixel_place(r, step->out, n, y, x) + (size_t)tile->channel;
    tile->out_pixel = (size_t)t->stride;
    tile->out_step = qsd_image_size(t);
  }
  if (step->counts >= 0) {
    const qsd_tensor *t = &r->plan->tensors[step->counts];
    tile->counts = r->arena + t->offset + pixel_place(r, step->counts, n, y, x) +
                   (size_t)tile->channel;
    tile->counts_pixel = (size_t)t->stride;
    tile->counts_step = qsd_image_size(t);
  }
}

/* A span of a row: where its pixels lie in everything that the step reads and writes. */
void qsd_run_span(const qsd_runner *r, int block, int outer, int y, int x, int pixels, bool fresh) {
  const qsd_step *step = r->step;
  int all = qsd_round_up(step->channels, LANES) / LANES;
  int n = outer * step->steps;
  qsd_row row = {.step = step, .block = block, .y = y, .fresh = fresh, .scratch = r->scratch};
  qsd_tile *tile = &row.tile;
  *tile = (qsd_tile){.steps = step->steps, .pixels = pixels, .channel = block * step->vectors * LANES};
  tile->vectors = (int)qsd_min(step->vectors, all - block * step->vectors);
  const qsd_tensor *in = &r->plan->tensors[step->source];
  if (step->kind == STEP_LOAD) {
    tile->sums = operand(r, step->source, n, y, x, tile, r->scratch, &tile->sums_pixel,
                         &tile->sums_step);
  } else {
    /* The window's first position lies `padding` before the pixel; a border may be wider. */
    int pad = (int)step->pad_op->f[F_PADDING];
    size_t place = step->flat ? pixel_place(r, step->source, n, y, x)
                              : qsd_place(in, n, y * step->stride - pad, x * step->stride - pad);
    row.in = r->arena + in->offset + place * (size_t)in->bytes;
    row.in_pixel = (size_t)(step->stride * in->stride * in->bytes);
    row.in_step = qsd_image_size(in) * (size_t)in->bytes;
    row.rows = in->height + in->pad - (y * step->stride - pad);
  }
  qsd_find_tile(r, n, y, x, tile);
  r->kernels->row(&row);
}

/* Bytes that are widened first go by tiles: there is room for no more. */
bool qsd_widens(const qsd_plan *plan, const qsd_step *step) {
  return (step->kind == STEP_LOAD && plan->tensors[step->source].bytes == 1) ||
         (step->residual >= 0 && plan->tensors[step->residual].bytes == 1);
}

/* Codes that are needed next come nearer meanwhile. */
static void fetch(const int8_t *codes, size_t from, size_t bytes, size_t end) {
  for (size_t at = from; at < from + bytes && at < end; at += 64) __builtin_prefetch(codes + at, 0, 2);
}

static void run_dense(const qsd_runner *r, int part, int parts) {
  const qsd_step *step = r->step;
  int64_t each = (int64_t)step->outer * step->rows * step->spans, units = each * step->blocks;
  bool tiles = qsd_widens(r->plan, step), fresh = true;
  size_t codes = step->kind == STEP_DOT ? step->dot.block_codes : 0;
  size_t share = (codes + (size_t)each * 64 - 1) / ((size_t)each * 64) * 64; /* of a unit */
  for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; unit++) {
    int block = (int)(unit / each), outer = (int)(unit % each / (step->rows * step->spans));
    int row = (int)(unit % step->rows), span = (int)(unit / step->rows % step->spans);
    int from = step->width * span / step->spans, to = step->width * (span + 1) / step->spans;
    fresh = fresh || row == 0;
    const int8_t *ahead = block + 1 < step->blocks ? step->dot.codes + (size_t)(block + 1) * codes
                                                   : step->ahead;
    if (codes && ahead) fetch(ahead, (size_t)(unit % each) * share, share, codes);
    for (int x = from; x < to; x += tiles ? TILE : to - from)
      qsd_run_span(r, block, outer, row, x, tiles ? (int)qsd_min(TILE, to - x) : to - from, fresh);
    fresh = false;
  }
}

void qsd_run_group(const qsd_runner *r, int part, int parts) {
  const qsd_step *step = r->step;
  int written[] = {step->out, step->counts};
  for (int i = 0; part == 0 && i < 2; i++) {
    const qsd_tensor *t = written[i] >= 0 ? &r->plan->tensors[written[i]] : NULL;
    if (t) qsd_clear_border(t, r->arena + t->offset);
  }
  if (!qsd_run_events(r, part, parts)) run_dense(r, part, parts);
}
