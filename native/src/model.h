/* A model with its memory and threads. */
#ifndef QSD_MODEL_H
#define QSD_MODEL_H

#include <pthread.h>
#include <stdatomic.h>

#include "plan.h"

typedef struct {
  const uint8_t *pixels;
  size_t batch;
  bool frames, many; /* many: as many images at once as that plan takes */
  int32_t *logits, *const *outputs;
  uint8_t *const *counts;
} qsd_job;

typedef struct {
  uint8_t *arena;
  int32_t *scratch;
  const uint8_t **pixels; /* of each time step or image */
  qsd_activity *activity;
} qsd_worker;

typedef struct {
  qsd_model *model;
  int number;
} qsd_ticket;

struct qsd_model {
  qsd_graph graph;
  qsd_pool pool;
  qsd_plan still, moving; /* for pixels, and for a frame for each time step */
  qsd_plan many;          /* for pixels of several images at once */
  bool has_still, has_moving, has_many;
  const qsd_kernels *kernels;
  uint64_t weight_bytes;
  int threads;
  qsd_worker *workers;
  bool counting;
  /* Threads: each job has a number, and workers wait for the next. */
  pthread_t *handles;
  qsd_ticket *tickets;
  int started;
  pthread_mutex_t running, lock;
  pthread_cond_t wake;
  atomic_int sleepers;
  atomic_uint generation, finished; /* jobs */
  atomic_int busy;
  bool closing;
  qsd_job job;
  double products; /* of bytes, for an image */
  bool together; /* all threads work on one image */
  atomic_size_t next_image;
  size_t image;
  atomic_int arrived;
  atomic_uint phase;
};

/* Until `word` is no longer `old`: looks a few times, lets others run, and then sleeps, as spinning
 * would take the core from those that are waited for. Who changes a word wakes the sleepers. */
void qsd_wait(qsd_model *m, const atomic_uint *word, unsigned old);
void qsd_wake(qsd_model *m);
/* Part `part` of `parts` of an image, or as many from there on as the plan takes, whose values lie
 * in the memory of `w`; `own` is this thread's. */
void qsd_run_image(qsd_model *m, const qsd_plan *plan, qsd_worker *w, qsd_worker *own, size_t image,
                   int part, int parts);
/* Its step number `i` alone. */
void qsd_run_step(qsd_model *m, const qsd_plan *plan, qsd_worker *w, qsd_worker *own, int i,
                  int part, int parts);
#endif
