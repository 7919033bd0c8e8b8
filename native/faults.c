/* Runs a network in every way and uses the interface wrongly in every way: qsd_faults MODEL.qsd
 * PIXELS FRAMES, the pixels of one image. Exits with 1 and a line where something is not as qsd.h
 * says. Built with sanitizers. */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qsd.h"

enum { BATCH = 5, MOST = 64 };

static char message[256];
static int failures;

/* A status, and a message where and only where it is a failure. */
static void expect(int line, bool fine, int status) {
  if (fine && (status != 0) == (message[0] != 0)) return;
  failures++;
  fprintf(stderr, "faults.c:%d: status %d, message \"%s\"\n", line, status, message);
}

#define IS(status, call) expect(__LINE__, (last = (call)) == (status), last)
#define FAILS(call) expect(__LINE__, (last = (call)) != QSD_OK, last)
#define TRUE(condition) expect(__LINE__, (message[0] = 0, (condition)), 0)

static void *fill(size_t size) {
  void *memory = malloc(size ? size : 1);
  if (!memory) exit(3);
  return memset(memory, 0x5a, size ? size : 1);
}

typedef struct {
  qsd_model *model;
  const uint8_t *pixels;
  size_t batch;
  int frames, classes;
  int32_t *logits;
} task;

static void *run_task(void *argument) {
  task *t = argument;
  for (int i = 0; i < 3; i++)
    if (qsd_run(t->model, t->pixels, t->batch, t->frames, t->logits, NULL, NULL, NULL, 0)) exit(4);
  return NULL;
}

/* Logits, outputs, counts and statistics of a batch; the logits go to `logits`. */
static void run_all(qsd_model *m, const uint8_t *pixels, int frames, int32_t *logits) {
  int last;
  qsd_info info;
  qsd_value value;
  int32_t *outputs[MOST] = {0};
  uint8_t *counts[MOST] = {0};
  IS(QSD_OK, qsd_describe(m, &info));
  for (int i = 0; i < info.outputs && i < MOST; i++) {
    IS(QSD_OK, qsd_output(m, i, frames, &value));
    outputs[i] = fill((size_t)value.steps * (size_t)value.channels * (size_t)value.height *
                      (size_t)value.width * BATCH * sizeof **outputs);
  }
  bool every = info.neurons <= MOST;
  for (int i = 0; i < info.neurons && i < MOST; i++) {
    IS(QSD_OK, qsd_neuron(m, i, frames, &value));
    counts[i] = fill((size_t)value.steps * (size_t)value.channels * (size_t)value.height *
                     (size_t)value.width * BATCH);
  }
  IS(QSD_OK, qsd_reset_statistics(m));
  IS(QSD_OK, qsd_run(m, pixels, BATCH, frames, logits, outputs, every ? counts : NULL, message,
                     sizeof message));
  for (int i = 0; i < info.neurons; i++) {
    qsd_activity activity;
    IS(QSD_OK, qsd_statistics(m, i, &activity));
    TRUE(activity.elements && activity.active <= activity.elements);
  }
  for (int i = 0; i < MOST; i++) free(outputs[i]), free(counts[i]);
}

static void misuse(qsd_model *m, const uint8_t *pixels, int frames, int32_t *logits) {
  int last;
  qsd_value value;
  qsd_activity activity;
  size_t absurd[] = {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 16};
  for (int i = 0; i < 3; i++)
    IS(QSD_BAD_ARGUMENT, qsd_run(m, pixels, absurd[i], frames, logits, NULL, NULL, message,
                                 sizeof message));
  IS(QSD_BAD_ARGUMENT, qsd_run(m, pixels, 0, frames, logits, NULL, NULL, message, sizeof message));
  IS(QSD_BAD_ARGUMENT, qsd_run(m, NULL, 1, frames, logits, NULL, NULL, message, sizeof message));
  IS(QSD_BAD_ARGUMENT, qsd_run(NULL, pixels, 1, frames, logits, NULL, NULL, message,
                               sizeof message));
  char little[4];
  TRUE(qsd_run(m, NULL, 1, frames, logits, NULL, NULL, little, sizeof little) && !little[3]);
  TRUE(qsd_run(m, NULL, 1, frames, logits, NULL, NULL, NULL, 0) == QSD_BAD_ARGUMENT);
  TRUE(qsd_run(m, pixels, 1, frames, NULL, NULL, NULL, NULL, 0) == QSD_OK);
  int wrong[] = {-1, 1 << 20};
  for (int i = 0; i < 2; i++)
    TRUE(qsd_output(m, wrong[i], frames, &value) && qsd_neuron(m, wrong[i], frames, &value) &&
         qsd_statistics(m, wrong[i], &activity) && !qsd_class_name(m, wrong[i]));
  TRUE(qsd_describe(NULL, NULL) && qsd_output(NULL, 0, 0, &value) && qsd_neuron(m, 0, 0, NULL) &&
       qsd_statistics(m, 0, NULL) && qsd_reset_statistics(NULL) && !qsd_class_name(NULL, 0));
  qsd_free(NULL);
}

/* Files cut short or in too little memory, and options that there are not. */
static void load_wrongly(const uint8_t *data, size_t size) {
  int last;
  qsd_model *m = NULL;
  for (size_t part = 0; part < size; part += 1 + size / 97) {
    uint8_t *cut = fill(part);
    memcpy(cut, data, part);
    IS(QSD_DAMAGED, qsd_load(cut, part, NULL, &m, message, sizeof message));
    TRUE(!m);
    free(cut);
  }
  for (uint64_t memory = 1; memory <= 1 << 20; memory += 1 + memory / 32) {
    qsd_options options = {.threads = 2, .max_memory = memory};
    last = qsd_load(data, size, &options, &m, message, sizeof message);
    expect(__LINE__, last == QSD_TOO_LARGE || (last == QSD_OK && m), last);
    qsd_free(m);
  }
  qsd_options wrong[] = {{.threads = -1}, {.threads = 1 << 20}, {.isa = "abacus"}, {.isa = ""}};
  for (int i = 0; i < 4; i++)
    IS(QSD_BAD_ARGUMENT, qsd_load(data, size, &wrong[i], &m, message, sizeof message));
  IS(QSD_BAD_ARGUMENT, qsd_load(NULL, size, NULL, &m, message, sizeof message));
  IS(QSD_BAD_ARGUMENT, qsd_load(data, size, NULL, NULL, message, sizeof message));
}

/* Two callers of one model and of two models at once have the logits of one caller, also while
 * statistics are asked for. */
static void run_at_once(qsd_model *m, qsd_model *other, task shared, const int32_t *expected) {
  pthread_t handles[3];
  task tasks[3];
  size_t bytes = (size_t)shared.classes * BATCH * sizeof *expected;
  for (int i = 0; i < 3; i++) {
    tasks[i] = shared;
    tasks[i].model = i < 2 ? m : other;
    tasks[i].logits = fill(bytes);
    if (pthread_create(&handles[i], NULL, run_task, &tasks[i])) exit(3);
  }
  qsd_activity activity;
  for (int i = 0; i < 20; i++) TRUE(qsd_statistics(m, 0, &activity) == QSD_OK);
  for (int i = 0; i < 3; i++) {
    pthread_join(handles[i], NULL);
    TRUE(memcmp(tasks[i].logits, expected, bytes) == 0);
    free(tasks[i].logits);
  }
}

static uint8_t *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) exit(3);
  *size = (size_t)ftell(file);
  uint8_t *data = fill(*size);
  rewind(file);
  if (fread(data, 1, *size, file) != *size) exit(3);
  fclose(file);
  return data;
}

int main(int count, char **arguments) {
  if (count != 4) return fprintf(stderr, "usage: %s MODEL.qsd PIXELS FRAMES\n", arguments[0]), 2;
  int last, frames = atoi(arguments[3]);
  size_t size, bytes;
  uint8_t *data = read_file(arguments[1], &size), *image = read_file(arguments[2], &bytes);
  uint8_t *pixels = fill(bytes * BATCH);
  qsd_info info = {0};
  qsd_model *models[3];
  int32_t *logits[3];
  for (int i = 0; i < 3; i++) {
    qsd_options options = {.threads = i + 1};
    IS(QSD_OK, qsd_load(data, size, &options, &models[i], message, sizeof message));
    if (!models[i]) return 1;
    qsd_describe(models[i], &info);
    /* As many copies of the image as there are, step by step. */
    size_t steps = frames ? (size_t)info.time_steps : 1, part = bytes / steps;
    for (size_t t = 0; t < steps; t++)
      for (size_t b = 0; b < BATCH; b++)
        memcpy(pixels + (t * BATCH + b) * part, image + t * part, part);
    size_t expected = (size_t)info.classes * BATCH * sizeof **logits;
    logits[i] = fill(expected);
    run_all(models[i], pixels, frames, logits[i]);
    TRUE(memcmp(logits[i], logits[0], expected) == 0);
    for (int b = 1; b < BATCH; b++)
      TRUE(memcmp(logits[i], logits[i] + b * info.classes, expected / BATCH) == 0);
    misuse(models[i], pixels, frames, logits[i]);
  }
  load_wrongly(data, size);
  free(data);
  task shared = {NULL, pixels, BATCH, frames, info.classes, NULL};
  run_at_once(models[1], models[2], shared, logits[0]);
  for (int i = 0; i < info.classes; i++) printf("%d\n", (int)logits[0][i]);
  for (int i = 0; i < 3; i++) qsd_free(models[i]), free(logits[i]);
  free(pixels);
  free(image);
  return failures > 0;
}
