/* Factors, shortcuts and thresholds as a step's end needs them: in 16 or 32 bits where that is
 * proved to be exact. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plan.h"

static int no_memory(qsd_builder *builder) {
  return qsd_fail(builder->error, QSD_TOO_LARGE, "the network needs more memory than allowed");
}

/* With m = high * 2^s + low, (x * m + half) >> s is x * high + ((x * low + half) >> s): in 32 bits,
 * where the second product and the result fit. */
static bool pack_small(qsd_builder *builder, const qsd_op *op, const qsd_op *x, int wide,
                       qsd_factors *f) {
  int32_t *values = qsd_alloc(&builder->pool, 6 * (uint64_t)wide, sizeof *values);
  if (!values) return false;
  bool within = f->narrow, small = true;
  for (int c = 0; c < op->channels; c++) {
    int64_t m = f->multiplier[c], s = f->shift[c], bound = (int64_t)x->bound[c];
    int64_t low = m & (((int64_t)1 << s) - 1), high = m >> s;
    double most = fabs((double)m) * (double)bound / (double)((int64_t)1 << s) + 2;
    within = within && most + fabs((double)f->bias[c]) <= (double)f->limit;
    small = small && high == (int32_t)high &&
            (double)low * (double)bound + (double)f->round[c] <= INT32_MAX;
    int32_t found[] = {(int32_t)m, (int32_t)s, (int32_t)f->bias[c], (int32_t)high, (int32_t)low,
                       (int32_t)f->round[c]};
    for (int i = 0; i < 6; i++) values[i * wide + c] = found[i];
  }
  if (!within) return true;
  f->factor = values;
  f->places = values + wide;
  f->plus = values + 2 * wide;
  if (!small) return true;
  f->high = values + 3 * wide;
  f->low = values + 4 * wide;
  f->half = values + 5 * wide;
  return true;
}

static qsd_factors *pack_factors(qsd_builder *builder, const qsd_op *op, int wide) {
  qsd_factors *found = qsd_alloc(&builder->pool, 1, sizeof *found);
  int64_t *values = qsd_alloc(&builder->pool, 4 * (uint64_t)wide, sizeof *values);
  if (!found || !values) return NULL;
  *found = (qsd_factors){.multiplier = values, .round = values + wide, .shift = values + 2 * wide,
                         .bias = values + 3 * wide, .limit = op->f[F_LIMIT], .narrow = true};
  for (int c = 0; c < op->channels; c++) {
    uint64_t i = (uint64_t)c;
    found->multiplier[c] = qsd_item(ARRAY(op, A_MULTIPLIER), i);
    found->shift[c] = qsd_item(ARRAY(op, A_SHIFT), i);
    found->bias[c] = qsd_item(ARRAY(op, A_BIAS), i);
    found->round[c] = ((int64_t)1 << found->shift[c]) >> 1;
    if (found->multiplier[c] != (int32_t)found->multiplier[c]) found->narrow = false;
  }
  const qsd_op *x = &builder->graph->ops[op->inputs[0]];
  return pack_small(builder, op, x, wide, found) ? found : NULL;
}

static int64_t scaled(const qsd_factors *f, int c, int64_t x) {
  if (!f) return x;
  int64_t y = ((x * f->multiplier[c] + f->round[c]) >> f->shift[c]) + f->bias[c];
  return qsd_max(-f->limit, qsd_min(f->limit, y));
}

/* What a neuron without memory compares with its thresholds. */
static int64_t potential(const qsd_op *neuron, const qsd_factors *f, int c, int64_t x) {
  int64_t y = scaled(f, c, x);
  return neuron->kind == OP_LIF ? (y * neuron->f[F_LEAK] + (1 << 15)) >> 16 : y;
}

/* The least x in low..high + 1 at which the potential, which grows with x, reaches `level`; or,
 * where it falls, the least at which it no longer does. */
static int64_t boundary(const qsd_op *neuron, const qsd_factors *f, int c, int64_t bound,
                        int64_t level, bool falls) {
  int64_t low = -bound, high = bound + 1;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    bool reached = potential(neuron, f, c, middle) >= level;
    if (reached != falls) high = middle;
    else low = middle + 1;
  }
  return low;
}

/* Thresholds less a centre, where these differences fit 16 bits: saturated sums compare alike. */
static bool pack_centres(qsd_builder *builder, qsd_finish *finish, const qsd_op *x) {
  int wide = finish->wide, levels = finish->levels;
  int32_t *centre = qsd_alloc(&builder->pool, (uint64_t)wide, sizeof *centre);
  if (!centre) return false;
  for (int c = 0; c < x->channels; c++) {
    int64_t low = INT64_MAX, high = INT64_MIN;
    for (int k = 0; k < levels; k++) {
      int64_t t = finish->thresholds[k * wide + c];
      low = qsd_min(low, t);
      high = qsd_max(high, t);
    }
    /* Sums that 16 bits cannot hold are on the right side of all thresholds that they can hold. */
    if (low > INT16_MIN && high <= INT16_MAX) continue;
    int64_t middle = low + (high - low) / 2;
    int64_t reach = (int64_t)x->bound[c] + 1 + (middle < 0 ? -middle : middle);
    if (high - low > 65000 || reach > INT32_MAX) return true;
    centre[c] = (int32_t)middle;
    finish->centred = true;
  }
  finish->centre = centre;
  return true;
}

/* A count is the number of thresholds that x ^ flip reaches. */
static bool pack_thresholds(qsd_builder *builder, qsd_finish *finish, const qsd_op *neuron,
                            const qsd_factors *f, const qsd_op *x, bool *fits) {
  int levels = neuron->levels, wide = finish->wide;
  finish->thresholds = qsd_alloc(&builder->pool, (uint64_t)(levels * wide), sizeof(int32_t));
  int32_t *flip = qsd_alloc(&builder->pool, (uint64_t)wide, sizeof *flip);
  if (!finish->thresholds || !flip) return false;
  *fits = true;
  for (int c = 0; c < x->channels; c++) {
    bool falls = f && f->multiplier[c] < 0;
    for (int k = 0; k < levels; k++) {
      int64_t level = neuron->kind == OP_LIF ? neuron->f[F_THRESHOLD] : neuron->thresholds[k];
      int64_t from = boundary(neuron, f, c, (int64_t)x->bound[c], level, falls);
      if (from > INT32_MAX) *fits = false;
      /* x < t is ~x >= -t */
      finish->thresholds[k * wide + c] = (int32_t)(falls ? -from : from);
    }
    flip[c] = falls ? -1 : 0;
    if (falls) finish->flip = flip;
  }
  return !*fits || pack_centres(builder, finish, x);
}

static void pack_memory(qsd_finish *finish, const qsd_op *neuron) {
  finish->limit = neuron->f[F_LIMIT];
  if (neuron->kind == OP_LIF) {
    finish->neuron = NEURON_LIF;
    finish->leak = neuron->f[F_LEAK];
    finish->threshold = neuron->f[F_THRESHOLD];
    return;
  }
  finish->neuron = NEURON_IELIF;
  finish->decay = neuron->f[F_DECAY];
  finish->reset = neuron->resets[0];
  for (int k = 0; k < neuron->levels; k++) {
    finish->level[k] = neuron->thresholds[k];
    finish->drop[k] = (int64_t)neuron->resets[k + 1] - neuron->resets[k];
  }
}

/* Thresholds at k * 2^s - offset: counts are sums shifted. */
static bool is_even(const qsd_op *neuron, qsd_finish *finish) {
  if (neuron->kind != OP_IELIF) return false;
  int64_t gap = neuron->levels > 1 ? (int64_t)neuron->thresholds[1] - neuron->thresholds[0]
                                   : 2 * (int64_t)neuron->thresholds[0];
  int shift = 0;
  while (shift < 30 && ((int64_t)1 << shift) < gap) shift++;
  int64_t offset = gap - neuron->thresholds[0], top = neuron->levels * gap - offset;
  if (gap != (int64_t)1 << shift || offset < 0 || top + offset > INT32_MAX) return false;
  for (int k = 0; k < neuron->levels; k++)
    if (neuron->thresholds[k] != (k + 1) * gap - offset) return false;
  finish->even_shift = shift;
  finish->even_offset = (int32_t)offset;
  finish->even_top = (int32_t)top;
  return true;
}

static int pack_neuron(qsd_builder *builder, const qsd_step *step, qsd_finish *finish) {
  const qsd_op *ops = builder->graph->ops, *neuron = &ops[step->neuron];
  finish->levels = neuron->levels;
  if (step->steps > 1) {
    pack_memory(finish, neuron);
    return QSD_OK;
  }
  /* One step of time needs no memory: thresholds on what comes before the last factor. */
  bool first = !finish->add && !finish->store && !finish->neuron_scale && finish->scale;
  const qsd_op *x = &ops[first ? ops[step->scale_op].inputs[0] : step->cur];
  qsd_factors *factors = first ? finish->scale : finish->neuron_scale;
  if (!factors && is_even(neuron, finish)) {
    finish->neuron = NEURON_EVEN;
    return QSD_OK;
  }
  bool fits = false;
  if (!pack_thresholds(builder, finish, neuron, factors, x, &fits)) return no_memory(builder);
  if (!fits) {
    finish->thresholds = NULL;
    pack_memory(finish, neuron);
    return QSD_OK;
  }
  finish->neuron = NEURON_THRESHOLDS;
  if (first) finish->scale = NULL;
  else finish->neuron_scale = NULL;
  return QSD_OK;
}

static bool is_small(const qsd_kernels *kernels, const qsd_factors *f) {
  return !f || (kernels->wide_products ? f->factor : f->high);
}

static bool is_narrow(const qsd_plan *plan, int tensor) {
  return tensor >= 0 && plan->tensors[tensor].bytes == 2;
}

int qsd_pack_finish(qsd_builder *builder, const qsd_plan *plan, qsd_step *step) {
  const qsd_op *ops = builder->graph->ops;
  int wide = step->blocks * step->vectors * LANES;
  qsd_finish *finish = qsd_alloc(&builder->pool, 1, sizeof *finish);
  step->finish = finish;
  if (!finish) return no_memory(builder);
  finish->wide = wide;
  int scales[] = {step->scale_op, step->residual_scale_op, step->neuron_scale_op};
  qsd_factors **places[] = {&finish->scale, &finish->residual_scale, &finish->neuron_scale};
  for (int i = 0; i < 3; i++) {
    if (scales[i] < 0) continue;
    *places[i] = pack_factors(builder, &ops[scales[i]], wide);
    if (!*places[i]) return no_memory(builder);
  }
  finish->add = step->add_op >= 0;
  if (finish->add) {
    const qsd_op *add = &ops[step->add_op], *x = &ops[add->inputs[0]], *y = &ops[add->inputs[1]];
    finish->add_limit = add->f[F_LIMIT];
    finish->add_fits = true;
    for (int c = 0; c < add->channels; c++)
      if (x->bound[c] + y->bound[c] > (double)finish->add_limit) finish->add_fits = false;
  }
  finish->store = step->out >= 0;
  finish->narrow_residual = is_narrow(plan, step->residual);
  finish->narrow_out = is_narrow(plan, step->out);
  step->narrow_source = step->kind == STEP_LOAD && is_narrow(plan, step->source);
  int status = step->neuron < 0 ? QSD_OK : pack_neuron(builder, step, finish);
  finish->small = step->steps == 1 && !finish->neuron_scale && finish->neuron <= NEURON_EVEN &&
                  is_small(builder->kernels, finish->scale) &&
                  is_small(builder->kernels, finish->residual_scale);
  return status;
}
