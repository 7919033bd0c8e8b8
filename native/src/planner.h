/* What the planner knows while it works. */
#ifndef QSD_PLANNER_H
#define QSD_PLANNER_H

#include "plan.h"

typedef struct {
  qsd_builder *builder;
  const qsd_graph *graph;
  qsd_plan *plan;
  int *uses;      /* how many read a value; results count */
  int *first_use; /* index into `readers` */
  int *readers;
  bool *absorbed, *deferred;
  int *pad; /* the border that readers want around a value */
  int *planes; /* tensor of byte planes of a value, -1 */
  int *plane_step; /* the step that makes them */
  bool *result;
  bool *word; /* values that are stored in 16 bits */
  bool *byte; /* and in 8 */
} qsd_planner;

static inline const qsd_op *qsd_op_at(const qsd_planner *p, int i) { return &p->graph->ops[i]; }

/* Who reads each value. */
bool qsd_find_readers(qsd_planner *planner);
/* Operations that are done in one go. */
void qsd_make_steps(qsd_planner *planner);
#endif
