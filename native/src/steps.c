/* From operations to steps: a convolution, its factor, its shortcut and its neuron are one. */
#include "planner.h"

bool qsd_find_readers(qsd_planner *p) {
  const qsd_graph *graph = p->graph;
  uint64_t total = 0;
  for (int i = 0; i < graph->op_count; i++) {
    const qsd_op *op = qsd_op_at(p, i);
    total += (uint64_t)op->input_count;
    for (int j = 0; j < op->input_count; j++) p->uses[op->inputs[j]]++;
  }
  p->readers = qsd_alloc(&p->builder->pool, total, sizeof *p->readers);
  if (!p->readers) return false;
  int next = 0;
  for (int i = 0; i < graph->op_count; i++) {
    p->first_use[i] = next;
    next += p->uses[i];
    p->uses[i] = 0;
  }
  for (int i = 0; i < graph->op_count; i++)
    for (int j = 0; j < qsd_op_at(p, i)->input_count; j++) {
      int input = qsd_op_at(p, i)->inputs[j];
      p->readers[p->first_use[input] + p->uses[input]++] = i;
    }
  return true;
}

/* The one operation that reads `number`, if it is of that kind and free; -1. */
static int sole_reader(const qsd_planner *p, int number, qsd_kind kind) {
  if (p->uses[number] != 1 || p->result[number]) return -1;
  int reader = p->readers[p->first_use[number]];
  return qsd_op_at(p, reader)->kind == kind && !p->absorbed[reader] ? reader : -1;
}

static int sole_neuron(const qsd_planner *p, int number) {
  int reader = sole_reader(p, number, OP_IELIF);
  return reader >= 0 ? reader : sole_reader(p, number, OP_LIF);
}

static void take_add(qsd_planner *p, qsd_step *step, int add) {
  const qsd_op *op = qsd_op_at(p, add);
  int other = op->inputs[0] == step->cur ? op->inputs[1] : op->inputs[0];
  p->absorbed[add] = true;
  step->add_op = add;
  if (p->deferred[other]) {
    step->residual_scale_op = other;
    p->deferred[other] = false;
    other = qsd_op_at(p, other)->inputs[0];
  }
  step->residual_op = other;
  step->cur = add;
}

/* The neuron that is run with `cur`: one that reads it, or reads it through a factor. */
static void take_neuron(qsd_planner *p, qsd_step *step) {
  for (int i = 0; i < p->uses[step->cur]; i++) {
    int reader = p->readers[p->first_use[step->cur] + i], neuron = -1;
    if (p->absorbed[reader] || p->deferred[reader]) continue;
    if (qsd_is_neuron(qsd_op_at(p, reader))) {
      neuron = reader;
    } else if (qsd_op_at(p, reader)->kind == OP_RESCALE) {
      neuron = sole_neuron(p, reader);
      if (neuron >= 0) {
        step->neuron_scale_op = reader;
        p->absorbed[reader] = true;
      }
    }
    if (neuron < 0) continue;
    p->absorbed[neuron] = true;
    step->neuron = neuron;
    return;
  }
}

static void extend(qsd_planner *p, qsd_step *step) {
  int reader;
  if (step->scale_op < 0 && step->add_op < 0 && (reader = sole_reader(p, step->cur, OP_RESCALE)) >= 0) {
    p->absorbed[reader] = true;
    step->scale_op = step->cur = reader;
  }
  if (step->add_op < 0 && (reader = sole_reader(p, step->cur, OP_ADD)) >= 0) take_add(p, step, reader);
  step->key = step->cur;
  if (step->neuron < 0) take_neuron(p, step);
}

static void start_group(qsd_planner *p, int number) {
  const qsd_op *op = qsd_op_at(p, number);
  qsd_step step = {.kind = STEP_LOAD, .op = number, .cur = number, .source = -1,
                   .residual = -1, .out = -1, .counts = -1, .neuron = -1, .scale_op = -1,
                   .residual_scale_op = -1, .neuron_scale_op = -1, .add_op = -1, .residual_op = -1,
                   .source_op = -1, .neuron_number = -1, .key = number, .stride = 1};
  if (op->kind == OP_RESCALE && sole_reader(p, number, OP_ADD) >= 0) {
    p->deferred[number] = true;
    return;
  }
  step.source_op = op->inputs[0];
  if (op->kind == OP_CONV) {
    step.kind = qsd_is_dot(op) ? STEP_DOT : STEP_DEPTHWISE;
    step.stride = (int)op->f[F_STRIDE];
  } else if (op->kind == OP_RESCALE) {
    step.scale_op = number;
  } else if (op->kind == OP_ADD) {
    step.cur = op->inputs[0];
    if (p->deferred[step.cur]) {
      step.scale_op = step.cur;
      p->deferred[step.cur] = false;
      step.source_op = qsd_op_at(p, step.cur)->inputs[0];
    }
    take_add(p, &step, number);
  } else { /* a neuron of a value that is stored */
    step.cur = op->inputs[0];
    step.neuron = number;
  }
  p->absorbed[number] = true;
  if (qsd_is_neuron(op)) step.key = number;
  else extend(p, &step);
  p->plan->steps[p->plan->step_count++] = step;
}

void qsd_make_steps(qsd_planner *p) {
  for (int i = 0; i < p->graph->op_count; i++) {
    const qsd_op *op = qsd_op_at(p, i);
    if (p->absorbed[i] || op->kind == OP_NORMALISE || qsd_root(p->graph, p->plan, i) != i) continue;
    bool conv = op->kind == OP_CONV && (qsd_is_dot(op) || qsd_is_depthwise(op));
    if (conv || op->kind == OP_RESCALE || op->kind == OP_ADD || qsd_is_neuron(op)) {
      start_group(p, i);
      continue;
    }
    p->plan->steps[p->plan->step_count++] =
        (qsd_step){.kind = STEP_OP, .op = i, .key = i, .source = -1, .residual = -1, .out = -1,
                   .counts = -1, .neuron = -1, .neuron_number = -1};
  }
}
