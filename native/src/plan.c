/* From operations to steps: what is done in one go, where values lie, and for how long. */
#include <stdlib.h>
#include <string.h>

#include "planner.h"

bool qsd_is_depthwise(const qsd_op *op) {
  const uint32_t *side = ARRAY(op, A_CODES)->side;
  return op->kind == OP_CONV && op->f[F_GROUPS] > 1 && side[1] == 1 &&
         op->f[F_GROUPS] == side[0] && side[2] * side[3] <= MAX_TAPS;
}

bool qsd_is_dot(const qsd_op *op) {
  const uint32_t *side = ARRAY(op, A_CODES)->side;
  return op->kind == OP_CONV && op->f[F_GROUPS] == 1 && side[2] * side[3] <= MAX_TAPS;
}

static int root_of(const qsd_planner *p, int number) {
  return qsd_root(p->graph, p->plan, number);
}

/* Whether the value of an operation is stored as bytes; its inputs come before it. */
static bool is_byte(const qsd_planner *p, const qsd_op *op) {
  if (qsd_is_neuron(op)) return true;
  bool map = op->kind == OP_MAXPOOL || (op->kind == OP_UPSAMPLE && !op->bilinear) ||
             op->kind == OP_CONCAT || op->kind == OP_RESHAPE || op->kind == OP_REPEAT ||
             op->kind == OP_FRAMES || op->kind == OP_COUNTADD || op->kind == OP_MULTIPLY;
  if (!map || !op->positive || op->most > 255) return false;
  for (int i = 0; i < op->input_count; i++)
    if (!p->byte[op->inputs[i]]) return false;
  return true;
}

static int new_tensor(qsd_planner *p, qsd_tensor tensor) {
  uint64_t elements = (uint64_t)qsd_image_size(&tensor) * (uint64_t)tensor.n;
  tensor.size = (elements * (uint64_t)tensor.bytes * (uint64_t)tensor.planes + 63) / 64 * 64;
  tensor.first = -1;
  p->plan->tensors[p->plan->tensor_count] = tensor;
  return p->plan->tensor_count++;
}

static int value_tensor(qsd_planner *p, int number) {
  number = root_of(p, number);
  if (p->plan->value[number] >= 0) return p->plan->value[number];
  const qsd_op *op = qsd_op_at(p, number);
  qsd_tensor tensor = {.bytes = p->byte[number] ? 1 : p->word[number] ? 2 : 4,
                       .n = p->plan->leading[number],
                       .height = op->height,
                       .width = op->width,
                       .channels = op->channels,
                       .stride = qsd_round_up(op->channels, LANES),
                       .pad = p->pad[number],
                       .planes = 1};
  return p->plan->value[number] = new_tensor(p, tensor);
}

/* Values as unsigned bytes for products: what they are stored as, or byte planes of them. */
static int byte_tensor(qsd_planner *p, int number, const int *key) {
  number = root_of(p, number);
  if (p->byte[number]) return value_tensor(p, number);
  const qsd_op *op = qsd_op_at(p, number);
  int planes = 1;
  double reach = op->positive ? 256 : 128;
  for (; planes < 4 && op->most >= reach; planes++) reach *= 256;
  if (p->planes[number] >= 0) {
    qsd_step *step = &p->plan->steps[p->plane_step[number]];
    if (*key < step->key) step->key = *key;
  } else {
    qsd_tensor tensor = {.bytes = 1,
                         .n = p->plan->leading[number],
                         .height = op->height,
                         .width = op->width,
                         .channels = op->channels,
                         .stride = op->kind == OP_NORMALISE && op->channels == 1
                                       ? 1
                                       : qsd_round_up(op->channels, op->channels <= 8 ? 4 : LANES),
                         .pad = p->pad[number],
                         .planes = planes,
                         .bias = op->positive ? 0 : 0x80u << (8 * (planes - 1))};
    p->planes[number] = new_tensor(p, tensor);
    p->plane_step[number] = p->plan->step_count;
    qsd_step *step = &p->plan->steps[p->plan->step_count++];
    *step = (qsd_step){.kind = STEP_PLANES, .op = number, .key = *key, .residual = -1, .counts = -1,
                       .neuron = -1, .neuron_number = -1};
    step->source = op->kind == OP_NORMALISE ? -1 : value_tensor(p, number);
    step->out = p->planes[number];
  }
  return p->planes[number];
}

/* Tensors ------------------------------------------------------------------------------------ */

/* False where time does not fit together: a network of images takes frames only if all paths to
 * an operation have the same steps, and logits one. */
static bool find_leading(qsd_planner *p) {
  for (int i = 0; i < p->graph->op_count; i++) {
    const qsd_op *op = qsd_op_at(p, i);
    int *n = &p->plan->leading[i];
    *n = op->kind != OP_NORMALISE ? p->plan->leading[op->inputs[0]]
         : p->plan->frames        ? p->graph->time_steps
                                  : p->plan->images;
    for (int j = 1; j < op->input_count; j++)
      if (p->plan->leading[op->inputs[j]] != *n) return false;
    if (op->kind == OP_REPEAT && !p->plan->frames) *n *= (int)op->f[F_STEPS];
    if (op->kind == OP_TSUM || qsd_is_neuron(op)) {
      int steps = (int)op->f[F_STEPS];
      if (*n % steps) return false;
      if (op->kind == OP_TSUM) *n /= steps;
    }
  }
  bool logits = p->plan->frames && p->graph->class_count;
  return !logits || p->plan->leading[p->graph->op_count - 1] == 1;
}

static void find_pads(qsd_planner *p) {
  for (int i = 0; i < p->graph->op_count; i++) {
    const qsd_op *op = qsd_op_at(p, i);
    if (op->kind != OP_CONV || !(qsd_is_dot(op) || qsd_is_depthwise(op))) continue;
    int input = root_of(p, op->inputs[0]);
    p->pad[input] = (int)qsd_max(p->pad[input], op->f[F_PADDING]);
  }
}

static int neuron_number(const qsd_graph *graph, int op) {
  int low = 0, high = graph->neuron_count - 1;
  while (low < high) {
    int middle = (low + high) / 2;
    if (graph->neurons[middle] < op) low = middle + 1;
    else high = middle;
  }
  return low;
}

static void place_group(qsd_planner *p, qsd_step *step) {
  const qsd_op *op = qsd_op_at(p, step->op);
  int readers = p->uses[step->cur] - (step->neuron >= 0 && step->cur != step->source_op);
  if (step->kind == STEP_DOT) step->source = byte_tensor(p, step->source_op, &step->key);
  else step->source = value_tensor(p, step->source_op);
  if (step->residual_op >= 0) step->residual = value_tensor(p, step->residual_op);
  bool made = step->kind != STEP_LOAD || step->scale_op >= 0 || step->add_op >= 0;
  if (made && (readers > 0 || p->result[step->cur])) step->out = value_tensor(p, step->cur);
  step->steps = 1;
  if (step->neuron >= 0) {
    step->counts = value_tensor(p, step->neuron);
    step->neuron_number = neuron_number(p->graph, step->neuron);
    step->steps = (int)qsd_op_at(p, step->neuron)->f[F_STEPS];
  }
  int made_op = made ? step->cur : step->neuron; /* one of the map that the step makes */
  const qsd_op *map = qsd_op_at(p, made_op);
  const qsd_tensor *t = p->plan->tensors;
  bool point = step->kind == STEP_LOAD || (step->kind == STEP_DOT && op->f[F_STRIDE] == 1 &&
                                           ARRAY(op, A_CODES)->side[2] == 1);
  step->flat = point && !t[step->source].pad && (step->residual < 0 || !t[step->residual].pad) &&
               (step->out < 0 || !t[step->out].pad) && (step->counts < 0 || !t[step->counts].pad);
  step->channels = map->channels;
  step->pad_op = op;
  step->rows = step->flat ? 1 : map->height;
  step->width = step->flat ? map->height * map->width : map->width;
  step->outer = step->maps = p->plan->leading[root_of(p, made_op)] / step->steps;
  int all = qsd_round_up(map->channels, LANES) / LANES;
  static const int VECTORS[] = {2, 4, 8}; /* of dot, depthwise and load */
  step->vectors = (int)qsd_min(all, VECTORS[step->kind]);
  if (step->kind == STEP_DOT && step->width <= TILE / 2 && all >= 4) step->vectors = 4;
  step->pairs = step->kind == STEP_DOT && map->channels <= LANES / 2 && p->builder->kernels->pairs;
  step->blocks = (all + step->vectors - 1) / step->vectors;
  if (step->flat && step->steps == 1) { /* the maps are one row, too */
    step->width *= step->outer;
    step->outer = 1;
  }
  int span = step->kind == STEP_DEPTHWISE ? QUAD_SPAN : SPAN;
  step->spans = (step->width + span - 1) / span;
}

static int by_key(const void *a, const void *b) {
  const qsd_step *x = a, *y = b;
  int order = (x->key > y->key) - (x->key < y->key);
  return order ? order : (y->kind == STEP_PLANES) - (x->kind == STEP_PLANES);
}

/* Potentials that fit 16 bits, where steps of sums alone make and read them. */
static void find_words(qsd_planner *p) {
  for (int i = 0; i < p->plan->step_count; i++) {
    const qsd_step *step = &p->plan->steps[i];
    int made = step->kind == STEP_OP ? -1 : step->cur;
    if (made >= 0 && made != step->source_op && qsd_op_at(p, made)->most <= INT16_MAX)
      p->word[made] = true;
  }
  for (int i = 0; i < p->plan->step_count; i++) {
    const qsd_step *step = &p->plan->steps[i];
    if (step->kind == STEP_DOT || step->kind == STEP_DEPTHWISE)
      p->word[root_of(p, step->source_op)] = false;
    for (int j = 0; step->kind == STEP_OP && j < qsd_op_at(p, step->op)->input_count; j++)
      p->word[root_of(p, qsd_op_at(p, step->op)->inputs[j])] = false;
  }
  for (int i = 0; i < p->graph->op_count; i++)
    if (p->result[i]) p->word[root_of(p, i)] = false;
}

static void place_tensors(qsd_planner *p) {
  int groups = p->plan->step_count; /* byte planes add steps, each before its first reader */
  for (int i = 0; i < groups; i++) {
    qsd_step *step = &p->plan->steps[i];
    if (step->kind != STEP_OP) place_group(p, step);
    else {
      step->out = value_tensor(p, step->op);
      for (int j = 0; j < qsd_op_at(p, step->op)->input_count; j++) {
        int input = qsd_op_at(p, step->op)->inputs[j];
        value_tensor(p, input);
      }
    }
  }
  for (int i = 0; i < p->graph->op_count; i++)
    if (p->result[i]) value_tensor(p, i);
  /* The table itself, where more than products read it. */
  for (int i = 0; i < p->graph->op_count; i++)
    if (qsd_op_at(p, i)->kind == OP_NORMALISE && p->plan->value[i] >= 0)
      p->plan->steps[p->plan->step_count++] =
          (qsd_step){.kind = STEP_OP, .op = i, .key = i, .source = -1, .residual = -1,
                     .out = p->plan->value[i], .counts = -1, .neuron = -1, .neuron_number = -1};
}

static int too_large(qsd_planner *p) {
  return qsd_fail(p->builder->error, QSD_TOO_LARGE, "the network needs more memory than allowed");
}

static bool prepare(qsd_planner *p) {
  uint64_t count = (uint64_t)p->graph->op_count;
  qsd_pool *pool = &p->builder->pool;
  p->uses = qsd_alloc(pool, count, sizeof *p->uses);
  p->first_use = qsd_alloc(pool, count, sizeof *p->first_use);
  p->pad = qsd_alloc(pool, count, sizeof *p->pad);
  p->planes = qsd_alloc(pool, count, sizeof *p->planes);
  p->plane_step = qsd_alloc(pool, count, sizeof *p->plane_step);
  p->result = qsd_alloc(pool, count, sizeof *p->result);
  p->word = qsd_alloc(pool, count, sizeof *p->word);
  p->byte = qsd_alloc(pool, count, sizeof *p->byte);
  p->absorbed = qsd_alloc(pool, count, sizeof *p->absorbed);
  p->deferred = qsd_alloc(pool, count, sizeof *p->deferred);
  p->plan->value = qsd_alloc(pool, count, sizeof *p->plan->value);
  p->plan->leading = qsd_alloc(pool, count, sizeof *p->plan->leading);
  p->plan->input_of = qsd_alloc(pool, count, sizeof *p->plan->input_of);
  p->plan->tables = qsd_alloc(pool, count, sizeof *p->plan->tables);
  p->plan->steps = qsd_alloc(pool, 2 * count + 2, sizeof *p->plan->steps);
  p->plan->tensors = qsd_alloc(pool, 2 * count, sizeof *p->plan->tensors);
  if (!p->uses || !p->first_use || !p->pad || !p->planes || !p->plane_step || !p->result || !p->word || !p->byte || !p->absorbed || !p->deferred ||
      !p->plan->value || !p->plan->leading || !p->plan->input_of || !p->plan->tables || !p->plan->steps || !p->plan->tensors)
    return false;
  for (uint64_t i = 0; i < count; i++) p->planes[i] = p->plan->value[i] = -1;
  for (int i = 0; i < p->graph->op_count; i++) p->byte[i] = is_byte(p, qsd_op_at(p, i));
  for (int i = 0; i < p->graph->result_count; i++) p->result[p->graph->results[i].op] = true;
  if (p->graph->class_count) p->result[count - 1] = true;
  return qsd_find_readers(p);
}

static bool unpack_tables(qsd_planner *p) {
  for (int i = 0; i < p->graph->op_count; i++) {
    p->plan->input_of[i] = p->plan->value[root_of(p, i)];
    if (qsd_op_at(p, i)->kind != OP_NORMALISE) continue;
    const qsd_array *array = ARRAY(qsd_op_at(p, i), A_TABLE);
    int32_t *table = qsd_alloc(&p->builder->pool, array->count, sizeof *table);
    if (!table) return false;
    for (uint64_t j = 0; j < array->count; j++) table[j] = (int32_t)qsd_item(array, j);
    p->plan->tables[i] = table;
  }
  return true;
}

int qsd_build_plan(qsd_builder *builder, bool frames, int images, qsd_plan *plan) {
  qsd_planner p = {.builder = builder, .graph = builder->graph, .plan = plan};
  plan->frames = frames;
  plan->images = images;
  if (!prepare(&p)) return too_large(&p);
  if (!find_leading(&p))
    return qsd_fail(builder->error, QSD_BAD_ARGUMENT, "this network does not take frames");
  find_pads(&p);
  qsd_make_steps(&p);
  find_words(&p);
  place_tensors(&p);
  qsort(plan->steps, (size_t)plan->step_count, sizeof *plan->steps, by_key);
  qsd_find_lives(p.graph, p.result, plan);
  for (int i = 0; i < plan->tensor_count; i++)
    if (plan->tensors[i].size > builder->pool.most) return too_large(&p);
  if (!qsd_place_tensors(&builder->pool, plan) || !unpack_tables(&p)) return too_large(&p);
  for (int i = 0; i < plan->step_count; i++) {
    qsd_step *step = &plan->steps[i];
    int status = QSD_OK;
    if (step->kind == STEP_DOT) status = qsd_pack_dot(builder, plan, step);
    if (step->kind == STEP_DEPTHWISE) status = qsd_pack_depthwise(builder, plan, step);
    if (!status && step->kind <= STEP_LOAD) status = qsd_pack_finish(builder, plan, step);
    if (status) return status;
    /* Sums of a tile, then bytes of sources widened: source and residual. */
    uint64_t sums = (uint64_t)step->steps * TILE * 8 * LANES * sizeof(int32_t);
    const qsd_op *op = qsd_op_at(&p, step->op);
    if (op->kind == OP_ATTENTION && step->kind == STEP_OP &&
        qsd_attention_scratch(p.graph, plan, op) > plan->scratch)
      plan->scratch = qsd_attention_scratch(p.graph, plan, op);
    uint64_t all = step->kind == STEP_DEPTHWISE ? 2 * sums + 5 * QUAD_BYTES : 2 * sums;
    if (step->kind <= STEP_LOAD && all > plan->scratch) plan->scratch = all;
    uint64_t packed = status ? 0 : qsd_plan_packed(plan, step);
    if (packed > plan->scratch) plan->scratch = packed;
  }
  const qsd_step *next = NULL;
  for (int i = plan->step_count - 1; i >= 0; i--) {
    qsd_step *step = &plan->steps[i];
    if (step->kind != STEP_DOT) continue;
    if (next && next->dot.block_codes * (size_t)next->blocks >= step->dot.block_codes)
      step->ahead = next->dot.codes;
    next = step;
  }
  return QSD_OK;
}
