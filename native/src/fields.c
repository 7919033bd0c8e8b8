/* An operation of the file: its fields by a table, and what must hold of each alone. */
#include <string.h>

#include "internal.h"

static const char *const NAMES[FIELDS] = {
    "bits",  "stride",     "padding",    "groups", "limit",    "fraction", "steps",  "decay",
    "threshold", "leak",   "heads",      "kernel", "channels", "height",   "width",  "thresholds",
    "resets", "mode",      "table",      "codes",  "multiplier", "shift",  "bias"};

/* The bytes of the type that holds an array's values: its widths end there. */
static const int WIDEST[FIELDS - FIRST_ARRAY] = {32, 8, 63, 8, 63};

#define BIT(field) (1u << (field))

static const struct {
  const char *name;
  int version, inputs; /* -1: two or more */
  uint32_t fields;
} KINDS[OP_KINDS] = {
    [OP_NORMALISE] = {"normalise", 1, 0, BIT(A_TABLE) | BIT(F_FRACTION)},
    [OP_CONV] = {"conv", 1, 1,
                 BIT(A_CODES) | BIT(F_BITS) | BIT(F_STRIDE) | BIT(F_PADDING) | BIT(F_GROUPS)},
    [OP_RESCALE] = {"rescale", 1, 1,
                    BIT(A_MULTIPLIER) | BIT(A_SHIFT) | BIT(A_BIAS) | BIT(F_LIMIT) |
                        BIT(F_FRACTION)},
    [OP_ADD] = {"add", 1, 2, BIT(F_LIMIT)},
    [OP_IELIF] = {"ielif", 1, 1,
                  BIT(F_THRESHOLDS) | BIT(F_RESETS) | BIT(F_DECAY) | BIT(F_STEPS) | BIT(F_LIMIT)},
    [OP_LIF] = {"lif", 1, 1, BIT(F_THRESHOLD) | BIT(F_LEAK) | BIT(F_STEPS) | BIT(F_LIMIT)},
    [OP_ATTENTION] = {"attention", 1, 3, BIT(F_HEADS)},
    [OP_REPEAT] = {"repeat", 1, 1, BIT(F_STEPS)},
    [OP_SMEAN] = {"spatialmean", 1, 1, 0},
    [OP_TSUM] = {"timesum", 1, 1, BIT(F_STEPS)},
    [OP_CONVT] = {"convtranspose", 2, 1, BIT(A_CODES) | BIT(F_BITS)},
    [OP_COUNTADD] = {"countadd", 2, 2, 0},
    [OP_MULTIPLY] = {"multiply", 2, 2, 0},
    [OP_FRAMES] = {"frames", 2, 1, BIT(F_STEPS)},
    [OP_MAXPOOL] = {"maxpool", 2, 1, BIT(F_KERNEL) | BIT(F_STRIDE) | BIT(F_PADDING)},
    [OP_UPSAMPLE] = {"upsample", 2, 1, BIT(F_MODE)},
    [OP_CONCAT] = {"concat", 2, -1, 0},
    [OP_RESHAPE] = {"reshape", 2, 1, BIT(F_CHANNELS) | BIT(F_HEIGHT) | BIT(F_WIDTH)},
    [OP_SSUM] = {"spatialsum", 2, 1, 0},
};

bool qsd_is_neuron(const qsd_op *op) { return op->kind == OP_IELIF || op->kind == OP_LIF; }

static int wrong(qsd_error *error, int number, const char *what) {
  return qsd_fail(error, QSD_DAMAGED, "the artifact is damaged: operation %d %s", number, what);
}

static int read_inputs(qsd_graph *graph, qsd_op *op, int number, const qsd_json *nodes,
                       const qsd_json *entry, qsd_error *error) {
  const qsd_json *list = qsd_json_get(nodes, entry, "inputs");
  if (list && list->type != JSON_LIST) return wrong(error, number, "has inputs that are no list");
  op->input_count = list ? (int)list->count : 1;
  op->inputs = qsd_alloc(&graph->pool, (uint64_t)op->input_count, sizeof *op->inputs);
  if (!op->inputs) return qsd_fail(error, QSD_TOO_LARGE, "no memory for operation %d", number);
  if (!list) op->inputs[0] = number - 1;
  const qsd_json *item = list ? nodes + list->child : NULL;
  for (int i = 0; list && i < op->input_count; i++, item = nodes + item->next) {
    if (item->type != JSON_INT || item->integer < 0 || item->integer >= number)
      return wrong(error, number, "reads one that is not before it");
    op->inputs[i] = (int)item->integer;
  }
  if (op->input_count && op->inputs[0] < 0)
    return wrong(error, number, "reads one that is not before it");
  int expected = KINDS[op->kind].inputs;
  if (expected < 0 ? op->input_count < 2 : op->input_count != expected)
    return wrong(error, number, "has a wrong number of inputs");
  return QSD_OK;
}

static int32_t *int_list(qsd_graph *graph, const qsd_json *nodes, const qsd_json *list, int *count) {
  if (list->type != JSON_LIST || list->count < 1 || list->count > 128) return NULL;
  int32_t *values = qsd_alloc(&graph->pool, list->count, sizeof *values);
  *count = (int)list->count;
  const qsd_json *item = nodes + list->child;
  for (int i = 0; values && i < *count; i++, item = nodes + item->next) {
    if (item->type != JSON_INT || item->integer > INT32_MAX || item->integer < -INT32_MAX)
      return NULL;
    values[i] = (int32_t)item->integer;
  }
  return values;
}

static int read_array(qsd_op *op, qsd_field field, const qsd_json *nodes, const qsd_json *entry,
                      int number, const uint8_t **data, size_t *left, qsd_error *error) {
  qsd_array *array = ARRAY(op, field);
  if (!entry || entry->type != JSON_LIST || entry->count < 2 || entry->count > 5)
    return wrong(error, number, "has an array without width and shape");
  const qsd_json *item = nodes + entry->child;
  if (item->type != JSON_INT || item->integer < 1 || item->integer > WIDEST[field - FIRST_ARRAY])
    return wrong(error, number, "has an array of a wrong width");
  array->width = (int)item->integer;
  array->rank = (int)entry->count - 1;
  array->count = 1;
  for (int i = 0; i < array->rank; i++) {
    item = nodes + item->next;
    if (item->type != JSON_INT || item->integer < 1 || item->integer > UINT32_MAX)
      return wrong(error, number, "has an array of a wrong shape");
    array->side[i] = (uint32_t)item->integer;
    /* More elements than there are bits: too many, whatever follows. */
    if (array->count > 8 * (uint64_t)*left / array->side[i])
      return wrong(error, number, "has an array that is larger than its data");
    array->count *= array->side[i];
  }
  uint64_t bytes = (array->count * (uint64_t)array->width + 7) / 8;
  if (bytes > *left) return wrong(error, number, "has an array that is larger than its data");
  array->data = *data;
  *data += bytes;
  *left -= (size_t)bytes;
  return QSD_OK;
}

static int read_plain(qsd_graph *graph, qsd_op *op, int field, const qsd_json *nodes,
                      const qsd_json *value, int number, qsd_error *error) {
  if (!value) return wrong(error, number, "lacks a field");
  if (field < FIRST_LIST) {
    if (value->type != JSON_INT) return wrong(error, number, "has a field that is no whole number");
    op->f[field] = value->integer;
  } else if (field == F_MODE) {
    if (value->type != JSON_STRING) return wrong(error, number, "has a mode that is no word");
    op->bilinear = qsd_is(value->text, "bilinear");
    if (!op->bilinear && !qsd_is(value->text, "nearest"))
      return wrong(error, number, "has an unknown mode");
  } else {
    int count = 0;
    int32_t *list = int_list(graph, nodes, value, &count);
    if (!list) return wrong(error, number, "has no list of 32-bit numbers where there should be");
    if (field == F_THRESHOLDS) op->thresholds = list, op->levels = count;
    else {
      op->resets = list;
      if (count != op->levels + 1) return wrong(error, number, "must have one reset more");
    }
  }
  return QSD_OK;
}

static int known_fields(int number, const qsd_op *op, const qsd_json *nodes, const qsd_json *entry,
                        int version, qsd_error *error) {
  for (uint32_t i = entry->child; i; i = nodes[i].next) {
    qsd_text key = nodes[i].key;
    bool known = qsd_is(key, "op") || qsd_is(key, "name") || qsd_is(key, "inputs");
    for (int f = 0; f < FIELDS && !known; f++)
      known = KINDS[op->kind].fields & BIT(f) && qsd_is(key, NAMES[f]);
    known |= version > 2 && KINDS[op->kind].fields & BIT(A_CODES) &&
             qsd_is(key, "same");
    if (!known) return wrong(error, number, "has unknown fields");
  }
  return QSD_OK;
}

static int read_name(qsd_graph *graph, qsd_op *op, int number, const qsd_json *name,
                     qsd_error *error) {
  if (name && (name->type != JSON_STRING || name->text.size == 0))
    return wrong(error, number, "has no name");
  if (name && !qsd_is_name(name->text))
    return wrong(error, number, "has a zero byte or half a character in its name");
  if (name) {
    op->name = name->text;
    return QSD_OK;
  }
  char *text = qsd_alloc(&graph->pool, 12, 1);
  if (!text) return qsd_fail(error, QSD_TOO_LARGE, "no memory for operation %d", number);
  char digits[12];
  int count = 0, rest = number;
  do digits[count++] = (char)('0' + rest % 10);
  while (rest /= 10);
  text[0] = '#';
  for (int i = 0; i < count; i++) text[1 + i] = digits[count - 1 - i];
  op->name = (qsd_text){text, (size_t)count + 1};
  return QSD_OK;
}

int qsd_read_op(qsd_graph *graph, int number, const qsd_json *nodes, const qsd_json *entry,
                const qsd_json *defaults, int version, const uint8_t *data, size_t size,
                qsd_error *error) {
  qsd_op *op = &graph->ops[number];
  if (entry->type != JSON_OBJECT) return wrong(error, number, "is no object");
  const qsd_json *kind = qsd_json_get(nodes, entry, "op");
  if (!kind) kind = qsd_json_get(nodes, defaults, "op");
  if (!kind || kind->type != JSON_STRING) return wrong(error, number, "has no kind");
  int found = 0;
  while (found < OP_KINDS &&
         (KINDS[found].version > version || !qsd_is(kind->text, KINDS[found].name)))
    found++;
  if (found == OP_KINDS) return wrong(error, number, "is of an unknown kind");
  op->kind = (qsd_kind)found;
  int status = known_fields(number, op, nodes, entry, version, error);
  if (!status) status = read_inputs(graph, op, number, nodes, entry, error);
  if (!status) status = read_name(graph, op, number, qsd_json_get(nodes, entry, "name"), error);
  bool arrays = false;
  for (int f = 0; f < FIELDS && !status; f++) {
    if (!(KINDS[op->kind].fields & BIT(f))) continue;
    const qsd_json *own = qsd_json_get(nodes, entry, NAMES[f]);
    if (f >= FIRST_ARRAY) {
      arrays = true;
      status = read_array(op, (qsd_field)f, nodes, own, number, &data, &size, error);
    } else {
      if (!own) own = qsd_json_get(nodes, defaults, NAMES[f]);
      status = read_plain(graph, op, f, nodes, own, number, error);
    }
  }
  if (!status && arrays && size) status = wrong(error, number, "has bytes too many");
  if (!status && !arrays && data) status = wrong(error, number, "has a tensor that it does not need");
  return status ? status : qsd_check_op(graph, number, error);
}

static bool within(const qsd_op *op, qsd_field field, int64_t low, int64_t high) {
  return op->f[field] >= low && op->f[field] <= high;
}

/* Whether all values of `array` lie in low..high. */
static bool holds(const qsd_array *array, int64_t low, int64_t high) {
  for (uint64_t i = 0; i < array->count; i++) {
    int64_t value = qsd_item(array, i);
    if (value < low || value > high) return false;
  }
  return true;
}

static bool check_codes(const qsd_op *op) {
  const qsd_array *codes = ARRAY(op, A_CODES);
  if (codes->rank != 4 || !within(op, F_BITS, 2, 8)) return false;
  int64_t limit = (int64_t)1 << (op->f[F_BITS] - 1);
  return codes->width <= op->f[F_BITS] || holds(codes, -limit, limit - 1);
}

static bool check_conv(const qsd_op *op) {
  const uint32_t *side = ARRAY(op, A_CODES)->side;
  return check_codes(op) && side[2] == side[3] && within(op, F_STRIDE, 1, 16) &&
         within(op, F_PADDING, 0, side[2] / 2) && op->f[F_GROUPS] >= 1 &&
         side[0] % op->f[F_GROUPS] == 0;
}

static bool check_rescale(const qsd_op *op) {
  const qsd_array *m = ARRAY(op, A_MULTIPLIER), *s = ARRAY(op, A_SHIFT), *b = ARRAY(op, A_BIAS);
  return m->rank == 1 && s->rank == 1 && b->rank == 1 && m->count == s->count &&
         b->count == s->count && holds(s, 0, 31) && within(op, F_FRACTION, -256, 256) &&
         within(op, F_LIMIT, 1, INT32_MAX);
}

static bool check_ielif(const qsd_op *op) {
  for (int k = 1; k < op->levels; k++)
    if (op->thresholds[k] < op->thresholds[k - 1]) return false;
  return op->levels <= 127 && within(op, F_DECAY, 0, 1 << 16);
}

int qsd_check_op(qsd_graph *graph, int number, qsd_error *error) {
  qsd_op *op = &graph->ops[number];
  const qsd_array *codes = ARRAY(op, A_CODES), *table = ARRAY(op, A_TABLE);
  bool fine = true;
  if (op->kind == OP_NORMALISE)
    fine = table->rank == 2 && table->side[1] == 256 && within(op, F_FRACTION, -256, 256);
  if (op->kind == OP_CONV) fine = check_conv(op);
  if (op->kind == OP_CONVT) fine = check_codes(op) && codes->side[2] == 2 && codes->side[3] == 2;
  if (op->kind == OP_RESCALE) fine = check_rescale(op);
  if (op->kind == OP_ADD || qsd_is_neuron(op)) fine = within(op, F_LIMIT, 1, INT32_MAX);
  if (op->kind == OP_IELIF) fine = fine && check_ielif(op);
  if (op->kind == OP_LIF) {
    fine = fine && within(op, F_THRESHOLD, -INT32_MAX, INT32_MAX) && within(op, F_LEAK, 1, 1 << 16);
    op->levels = 1;
  }
  if (KINDS[op->kind].fields & BIT(F_STEPS)) fine = fine && within(op, F_STEPS, 1, 1024);
  if (op->kind == OP_ATTENTION) fine = op->f[F_HEADS] >= 1;
  if (op->kind == OP_MAXPOOL)
    fine = within(op, F_KERNEL, 1, 256) && within(op, F_STRIDE, 1, 256) &&
           within(op, F_PADDING, 0, op->f[F_KERNEL] / 2);
  if (op->kind == OP_RESHAPE)
    fine = within(op, F_CHANNELS, 1, 65536) && within(op, F_HEIGHT, 1, 65536) &&
           within(op, F_WIDTH, 1, 65536);
  return fine ? QSD_OK : wrong(error, number, "has fields that do not fit together");
}
