/* What the parts of libqsd share: the graph as it was read. */
#ifndef QSD_INTERNAL_H
#define QSD_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qsd.h"

typedef struct {
  char *message;
  size_t size;
} qsd_error;

int qsd_fail(qsd_error *error, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Memory that is freed all at once; zeroed. NULL where there is none left. */
typedef struct qsd_block qsd_block;
typedef struct {
  qsd_block *first;
  char *next; /* the rest of the latest block */
  size_t left;
  uint64_t bytes, most;
  bool exhausted; /* something did not fit */
} qsd_pool;

void *qsd_alloc(qsd_pool *pool, uint64_t count, size_t size);
void qsd_release(qsd_pool *pool);

typedef struct {
  const char *text; /* ends with a zero byte besides */
  size_t size;
} qsd_text;

bool qsd_is(qsd_text text, const char *word);

/* JSON ------------------------------------------------------------------------------------- */

enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_INT, JSON_REAL, JSON_STRING, JSON_LIST, JSON_OBJECT };

typedef struct {
  uint8_t type;
  uint32_t next, child, count; /* 0: none; count of members */
  qsd_text key, text;
  int64_t integer; /* saturated */
  double real;
} qsd_json;

/* The nodes of a text, the root first; NULL where it is not valid. Depth and size are bounded. */
const qsd_json *qsd_json_parse(qsd_pool *pool, const char *text, size_t size, qsd_error *error);
/* The last member of that name; NULL where there is none or `object` is none. */
const qsd_json *qsd_json_get(const qsd_json *nodes, const qsd_json *object, const char *name);

/* Whether a text can be a name: UTF-8 without half characters (of which JSON may have escapes) and
 * without zero bytes, at which a name in C would end. */
bool qsd_is_name(qsd_text text);

void qsd_sha256_hex(const uint8_t *const *parts, const size_t *sizes, int count, char hex[65]);

/* Operations ------------------------------------------------------------------------------- */

typedef enum {
  OP_NORMALISE, OP_CONV, OP_RESCALE, OP_ADD, OP_IELIF, OP_LIF, OP_ATTENTION, OP_REPEAT, OP_SMEAN,
  OP_TSUM, OP_CONVT, OP_COUNTADD, OP_MULTIPLY, OP_FRAMES, OP_MAXPOOL, OP_UPSAMPLE, OP_CONCAT,
  OP_RESHAPE, OP_SSUM, OP_KINDS
} qsd_kind;

typedef enum {
  F_BITS, F_STRIDE, F_PADDING, F_GROUPS, F_LIMIT, F_FRACTION, F_STEPS, F_DECAY, F_THRESHOLD,
  F_LEAK, F_HEADS, F_KERNEL, F_CHANNELS, F_HEIGHT, F_WIDTH, F_THRESHOLDS, F_RESETS, F_MODE,
  A_TABLE, A_CODES, A_MULTIPLIER, A_SHIFT, A_BIAS, FIELDS
} qsd_field;

#define FIRST_ARRAY A_TABLE
#define FIRST_LIST F_THRESHOLDS

/* An array of the file: integers of `width` bits in row-major order. */
typedef struct {
  const uint8_t *data;
  int width, rank;
  uint32_t side[4];
  uint64_t count;
} qsd_array;

int64_t qsd_item(const qsd_array *array, uint64_t index);
void qsd_unpack8(const qsd_array *array, int8_t *codes);

typedef struct {
  qsd_kind kind;
  qsd_text name;
  int input_count;
  int *inputs;
  int64_t f[FIRST_LIST];
  bool bilinear;
  int levels; /* of a neuron */
  int32_t *thresholds, *resets;
  qsd_array arrays[FIELDS - FIRST_ARRAY];
  /* Its result. */
  int channels, height, width, steps;
  int64_t fraction;
  double *bound; /* largest magnitude of each channel */
  double most;   /* the largest of them */
  bool positive; /* no value is negative */
} qsd_op;

#define ARRAY(op, field) (&(op)->arrays[(field)-FIRST_ARRAY])

typedef struct {
  qsd_text name;
  int op;
} qsd_result;

typedef struct {
  qsd_pool pool;
  int op_count, class_count, result_count, neuron_count;
  qsd_op *ops;
  qsd_text *classes;
  qsd_result *results;
  int *neurons; /* numbers of operations */
  int channels, height, width, time_steps;
  bool takes_frames;
  bool has_repeat;
} qsd_graph;

bool qsd_is_neuron(const qsd_op *op);
/* Reads and checks a file. The arrays of the operations point into `data`. */
int qsd_read(qsd_graph *graph, const uint8_t *data, size_t size, qsd_error *error);
int qsd_read_op(qsd_graph *graph, int number, const qsd_json *nodes, const qsd_json *entry,
                const qsd_json *defaults, int version, const uint8_t *data, size_t size,
                qsd_error *error);
int qsd_check_op(qsd_graph *graph, int number, qsd_error *error);
int qsd_check_shapes(qsd_graph *graph, qsd_error *error);

static inline int64_t qsd_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t qsd_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Bytes of an image of one time step. */
static inline size_t qsd_pixel_count(const qsd_graph *graph) {
  return (size_t)graph->channels * (size_t)graph->height * (size_t)graph->width;
}
#endif
