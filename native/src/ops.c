/* The plain operations, value by value, and byte planes. A part takes its share of the rows. */
#include <string.h>

#include "ops.h"

enum { MOST_KV = 1 << 20 };

static int32_t wrapped(uint32_t value) { return (int32_t)value; }

/* A row (n, y) of the result. */
static void conv_row(const qsd_task *t, int n, int y) {
  const qsd_op *op = t->op;
  const qsd_array *codes = ARRAY(op, A_CODES);
  int kernel = (int)codes->side[2], each_in = (int)codes->side[1];
  int each_out = (int)(codes->side[0] / op->f[F_GROUPS]), pad = (int)op->f[F_PADDING];
  const qsd_tensor *in = t->in[0].t;
  for (int x = 0; x < op->width; x++)
    for (int o = 0; o < op->channels; o++) {
      uint32_t sum = 0;
      for (int c = 0; c < each_in; c++)
        for (int i = 0; i < kernel; i++)
          for (int j = 0; j < kernel; j++) {
            int yy = y * (int)op->f[F_STRIDE] + i - pad, xx = x * (int)op->f[F_STRIDE] + j - pad;
            if (yy < 0 || xx < 0 || yy >= in->height || xx >= in->width) continue;
            uint64_t at = (((uint64_t)o * (uint64_t)each_in + (uint64_t)c) * (uint64_t)kernel +
                           (uint64_t)i) * (uint64_t)kernel + (uint64_t)j;
            int channel = o / each_out * each_in + c;
            sum += (uint32_t)qsd_item(codes, at) * (uint32_t)qsd_get(&t->in[0], n, yy, xx, channel);
          }
      qsd_put(&t->out, n, y, x, o, wrapped(sum));
    }
}

static void convt_row(const qsd_task *t, int n, int y) {
  const qsd_op *op = t->op;
  const qsd_array *codes = ARRAY(op, A_CODES);
  for (int x = 0; x < op->width; x++)
    for (int o = 0; o < op->channels; o++) {
      uint32_t sum = 0;
      for (int c = 0; c < (int)codes->side[0]; c++) {
        uint64_t at = ((uint64_t)c * codes->side[1] + (uint64_t)o) * 4 + (uint64_t)(y % 2 * 2 + x % 2);
        sum += (uint32_t)qsd_item(codes, at) * (uint32_t)qsd_get(&t->in[0], n, y / 2, x / 2, c);
      }
      qsd_put(&t->out, n, y, x, o, wrapped(sum));
    }
}

static void reshape_row(const qsd_task *t, int n, int y) {
  const qsd_op *op = t->op;
  const qsd_tensor *in = t->in[0].t;
  int64_t map = (int64_t)in->height * in->width;
  for (int x = 0; x < op->width; x++)
    for (int c = 0; c < op->channels; c++) {
      int64_t i = ((int64_t)c * op->height + y) * op->width + x;
      int place = (int)(i % map);
      qsd_put(&t->out, n, y, x, c,
          qsd_get(&t->in[0], n, place / in->width, place % in->width, (int)(i / map)));
    }
}

static void normalise_row(const qsd_task *t, const uint8_t *pixels, int n, int y) {
  const qsd_op *op = t->op;
  for (int c = 0; c < op->channels; c++)
    for (int x = 0; x < op->width; x++) {
      int pixel = pixels[((size_t)c * (size_t)op->height + (size_t)y) * (size_t)op->width + (size_t)x];
      qsd_put(&t->out, n, y, x, c, (int32_t)qsd_item(ARRAY(op, A_TABLE), (uint64_t)(c * 256 + pixel)));
    }
}

/* Head `head` of map `n`: q (k^T v), channel by channel of v. */
static void attention_head(const qsd_task *t, int n, int head) {
  const qsd_op *op = t->op;
  int heads = (int)op->f[F_HEADS], each = t->in[0].t->channels / heads;
  int wide = op->channels / heads;
  for (int j = head * wide; j < (head + 1) * wide; j++) {
    for (int y = 0; y < op->height; y++)
      for (int x = 0; x < op->width; x++) qsd_put(&t->out, n, y, x, j, 0);
    for (int i = head * each; i < (head + 1) * each; i++) {
      uint32_t sum = 0;
      for (int y = 0; y < op->height; y++)
        for (int x = 0; x < op->width; x++)
          sum += (uint32_t)qsd_get(&t->in[1], n, y, x, i) * (uint32_t)qsd_get(&t->in[2], n, y, x, j);
      if (!sum) continue;
      for (int y = 0; y < op->height; y++)
        for (int x = 0; x < op->width; x++) {
          uint32_t old = (uint32_t)qsd_get(&t->out, n, y, x, j);
          qsd_put(&t->out, n, y, x, j, wrapped(old + sum * (uint32_t)qsd_get(&t->in[0], n, y, x, i)));
        }
    }
  }
}

static void run_row(const qsd_task *t, int n, int y) {
  switch (t->op->kind) {
    case OP_CONV: conv_row(t, n, y); break;
    case OP_CONVT: convt_row(t, n, y); break;
    case OP_RESHAPE: reshape_row(t, n, y); break;
    default: qsd_map_row(t, n, y);
  }
}

uint64_t qsd_attention_scratch(const qsd_graph *graph, const qsd_plan *plan, const qsd_op *op) {
  for (int i = 0; i < 3; i++)
    if (plan->tensors[plan->input_of[op->inputs[i]]].bytes != 1) return 0;
  uint64_t heads = (uint64_t)op->f[F_HEADS];
  uint64_t each = (uint64_t)graph->ops[op->inputs[0]].channels / heads;
  uint64_t wide = ((uint64_t)op->channels / heads + LANES - 1) / LANES * LANES;
  uint64_t bytes = each * wide * sizeof(int32_t);
  if (bytes > MOST_KV) return 0;
  /* The same in pairs of 16 bits, and tokens: in fours, or widened. */
  uint64_t chunks = (each + 63) / 64 + (wide + 63) / 64;
  return 2 * bytes + 4 * wide + chunks * 64 * QSD_TOKENS + 64 * each + 128;
}

/* The same with the kernels: spike counts only. */
static void fast_head(const qsd_place_to_run *at, const qsd_task *t, int n, int head) {
  const qsd_op *op = t->op;
  int heads = (int)op->f[F_HEADS], each = t->in[0].t->channels / heads, wide = op->channels / heads;
  qsd_attention a = {.kv = at->scratch, .height = op->height, .width = op->width, .each = each,
                     .wide = wide};
  const uint8_t **in[] = {&a.q, &a.k, &a.v};
  size_t *pixel[] = {&a.q_pixel, &a.k_pixel, &a.v_pixel}, *row[] = {&a.q_row, &a.k_row, &a.v_row};
  for (int i = 0; i < 3; i++) {
    const qsd_tensor *x = t->in[i].t;
    *in[i] = t->in[i].memory + qsd_place(x, n, 0, 0) + head * (i < 2 ? each : wide);
    *pixel[i] = (size_t)x->stride;
    *row[i] = (size_t)(x->width + 2 * x->pad) * (size_t)x->stride;
  }
  const qsd_tensor *out = t->out.t;
  a.out = (int32_t *)(void *)t->out.memory + qsd_place(out, n, 0, 0) + head * wide;
  a.out_pixel = (size_t)out->stride;
  a.out_row = (size_t)(out->width + 2 * out->pad) * (size_t)out->stride;
  double most = (double)op->height * op->width * at->graph->ops[op->inputs[1]].most *
                at->graph->ops[op->inputs[2]].most;
  a.small = most < 32768 && at->graph->ops[op->inputs[0]].most < 128 &&
            at->graph->ops[op->inputs[1]].most < 128 && at->graph->ops[op->inputs[2]].most < 128;
  at->kernels->attention(&a);
}

void qsd_run_op(const qsd_place_to_run *at, const qsd_step *step, int part, int parts) {
  const qsd_graph *graph = at->graph;
  const qsd_plan *plan = at->plan;
  uint8_t *arena = at->arena;
  const qsd_op *op = &graph->ops[step->op];
  qsd_task t = {.op = op, .graph = graph, .out = qsd_view_of(plan, arena, step->out)};
  for (int i = 0; i < op->input_count && i < 3; i++)
    t.in[i] = qsd_view_of(plan, arena, plan->input_of[op->inputs[i]]);
  const qsd_tensor *out = t.out.t;
  if (part == 0) qsd_clear_border(out, t.out.memory);
  int rows = op->kind == OP_ATTENTION ? (int)op->f[F_HEADS] : out->height;
  bool fast = op->kind == OP_ATTENTION && qsd_attention_scratch(graph, plan, op);
  int64_t units = (int64_t)out->n * rows;
  for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; unit++) {
    int n = (int)(unit / rows), y = (int)(unit % rows);
    if (op->kind == OP_NORMALISE) normalise_row(&t, at->pixels[n], n, y);
    else if (fast) fast_head(at, &t, n, y);
    else if (op->kind == OP_ATTENTION) attention_head(&t, n, y);
    else if (op->kind == OP_CONCAT) qsd_concat_row(graph, plan, op, arena, t.out, n, y);
    else run_row(&t, n, y);
  }
}

/* Row (n, y) of byte planes, from 32-bit values or from pixels by the table. */
static void planes_row(const qsd_op *op, qsd_view out, const qsd_view *in, const int32_t *table,
                       const uint8_t *pixels, int n, int y) {
  const qsd_tensor *t = out.t;
  size_t plane = qsd_image_size(t) * (size_t)t->n, map = (size_t)t->height * (size_t)t->width;
  for (int x = 0; x < t->width; x++) {
    uint8_t *to = out.memory + qsd_place(t, n, y, x);
    const uint8_t *from = pixels ? pixels + (size_t)y * (size_t)t->width + (size_t)x : NULL;
    const int32_t *values = NULL;
    if (!from)
      values = (const int32_t *)(const void *)in->memory + qsd_place(in->t, n, y, x);
    for (int c = 0; c < op->channels; c++) {
      int32_t value = from ? table[c * 256 + from[(size_t)c * map]] : values[c];
      uint32_t bits = (uint32_t)value + t->bias;
      for (int i = 0; i < t->planes; i++) to[(size_t)i * plane + (size_t)c] = (uint8_t)(bits >> (8 * i));
    }
  }
}

/* Pixels of one channel as `planes` byte planes without gaps; `planes` is a constant. */
static inline __attribute__((always_inline)) void split_pixels(const uint8_t *pixels, int width,
                                                               const int32_t *table, uint32_t bias,
                                                               size_t plane, const int planes,
                                                               uint8_t *to) {
  for (int x = 0; x < width; x++) {
    uint32_t value = (uint32_t)table[pixels[x]] + bias;
    for (int i = 0; i < planes; i++) to[(size_t)i * plane + (size_t)x] = (uint8_t)(value >> (8 * i));
  }
}

static void pixel_row(const uint8_t *pixels, const int32_t *table, const qsd_tensor *t, uint8_t *to) {
  const size_t plane = qsd_image_size(t) * (size_t)t->n;
  switch (t->planes) {
    case 1: split_pixels(pixels, t->width, table, t->bias, plane, 1, to); break;
    case 2: split_pixels(pixels, t->width, table, t->bias, plane, 2, to); break;
    case 3: split_pixels(pixels, t->width, table, t->bias, plane, 3, to); break;
    default: split_pixels(pixels, t->width, table, t->bias, plane, 4, to);
  }
}

void qsd_run_planes(const qsd_place_to_run *at, const qsd_step *step, int part, int parts) {
  const qsd_op *op = &at->graph->ops[step->op];
  qsd_view out = qsd_view_of(at->plan, at->arena, step->out), in = {0};
  if (step->source >= 0) in = qsd_view_of(at->plan, at->arena, step->source);
  if (part == 0) qsd_clear_border(out.t, out.memory);
  const qsd_tensor *t = out.t;
  int64_t units = (int64_t)t->n * t->height;
  for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; unit++) {
    int n = (int)(unit / t->height), y = (int)(unit % t->height);
    if (step->source < 0 && t->stride == 4) {
      size_t width = (size_t)t->width, map = (size_t)t->height * width;
      at->kernels->pixel_planes(at->pixels[n] + (size_t)y * width, map, t->channels,
                                at->plan->tables[step->op], t->width, t->bias, t->planes,
                                qsd_image_size(t) * (size_t)t->n, out.memory + qsd_place(t, n, y, 0));
      continue;
    }
    if (step->source < 0 && t->stride == 1) {
      pixel_row(at->pixels[n] + (size_t)y * (size_t)t->width, at->plan->tables[step->op], t,
                out.memory + qsd_place(t, n, y, 0));
      continue;
    }
    if (step->source < 0 || t->stride % LANES) {
      const uint8_t *pixels = step->source < 0 ? at->pixels[n] : NULL;
      planes_row(op, out, &in, at->plan->tables[step->op], pixels, n, y);
      continue;
    }
    const int32_t *values = (const int32_t *)(const void *)in.memory + qsd_place(in.t, n, y, 0);
    uint8_t *to = out.memory + qsd_place(t, n, y, 0);
    size_t plane = qsd_image_size(t) * (size_t)t->n;
    for (int x = 0; x < t->width; x++, values += in.t->stride, to += t->stride)
      at->kernels->planes(values, t->stride, t->bias, t->planes, plane, to);
  }
}
