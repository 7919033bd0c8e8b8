/* Weights, factors and thresholds in the order in which kernels read them. */
#include <stdlib.h>
#include <string.h>

#include "plan.h"

static int no_memory(qsd_builder *builder) {
  return qsd_fail(builder->error, QSD_TOO_LARGE, "the network needs more memory than allowed");
}

/* Positions of a kernel as rows of bytes where channels fill them, and singly otherwise. */
typedef struct {
  int positions, groups; /* before codes are split */
  bool rows, split;
} layout;

static layout choose_layout(const qsd_builder *builder, const qsd_op *op, const qsd_op *x,
                            const qsd_tensor *in) {
  int kernel = (int)ARRAY(op, A_CODES)->side[2], groups = (x->channels + 3) / 4;
  layout found = {.positions = kernel * kernel, .groups = groups};
  if (kernel > 1 && 5 * x->channels >= 4 * in->stride) {
    found.rows = true;
    found.positions = kernel;
    found.groups = ((kernel - 1) * in->stride + x->channels + 3) / 4;
  } else if (kernel > 1 && in->stride == 4) {
    found.rows = true;
    found.positions = kernel;
    found.groups = kernel;
  }
  double most = in->planes > 1 || in->bias ? 255 : x->most;
  found.split = builder->kernels->split_codes && 2 * most * (1 << (op->f[F_BITS] - 1)) > 32767;
  return found;
}

/* Code of output `o` for byte `j` of position `at`; 0 where there is none. */
static int code_at(const qsd_op *op, const int8_t *codes, const layout *l, int stride, int o, int at,
                   int j) {
  const uint32_t *side = ARRAY(op, A_CODES)->side;
  int kernel = (int)side[2], channels = (int)side[1];
  int y = l->rows ? at : at / kernel, x = l->rows ? j / stride : at % kernel;
  int c = l->rows ? j % stride : j;
  if (o >= (int)side[0] || c >= channels || x >= kernel) return 0;
  return codes[(((size_t)o * (size_t)channels + (size_t)c) * (size_t)kernel + (size_t)y) *
                   (size_t)kernel + (size_t)x];
}

/* Into `made`, whose other fields say how. */
static bool pack_codes(qsd_builder *builder, const qsd_op *op, const layout *l, const qsd_tensor *in,
                       const qsd_step *step, qsd_pack *made) {
  const qsd_array *array = ARRAY(op, A_CODES);
  int wide = step->vectors * LANES, times = l->split ? 2 : 1;
  int each = step->pairs ? 8 : 4; /* bytes of a group */
  size_t bytes = (size_t)step->blocks * (size_t)(l->positions * times) * (size_t)l->groups *
                 (size_t)wide * 4;
  int8_t *packed = qsd_alloc(&builder->pool, bytes, 1);
  int32_t *start = qsd_alloc(&builder->pool, (uint64_t)(step->blocks * wide), sizeof *start);
  int8_t *codes = malloc((size_t)array->count);
  if (!packed || !start || !codes) {
    free(codes);
    return false;
  }
  qsd_unpack8(array, codes);
  int8_t *next = packed;
  for (int b = 0; b < step->blocks; b++)
    for (int at = 0; at < l->positions * times; at++)
      for (int j = 0; j < l->groups * each; j += each)
        for (int lane = 0; lane < wide; lane++)
          for (int i = 0; i < 4; i++) {
            int o = step->pairs ? lane / 2 : b * wide + lane;
            int byte = j + i + (step->pairs ? lane % 2 * 4 : 0);
            int code = code_at(op, codes, l, in->stride, o, at % l->positions, byte);
            int half = code >> 1; /* rounds down: both halves lie in -64..64 */
            if (l->split) code = at < l->positions ? half : code - half;
            *next++ = (int8_t)code;
            start[o] = (int32_t)((uint32_t)start[o] - in->bias * (uint32_t)code);
          }
  free(codes);
  made->codes = packed;
  if (in->bias) made->start = start;
  return true;
}

static bool same_packing(const qsd_pack *a, const qsd_pack *b) {
  return a->positions == b->positions && a->groups == b->groups && a->rows == b->rows &&
         a->split == b->split && a->stride == b->stride && a->vectors == b->vectors &&
         a->blocks == b->blocks && a->pairs == b->pairs && a->bias == b->bias;
}

/* Groups whose products can be added in 16 bits, two and two. */
static int run_of(const qsd_op *op, const qsd_op *x, const qsd_tensor *in) {
  if (in->planes > 1 || in->bias) return 0;
  double run = INT16_MAX / (2 * qsd_max((int64_t)x->most, 1) * (double)(1 << (op->f[F_BITS] - 1)));
  return run >= LANES ? (int)run : 0;
}

int qsd_pack_dot(qsd_builder *builder, const qsd_plan *plan, qsd_step *step) {
  const qsd_op *op = &builder->graph->ops[step->op], *x = &builder->graph->ops[op->inputs[0]];
  const qsd_tensor *in = &plan->tensors[step->source];
  layout l = choose_layout(builder, op, x, in);
  if (step->pairs) l.groups = (l.groups + 1) / 2;
  int kernel = (int)ARRAY(op, A_CODES)->side[2], all = l.positions * (l.split ? 2 : 1);
  qsd_pack *pack = &builder->packs[step->op];
  qsd_pack needed = {.positions = l.positions, .groups = l.groups, .rows = l.rows,
                     .split = l.split, .stride = in->stride, .vectors = step->vectors,
                     .blocks = step->blocks, .pairs = step->pairs, .bias = in->bias};
  if (!pack->codes || !same_packing(pack, &needed)) {
    if (!pack_codes(builder, op, &l, in, step, &needed)) return no_memory(builder);
    *pack = needed;
  }
  size_t *offsets = qsd_alloc(&builder->pool, (uint64_t)all, sizeof *offsets);
  if (!offsets) return no_memory(builder);
  for (int i = 0; i < all; i++) {
    int at = i % l.positions;
    int y = l.rows ? at : at / kernel, shift = l.rows ? 0 : at % kernel;
    size_t row = (size_t)(in->width + 2 * in->pad) * (size_t)in->stride;
    offsets[i] = (size_t)y * row + (size_t)shift * (size_t)in->stride;
  }
  step->dot = (qsd_dot){.vectors = step->vectors,
                        .blocks = step->blocks,
                        .positions = all,
                        .groups = l.groups,
                        .pairs = step->pairs,
                        .tile_groups = qsd_tile_groups(l.groups),
                        .run = run_of(op, x, in),
                        .planes = in->planes,
                        .plane_size = qsd_image_size(in) * (size_t)in->n,
                        .offsets = offsets,
                        .codes = pack->codes,
                        .start = pack->start,
                        .block_codes = (size_t)all * (size_t)l.groups * (size_t)step->vectors *
                                       LANES * 4};
  return QSD_OK;
}

/* Codes of four rows together, [quad][column][channel][4]; rows beyond the kernel are 0. */
static bool pack_quads(qsd_builder *builder, const qsd_op *op, int wide, qsd_step *step) {
  int kernel = (int)ARRAY(op, A_CODES)->side[2], quads = (kernel + 3) / 4;
  int8_t *codes = qsd_alloc(&builder->pool, (uint64_t)(quads * kernel * wide * 4), 1);
  if (!codes) return false;
  for (int c = 0; c < op->channels; c++)
    for (int y = 0; y < kernel; y++)
      for (int x = 0; x < kernel; x++) {
        uint64_t at = (uint64_t)((c * kernel + y) * kernel + x);
        codes[((y / 4 * kernel + x) * wide + c) * 4 + y % 4] =
            (int8_t)qsd_item(ARRAY(op, A_CODES), at);
      }
  step->dw.quads = codes;
  return true;
}

int qsd_pack_depthwise(qsd_builder *builder, const qsd_plan *plan, qsd_step *step) {
  const qsd_op *op = &builder->graph->ops[step->op];
  const qsd_tensor *in = &plan->tensors[step->source];
  int kernel = (int)ARRAY(op, A_CODES)->side[2], positions = kernel * kernel;
  int wide = step->blocks * step->vectors * LANES;
  size_t *offsets = qsd_alloc(&builder->pool, (uint64_t)positions, sizeof *offsets);
  if (!offsets) return no_memory(builder);
  for (int i = 0; i < positions; i++)
    offsets[i] = ((size_t)(i / kernel) * (size_t)(in->width + 2 * in->pad) + (size_t)(i % kernel)) *
                 (size_t)in->stride;
  if (!builder->dw_codes[step->op]) {
    int32_t *codes = qsd_alloc(&builder->pool, (uint64_t)(positions * wide), sizeof *codes);
    if (!codes) return no_memory(builder);
    for (int c = 0; c < op->channels; c++)
      for (int i = 0; i < positions; i++)
        codes[i * wide + c] = (int32_t)qsd_item(ARRAY(op, A_CODES), (uint64_t)(c * positions + i));
    builder->dw_codes[step->op] = codes;
  }
  step->dw = (qsd_depthwise){.positions = positions,
                             .bytes = in->bytes,
                             .offsets = offsets,
                             .codes = builder->dw_codes[step->op],
                             .channels = wide,
                             .kernel = kernel,
                             .row = (size_t)(in->width + 2 * in->pad) * (size_t)in->stride};
  bool quads = in->bytes == 1 && step->stride == 1 && (kernel == 3 || kernel == 7);
  if (quads && !pack_quads(builder, op, wide, step)) return no_memory(builder);
  return QSD_OK;
}
