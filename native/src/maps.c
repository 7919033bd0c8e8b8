/* Maps without weights, row by row, with the channels of a pixel at a time. */
#include <string.h>

#include "ops.h"

enum { CHUNK = 64 };

static size_t pixel_bytes(const qsd_view *v) { return (size_t)v->t->stride * (size_t)v->t->bytes; }

static uint8_t *at(const qsd_view *v, int n, int y, int x) {
  return v->memory + qsd_place(v->t, n, y, x) * (size_t)v->t->bytes;
}

/* Channels from `c` on of a pixel, as 32-bit numbers. */
static void load(const qsd_view *v, const uint8_t *pixel, int c, int count, int32_t *to) {
  if (v->t->bytes == 1)
    for (int i = 0; i < count; i++) to[i] = pixel[c + i];
  else memcpy(to, (const int32_t *)(const void *)pixel + c, (size_t)count * sizeof *to);
}

static void store(const qsd_view *v, uint8_t *pixel, int c, int count, const int32_t *from) {
  if (v->t->bytes == 1)
    for (int i = 0; i < count; i++) pixel[c + i] = (uint8_t)from[i];
  else memcpy((int32_t *)(void *)pixel + c, from, (size_t)count * sizeof *from);
}

/* The same values in another place: bytes are only widened, never narrowed by more than they have. */
static void copy(const qsd_view *to, uint8_t *out, const qsd_view *from, const uint8_t *in,
                 int channels) {
  if (to->t->bytes == from->t->bytes) {
    memcpy(out, in, (size_t)channels * (size_t)to->t->bytes);
    return;
  }
  int32_t values[CHUNK];
  for (int c = 0; c < channels; c += CHUNK) {
    int count = (int)qsd_min(CHUNK, channels - c);
    load(from, in, c, count, values);
    store(to, out, c, count, values);
  }
}

static void most_bytes(uint8_t *restrict out, const uint8_t *restrict in, int channels) {
  for (int c = 0; c < channels; c++) out[c] = in[c] > out[c] ? in[c] : out[c];
}

static void most_words(int32_t *restrict out, const int32_t *restrict in, int channels) {
  for (int c = 0; c < channels; c++) out[c] = in[c] > out[c] ? in[c] : out[c];
}

static void pool_row(const qsd_task *t, int n, int y) {
  const qsd_op *op = t->op;
  const qsd_view *in = &t->in[0], *out = &t->out;
  int stride = (int)op->f[F_STRIDE], pad = (int)op->f[F_PADDING], kernel = (int)op->f[F_KERNEL];
  int top = (int)qsd_max(0, y * stride - pad);
  int bottom = (int)qsd_min(in->t->height, y * stride - pad + kernel);
  for (int x = 0; x < op->width; x++) {
    int left = (int)qsd_max(0, x * stride - pad);
    int right = (int)qsd_min(in->t->width, x * stride - pad + kernel);
    uint8_t *to = at(out, n, y, x);
    copy(out, to, in, at(in, n, top, left), op->channels);
    for (int i = top; i < bottom; i++)
      for (int j = left; j < right; j++) {
        const uint8_t *from = at(in, n, i, j);
        if (in->t->bytes == 1) most_bytes(to, from, op->channels);
        else most_words((int32_t *)(void *)to, (const int32_t *)(const void *)from, op->channels);
      }
  }
}

/* Of output `i`, the nearer and the farther of two neighbours along a side. */
static void neighbours(int i, int size, int *near, int *far) {
  *near = i / 2;
  *far = i % 2 ? (int)qsd_min(i / 2 + 1, size - 1) : (int)qsd_max(i / 2 - 1, 0);
}

static void upsample_row(const qsd_task *t, int n, int y) {
  const qsd_view *in = &t->in[0], *out = &t->out;
  static const uint32_t WEIGHTS[4] = {9, 3, 3, 1};
  int rows[2], columns[2];
  neighbours(y, in->t->height, &rows[0], &rows[1]);
  for (int x = 0; x < t->op->width; x++) {
    uint8_t *to = at(out, n, y, x);
    if (!t->op->bilinear) {
      copy(out, to, in, at(in, n, y / 2, x / 2), t->op->channels);
      continue;
    }
    neighbours(x, in->t->width, &columns[0], &columns[1]);
    for (int c = 0; c < t->op->channels; c += CHUNK) {
      int count = (int)qsd_min(CHUNK, t->op->channels - c);
      uint32_t sums[CHUNK] = {0};
      int32_t values[CHUNK];
      for (int i = 0; i < 4; i++) {
        load(in, at(in, n, rows[i / 2], columns[i % 2]), c, count, values);
        for (int j = 0; j < count; j++) sums[j] += WEIGHTS[i] * (uint32_t)values[j];
      }
      store(out, to, c, count, (const int32_t *)sums);
    }
  }
}

static void pair_row(const qsd_task *t, int n, int y) {
  const qsd_op *op = t->op;
  const bool multiply = op->kind == OP_MULTIPLY;
  const uint8_t *from[2];
  size_t pixel[2];
  for (int i = 0; i < 2; i++) { /* a map of one pixel meets every pixel of the other */
    const qsd_tensor *in = t->in[i].t;
    bool one = in->height == 1 && in->width == 1;
    from[i] = at(&t->in[i], n, one ? 0 : y, 0);
    pixel[i] = one ? 0 : pixel_bytes(&t->in[i]);
  }
  for (int x = 0; x < op->width; x++, from[0] += pixel[0], from[1] += pixel[1])
    for (int c = 0; c < op->channels; c += CHUNK) {
      int count = (int)qsd_min(CHUNK, op->channels - c);
      int32_t a[CHUNK], b[CHUNK];
      load(&t->in[0], from[0], c, count, a);
      load(&t->in[1], from[1], c, count, b);
      for (int i = 0; i < count; i++) {
        uint32_t left = (uint32_t)a[i], right = (uint32_t)b[i];
        a[i] = (int32_t)(multiply ? left * right : left + right);
      }
      store(&t->out, at(&t->out, n, y, x), c, count, a);
    }
}

/* Sums over time. */
static void time_row(const qsd_task *t, int n, int y) {
  const qsd_op *op = t->op;
  const qsd_view *in = &t->in[0];
  int steps = (int)op->f[F_STEPS], every = in->t->n / steps;
  for (int x = 0; x < op->width; x++)
    for (int c = 0; c < op->channels; c += CHUNK) {
      int count = (int)qsd_min(CHUNK, op->channels - c);
      uint32_t sums[CHUNK] = {0};
      int32_t values[CHUNK];
      for (int s = 0; s < steps; s++) {
        load(in, at(in, s * every + n, y, x), c, count, values);
        for (int i = 0; i < count; i++) sums[i] += (uint32_t)values[i];
      }
      store(&t->out, at(&t->out, n, y, x), c, count, (const int32_t *)sums);
    }
}

/* Sums and means over pixels. */
static void space_row(const qsd_task *t, int n, int y) {
  const qsd_op *op = t->op;
  const qsd_view *in = &t->in[0];
  const int64_t pixels = (int64_t)in->t->height * in->t->width;
  const int shift = pixels & (pixels - 1) ? -1 : __builtin_ctzll((uint64_t)pixels);
  for (int c = 0; c < op->channels; c += CHUNK) {
    int count = (int)qsd_min(CHUNK, op->channels - c);
    int64_t sums[CHUNK] = {0};
    int32_t values[CHUNK];
    for (int i = 0; i < in->t->height; i++)
      for (int j = 0; j < in->t->width; j++) {
        load(in, at(in, n, i, j), c, count, values);
        for (int k = 0; k < count; k++) sums[k] += values[k];
      }
    for (int k = 0; k < count; k++) {
      int64_t sum = sums[k];
      if (op->kind == OP_SMEAN) {
        sum += pixels / 2;
        if (shift >= 0) sum >>= shift;
        else sum = sum / pixels - (sum % pixels < 0); /* floor */
      }
      values[k] = (int32_t)sum;
    }
    store(&t->out, at(&t->out, n, y, 0), c, count, values);
  }
}

static void repeat_row(const qsd_task *t, int n, int y) {
  const qsd_view *in = &t->in[0];
  for (int x = 0; x < t->op->width; x++)
    copy(&t->out, at(&t->out, n, y, x), in, at(in, n % in->t->n, y, x), t->op->channels);
}

void qsd_concat_row(const qsd_graph *graph, const qsd_plan *plan, const qsd_op *op, uint8_t *arena,
                    qsd_view out, int n, int y) {
  size_t first = 0;
  for (int i = 0; i < op->input_count; i++) {
    qsd_view in = qsd_view_of(plan, arena, plan->input_of[op->inputs[i]]);
    int channels = graph->ops[op->inputs[i]].channels;
    for (int x = 0; x < op->width; x++)
      copy(&out, at(&out, n, y, x) + first * (size_t)out.t->bytes, &in, at(&in, n, y, x), channels);
    first += (size_t)channels;
  }
}

void qsd_map_row(const qsd_task *t, int n, int y) {
  switch (t->op->kind) {
    case OP_MAXPOOL: pool_row(t, n, y); break;
    case OP_UPSAMPLE: upsample_row(t, n, y); break;
    case OP_MULTIPLY:
    case OP_COUNTADD: pair_row(t, n, y); break;
    case OP_SSUM:
    case OP_SMEAN: space_row(t, n, y); break;
    case OP_TSUM: time_row(t, n, y); break;
    default: repeat_row(t, n, y);
  }
}
