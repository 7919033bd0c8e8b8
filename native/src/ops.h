/* Values of operations, for those that go value by value. */
#ifndef QSD_OPS_H
#define QSD_OPS_H

#include "plan.h"

typedef struct {
  const qsd_tensor *t;
  uint8_t *memory;
} qsd_view;

static inline qsd_view qsd_view_of(const qsd_plan *plan, uint8_t *arena, int number) {
  return (qsd_view){&plan->tensors[number], arena + plan->tensors[number].offset};
}

static inline int32_t qsd_get(const qsd_view *v, int n, int y, int x, int c) {
  size_t at = qsd_place(v->t, n, y, x) + (size_t)c;
  return v->t->bytes == 1 ? v->memory[at] : ((const int32_t *)(const void *)v->memory)[at];
}

static inline void qsd_put(const qsd_view *v, int n, int y, int x, int c, int32_t value) {
  size_t at = qsd_place(v->t, n, y, x) + (size_t)c;
  if (v->t->bytes == 1) v->memory[at] = (uint8_t)value;
  else ((int32_t *)(void *)v->memory)[at] = value;
}

typedef struct {
  const qsd_op *op;
  const qsd_graph *graph;
  qsd_view out, in[3];
} qsd_task;

/* Row (n, y) of pooling, sampling, sums, repetition, and of operations on pairs. */
void qsd_map_row(const qsd_task *task, int n, int y);
void qsd_concat_row(const qsd_graph *graph, const qsd_plan *plan, const qsd_op *op, uint8_t *arena,
                    qsd_view out, int n, int y);
#endif
