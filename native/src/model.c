/* The interface: models, threads, runs, statistics. */
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { MAX_THREADS = 256, MOST_IMAGES = 8, MOST_ARENA = 1 << 19 }; /* images at once, and bytes */
/* Products of bytes. */
#define WORTH_THREADS 20e6
#define WORTH_MEETING 200e6

int qsd_abi(void) { return QSD_ABI; }

static void take_part(qsd_model *m, int number) {
  qsd_worker *own = &m->workers[number];
  const qsd_plan *plan = m->job.frames ? &m->moving : &m->still;
  if (m->together) {
    for (size_t image = 0; image < m->job.batch; image++)
      qsd_run_image(m, plan, &m->workers[0], own, image, number, m->threads);
    return;
  }
  const size_t most = m->job.many ? (size_t)m->many.images : 1;
  for (size_t image; (image = atomic_fetch_add(&m->next_image, most)) < m->job.batch;) {
    size_t end = image + most;
    if (most > 1 && end <= m->job.batch) qsd_run_image(m, &m->many, own, own, image, 0, 1);
    else
      for (; image < end && image < m->job.batch; image++)
        qsd_run_image(m, plan, own, own, image, 0, 1);
  }
}

/* Threads ------------------------------------------------------------------------------------ */

static void *serve(void *argument) {
  qsd_model *m = ((qsd_ticket *)argument)->model;
  int number = ((qsd_ticket *)argument)->number;
  for (unsigned seen = 0;; seen++) {
    qsd_wait(m, &m->generation, seen);
    if (m->closing) return NULL;
    take_part(m, number);
    if (atomic_fetch_sub(&m->busy, 1) == 1) {
      atomic_fetch_add(&m->finished, 1);
      qsd_wake(m);
    }
  }
}

/* Threads cost time, too: a small job is done by the caller alone, and an image is divided only
 * where all the meetings are worth it. */
static void run_job(qsd_model *m) {
  double batch = (double)m->job.batch;
  m->together = batch < m->threads && m->products >= WORTH_MEETING;
  bool alone = m->threads == 1 || m->products * batch < WORTH_THREADS ||
               (m->job.batch == 1 && !m->together);
  atomic_store(&m->next_image, 0);
  atomic_store(&m->arrived, 0);
  if (alone) {
    m->together = false;
    take_part(m, 0);
    return;
  }
  unsigned before = atomic_load(&m->finished);
  atomic_store(&m->busy, m->threads - 1);
  atomic_fetch_add(&m->generation, 1);
  qsd_wake(m);
  take_part(m, 0);
  qsd_wait(m, &m->finished, before);
}

static bool start_threads(qsd_model *m) {
  for (int i = 1; i < m->threads; i++) {
    m->tickets[i] = (qsd_ticket){m, i};
    if (pthread_create(&m->handles[i], NULL, serve, &m->tickets[i]) != 0) return false;
    m->started = i;
  }
  return true;
}

/* Loading ------------------------------------------------------------------------------------ */

/* Arrays that are read while a network runs move to memory of our own, still packed. */
static bool keep_arrays(qsd_model *m) {
  for (int i = 0; i < m->graph.op_count; i++) {
    qsd_op *op = &m->graph.ops[i];
    bool plain = op->kind == OP_CONVT || op->kind == OP_NORMALISE ||
                 (op->kind == OP_CONV && !qsd_is_dot(op) && !qsd_is_depthwise(op));
    for (int f = 0; f < FIELDS - FIRST_ARRAY; f++) {
      qsd_array *array = &op->arrays[f];
      if (!array->data) continue;
      uint64_t bytes = (array->count * (uint64_t)array->width + 7) / 8;
      uint8_t *copy = plain ? qsd_alloc(&m->pool, bytes, 1) : NULL;
      if (plain && !copy) return false;
      if (copy) memcpy(copy, array->data, (size_t)bytes);
      array->data = copy;
    }
  }
  return true;
}

/* The variable is for tests: both ways give the same. */
static bool find_events_mode(qsd_events_mode *mode) {
  const char *word = getenv("QSD_NATIVE_EVENTS");
  *mode = EVENTS_CHOSEN;
  if (!word || !*word) return true;
  if (strcmp(word, "never") == 0) *mode = EVENTS_NEVER;
  else if (strcmp(word, "always") == 0) *mode = EVENTS_ALWAYS;
  else if (strcmp(word, "tiles") == 0) *mode = EVENTS_TILES;
  else return false;
  return true;
}

/* Small maps of several images fill the kernels better and share what a step costs. With more than
 * one step of time, maps of an image have an order of their own. */
static int images_at_once(const qsd_model *m) {
  if (!m->has_still || m->graph.time_steps > 1) return 1;
  for (int i = 0; i < m->graph.op_count; i++)
    if (m->graph.ops[i].f[F_STEPS] > 1 || m->graph.ops[i].steps > 1) return 1;
  int images = MOST_IMAGES;
  while (images > 1 && m->still.arena * (uint64_t)images > MOST_ARENA) images /= 2;
  return images;
}

static int make_plans(qsd_model *m, qsd_error *error) {
  uint64_t count = (uint64_t)m->graph.op_count;
  qsd_builder builder = {.graph = &m->graph, .kernels = m->kernels, .error = error};
  builder.pool = m->pool;
  builder.packs = qsd_alloc(&builder.pool, count, sizeof *builder.packs);
  builder.dw_codes = qsd_alloc(&builder.pool, count, sizeof *builder.dw_codes);
  int status = QSD_OK;
  if (!builder.packs || !builder.dw_codes)
    status = qsd_fail(error, QSD_TOO_LARGE, "the network needs more memory than allowed");
  if (!status && !m->graph.takes_frames) {
    status = qsd_build_plan(&builder, false, 1, &m->still);
    m->has_still = !status;
  }
  if (!status && (m->graph.takes_frames || m->graph.has_repeat)) {
    status = qsd_build_plan(&builder, true, 1, &m->moving);
    m->has_moving = !status;
    if (status == QSD_BAD_ARGUMENT && m->has_still) { /* it takes pixels alone, which is fine */
      m->moving = (qsd_plan){0};
      if (error->message && error->size) error->message[0] = 0;
      status = QSD_OK;
    }
  }
  int images = status ? 1 : images_at_once(m);
  if (images > 1) {
    status = qsd_build_plan(&builder, false, images, &m->many);
    m->has_many = !status;
  }
  m->pool = builder.pool;
  if (status) return status;
  qsd_events_mode mode;
  if (!find_events_mode(&mode))
    return qsd_fail(error, QSD_BAD_ARGUMENT, "QSD_NATIVE_EVENTS must be never, always or tiles");
  if (!qsd_plan_events(&m->pool, m->kernels, mode, &m->still) ||
      !qsd_plan_events(&m->pool, m->kernels, mode, &m->moving) ||
      !qsd_plan_events(&m->pool, m->kernels, mode, &m->many))
    return qsd_fail(error, QSD_TOO_LARGE, "the network needs more memory than allowed");
  return QSD_OK;
}

static double count_products(const qsd_graph *graph) {
  double all = 0;
  for (int i = 0; i < graph->op_count; i++) {
    const qsd_op *op = &graph->ops[i];
    if (op->kind == OP_CONV)
      all += (double)ARRAY(op, A_CODES)->count * op->height * op->width * op->steps;
  }
  return all;
}

/* Bytes of values and of scratch memory for the plan that needs most. */
static void find_sizes(const qsd_model *m, uint64_t *arena, uint64_t *scratch) {
  const qsd_plan *plans[] = {&m->still, &m->moving, &m->many};
  *arena = *scratch = 0;
  for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) {
    if (plans[i]->arena > *arena) *arena = plans[i]->arena;
    if (plans[i]->scratch > *scratch) *scratch = plans[i]->scratch;
  }
}

static int make_workers(qsd_model *m, qsd_error *error) {
  uint64_t arena, scratch;
  find_sizes(m, &arena, &scratch);
  uint64_t threads = (uint64_t)m->threads;
  uint64_t maps = (uint64_t)qsd_max(m->graph.time_steps, m->many.images);
  m->workers = qsd_alloc(&m->pool, threads, sizeof *m->workers);
  m->handles = qsd_alloc(&m->pool, threads, sizeof *m->handles);
  m->tickets = qsd_alloc(&m->pool, threads, sizeof *m->tickets);
  bool fine = m->workers && m->handles && m->tickets && arena < UINT64_MAX / 2;
  for (int i = 0; fine && i < m->threads; i++) {
    qsd_worker *w = &m->workers[i];
    w->arena = qsd_alloc(&m->pool, arena + 64, 1);
    w->scratch = qsd_alloc(&m->pool, scratch + 64, 1);
    w->pixels = qsd_alloc(&m->pool, maps, sizeof *w->pixels);
    w->activity = qsd_alloc(&m->pool, (uint64_t)m->graph.neuron_count, sizeof *w->activity);
    fine = w->arena && w->scratch && w->pixels && w->activity;
  }
  if (!fine) return qsd_fail(error, QSD_TOO_LARGE, "the network needs more memory than allowed");
  return QSD_OK;
}

static int build(qsd_model *m, const uint8_t *data, size_t size, qsd_error *error) {
  int status = qsd_read(&m->graph, data, size, error);
  m->pool.most -= m->graph.pool.bytes; /* both pools together stay within the limit */
  if (!status) m->products = count_products(&m->graph);
  if (!status) status = make_plans(m, error);
  m->weight_bytes = m->pool.bytes;
  if (!status && !keep_arrays(m))
    status = qsd_fail(error, QSD_TOO_LARGE, "the network needs more memory than allowed");
  if (!status) status = make_workers(m, error);
  if (status && (m->pool.exhausted || m->graph.pool.exhausted))
    return qsd_fail(error, QSD_TOO_LARGE, "the network needs more memory than allowed or there is");
  if (!status && !start_threads(m))
    status = qsd_fail(error, QSD_TOO_LARGE, "cannot start %d threads", m->threads);
  return status;
}

int qsd_load(const void *data, size_t size, const qsd_options *options, qsd_model **model,
             char *message, size_t message_size) {
  qsd_error error = {message, message_size};
  if (message && message_size) message[0] = 0;
  if (!model || !data) return qsd_fail(&error, QSD_BAD_ARGUMENT, "no data, or no place for a model");
  *model = NULL;
  qsd_options given = options ? *options : (qsd_options){0};
  if (given.threads < 0 || given.threads > MAX_THREADS)
    return qsd_fail(&error, QSD_BAD_ARGUMENT, "%d threads: give 1 to %d", given.threads, MAX_THREADS);
  const qsd_kernels *kernels = qsd_pick_kernels(given.isa);
  if (!kernels)
    return qsd_fail(&error, QSD_BAD_ARGUMENT, "this processor or library has no instruction set %s",
                    given.isa);
  qsd_model *m = calloc(1, sizeof *m);
  if (!m) return qsd_fail(&error, QSD_TOO_LARGE, "no memory for a model");
  m->threads = given.threads ? given.threads : 1;
  m->kernels = kernels;
  m->pool.most = given.max_memory ? given.max_memory : (uint64_t)4 << 30;
  m->graph.pool.most = m->pool.most;
  pthread_mutex_init(&m->running, NULL);
  pthread_mutex_init(&m->lock, NULL);
  pthread_cond_init(&m->wake, NULL);
  int status = build(m, data, size, &error);
  if (status) qsd_free(m);
  else *model = m;
  return status;
}

void qsd_free(qsd_model *m) {
  if (!m) return;
  m->closing = true;
  atomic_fetch_add(&m->generation, 1);
  qsd_wake(m);
  for (int i = 1; i <= m->started; i++) pthread_join(m->handles[i], NULL);
  pthread_mutex_destroy(&m->running);
  pthread_mutex_destroy(&m->lock);
  pthread_cond_destroy(&m->wake);
  qsd_release(&m->graph.pool);
  qsd_release(&m->pool);
  free(m);
}

/* Questions ---------------------------------------------------------------------------------- */

int qsd_describe(const qsd_model *m, qsd_info *info) {
  if (!m || !info) return QSD_BAD_ARGUMENT;
  const qsd_graph *g = &m->graph;
  uint64_t arena, scratch;
  find_sizes(m, &arena, &scratch);
  *info = (qsd_info){.channels = g->channels,
                     .height = g->height,
                     .width = g->width,
                     .time_steps = g->time_steps,
                     .takes_frames = g->takes_frames,
                     .classes = g->class_count,
                     .fraction = g->class_count ? (int)g->ops[g->op_count - 1].fraction : 0,
                     .outputs = g->result_count,
                     .neurons = g->neuron_count,
                     .threads = m->threads,
                     .weight_bytes = m->weight_bytes,
                     .scratch_bytes = (arena + scratch) * (uint64_t)m->threads,
                     .isa = m->kernels->name};
  return QSD_OK;
}

/* Whether the plan for frames is used. */
static bool is_moving(const qsd_model *m, int frames) {
  return m->graph.takes_frames || (frames && m->graph.time_steps > 1);
}

const char *qsd_class_name(const qsd_model *m, int index) {
  if (!m || index < 0 || index >= m->graph.class_count) return NULL;
  return m->graph.classes[index].text;
}

static int describe_value(const qsd_model *m, qsd_text name, int op, int frames, qsd_value *value) {
  bool moving = is_moving(m, frames);
  if (moving ? !m->has_moving : !m->has_still) return QSD_BAD_ARGUMENT;
  const qsd_op *of = &m->graph.ops[op];
  int steps = (moving ? &m->moving : &m->still)->leading[op];
  *value = (qsd_value){name.text, steps, of->channels, of->height, of->width};
  return QSD_OK;
}

int qsd_output(const qsd_model *m, int index, int frames, qsd_value *value) {
  if (!m || !value || index < 0 || index >= m->graph.result_count) return QSD_BAD_ARGUMENT;
  const qsd_result *result = &m->graph.results[index];
  return describe_value(m, result->name, result->op, frames, value);
}

int qsd_neuron(const qsd_model *m, int index, int frames, qsd_value *value) {
  if (!m || !value || index < 0 || index >= m->graph.neuron_count) return QSD_BAD_ARGUMENT;
  int op = m->graph.neurons[index];
  return describe_value(m, m->graph.ops[op].name, op, frames, value);
}

int qsd_run(qsd_model *m, const uint8_t *pixels, size_t batch, int frames, int32_t *logits,
            int32_t *const *outputs, uint8_t *const *counts, char *message, size_t message_size) {
  qsd_error error = {message, message_size};
  if (message && message_size) message[0] = 0;
  if (!m || !pixels || !batch)
    return qsd_fail(&error, QSD_BAD_ARGUMENT, "no model, no pixels or no images");
  size_t size = qsd_pixel_count(&m->graph);
  if (batch > SIZE_MAX / 8 / size / (size_t)m->graph.time_steps)
    return qsd_fail(&error, QSD_BAD_ARGUMENT, "a batch of %zu images is too large", batch);
  bool moving = is_moving(m, frames);
  if (m->graph.takes_frames && !frames)
    return qsd_fail(&error, QSD_BAD_ARGUMENT, "this network takes a frame for each of %d time steps",
                    m->graph.time_steps);
  if (moving ? !m->has_moving : !m->has_still)
    return qsd_fail(&error, QSD_BAD_ARGUMENT, "this network does not take a frame for each time step");
  pthread_mutex_lock(&m->running);
  bool many = m->has_many && !moving && batch >= (size_t)m->many.images * (size_t)m->threads;
  m->job = (qsd_job){pixels, batch, moving, many, logits, outputs, counts};
  run_job(m);
  pthread_mutex_unlock(&m->running);
  return QSD_OK;
}

int qsd_reset_statistics(qsd_model *m) {
  if (!m) return QSD_BAD_ARGUMENT;
  pthread_mutex_lock(&m->running);
  m->counting = true;
  for (int i = 0; i < m->threads; i++)
    memset(m->workers[i].activity, 0, (size_t)m->graph.neuron_count * sizeof(qsd_activity));
  pthread_mutex_unlock(&m->running);
  return QSD_OK;
}

int qsd_statistics(const qsd_model *m, int neuron, qsd_activity *activity) {
  if (!m || !activity || neuron < 0 || neuron >= m->graph.neuron_count) return QSD_BAD_ARGUMENT;
  *activity = (qsd_activity){0};
  pthread_mutex_t *running = (pthread_mutex_t *)&m->running; /* all that changes of the model */
  pthread_mutex_lock(running);
  for (int i = 0; i < m->threads; i++) {
    const qsd_activity *a = &m->workers[i].activity[neuron];
    activity->elements += a->elements;
    activity->active += a->active;
    activity->spikes += a->spikes;
    activity->groups += a->groups;
    activity->active_groups += a->active_groups;
  }
  pthread_mutex_unlock(running);
  return QSD_OK;
}
