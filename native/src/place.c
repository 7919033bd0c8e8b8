/* Where values lie, and from which step to which. */
#include <stdlib.h>

#include "plan.h"

int qsd_root(const qsd_graph *graph, const qsd_plan *plan, int number) {
  const qsd_op *op = &graph->ops[number];
  while (op->kind == OP_FRAMES || (op->kind == OP_REPEAT && plan->frames)) {
    number = op->inputs[0];
    op = &graph->ops[number];
  }
  return number;
}

static void touch(qsd_plan *plan, int tensor, int step) {
  if (tensor < 0) return;
  qsd_tensor *t = &plan->tensors[tensor];
  if (t->first < 0) t->first = step;
  if (t->last < step) t->last = step;
}

void qsd_find_lives(const qsd_graph *graph, const bool *result, qsd_plan *plan) {
  for (int i = 0; i < plan->step_count; i++) {
    const qsd_step *step = &plan->steps[i];
    touch(plan, step->source, i);
    touch(plan, step->residual, i);
    touch(plan, step->out, i);
    touch(plan, step->counts, i);
    touch(plan, step->counts, i + 1); /* statistics are taken during the next step */
    for (int j = 0; step->kind == STEP_OP && j < graph->ops[step->op].input_count; j++)
      touch(plan, plan->value[qsd_root(graph, plan, graph->ops[step->op].inputs[j])], i);
  }
  for (int i = 0; i < graph->op_count; i++)
    if (result[i]) touch(plan, plan->value[qsd_root(graph, plan, i)], plan->step_count + 1);
}

typedef struct {
  uint64_t size;
  int tensor;
} sized;

static int by_size(const void *a, const void *b) {
  const sized *x = a, *y = b;
  int order = (x->size < y->size) - (x->size > y->size);
  return order ? order : x->tensor - y->tensor;
}

/* The largest first, each at the lowest place that is free for as long as it lives. */
bool qsd_place_tensors(qsd_pool *pool, qsd_plan *plan) {
  int count = plan->tensor_count;
  sized *order = qsd_alloc(pool, (uint64_t)count, sizeof *order);
  int *placed = qsd_alloc(pool, (uint64_t)count, sizeof *placed);
  if (!order || !placed) return false;
  for (int i = 0; i < count; i++) order[i] = (sized){plan->tensors[i].size, i};
  if (count) qsort(order, (size_t)count, sizeof *order, by_size);
  for (int i = 0; i < count; i++) { /* `placed` is sorted by offset */
    qsd_tensor *t = &plan->tensors[order[i].tensor];
    uint64_t at = 0;
    for (int j = 0; j < i; j++) {
      const qsd_tensor *other = &plan->tensors[placed[j]];
      if (other->last < t->first || t->last < other->first) continue;
      if (other->offset >= at + t->size) break;
      if (other->offset + other->size > at) at = other->offset + other->size;
    }
    t->offset = at;
    if (at + t->size > plan->arena) plan->arena = at + t->size;
    int j = i;
    for (; j > 0 && plan->tensors[placed[j - 1]].offset > at; j--) placed[j] = placed[j - 1];
    placed[j] = order[i].tensor;
  }
  return true;
}
