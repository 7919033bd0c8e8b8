/* Time of every step of a network: profile MODEL.qsd [RUNS [ISA [many]]]; with `many` several small
 * images go at once, and times are those of one. For who works on the engine. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "src/model.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double products(const qsd_step *step) {
  const qsd_op *op = step->pad_op;
  if (step->kind != STEP_DOT && step->kind != STEP_DEPTHWISE) return 0;
  return (double)ARRAY(op, A_CODES)->count * op->height * op->width * step->maps * step->steps;
}

static const char *describe(const qsd_plan *plan, const qsd_step *step, char *text, size_t size) {
  static const char *const KINDS[] = {"dot", "depthwise", "load", "planes", "op"};
  const qsd_tensor *in = step->source >= 0 ? &plan->tensors[step->source] : NULL;
  int kernel = step->kind <= STEP_DEPTHWISE ? (int)ARRAY(step->pad_op, A_CODES)->side[2] : 0;
  snprintf(text, size, "%-9s %d/%d %4d>%-4d %3dx%-3d%s%s%s%s", KINDS[step->kind], kernel, step->stride,
           in ? in->channels : 0, step->channels, step->rows, step->width,
           step->residual >= 0 ? " add" : "", step->out >= 0 ? " store" : "",
           step->counts >= 0 ? " neuron" : "", in && in->planes > 1 ? " planes" : "");
  return text;
}

/* The share of active groups of 4 channels in what a step reads; 1 where it is not known. */
static double share(const qsd_model *m, const qsd_step *step) {
  for (int i = 0; i < m->graph.neuron_count; i++) {
    qsd_activity a;
    if (step->source_op != m->graph.neurons[i] || qsd_statistics(m, i, &a) || !a.groups) continue;
    return (double)a.active_groups / (double)a.groups;
  }
  return 1;
}

int main(int count, char **arguments) {
  FILE *file = count > 1 ? fopen(arguments[1], "rb") : NULL;
  if (!file) return fprintf(stderr, "usage: %s MODEL.qsd [RUNS [ISA [many]]]\n", arguments[0]), 2;
  int runs = count > 2 ? atoi(arguments[2]) : 21;
  static uint8_t data[1 << 26];
  size_t size = fread(data, 1, sizeof data, file);
  qsd_options options = {.isa = count > 3 && *arguments[3] ? arguments[3] : NULL};
  char message[200];
  qsd_model *m;
  if (qsd_load(data, size, &options, &m, message, sizeof message))
    return fprintf(stderr, "%s\n", message), 1;
  size_t pixels = qsd_pixel_count(&m->graph);
  const qsd_plan *plan = count > 4 && m->has_many ? &m->many : &m->still;
  const size_t images = (size_t)plan->images;
  uint8_t *image = malloc(images * pixels);
  srand(1);
  for (size_t i = 0; i < images * pixels; i++) image[i] = (uint8_t)(rand() >> 7);
  int steps = plan->step_count;
  double *times = malloc((size_t)runs * (size_t)(steps + 1) * sizeof *times);
  qsd_run(m, image, images, 0, NULL, NULL, NULL, message, sizeof message);
  qsd_reset_statistics(m);
  qsd_run(m, image, images, 0, NULL, NULL, NULL, message, sizeof message);
  for (int r = 0; r < runs; r++) {
    double first = now(), before = first;
    for (int i = 0; i < steps; i++) {
      qsd_run_step(m, plan, m->workers, m->workers, i, 0, 1);
      double after = now();
      times[i * runs + r] = (after - before) / (double)images;
      before = after;
    }
    times[steps * runs + r] = (before - first) / (double)images;
  }
  double total = 0;
  for (int i = 0; i <= steps; i++) qsort(times + i * runs, (size_t)runs, sizeof *times, compare);
  for (int i = 0; i < steps; i++) {
    char text[160];
    double time = times[i * runs + runs / 2], macs = products(&plan->steps[i]) / (double)images;
    total += macs;
    printf("%3d %9.5f ms %7.1f GMAC/s %3.0f %%  %-52s %.*s\n", i, time, macs / time * 1e-6,
           100 * share(m, &plan->steps[i]), describe(plan, &plan->steps[i], text, sizeof text),
           (int)m->graph.ops[plan->steps[i].op].name.size, m->graph.ops[plan->steps[i].op].name.text);
  }
  double time = times[steps * runs + runs / 2];
  printf("%d steps, %.4f ms (fastest %.4f), %.1f GMAC/s\n", steps, time, times[steps * runs],
         total / time * 1e-6);
  qsd_free(m);
  return 0;
}
