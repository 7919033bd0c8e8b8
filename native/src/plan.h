/* A graph as steps over tensors in one piece of memory, and the kernels that run them. */
#ifndef QSD_PLAN_H
#define QSD_PLAN_H

#include "internal.h"

enum {
  LANES = 16,      /* channels in a vector of sums */
  TILE = 14,       /* pixels of which the sums are held at a time */
  SPAN = 112,      /* pixels of a row that are one unit of work */
  QUAD_SPAN = 56,  /* the same of a depthwise convolution with interleaved rows */
  QUAD_BYTES = (QUAD_SPAN + 6) * 4 * 64, /* of four rows interleaved, 64 channels */
  QSD_TOKENS = 256, /* of which products of keys and values are summed at a time */
  MAX_TAPS = 4096  /* offsets of a kernel's positions */
};

/* Values of one image: [n][height + 2 pad][width + 2 pad][stride], n its time steps; or, of more
 * than one byte plane, [planes] of that, the lowest bytes first. Channels beyond `channels` hold
 * anything. */
typedef struct {
  int bytes; /* of an element: 1 unsigned, 2 or 4 signed */
  int n, height, width, channels, stride, pad, planes;
  uint32_t bias; /* added to values before they became planes */
  uint64_t size, offset;
  int first, last; /* steps that write and read it */
} qsd_tensor;

/* y = clamp(((x * multiplier + round) >> shift) + bias), padded to whole vectors. */
typedef struct {
  int64_t *multiplier, *round, *shift, *bias;
  int64_t limit;
  bool narrow; /* multipliers fit 32 bits */
  /* Where the limit is out of reach and multipliers fit 32 bits, or NULL. */
  const int32_t *factor, *places, *plus;
  /* Where this is exact in 32 bits besides: x * high + ((x * low + half) >> places) + plus. */
  const int32_t *high, *low, *half;
} qsd_factors;

enum { NEURON_NONE, NEURON_THRESHOLDS, NEURON_EVEN, NEURON_IELIF, NEURON_LIF };

/* What becomes of sums: scale, add the shortcut, store; scale, and neuron. Absent where NULL. */
typedef struct {
  qsd_factors *scale, *residual_scale, *neuron_scale;
  bool add, store;
  int64_t add_limit;
  bool add_fits; /* within the limit, whatever the values */
  bool small;    /* no memory, and 32 bits do for everything */
  bool narrow_residual, narrow_out; /* stored in 16 bits */
  int neuron, levels, wide; /* wide: channels, padded */
  /* Thresholds of each channel [levels][channels] that x ^ flip is compared with, and a centre for
   * which they fit 16 bits; flip and centre may be NULL. */
  int32_t *thresholds, *centre;
  const int32_t *flip;
  bool centred; /* some centre is not 0 */
  /* Thresholds at k * 2^shift - offset, the last at `top`. */
  int even_shift;
  int32_t even_offset, even_top;
  /* Neurons with memory. */
  int32_t level[128];
  int64_t drop[128]; /* resets[k] - resets[k - 1], resets[0] first */
  int64_t reset, decay, limit, leak, threshold;
} qsd_finish;

/* Sums of products of bytes: for planes, positions and groups of 4 channels. */
typedef struct {
  int vectors, blocks; /* output channels are blocks * vectors * LANES, the last ones unused */
  int positions, groups, planes;
  /* Up to 8 channels: groups of 8, of which even lanes take the first 4 and odd ones the others;
   * lanes 2 o and 2 o + 1 are of output o. */
  bool pairs;
  int tile_groups; /* that a tile of 64 bytes holds: as many as divide `groups` */
  int run; /* groups of which the sums of two products each fit 16 bits; 0: few */
  size_t plane_size;
  const size_t *offsets; /* of positions, in bytes */
  const int8_t *codes;   /* [block][position][group][vectors * LANES][4], or of pairs */
  const int32_t *start;  /* added to the sums, or NULL */
  size_t block_codes;    /* bytes of a block */
} qsd_dot;

typedef struct {
  int positions, bytes;
  const size_t *offsets;  /* in elements */
  const int32_t *codes;   /* [position][channels, padded] */
  int channels;
  /* Of bytes and a kernel of 3 or 7 at stride 1: four rows at a time, [quad][column][channel][4]. */
  const int8_t *quads;
  int kernel;
  size_t row;
} qsd_depthwise;

/* A head: spike counts as bytes, strides in elements. */
typedef struct {
  const uint8_t *q, *k, *v;
  int32_t *out, *kv; /* kv: each * (wide, padded) */
  size_t q_pixel, q_row, k_pixel, k_row, v_pixel, v_row, out_pixel, out_row;
  int height, width, each, wide;
  bool small; /* the sums of k * v fit 16 bits, and counts 7 */
} qsd_attention;

/* Pixels in a row of which sums are finished; strides of pixels and of time steps, of sums in
 * elements and otherwise in bytes. */
typedef struct {
  const int32_t *sums;
  const uint8_t *residual;
  uint8_t *out, *counts;
  size_t sums_pixel, sums_step, residual_pixel, residual_step;
  size_t out_pixel, out_step, counts_pixel, counts_step;
  int steps, pixels, vectors, channel;
} qsd_tile;

typedef struct qsd_step qsd_step;

/* Groups of 4 channels that are active in any window of a tile, of [tile][time step][position]. */
typedef struct {
  const uint16_t *lists, *counts;
  size_t pitch, row; /* from one list to the next; lists of a row of pixels */
} qsd_common;

/* A row of pixels: `in` is where the first one's window begins; strides in bytes. */
typedef struct {
  const qsd_step *step;
  const uint8_t *in;
  size_t in_pixel, in_step;
  int block, y;
  int rows;   /* that there are from the window's first on */
  bool fresh; /* the row before was not row y - 1 of the same block */
  int32_t *scratch; /* of a tile's sums, and rows interleaved */
  qsd_tile tile;    /* all its pixels */
  const qsd_common *common; /* or NULL: all groups are multiplied */
} qsd_row;

/* Sums of pixels by their active groups of 4 channels alone, rows * pixels of them. Groups have
 * numbers within their row of the input. */
typedef struct {
  const qsd_dot *dot;
  const int8_t *codes; /* of the first block */
  int vectors;         /* 1, 2, 4, or 8, in as many blocks as it takes */
  int part;            /* groups of 8 vectors whose codes fit the nearest cache */
  /* The row of the input where the first pixel's window begins, and the next ones. */
  const uint8_t *row;
  const uint64_t *mask;  /* which groups are active */
  const uint32_t *ranks; /* for each word of the mask, where in the list its groups begin */
  size_t row_bytes, mask_row;
  const uint16_t *list; /* the active groups of all rows */
  /* From one row of the output to the next, and from one pixel. */
  size_t in_row, mask_step, in_pixel;
  size_t bit; /* the group where the first pixel's window begins */
  const uint16_t *rows_at, *bits_at; /* rows and groups from there to each position */
  int rows, pixels;
  int32_t *sums; /* [rows * pixels][vectors * LANES] */
} qsd_events;

typedef enum { EVENTS_CHOSEN, EVENTS_NEVER, EVENTS_ALWAYS, EVENTS_TILES } qsd_events_mode;

typedef struct {
  const char *name;
  void (*row)(qsd_row *row); /* its tile is changed */
  void (*finish)(const qsd_finish *finish, const qsd_tile *tile);
  /* Sets a bit for every 4 bytes that are not all 0, and says how many these are. NULL: there are
   * no kernels that leave groups out; events, below: none that do so for each pixel. */
  int64_t (*find_active)(const uint8_t *values, size_t bytes, uint64_t *mask);
  /* The numbers of the bits that are set, from list + before on, where the list is after each word,
   * and how long it is now; up to 16 more are written. */
  uint32_t (*list_active)(const uint64_t *mask, size_t words, uint32_t before, uint32_t *ranks,
                          uint16_t *list);
  /* Groups that are active in any of the windows of e->pixels pixels, for each position; how many
   * these are in all. Up to 16 more are written to each list. */
  size_t (*list_common)(const qsd_events *e, size_t pitch, uint16_t *lists, uint16_t *counts);
  void (*events)(const qsd_events *events);
  void (*attention)(const qsd_attention *head);
  void (*planes)(const int32_t *values, int channels, uint32_t bias, int planes, size_t plane,
                 uint8_t *to);
  /* Rows of pixels [channels][map] by tables [channels][256], each + bias, as byte planes. */
  void (*pixel_planes)(const uint8_t *pixels, size_t map, int channels, const int32_t *table,
                       int width, uint32_t bias, int planes, size_t plane, uint8_t *to);
  /* Sums of pixels [pixels][vectors * LANES], of the first `vectors` of a block: 1, 2 or 4. */
  void (*dots)(const qsd_dot *dot, const uint8_t *in, size_t pixel, int pixels, int vectors,
              const int8_t *codes, const int32_t *start, int32_t *sums);
  /* The windows of pixels one after the other, `size` bytes each; up to 63 more are written. */
  void (*gather)(const qsd_dot *dot, const uint8_t *const *from, int pixels, size_t size,
                 uint8_t *to);
  bool wide_products; /* products of 64 bits are as good as such of 32 */
  bool pairs; /* there are products of pairs of groups */
  bool tiles; /* dense products go by tiles where these pay */
  int split_codes; /* products of bytes must be split where they could pass 16 bits */
} qsd_kernels;

/* The kernels of that name, or the best of this processor; NULL where it has not got them. */
const qsd_kernels *qsd_pick_kernels(const char *isa);

enum { STEP_DOT, STEP_DEPTHWISE, STEP_LOAD, STEP_PLANES, STEP_OP };

struct qsd_step {
  int kind, op, key; /* key: the operation at whose place it runs */
  int source, residual, out, counts; /* tensors, or -1 */
  int source_op, residual_op;        /* operations whose values these are */
  int cur, neuron;                   /* operations it stands for, -1: none */
  int scale_op, residual_scale_op, neuron_scale_op, add_op;
  int neuron_number; /* among the graph's neurons */
  int steps;         /* time steps that the neuron walks through */
  qsd_finish *finish;
  qsd_dot dot;
  qsd_depthwise dw;
  bool flat; /* the map is one row of pixels */
  bool pairs; /* products of pairs of groups */
  bool narrow_source; /* of a load: in 16 bits */
  int packed; /* pixels whose windows are put together, of whatever row and map; or 0 */
  int rows, width, spans, blocks, outer, vectors;
  int maps; /* of which the neuron makes one each */
  int stride; /* of the convolution */
  int channels; /* of the map that it makes */
  const qsd_op *pad_op; /* the convolution */
  /* By events: vectors at a time, rows or pixels of a band, and what they cost, whatever is active
   * and for the share of active groups, where dense products cost 1. */
  bool by_events;
  int event_vectors, band_rows, band_pixels;
  bool keeps_lists; /* of all bands, what their tiles have in common */
  double event_looking, event_fixed, event_slope, event_runs; /* looking: either way */
  double tile_fixed, tile_slope; /* the same by groups that tiles have in common */
  double dense_gain; /* how many times sooner dense products are done than by lists of all groups */
  const uint16_t *rows_at, *bits_at; /* of each position: its row, and its first group in it */
  const int8_t *ahead;  /* codes of the next products, at least as many as of a block here; NULL */
};

typedef struct {
  bool frames;
  int images; /* that run at once, as so many maps of every value */
  int step_count, tensor_count;
  qsd_step *steps;
  qsd_tensor *tensors;
  int *value; /* operation to tensor, -1 */
  int *leading; /* time steps of each value */
  int *input_of;  /* operation to the tensor that holds its value, -1 */
  const int32_t **tables; /* of `normalise`, by operation */
  int near_groups;  /* groups of 8 vectors whose codes fit the nearest cache */
  uint64_t arena;   /* bytes of all tensors */
  uint64_t scratch; /* bytes for each thread */
} qsd_plan;

/* Codes of a convolution as the last plan packed them, and all that their order depends on: plans
 * of pixels and of frames may lay out and divide a convolution's input differently. */
typedef struct {
  const int8_t *codes; /* NULL: not packed yet */
  const int32_t *start;
  int positions, groups, rows, split, stride, vectors, blocks, pairs;
  uint32_t bias;
} qsd_pack;

typedef struct {
  qsd_pool pool;
  const qsd_graph *graph;
  const qsd_kernels *kernels;
  qsd_pack *packs; /* by operation */
  const int32_t **dw_codes;
  qsd_error *error;
} qsd_builder;

/* The operation whose tensor is used for the value of `number`. */
int qsd_root(const qsd_graph *graph, const qsd_plan *plan, int number);
/* The first and the last step that use each tensor; `result` says which values must stay. */
void qsd_find_lives(const qsd_graph *graph, const bool *result, qsd_plan *plan);
/* Gives tensors that live at once places apart. */
bool qsd_place_tensors(qsd_pool *pool, qsd_plan *plan);
int qsd_build_plan(qsd_builder *builder, bool frames, int images, qsd_plan *plan);
/* Packs the weights of a step's convolution and finds the offsets of its positions. */
int qsd_pack_dot(qsd_builder *builder, const qsd_plan *plan, qsd_step *step);
int qsd_pack_depthwise(qsd_builder *builder, const qsd_plan *plan, qsd_step *step);
int qsd_pack_finish(qsd_builder *builder, const qsd_plan *plan, qsd_step *step);
bool qsd_is_depthwise(const qsd_op *op);
bool qsd_is_dot(const qsd_op *op);

/* Where value (t, y, x) of `tensor` begins, in elements. */
static inline size_t qsd_place(const qsd_tensor *t, int n, int y, int x) {
  size_t height = (size_t)(t->height + 2 * t->pad), width = (size_t)(t->width + 2 * t->pad);
  return (((size_t)n * height + (size_t)(y + t->pad)) * width + (size_t)(x + t->pad)) *
         (size_t)t->stride;
}

static inline size_t qsd_image_size(const qsd_tensor *t) {
  return (size_t)(t->height + 2 * t->pad) * (size_t)(t->width + 2 * t->pad) * (size_t)t->stride;
}

/* The plain operations: part `part` of `parts`. */
typedef struct {
  const qsd_graph *graph;
  const qsd_kernels *kernels;
  const qsd_plan *plan;
  uint8_t *arena;
  int32_t *scratch;
  const uint8_t *const *pixels;
} qsd_place_to_run;

void qsd_run_op(const qsd_place_to_run *at, const qsd_step *step, int part, int parts);
void qsd_run_planes(const qsd_place_to_run *at, const qsd_step *step, int part, int parts);
/* Bytes of scratch memory of a head's k^T v; 0 where the plain way is taken. */
uint64_t qsd_attention_scratch(const qsd_graph *graph, const qsd_plan *plan, const qsd_op *op);

/* The maps of a tensor, in bytes. */
typedef struct {
  uint8_t *first; /* NULL: there is none */
  size_t bytes, pixel, row, image;
} qsd_map;

/* A step of sums while it runs. */
typedef struct {
  const qsd_kernels *kernels;
  const qsd_plan *plan;
  const qsd_step *step;
  uint8_t *arena;
  int32_t *scratch;
  int all_vectors, in_rows;
  qsd_map in, residual, out, counts;
} qsd_runner;

void qsd_run_group(const qsd_kernels *kernels, const qsd_plan *plan, const qsd_step *step,
                   uint8_t *arena, int32_t *scratch, int part, int parts);
/* `common` is NULL where all groups are multiplied. */
void qsd_run_span(const qsd_runner *r, int block, int outer, int y, int rows, int x, int pixels,
                  bool fresh, const qsd_common *common);
/* Bytes of a position of a window. */
static inline size_t qsd_position_bytes(const qsd_dot *dot) {
  return (size_t)dot->groups * (dot->pairs ? 8 : 4);
}

/* Of the vectors of sums that are needed, how many are made. */
static inline int qsd_made_vectors(int vectors) { return vectors == 3 ? 4 : vectors; }

/* Where there are tiles of 16 pixels by 16 groups: the most groups that divide all, and pixels of a
 * row, as tiles of one size. */
static inline int qsd_tile_groups(int groups) {
  int each = (int)qsd_min(groups, 16);
  while (groups % each) each--;
  return each;
}

static inline int qsd_tile_rows(int pixels) {
  int count = (pixels + 15) / 16;
  return (pixels + count - 1) / count;
}

/* Whether they are used: where tiles are filled enough, there is enough to do for a row, and room
 * for the sums of each byte plane. */
static inline bool qsd_tiles_pay(const qsd_dot *dot, int pixels) {
  return !dot->pairs && dot->planes * dot->vectors <= 6 &&
         qsd_tile_rows(pixels) * dot->tile_groups >= 48 &&
         (int64_t)dot->positions * dot->groups * pixels >= 250;
}

/* Pixels of which sums are held at a time. */
static inline int qsd_tile_pixels(const qsd_step *step) {
  return step->kind == STEP_DOT && step->vectors == 4 ? TILE / 2 : TILE;
}
/* Where the tile's pixels, from (n, y, x) on, lie in what is written and in the shortcut. */
void qsd_find_tile(const qsd_runner *r, int n, int y, int x, qsd_tile *tile);
void qsd_share(const qsd_runner *r, int64_t each, int blocks, int block, int part, int parts,
               int64_t *first, int64_t *last);
/* Bytes that are widened first go by tiles: there is room for no more. */
bool qsd_widens(const qsd_plan *plan, const qsd_step *step);
/* By the active groups alone; false where this does not pay. */
bool qsd_run_events(const qsd_runner *r, int part, int parts);
/* Finds what events cost for a step, where dense products cost 1; false where it is not known. */
bool qsd_event_costs(const qsd_kernels *kernels, qsd_step *step);
/* Groups of 8 vectors whose codes fit the nearest cache. */
int qsd_near_groups(void);
bool qsd_plan_events(qsd_pool *pool, const qsd_kernels *kernels, qsd_events_mode mode,
                     qsd_plan *plan);
/* Small maps: several rows and maps at a time. Finds whether a step is run so, and the scratch
 * memory that this takes in bytes. */
uint64_t qsd_plan_packed(const qsd_plan *plan, qsd_step *step);
void qsd_run_packed(const qsd_runner *r, int part, int parts);
/* Of pixel (n, y, x) of the step's map, in which all rows may be one. */
static inline uint8_t *qsd_at_pixel(const qsd_map *map, int n, int y, int x, int channel) {
  return map->first + (size_t)n * map->image + (size_t)y * map->row + (size_t)x * map->pixel +
         (size_t)channel * map->bytes;
}

void qsd_clear_border(const qsd_tensor *tensor, uint8_t *memory);

static inline int qsd_round_up(int value, int to) { return (value + to - 1) / to * to; }
#endif
