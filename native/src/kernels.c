/* The kernels, compiled once for each instruction set: QSD_SET names it, and dot_*.h multiplies. */
#include <string.h>

#include "plan.h"

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)

/* Numbers that a register holds: LANES of them are one or several. */
#if defined(QSD_AVX512VNNI)
enum { WIDTH = LANES };
#elif defined(QSD_AVX2) || defined(QSD_AVXVNNI)
enum { WIDTH = LANES / 2 };
#else
enum { WIDTH = LANES / 4 };
#endif
typedef int32_t ints __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t half_ints __attribute__((vector_size(2 * WIDTH), aligned(4), may_alias));
typedef int64_t longs __attribute__((vector_size(4 * WIDTH), aligned(8), may_alias));
typedef int16_t words __attribute__((vector_size(2 * WIDTH), aligned(1), may_alias));
typedef uint8_t octets __attribute__((vector_size(WIDTH), aligned(1), may_alias));
typedef struct {
  longs low, high;
} wide_ints;

#define INLINE static inline __attribute__((always_inline))

/* The lanes of `a` where the mask is -1, of `b` where it is 0. */
INLINE ints choose16(ints mask, ints a, ints b) { return (a & mask) | (b & ~mask); }
INLINE longs choose8(longs mask, longs a, longs b) { return (a & mask) | (b & ~mask); }

__attribute__((unused)) INLINE longs plain_clamp8(longs x, int64_t limit) {
  longs most = (longs){0} + limit, least = (longs){0} - limit;
  x = choose8(x > most, most, x);
  return choose8(x < least, least, x);
}

#if defined(QSD_AVX512VNNI)
#include "dot_avx512vnni.h"
#include "depthwise_avx512vnni.h"
#include "counts_avx512vnni.h"
#elif defined(QSD_AVX2) || defined(QSD_AVXVNNI)
#include "dot_avx2.h"
#else
#include "dot_portable.h"
#endif

#ifndef QSD_OWN_CONVERSIONS
INLINE ints min16(ints a, ints b) { return choose16(a < b, a, b); }
INLINE ints max16(ints a, ints b) { return choose16(a > b, a, b); }

INLINE wide_ints widen(const ints *x) {
  half_ints low, high;
  memcpy(&low, x, sizeof low);
  memcpy(&high, (const char *)x + sizeof low, sizeof high);
  return (wide_ints){__builtin_convertvector(low, longs), __builtin_convertvector(high, longs)};
}

INLINE ints narrow(wide_ints x) {
  half_ints low = __builtin_convertvector(x.low, half_ints), high = __builtin_convertvector(x.high, half_ints);
  ints y;
  memcpy(&y, &low, sizeof low);
  memcpy((char *)&y + sizeof low, &high, sizeof high);
  return y;
}

INLINE void store_bytes(uint8_t *p, ints x) {
  octets y = __builtin_convertvector(x, octets);
  memcpy(p, &y, sizeof y);
}

INLINE ints load_bytes(const uint8_t *p) {
  octets x;
  memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, ints);
}

/* sums + x * y, where x lies in 0..32767 and y fits 16 bits. */
INLINE ints add_small_products(ints sums, ints x, ints y) { return sums + x * y; }
#endif

#ifndef QSD_OWN_WORDS
INLINE void store_words(uint8_t *p, ints x) {
  words y = __builtin_convertvector(x, words);
  memcpy(p, &y, sizeof y);
}

INLINE ints load_words(const uint8_t *p) {
  words x;
  memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, ints);
}
#endif

INLINE longs load_longs(const int64_t *p) {
  longs x;
  memcpy(&x, p, sizeof x);
  return x;
}

INLINE ints load_ints(const int32_t *p) {
  ints x;
  memcpy(&x, p, sizeof x);
  return x;
}

INLINE void store_ints(int32_t *p, ints x) { memcpy(p, &x, sizeof x); }

#include "finish_kernels.h"

enum { DW_PIXELS = 7 };

INLINE void depthwise_tile(const qsd_depthwise *dw, const void *in, size_t pixel, const int pixels,
                           int channel, size_t sums_pixel, int32_t *sums, const bool bytes) {
  ints acc[DW_PIXELS];
  for (int p = 0; p < pixels; p++) acc[p] = (ints){0};
  const int32_t *codes = dw->codes + channel;
  for (int i = 0; i < dw->positions; i++, codes += dw->channels) {
    ints code = load_ints(codes);
    size_t at = dw->offsets[i] + (size_t)channel;
#pragma GCC unroll 7
    for (int p = 0; p < pixels; p++) {
      size_t place = at + (size_t)p * pixel;
      ints x = bytes ? load_bytes((const uint8_t *)in + place) : load_ints((const int32_t *)in + place);
      if (bytes) acc[p] = add_small_products(acc[p], x, code);
      else acc[p] += x * code;
    }
  }
  for (int p = 0; p < pixels; p++) store_ints(sums + (size_t)p * sums_pixel, acc[p]);
}

static void depthwise(const qsd_depthwise *dw, const void *in, size_t pixel, int pixels, int vectors,
                      int channel, int32_t *sums) {
  size_t size = (size_t)dw->bytes, wide = (size_t)vectors * LANES;
  for (int p = 0; p < pixels;) {
    int take = pixels - p >= DW_PIXELS ? DW_PIXELS : 1;
    const char *from = (const char *)in + (size_t)p * pixel * size;
    for (int lane = 0; lane < vectors * LANES; lane += WIDTH) {
      int32_t *to = sums + (size_t)p * wide + (size_t)lane;
      int c = channel + lane;
      if (take > 1 && size == 1) depthwise_tile(dw, from, pixel, DW_PIXELS, c, wide, to, true);
      else if (take > 1) depthwise_tile(dw, from, pixel, DW_PIXELS, c, wide, to, false);
      else depthwise_tile(dw, from, pixel, 1, c, wide, to, size == 1);
    }
    p += take;
  }
}

/* Sums of pixels x.. of the row's `all`, into scratch memory, for each time step. */
INLINE void tile_sums(const qsd_row *r, qsd_tile *t, int x, __attribute__((unused)) int all) {
  const qsd_step *step = r->step;
  size_t wide = (size_t)step->vectors * LANES;
  t->sums = r->scratch;
  const int vectors = step->kind == STEP_DOT ? qsd_made_vectors(t->vectors) : t->vectors;
  t->sums_pixel = (size_t)vectors * LANES;
  t->sums_step = wide * TILE;
  int32_t *sums = r->scratch;
  const uint8_t *in = r->in + (size_t)x * r->in_pixel;
  for (int s = 0; s < t->steps; s++, in += r->in_step, sums += t->sums_step) {
    if (step->kind == STEP_DOT) {
      const int8_t *codes = step->dot.codes + (size_t)r->block * step->dot.block_codes;
      const int32_t *start = step->dot.start ? step->dot.start + (size_t)r->block * wide : NULL;
#ifdef QSD_OWN_LISTS
      if (r->common && t->pixels == qsd_tile_pixels(step)) {
        size_t at = (size_t)(x / t->pixels * t->steps + s) * (size_t)step->dot.positions;
        dot_listed(&step->dot, in, r->in_pixel, vectors, r->common, at, codes, sums);
        continue;
      }
#endif
      dot(&step->dot, in, r->in_pixel, t->pixels, vectors, codes, start, sums);
      continue;
    }
#ifdef QSD_OWN_DEPTHWISE
    if (step->dw.quads) {
      const uint8_t *quads[2];
      int32_t *ring = r->scratch + 2 * (size_t)t->steps * TILE * 8 * LANES;
      bool once = t->steps == 1;
      if (x == 0 || !once)
        find_quads(r, in - (size_t)x * r->in_pixel, all, ring, r->fresh || !once, quads);
      else {
        quads[0] = (uint8_t *)ring + r->y % 5 * QUAD_BYTES;
        quads[1] = (uint8_t *)ring + (r->y + (step->dw.kernel == 7 ? 4 : 0)) % 5 * QUAD_BYTES;
      }
      quads_tile(&step->dw, quads, x, t->pixels, t->vectors, t->channel, sums);
      continue;
    }
#endif
    depthwise(&step->dw, in, r->in_pixel / (size_t)step->dw.bytes, t->pixels, t->vectors,
              t->channel, sums);
  }
}

/* Sums of any number of pixels. */
static void dots(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels, int vectors,
                 const int8_t *codes, const int32_t *start, int32_t *sums) {
  const int tile = vectors == 4 ? TILE / 2 : TILE, tiles = (pixels + tile - 1) / tile;
  for (int i = 0; i < tiles; i++) {
    const int from = pixels * i / tiles, count = pixels * (i + 1) / tiles - from;
    dot(d, in + (size_t)from * pixel, pixel, count, vectors, codes, start,
        sums + (size_t)from * (size_t)vectors * LANES);
  }
}

static void gather(const qsd_dot *d, const uint8_t *const *from, int pixels, size_t size,
                   uint8_t *to) {
  typedef struct { /* in one go */
    char bytes[64];
  } line;
  const size_t bytes = qsd_position_bytes(d);
  for (int p = 0; p < pixels; p++, to += size)
    for (int at = 0; at < d->positions; at++) {
      const uint8_t *x = from[p] + d->offsets[at];
      uint8_t *y = to + (size_t)at * bytes;
      for (size_t i = 0; i < bytes; i += sizeof(line)) {
        line found;
        memcpy(&found, x + i, sizeof found);
        memcpy(y + i, &found, sizeof found);
      }
    }
}

/* Pixels x.. of values in 16 bits, into scratch memory. */
static void tile_words(const qsd_row *r, qsd_tile *t, int x) {
  t->sums = r->scratch;
  t->sums_pixel = (size_t)t->vectors * LANES;
  t->sums_step = t->sums_pixel * TILE;
  for (int s = 0; s < t->steps; s++)
    for (int p = 0; p < t->pixels; p++) {
      const uint8_t *from = r->in + (size_t)s * r->in_step + (size_t)(x + p) * r->in_pixel;
      int32_t *to = r->scratch + (size_t)s * t->sums_step + (size_t)p * t->sums_pixel;
      for (int lane = 0; lane < t->vectors * LANES; lane += WIDTH)
        store_ints(to + lane, load_words(from + 2 * (size_t)lane));
    }
}

static void row(qsd_row *r) {
  qsd_tile *t = &r->tile;
  if (r->step->kind == STEP_LOAD && !r->step->narrow_source) {
    finish(r->step->finish, t);
    return;
  }
  const int tile = qsd_tile_pixels(r->step), pixels = t->pixels;
  for (int x = 0; x < pixels; x += tile) {
    t->pixels = (int)qsd_min(tile, pixels - x);
    if (r->step->kind == STEP_LOAD) tile_words(r, t, x);
    else tile_sums(r, t, x, pixels);
    finish(r->step->finish, t);
    if (t->residual) t->residual += (size_t)tile * t->residual_pixel;
    if (t->out) t->out += (size_t)tile * t->out_pixel;
    if (t->counts) t->counts += (size_t)tile * t->counts_pixel;
  }
}

#include "attention_kernels.h"

/* How far a byte is shifted to be byte `number` of four in memory. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
INLINE int byte_place(int number) { return 8 * (3 - number); }
#else
INLINE int byte_place(int number) { return 8 * number; }
#endif

/* A row of pixels of up to 4 channels by their tables, as `count` planes of 4 bytes a pixel. */
static void pixel_planes(const uint8_t *pixels, size_t map, int channels, const int32_t *table,
                         int width, uint32_t bias, int count, size_t plane, uint8_t *to) {
  for (int x = 0; x < width; x += WIDTH, to += 4 * WIDTH) {
    int lanes = (int)qsd_min(WIDTH, width - x);
    int32_t values[4][WIDTH] = {{0}};
    for (int c = 0; c < channels; c++)
      for (int i = 0; i < lanes; i++) values[c][i] = table[256 * c + pixels[(size_t)c * map + (size_t)(x + i)]];
    for (int i = 0; i < count; i++) {
      ints bytes = {0};
      for (int c = 0; c < channels; c++)
        bytes |= (((load_ints(values[c]) + (int32_t)bias) >> (8 * i)) & 255) << byte_place(c);
      if (lanes == WIDTH) store_ints((int32_t *)(void *)(to + (size_t)i * plane), bytes);
      else memcpy(to + (size_t)i * plane, &bytes, 4 * (size_t)lanes);
    }
  }
}

/* A pixel's values as bytes of `planes` planes. */
static void planes(const int32_t *values, int channels, uint32_t bias, int count, size_t plane,
                   uint8_t *to) {
  ints offset = (ints){0} + (int32_t)bias;
  for (int c = 0; c < channels; c += WIDTH) {
    ints x = load_ints(values + c) + offset;
    for (int i = 0; i < count; i++, x >>= 8) store_bytes(to + (size_t)i * plane + c, x & 255);
  }
}

#ifdef QSD_OWN_EVENTS
#include "events_avx512vnni.h"
#define EVENTS .events = events, .list_active = list_active,
#else
#define EVENTS
#endif
#ifdef QSD_OWN_LISTS
#include "common_kernels.h"
#define LISTS .find_active = find_active, .list_common = list_common,
#else
#define LISTS
#endif

#ifdef QSD_OWN_SCALE
#define WIDE true
#else
#define WIDE false
#endif

#define KERNELS                                                                                   \
  .finish = finish, .gather = gather, EVENTS LISTS .attention = attention, .planes = planes,      \
  .pixel_planes = pixel_planes, .pairs = WIDE, .split_codes = SPLIT, .wide_products = WIDE

extern const qsd_kernels JOIN(qsd_kernels_, QSD_SET);
const qsd_kernels JOIN(qsd_kernels_, QSD_SET) = {
    .name = QSD_NAME, .row = row, .dots = dots, KERNELS};

#ifdef QSD_AMX
#include "dot_amx.h"
extern const qsd_kernels qsd_kernels_amx;
const qsd_kernels qsd_kernels_amx = {
    .name = "amx", .row = amx_row, .dots = amx_dots, .tiles = true, KERNELS};
#endif
