/* Runs one image, on one thread or on all: steps, meetings, statistics, results. */
#include <sched.h>
#include <string.h>

#include "model.h"

enum { LOOKS = 200, YIELDS = 100 };

void qsd_wait(qsd_model *m, const atomic_uint *word, unsigned old) {
  for (int i = 0; i < LOOKS; i++) {
    if (atomic_load(word) != old) return;
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }
  for (int i = 0; i < YIELDS; i++) {
    if (atomic_load(word) != old) return;
    sched_yield();
  }
  pthread_mutex_lock(&m->lock);
  atomic_fetch_add(&m->sleepers, 1);
  while (atomic_load(word) == old) pthread_cond_wait(&m->wake, &m->lock);
  atomic_fetch_sub(&m->sleepers, 1);
  pthread_mutex_unlock(&m->lock);
}

void qsd_wake(qsd_model *m) {
  if (!atomic_load(&m->sleepers)) return;
  pthread_mutex_lock(&m->lock);
  pthread_cond_broadcast(&m->wake);
  pthread_mutex_unlock(&m->lock);
}

static void meet(qsd_model *m, int parts) {
  if (parts == 1) return;
  unsigned phase = atomic_load(&m->phase);
  if (atomic_fetch_add(&m->arrived, 1) < parts - 1) {
    qsd_wait(m, &m->phase, phase);
    return;
  }
  atomic_store(&m->arrived, 0);
  atomic_fetch_add(&m->phase, 1);
  qsd_wake(m);
}

static void count_row(const qsd_tensor *t, const uint8_t *row, qsd_activity *a) {
  for (int x = 0; x < t->width; x++, row += t->stride)
    for (int c = 0; c < t->channels; c += 4) {
      int spikes = 0;
      for (int i = c; i < c + 4 && i < t->channels; i++) {
        spikes += row[i];
        a->active += row[i] > 0;
      }
      a->spikes += (uint64_t)spikes;
      a->groups++;
      a->active_groups += spikes > 0;
    }
  a->elements += (uint64_t)t->width * (uint64_t)t->channels;
}

/* Of map `n` of the image, or of the image that is `n` further on, among those of the batch. */
static size_t map_number(const qsd_model *m, const qsd_plan *plan, size_t image, int n) {
  return plan->images > 1 ? image + (size_t)n : (size_t)n * m->job.batch + image;
}

/* Of the neuron of a step that is done: statistics, and counts where they are asked for. */
static void observe(const qsd_model *m, const qsd_plan *plan, const qsd_step *step, qsd_worker *w,
                    qsd_worker *own, size_t image, int part, int parts) {
  uint8_t *counts = step && step->counts >= 0 && m->job.counts ? m->job.counts[step->neuron_number] : NULL;
  if (!step || step->counts < 0 || (!counts && !m->counting)) return;
  const qsd_tensor *t = &plan->tensors[step->counts];
  const uint8_t *memory = w->arena + t->offset;
  int64_t units = (int64_t)t->n * t->height;
  size_t map = (size_t)t->height * (size_t)t->width;
  for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; unit++) {
    int n = (int)(unit / t->height), y = (int)(unit % t->height);
    const uint8_t *row = memory + qsd_place(t, n, y, 0);
    if (m->counting) count_row(t, row, &own->activity[step->neuron_number]);
    if (!counts) continue;
    uint8_t *to = counts + map_number(m, plan, image, n) * (size_t)t->channels * map +
                  (size_t)y * (size_t)t->width;
    for (int c = 0; c < t->channels; c++)
      for (int x = 0; x < t->width; x++)
        to[(size_t)c * map + (size_t)x] = row[(size_t)x * (size_t)t->stride + (size_t)c];
  }
}

static void copy_result(const qsd_model *m, const qsd_plan *plan, const qsd_worker *w, int op,
                        int32_t *to, size_t image) {
  if (!to) return;
  const qsd_tensor *t = &plan->tensors[plan->input_of[op]];
  const uint8_t *memory = w->arena + t->offset;
  size_t map = (size_t)t->height * (size_t)t->width, all = map * (size_t)t->channels;
  for (int n = 0; n < t->n; n++)
    for (int c = 0; c < t->channels; c++)
      for (int y = 0; y < t->height; y++)
        for (int x = 0; x < t->width; x++) {
          size_t from = qsd_place(t, n, y, x) + (size_t)c;
          int32_t value = t->bytes == 1 ? memory[from] : ((const int32_t *)(const void *)memory)[from];
          to[map_number(m, plan, image, n) * all + (size_t)c * map +
             (size_t)y * (size_t)t->width + (size_t)x] = value;
        }
}

void qsd_run_step(qsd_model *m, const qsd_plan *plan, qsd_worker *w, qsd_worker *own, int i,
                  int part, int parts) {
  const qsd_step *step = &plan->steps[i];
  qsd_place_to_run at = {&m->graph, m->kernels, plan, w->arena, own->scratch, own->pixels};
  if (step->kind == STEP_OP) qsd_run_op(&at, step, part, parts);
  else if (step->kind == STEP_PLANES) qsd_run_planes(&at, step, part, parts);
  else qsd_run_group(m->kernels, plan, step, w->arena, own->scratch, part, parts);
}

void qsd_run_image(qsd_model *m, const qsd_plan *plan, qsd_worker *w, qsd_worker *own, size_t image,
                   int part, int parts) {
  const qsd_graph *graph = &m->graph;
  size_t size = qsd_pixel_count(graph);
  int maps = plan->frames ? graph->time_steps : plan->images;
  for (int n = 0; n < maps; n++)
    own->pixels[n] = m->job.pixels + map_number(m, plan, image, n) * size;
  const qsd_step *before = NULL;
  for (int i = 0; i < plan->step_count; i++) {
    const qsd_step *step = &plan->steps[i];
    observe(m, plan, before, w, own, image, part, parts);
    qsd_run_step(m, plan, w, own, i, part, parts);
    before = step;
    meet(m, parts);
  }
  observe(m, plan, before, w, own, image, part, parts);
  if (part == 0) {
    if (graph->class_count)
      copy_result(m, plan, w, graph->op_count - 1, m->job.logits, image);
    for (int i = 0; m->job.outputs && i < graph->result_count; i++)
      copy_result(m, plan, w, graph->results[i].op, m->job.outputs[i], image);
  }
  meet(m, parts);
}

