/* Shapes and bounds of every value, derived without running the graph; refuses what could leave
 * 32 bits. The rules are those of qsdformer/graph/check.py. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define MAX_PRODUCT 4611686018427387904.0 /* 2^62 */
enum { MAX_SIDE = 65536, MAX_TOTAL = 1 << 22, MAX_FRACTION = 256 };

#define FIT(condition, what) \
  if (!(condition)) return what

static const char *window(const qsd_op *x, qsd_op *op, int64_t kernel) {
  int64_t reach = 2 * op->f[F_PADDING] - kernel, stride = op->f[F_STRIDE];
  FIT(x->height + reach >= 0 && x->width + reach >= 0, "has an input smaller than its kernel");
  op->height = (int)((x->height + reach) / stride + 1);
  op->width = (int)((x->width + reach) / stride + 1);
  return NULL;
}

static const char NO_MEMORY[] = "needs more memory than there is";

static const char *set_channels(qsd_graph *graph, qsd_op *op, int64_t channels) {
  FIT(channels <= MAX_SIDE, "has too many channels");
  op->channels = (int)channels;
  op->bound = qsd_alloc(&graph->pool, (uint64_t)channels, sizeof *op->bound);
  return op->bound ? NULL : NO_MEMORY;
}

/* Bounds of sums of codes times inputs. Codes are (out, in, k, k), or (in, out, 2, 2). */
static const char *conv_bounds(qsd_op *op, const qsd_op *x, bool transposed) {
  const qsd_array *codes = ARRAY(op, A_CODES);
  int8_t *all = malloc((size_t)codes->count);
  if (!all) return NO_MEMORY;
  qsd_unpack8(codes, all);
  uint32_t first = codes->side[0], second = codes->side[1], taps = codes->side[2] * codes->side[3];
  uint32_t per_group = transposed ? 1 : first / (uint32_t)op->f[F_GROUPS];
  for (uint64_t i = 0; transposed && i < codes->count; i++) { /* the largest of the four sums */
    uint64_t o = i / 4 % second;
    if (i % 4 == 0 && i / 4 < second) op->bound[o] = 0;
  }
  if (transposed) {
    for (uint32_t o = 0; o < second; o++)
      for (uint32_t t = 0; t < 4; t++) {
        double sum = 0;
        for (uint32_t c = 0; c < first; c++)
          sum += x->bound[c] * abs(all[((uint64_t)c * second + o) * 4 + t]);
        op->bound[o] = fmax(op->bound[o], sum);
      }
  } else {
    const int8_t *code = all;
    for (uint32_t o = 0; o < first; o++)
      for (uint32_t c = 0; c < second; c++) {
        double sum = 0;
        for (uint32_t t = 0; t < taps; t++) sum += abs(*code++);
        op->bound[o] += sum * x->bound[o / per_group * second + c];
      }
  }
  bool negative = false;
  for (uint64_t i = 0; i < codes->count; i++) negative |= all[i] < 0;
  op->positive = x->positive && !negative;
  free(all);
  return NULL;
}

static const char *conv_shape(qsd_graph *graph, qsd_op *op, const qsd_op *x) {
  const uint32_t *side = ARRAY(op, A_CODES)->side;
  FIT((double)side[1] * (double)op->f[F_GROUPS] == x->channels, "does not fit its input channels");
  const char *what = window(x, op, side[2]);
  op->fraction = 0;
  if (!what) what = set_channels(graph, op, side[0]);
  return what ? what : conv_bounds(op, x, false);
}

static const char *convt_shape(qsd_graph *graph, qsd_op *op, const qsd_op *x) {
  const uint32_t *side = ARRAY(op, A_CODES)->side;
  FIT(side[0] == (uint32_t)x->channels, "does not fit its input channels");
  op->height = 2 * x->height, op->width = 2 * x->width;
  op->fraction = 0;
  const char *what = set_channels(graph, op, side[1]);
  return what ? what : conv_bounds(op, x, true);
}

static const char *rescale_shape(qsd_op *op, const qsd_op *x) {
  const qsd_array *multiplier = ARRAY(op, A_MULTIPLIER);
  FIT(multiplier->count == (uint64_t)x->channels, "has not a factor for each channel");
  for (int c = 0; c < x->channels; c++) {
    double product = x->bound[c] * fabs((double)qsd_item(multiplier, (uint64_t)c));
    double bias = fabs((double)qsd_item(ARRAY(op, A_BIAS), (uint64_t)c));
    int shift = (int)qsd_item(ARRAY(op, A_SHIFT), (uint64_t)c);
    FIT(product < MAX_PRODUCT && bias < MAX_PRODUCT, "has products beyond 64 bits");
    op->bound[c] = fmin(ceil(ldexp(product, -shift)) + 1 + bias, (double)op->f[F_LIMIT]);
  }
  op->fraction = op->f[F_FRACTION];
  op->positive = false;
  return NULL;
}

static const char *pair_shape(qsd_op *op, const qsd_op *x, const qsd_op *y) {
  FIT(x->channels == y->channels && x->steps == y->steps, "reads values of different shapes");
  bool same = x->height == y->height && x->width == y->width;
  op->positive = x->positive && y->positive;
  if (op->kind == OP_MULTIPLY) {
    FIT(same || (x->height == 1 && x->width == 1) || (y->height == 1 && y->width == 1),
        "reads values of different shapes");
    op->height = (int)qsd_max(x->height, y->height), op->width = (int)qsd_max(x->width, y->width);
    op->fraction = x->fraction + y->fraction;
    for (int c = 0; c < x->channels; c++) op->bound[c] = x->bound[c] * y->bound[c];
    return NULL;
  }
  FIT(same, "reads values of different shapes");
  FIT(x->fraction == y->fraction, "reads values of different formats");
  for (int c = 0; c < x->channels; c++) {
    op->bound[c] = x->bound[c] + y->bound[c];
    if (op->kind == OP_ADD) op->bound[c] = fmin(op->bound[c], (double)op->f[F_LIMIT]);
  }
  return NULL;
}

static const char *concat_shape(qsd_graph *graph, qsd_op *op) {
  const qsd_op *x = &graph->ops[op->inputs[0]];
  int64_t channels = 0;
  for (int i = 0; i < op->input_count; i++) {
    const qsd_op *y = &graph->ops[op->inputs[i]];
    FIT(x->height == y->height && x->width == y->width && x->steps == y->steps,
        "joins values of different shapes");
    FIT(x->fraction == y->fraction, "joins values of different formats");
    channels += y->channels;
    op->positive = op->positive && y->positive;
  }
  const char *what = set_channels(graph, op, channels);
  if (what) return what;
  double *next = op->bound;
  for (int i = 0; i < op->input_count; i++) {
    const qsd_op *y = &graph->ops[op->inputs[i]];
    memcpy(next, y->bound, (size_t)y->channels * sizeof *next);
    next += y->channels;
  }
  return NULL;
}

static const char *attention_shape(qsd_graph *graph, qsd_op *op) {
  const qsd_op *q = &graph->ops[op->inputs[0]], *k = &graph->ops[op->inputs[1]],
               *v = &graph->ops[op->inputs[2]];
  int64_t heads = op->f[F_HEADS];
  FIT(q->channels == k->channels && q->height == k->height && q->width == k->width &&
          q->steps == k->steps,
      "has q and k of different shapes");
  FIT(v->height == q->height && v->width == q->width && v->steps == q->steps,
      "has v on another grid");
  FIT(q->channels % heads == 0 && v->channels % heads == 0, "has heads that do not divide");
  const char *what = set_channels(graph, op, v->channels);
  if (what) return what;
  int64_t each = q->channels / heads, wide = v->channels / heads;
  double tokens = (double)q->height * q->width;
  for (int64_t h = 0; h < heads; h++) {
    double sum = 0;
    for (int64_t c = h * each; c < (h + 1) * each; c++) sum += q->bound[c] * k->bound[c];
    for (int64_t c = h * wide; c < (h + 1) * wide; c++) op->bound[c] = tokens * sum * v->bound[c];
  }
  op->fraction = q->fraction + k->fraction + v->fraction;
  op->positive = q->positive && k->positive && v->positive;
  return NULL;
}

static const char *map_shape(qsd_graph *graph, qsd_op *op, const qsd_op *x) {
  double factor = 1;
  if (op->kind == OP_MAXPOOL) {
    const char *what = window(x, op, op->f[F_KERNEL]);
    if (what) return what;
  } else if (op->kind == OP_SSUM || op->kind == OP_SMEAN) {
    factor = op->kind == OP_SSUM ? (double)x->height * x->width : 1;
    op->height = op->width = 1;
  } else if (op->kind == OP_UPSAMPLE) {
    op->height *= 2, op->width *= 2;
    factor = op->bilinear ? 16 : 1;
    op->fraction += op->bilinear ? 4 : 0;
  } else if (op->kind == OP_TSUM) {
    FIT(op->f[F_STEPS] == x->steps, "has other time steps than its input");
    op->steps = 1;
    factor = (double)op->f[F_STEPS];
  } else if (op->kind == OP_REPEAT || op->kind == OP_FRAMES) {
    FIT(x->steps == 1, "gives a time axis to what has none");
    op->steps = (int)op->f[F_STEPS];
  } else { /* OP_RESHAPE */
    double size = (double)op->f[F_CHANNELS] * (double)op->f[F_HEIGHT] * (double)op->f[F_WIDTH];
    FIT(size == (double)x->channels * x->height * x->width, "does not keep the number of elements");
    op->height = (int)op->f[F_HEIGHT], op->width = (int)op->f[F_WIDTH];
    const char *what = set_channels(graph, op, op->f[F_CHANNELS]);
    for (int c = 0; !what && c < op->channels; c++) op->bound[c] = x->most;
    return what;
  }
  for (int c = 0; c < x->channels; c++) op->bound[c] = x->bound[c] * factor;
  return NULL;
}

static const char *normalise_shape(qsd_graph *graph, qsd_op *op) {
  const qsd_array *table = ARRAY(op, A_TABLE);
  FIT(table->side[0] == (uint32_t)graph->channels, "has not a table for each channel");
  op->height = graph->height, op->width = graph->width;
  op->steps = 1;
  op->fraction = op->f[F_FRACTION];
  op->positive = true;
  const char *what = set_channels(graph, op, graph->channels);
  for (uint64_t i = 0; !what && i < table->count; i++) {
    double value = (double)qsd_item(table, i);
    op->bound[i / 256] = fmax(op->bound[i / 256], fabs(value));
    op->positive = op->positive && value >= 0;
  }
  return what;
}

static const char *shape(qsd_graph *graph, qsd_op *op) {
  if (op->kind == OP_NORMALISE) return normalise_shape(graph, op);
  const qsd_op *x = &graph->ops[op->inputs[0]];
  op->height = x->height, op->width = x->width, op->steps = x->steps;
  op->fraction = x->fraction, op->positive = x->positive;
  if (op->kind == OP_CONV) return conv_shape(graph, op, x);
  if (op->kind == OP_CONVT) return convt_shape(graph, op, x);
  if (op->kind == OP_CONCAT) return concat_shape(graph, op);
  if (op->kind == OP_ATTENTION) return attention_shape(graph, op);
  if (op->kind == OP_RESHAPE) return map_shape(graph, op, x);
  const char *what = set_channels(graph, op, x->channels);
  if (what) return what;
  if (op->kind == OP_RESCALE) return rescale_shape(op, x);
  if (op->kind == OP_ADD || op->kind == OP_COUNTADD || op->kind == OP_MULTIPLY)
    return pair_shape(op, x, &graph->ops[op->inputs[1]]);
  if (!qsd_is_neuron(op)) return map_shape(graph, op, x);
  FIT(op->f[F_STEPS] == x->steps, "has other time steps than its input");
  for (int c = 0; c < op->channels; c++) op->bound[c] = op->levels;
  op->fraction = 0;
  op->positive = true;
  return NULL;
}

static const char *check_time(qsd_graph *graph) {
  const qsd_op *axis = NULL;
  graph->time_steps = 1;
  for (int i = 0; i < graph->op_count; i++) {
    const qsd_op *op = &graph->ops[i];
    if (op->kind != OP_REPEAT && op->kind != OP_FRAMES) continue;
    FIT(!axis || (axis->kind == op->kind && axis->f[F_STEPS] == op->f[F_STEPS]),
        "disagrees with others about the time axis");
    axis = op;
  }
  graph->takes_frames = axis && axis->kind == OP_FRAMES;
  graph->has_repeat = axis && axis->kind == OP_REPEAT;
  if (axis) graph->time_steps = (int)axis->f[F_STEPS];
  for (int i = 0; graph->takes_frames && i < graph->op_count; i++) {
    const qsd_op *op = &graph->ops[i];
    bool table = false;
    for (int j = 0; j < op->input_count; j++)
      table |= graph->ops[op->inputs[j]].kind == OP_NORMALISE;
    FIT(table == (op->kind == OP_FRAMES), "reads the table of pixels in place of 'frames'");
  }
  return NULL;
}

int qsd_check_shapes(qsd_graph *graph, qsd_error *error) {
  int64_t total = 0;
  int i = 0;
  const char *what = NULL;
  for (; i < graph->op_count && !what; i++) {
    qsd_op *op = &graph->ops[i];
    what = shape(graph, op);
    if (what) break;
    op->most = 0;
    for (int c = 0; c < op->channels; c++) op->most = fmax(op->most, op->bound[c]);
    total += op->channels;
    if (op->most > INT32_MAX) what = "could leave 32 bits";
    else if (llabs(op->fraction) > 3 * MAX_FRACTION) what = "has too many fractional bits";
    else if (op->height > MAX_SIDE || op->width > MAX_SIDE) what = "makes too large a map";
    else if (total > MAX_TOTAL) what = "has too many channels together with the others";
    if (what) break;
  }
  if (!what) {
    what = check_time(graph);
    i = graph->op_count - 1;
  }
  if (!what) return QSD_OK;
  if (what == NO_MEMORY) return qsd_fail(error, QSD_TOO_LARGE, "operation %d %s", i, what);
  return qsd_fail(error, QSD_DAMAGED, "the artifact is damaged: operation %d %s", i, what);
}
