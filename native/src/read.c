/* Reads an artifact: file, header, description, results. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static const char PREFIX[] = "{\"__metadata__\":{\"sha256\":\"";
enum { LENGTH_BYTES = 8, PREFIX_BYTES = 27, DIGITS = 64, MAX_OPS = 65536, MAX_IMAGE = 8192,
       MAX_FRACTION = 24 };
#define MAX_HEADER ((uint64_t)64 << 20)

#define DAMAGED(...) qsd_fail(error, QSD_DAMAGED, "the artifact is damaged: " __VA_ARGS__)

static int checked_header(const uint8_t *data, size_t size, uint64_t *length, qsd_error *error) {
  const size_t digest = LENGTH_BYTES + PREFIX_BYTES;
  if (size < digest + DIGITS || memcmp(data + LENGTH_BYTES, PREFIX, PREFIX_BYTES) != 0)
    return qsd_fail(error, QSD_DAMAGED, "not an artifact of qsdformer, or cut short");
  *length = 0;
  for (int i = 0; i < LENGTH_BYTES; i++) *length |= (uint64_t)data[i] << (8 * i);
  if (*length > MAX_HEADER || *length > size - LENGTH_BYTES)
    return qsd_fail(error, QSD_DAMAGED, "the artifact is cut short");
  char zeros[DIGITS], hex[DIGITS + 1];
  memset(zeros, '0', DIGITS);
  const uint8_t *parts[] = {data, (const uint8_t *)zeros, data + digest + DIGITS};
  const size_t sizes[] = {digest, DIGITS, size - digest - DIGITS};
  qsd_sha256_hex(parts, sizes, 3, hex);
  if (memcmp(hex, data + digest, DIGITS) != 0) return DAMAGED("its checksum is wrong");
  return QSD_OK;
}

typedef struct {
  const uint8_t *data;
  uint64_t size;
  bool given;
} tensor;

/* The operation's number that `key` is, without leading zeros; -1 for anything else. */
static int64_t number_of(qsd_text key, int64_t limit) {
  int64_t number = 0;
  if (key.size == 0 || key.size > 9 || (key.text[0] == '0' && key.size > 1)) return -1;
  for (size_t i = 0; i < key.size; i++) {
    if (key.text[i] < '0' || key.text[i] > '9') return -1;
    number = 10 * number + (key.text[i] - '0');
  }
  return number < limit ? number : -1;
}

static bool is_head(qsd_text key) { return key.size > 5 && memcmp(key.text, "head.", 5) == 0; }

static int read_tensors(const qsd_json *nodes, const uint8_t *body, uint64_t size, int op_count,
                        int version, tensor *tensors, qsd_error *error) {
  uint64_t expected = 0;
  for (uint32_t i = nodes->child; i; i = nodes[i].next) {
    const qsd_json *entry = &nodes[i];
    if (qsd_is(entry->key, "__metadata__")) continue;
    const qsd_json *type = qsd_json_get(nodes, entry, "dtype");
    const qsd_json *shape = qsd_json_get(nodes, entry, "shape");
    const qsd_json *offsets = qsd_json_get(nodes, entry, "data_offsets");
    if (!type || type->type != JSON_STRING || !qsd_is(type->text, "U8"))
      return DAMAGED("a tensor has a type that is not U8");
    if (!offsets || offsets->type != JSON_LIST || offsets->count != 2 || !shape ||
        shape->type != JSON_LIST || shape->count != 1)
      return DAMAGED("a tensor has no place");
    const qsd_json *start = nodes + offsets->child, *end = nodes + start->next,
                   *count = nodes + shape->child;
    if (start->type != JSON_INT || end->type != JSON_INT || count->type != JSON_INT ||
        start->integer < 0 || (uint64_t)start->integer != expected ||
        end->integer < start->integer || (uint64_t)end->integer > size ||
        count->integer != end->integer - start->integer)
      return DAMAGED("a tensor does not lie inside the file in order");
    if (version > 2 && is_head(entry->key)) { /* an artifact of its own */
      expected = (uint64_t)end->integer;
      continue;
    }
    int64_t number = number_of(entry->key, op_count);
    if (number < 0 || tensors[number].given)
      return DAMAGED("a tensor belongs to no operation");
    tensors[number] = (tensor){body + expected, (uint64_t)count->integer, true};
    expected = (uint64_t)end->integer;
  }
  if (expected != size) return DAMAGED("there are bytes after the last tensor");
  return QSD_OK;
}

static bool is_real(const qsd_json *value) {
  return value && (value->type == JSON_INT || value->type == JSON_REAL);
}

/* A list of so many finite numbers, all of them above `least`. */
static bool reals(const qsd_json *nodes, const qsd_json *list, int64_t count, double least) {
  if (!list || list->type != JSON_LIST || list->count != count) return false;
  for (uint32_t i = list->child; i; i = nodes[i].next)
    if (!is_real(&nodes[i]) || !isfinite(nodes[i].real) || !(nodes[i].real > least)) return false;
  return true;
}

static bool is_interpolation(const qsd_json *value) {
  static const char *const KNOWN[] = {"nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"};
  bool known = false;
  for (int k = 0; k < 6; k++) known |= value->type == JSON_STRING && qsd_is(value->text, KNOWN[k]);
  return known;
}

static bool is_side(const qsd_json *value) {
  return value->type == JSON_INT && value->integer >= 1 && value->integer <= MAX_IMAGE;
}

/* A square's side, or from version 3 on a list of two different ones. */
static bool read_size(qsd_graph *graph, const qsd_json *nodes, const qsd_json *size, int version) {
  const qsd_json *height = size, *width = size;
  if (version >= 3 && size->type == JSON_LIST && size->count == 2) {
    height = nodes + size->child;
    width = nodes + height->next;
    if (!is_side(height) || !is_side(width) || height->integer == width->integer) return false;
  }
  if (!is_side(height)) return false;
  graph->height = (int)height->integer;
  graph->width = (int)width->integer;
  return true;
}

/* Sides of what shows the image, at most those of the whole. */
static bool is_placed(const qsd_graph *graph, const qsd_json *nodes, const qsd_json *placed) {
  if (placed->type != JSON_LIST || placed->count != 2) return false;
  const qsd_json *height = nodes + placed->child, *width = nodes + height->next;
  return is_side(height) && is_side(width) && height->integer <= graph->height &&
         width->integer <= graph->width;
}

static bool is_fit(const qsd_json *fit) {
  return fit->type == JSON_STRING && (qsd_is(fit->text, "crop") || qsd_is(fit->text, "pad") ||
                                      qsd_is(fit->text, "stretch"));
}

static int read_preprocessing(qsd_graph *graph, const qsd_json *nodes, const qsd_json *entry,
                              int version, qsd_error *error) {
  static const char *const KNOWN[] = {"image_size",    "channels", "mean", "std",
                                      "interpolation", "crop_pct", "fit",  "placed"};
  const qsd_json *value[6], *fit = qsd_json_get(nodes, entry, "fit"),
                 *placed = qsd_json_get(nodes, entry, "placed");
  for (int i = 0; i < 6; i++) {
    value[i] = qsd_json_get(nodes, entry, KNOWN[i]);
    if (!value[i]) return DAMAGED("its preprocessing lacks a field");
  }
  if (fit && (version < 3 || !is_fit(fit))) return DAMAGED("its preprocessing has a wrong fit");
  for (uint32_t i = entry->child; i; i = nodes[i].next) {
    bool known = false;
    for (int k = 0; k < 8; k++) known |= qsd_is(nodes[i].key, KNOWN[k]);
    if (!known) return DAMAGED("its preprocessing has an unknown field");
  }
  bool fine = read_size(graph, nodes, value[0], version) && value[1]->type == JSON_INT &&
              value[1]->integer >= 1 && value[1]->integer <= 1024 &&
              reals(nodes, value[2], value[1]->integer, -INFINITY) &&
              reals(nodes, value[3], value[1]->integer, 0) && is_interpolation(value[4]) &&
              is_real(value[5]) && value[5]->real >= 0.01 && value[5]->real <= 1;
  if (placed && (version < 3 || (fine && !is_placed(graph, nodes, placed)))) fine = false;
  if (!fine) return DAMAGED("its preprocessing does not fit together");
  graph->channels = (int)value[1]->integer;
  return QSD_OK;
}

static int compare(const void *a, const void *b) {
  const qsd_text *x = a, *y = b;
  size_t size = x->size < y->size ? x->size : y->size;
  int order = size ? memcmp(x->text, y->text, size) : 0;
  return order ? order : (x->size > y->size) - (x->size < y->size);
}

/* Whether two of the texts are equal; sorts them. */
static bool repeated(qsd_text *texts, int count) {
  if (count > 1) qsort(texts, (size_t)count, sizeof *texts, compare);
  for (int i = 1; i < count; i++)
    if (compare(&texts[i - 1], &texts[i]) == 0) return true;
  return false;
}

static int read_result(qsd_graph *graph, qsd_result *result, const qsd_json *nodes,
                       const qsd_json *entry, qsd_error *error) {
  const qsd_json *name = qsd_json_get(nodes, entry, "name"), *op = qsd_json_get(nodes, entry, "op"),
                 *scale = qsd_json_get(nodes, entry, "scale");
  if (!name || name->type != JSON_STRING || !name->text.size || !op || op->type != JSON_INT ||
      op->integer < 0 || op->integer >= graph->op_count || !scale || scale->type != JSON_LIST)
    return DAMAGED("an output has no name or is the value of no operation");
  if (!qsd_is_name(name->text))
    return DAMAGED("an output has a zero byte or half a character in its name");
  result->name = name->text;
  result->op = (int)op->integer;
  if (scale->count != 1 && scale->count != (uint32_t)graph->ops[result->op].channels)
    return DAMAGED("an output has a wrong number of scales");
  for (uint32_t i = scale->child; i; i = nodes[i].next)
    if (!is_real(&nodes[i]) || !isfinite(nodes[i].real) || nodes[i].real == 0)
      return DAMAGED("an output has a scale that is zero or not finite");
  return QSD_OK;
}

static int read_results(qsd_graph *graph, const qsd_json *nodes, const qsd_json *list,
                        qsd_error *error) {
  if (list && list->type != JSON_LIST) return DAMAGED("its outputs are no list");
  graph->result_count = list ? (int)list->count : 0;
  graph->results = qsd_alloc(&graph->pool, (uint64_t)graph->result_count, sizeof *graph->results);
  graph->neurons = qsd_alloc(&graph->pool, (uint64_t)graph->op_count, sizeof *graph->neurons);
  uint64_t names = (uint64_t)graph->op_count + (uint64_t)graph->result_count + 1;
  qsd_text *taken = qsd_alloc(&graph->pool, names, sizeof *taken);
  if (!graph->results || !graph->neurons || !taken)
    return qsd_fail(error, QSD_TOO_LARGE, "no memory for the outputs");
  int used = 0;
  for (int i = 0; i < graph->op_count; i++) taken[used++] = graph->ops[i].name;
  if (repeated(taken, used)) return DAMAGED("two operations have one name");
  used = 0;
  for (int i = 0; i < graph->op_count; i++)
    if (qsd_is_neuron(&graph->ops[i])) {
      graph->neurons[graph->neuron_count++] = i;
      taken[used++] = graph->ops[i].name;
    }
  int status = QSD_OK, outputs = 0;
  for (uint32_t i = list ? list->child : 0; i && !status; i = nodes[i].next) {
    status = read_result(graph, &graph->results[outputs], nodes, &nodes[i], error);
    taken[used++] = graph->results[outputs].name;
    if (!status && qsd_is(graph->results[outputs].name, "logits"))
      return DAMAGED("an output is called logits");
    outputs++;
  }
  if (!status && outputs && repeated(taken, used)) return DAMAGED("two outputs have one name");
  return status;
}

static int check_logits(const qsd_graph *graph, qsd_error *error) {
  const qsd_op *last = &graph->ops[graph->op_count - 1];
  if (!graph->class_count && !graph->result_count)
    return DAMAGED("it gives neither logits nor other outputs");
  if (!graph->class_count) return QSD_OK;
  if (last->kind != OP_RESCALE || last->height != 1 || last->width != 1 || last->steps != 1)
    return DAMAGED("its last operation does not give logits");
  if (last->channels != graph->class_count)
    return DAMAGED("it has %d class names for %d logits", graph->class_count, last->channels);
  return QSD_OK;
}

static int read_classes(qsd_graph *graph, const qsd_json *nodes, const qsd_json *list,
                        qsd_error *error) {
  if (!list || list->type != JSON_LIST) return DAMAGED("its class names are no list");
  graph->class_count = (int)list->count;
  graph->classes = qsd_alloc(&graph->pool, list->count, sizeof *graph->classes);
  if (!graph->classes) return qsd_fail(error, QSD_TOO_LARGE, "no memory for the class names");
  int count = 0;
  for (uint32_t i = list->child; i; i = nodes[i].next) {
    if (nodes[i].type != JSON_STRING) return DAMAGED("a class has a name that is no word");
    if (!qsd_is_name(nodes[i].text))
      return DAMAGED("a class has a zero byte or half a character in its name");
    graph->classes[count++] = nodes[i].text;
  }
  return QSD_OK;
}

static bool has_codes(const qsd_op *op) {
  return op->kind == OP_CONV || op->kind == OP_CONVT;
}

static int read_ops(qsd_graph *graph, const qsd_json *nodes, const qsd_json *list, int version,
                    const tensor *tensors, qsd_error *error) {
  const qsd_json *defaults = qsd_json_get(nodes, nodes, "defaults");
  if (!defaults || defaults->type != JSON_OBJECT) return DAMAGED("it has no defaults");
  int number = 0, status = QSD_OK;
  for (uint32_t i = list->child; i && !status; i = nodes[i].next, number++) {
    const tensor *t = &tensors[number];
    const qsd_json *same = version > 2 ? qsd_json_get(nodes, &nodes[i], "same") : NULL;
    if (same) { /* the codes of an earlier layer */
      if (same->type != JSON_INT || same->integer < 0 || same->integer >= number || t->given ||
          !tensors[same->integer].given || !has_codes(&graph->ops[same->integer]))
        return DAMAGED("operation %d shares codes that are not there", number);
      t = &tensors[same->integer];
    }
    status = qsd_read_op(graph, number, nodes, &nodes[i], defaults, version,
                         t->given ? t->data : NULL, (size_t)t->size, error);
  }
  return status;
}

static int read_description(qsd_graph *graph, const qsd_json *header, const qsd_json *nodes,
                            const uint8_t *body, uint64_t size, qsd_error *error) {
  const qsd_json *version = qsd_json_get(nodes, nodes, "format_version");
  if (!version || version->type != JSON_INT) return DAMAGED("it has no format version");
  if (version->integer < 1 || version->integer > 3)
    return qsd_fail(error, QSD_VERSION,
                    "artifact format %lld, but this library reads formats 1 to 3",
                    (long long)version->integer);
  const qsd_json *ops = qsd_json_get(nodes, nodes, "ops");
  const qsd_json *pre = qsd_json_get(nodes, nodes, "preprocessing");
  const qsd_json *config = qsd_json_get(nodes, nodes, "config");
  const qsd_json *bits = qsd_json_get(nodes, nodes, "membrane_bits");
  const qsd_json *fraction = qsd_json_get(nodes, nodes, "membrane_fraction");
  if (!ops || ops->type != JSON_LIST || !ops->count) return DAMAGED("it has no operations");
  if (ops->count > MAX_OPS)
    return qsd_fail(error, QSD_TOO_LARGE, "%u operations; at most %d", ops->count, MAX_OPS);
  if (!pre || pre->type != JSON_OBJECT || !config || config->type != JSON_OBJECT || !bits ||
      bits->type != JSON_INT || !fraction || fraction->type != JSON_INT)
    return DAMAGED("its description lacks a part");
  if ((bits->integer != 16 && bits->integer != 32) || fraction->integer < 0 ||
      fraction->integer > MAX_FRACTION)
    return DAMAGED("its membranes have a wrong number of bits");
  const qsd_json *post = version->integer > 2 ? qsd_json_get(nodes, nodes, "post") : NULL;
  if (post && post->type != JSON_OBJECT) return DAMAGED("its post-processing is no object");
  graph->op_count = (int)ops->count;
  graph->ops = qsd_alloc(&graph->pool, ops->count, sizeof *graph->ops);
  tensor *tensors = qsd_alloc(&graph->pool, ops->count, sizeof *tensors);
  if (!graph->ops || !tensors) return qsd_fail(error, QSD_TOO_LARGE, "no memory for the graph");
  int status = read_tensors(header, body, size, graph->op_count, (int)version->integer, tensors,
                            error);
  if (!status) status = read_preprocessing(graph, nodes, pre, (int)version->integer, error);
  if (!status) status = read_ops(graph, nodes, ops, (int)version->integer, tensors, error);
  if (!status) status = qsd_check_shapes(graph, error);
  const qsd_json *classes = qsd_json_get(nodes, nodes, "class_names");
  if (!status) status = read_classes(graph, nodes, classes, error);
  const qsd_json *results = version->integer > 1 ? qsd_json_get(nodes, nodes, "outputs") : NULL;
  if (!status) status = read_results(graph, nodes, results, error);
  return status ? status : check_logits(graph, error);
}

int qsd_read(qsd_graph *graph, const uint8_t *data, size_t size, qsd_error *error) {
  uint64_t length = 0;
  int status = checked_header(data, size, &length, error);
  if (status) return status;
  const char *text = (const char *)data + LENGTH_BYTES;
  const qsd_json *header = qsd_json_parse(&graph->pool, text, (size_t)length, error);
  if (!header) return QSD_DAMAGED;
  const qsd_json *metadata = qsd_json_get(header, header, "__metadata__");
  const qsd_json *description = qsd_json_get(header, metadata, "qsdformer");
  if (!description || description->type != JSON_STRING) return DAMAGED("it has no description");
  const qsd_json *nodes =
      qsd_json_parse(&graph->pool, description->text.text, description->text.size, error);
  if (!nodes) return QSD_DAMAGED;
  if (nodes->type != JSON_OBJECT) return DAMAGED("its description is no object");
  return read_description(graph, header, nodes, data + LENGTH_BYTES + length,
                          size - LENGTH_BYTES - length, error);
}
