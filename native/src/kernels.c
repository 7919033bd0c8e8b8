/* The kernels, compiled once for each instruction set: QSD_SET names it, and dot_*.h multiplies. */
#include <string.h>

#include "plan.h"

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)

typedef int32_t v16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t h16 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int64_t v8 __attribute__((vector_size(64), aligned(8), may_alias));
typedef uint8_t b16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef struct {
  v8 low, high;
} wide16;

#define INLINE static inline __attribute__((always_inline))

/* The lanes of `a` where the mask is -1, of `b` where it is 0. */
INLINE v16 choose16(v16 mask, v16 a, v16 b) { return (a & mask) | (b & ~mask); }
INLINE v8 choose8(v8 mask, v8 a, v8 b) { return (a & mask) | (b & ~mask); }

__attribute__((unused)) INLINE v8 plain_clamp8(v8 x, int64_t limit) {
  v8 most = (v8){0} + limit, least = (v8){0} - limit;
  x = choose8(x > most, most, x);
  return choose8(x < least, least, x);
}

#if defined(QSD_AVX512VNNI)
#include "dot_avx512vnni.h"
#elif defined(QSD_AVX2) || defined(QSD_AVXVNNI)
#include "dot_avx2.h"
#else
#include "dot_portable.h"
#endif

#ifndef QSD_OWN_CONVERSIONS
INLINE v16 min16(v16 a, v16 b) { return choose16(a < b, a, b); }
INLINE v16 max16(v16 a, v16 b) { return choose16(a > b, a, b); }

INLINE wide16 widen(const v16 *x) {
  h16 low, high;
  memcpy(&low, x, sizeof low);
  memcpy(&high, (const char *)x + sizeof low, sizeof high);
  return (wide16){__builtin_convertvector(low, v8), __builtin_convertvector(high, v8)};
}

INLINE v16 narrow(wide16 x) {
  h16 low = __builtin_convertvector(x.low, h16), high = __builtin_convertvector(x.high, h16);
  v16 y;
  memcpy(&y, &low, sizeof low);
  memcpy((char *)&y + sizeof low, &high, sizeof high);
  return y;
}

INLINE void store_bytes(uint8_t *p, v16 x) {
  b16 y = __builtin_convertvector(x, b16);
  memcpy(p, &y, sizeof y);
}

INLINE v16 load_bytes(const uint8_t *p) {
  b16 x;
  memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, v16);
}

/* sums + x * y, where x lies in 0..32767 and y fits 16 bits. */
INLINE v16 add_small_products(v16 sums, v16 x, v16 y) { return sums + x * y; }
#endif

INLINE v8 load8(const int64_t *p) {
  v8 x;
  memcpy(&x, p, sizeof x);
  return x;
}

INLINE v16 load16(const int32_t *p) {
  v16 x;
  memcpy(&x, p, sizeof x);
  return x;
}

INLINE void store16(int32_t *p, v16 x) { memcpy(p, &x, sizeof x); }

INLINE v8 scale8(v8 x, const qsd_factors *f, int c) {
  v8 y = multiply8(x, load8(f->multiplier + c), f->narrow) + load8(f->round + c);
  return clamp8((y >> load8(f->shift + c)) + load8(f->bias + c), f->limit);
}

INLINE wide16 scale16(wide16 x, const qsd_factors *f, int c) {
  return (wide16){scale8(x.low, f, c), scale8(x.high, f, c + 8)};
}

INLINE wide16 clamp16(wide16 x, int64_t limit) {
  return (wide16){clamp8(x.low, limit), clamp8(x.high, limit)};
}

#ifndef QSD_OWN_SCALE
typedef struct {
  v16 high, low, half, places, plus;
} small_factors;

INLINE small_factors load_factors(const qsd_factors *f, int c) {
  return (small_factors){load16(f->high + c), load16(f->low + c), load16(f->half + c),
                         load16(f->places + c), load16(f->plus + c)};
}

INLINE v16 scale_small(v16 x, const small_factors *f) {
  return x * f->high + ((x * f->low + f->half) >> f->places) + f->plus;
}
#endif

/* The sum within +-limit, also where it passes 32 bits. */
INLINE v16 add_within(v16 x, v16 y, int32_t limit) {
  v16 sum = x + y, passed = ((x ^ sum) & (y ^ sum)) >> 31;
  sum = choose16(passed, (x >> 31) ^ INT32_MAX, sum);
  return max16(min16(sum, (v16){0} + limit), (v16){0} - limit);
}

/* The value of a pixel's vector after factor, shortcut, storing and the neuron's factor. */
INLINE v16 value16(const qsd_finish *f, v16 x, const int32_t *residual, int32_t *out, int c) {
  if (f->scale || f->add) {
    wide16 y = widen(&x);
    if (f->scale) y = scale16(y, f->scale, c);
    if (f->add) {
      v16 r = load16(residual);
      wide16 z = widen(&r);
      if (f->residual_scale) z = scale16(z, f->residual_scale, c);
      y = clamp16((wide16){y.low + z.low, y.high + z.high}, f->add_limit);
    }
    x = narrow(y);
  }
  if (f->store) store16(out, x);
  if (f->neuron_scale) x = narrow(scale16(widen(&x), f->neuron_scale, c));
  return x;
}

INLINE v16 spikes16(const qsd_finish *f, v16 x, int c) {
  if (f->neuron == NEURON_EVEN) {
    x = (min16(x, (v16){0} + f->even_top) + f->even_offset) >> f->even_shift;
    return max16(x, (v16){0});
  }
  v16 found = {0};
  const int32_t *threshold = f->thresholds + c;
  if (f->flip) x ^= load16(f->flip + c);
  for (int k = 0; k < f->levels; k++, threshold += f->wide) found -= x >= load16(threshold);
  return found;
}

typedef struct {
  wide16 v;
  v16 counts;
} state;

/* IE-LIF and LIF, half a vector at a time: the potential after the spikes, and their number. */
INLINE v8 ielif8(const qsd_finish *f, v8 x, v8 v, bool first, v8 *counts) {
  v8 h = x;
  if (!first) h = clamp8(x + ((v * f->decay + (1 << 15)) >> 16), f->limit);
  v8 found = {0}, drop = (v8){0} + f->reset;
  for (int k = 0; k < f->levels; k++) {
    v8 reached = h >= (v8){0} + (int64_t)f->level[k];
    found -= reached;
    drop += reached & ((v8){0} + f->drop[k]);
  }
  *counts = found;
  return h - drop;
}

INLINE v8 lif8(const qsd_finish *f, v8 x, v8 v, v8 *counts) {
  v8 h = v + (((x - v) * f->leak + (1 << 15)) >> 16);
  v8 reached = h >= (v8){0} + f->threshold;
  *counts = -reached;
  return h & ~reached;
}

INLINE void neuron16(const qsd_finish *f, state *s, v16 x, bool first) {
  wide16 y = widen(&x), counts;
  if (f->neuron == NEURON_IELIF) {
    s->v.low = ielif8(f, y.low, s->v.low, first, &counts.low);
    s->v.high = ielif8(f, y.high, s->v.high, first, &counts.high);
  } else {
    s->v.low = lif8(f, y.low, s->v.low, &counts.low);
    s->v.high = lif8(f, y.high, s->v.high, &counts.high);
  }
  s->counts = narrow(counts);
}

/* Counts of sums that are compared at once: what a spiking network does most. */
static void count(const qsd_finish *f, const qsd_tile *t) {
#ifdef QSD_OWN_COUNTS
  if (f->neuron == NEURON_THRESHOLDS && f->centre && count_words(f, t)) return;
#endif
  for (int v = 0; v < t->vectors; v++)
    for (int p = 0; p < t->pixels; p++) {
      v16 x = load16(t->sums + (size_t)p * t->sums_pixel + v * LANES);
      store_bytes(t->counts + (size_t)p * t->counts_pixel + v * LANES,
                  spikes16(f, x, t->channel + v * LANES));
    }
}

INLINE void small_tile(const qsd_finish *f, const qsd_tile *t, const bool scale, const bool add) {
  const bool scales_residual = add && f->residual_scale, fits = f->add_fits, store = f->store;
  const bool counts = f->neuron;
  const int32_t limit = (int32_t)f->add_limit;
  for (int v = 0; v < t->vectors; v++) {
    const int c = t->channel + v * LANES;
    const int32_t *sums = t->sums + v * LANES;
    const int32_t *residual = add ? t->residual + v * LANES : NULL;
    int32_t *out = store ? t->out + v * LANES : NULL;
    uint8_t *to = counts ? t->counts + v * LANES : NULL;
    small_factors factors = {0}, others = {0};
    if (scale) factors = load_factors(f->scale, c);
    if (scales_residual) others = load_factors(f->residual_scale, c);
    for (int p = 0; p < t->pixels; p++) {
      v16 x = load16(sums);
      sums += t->sums_pixel;
      if (scale) x = scale_small(x, &factors);
      if (add) {
        v16 r = load16(residual);
        residual += t->residual_pixel;
        if (scales_residual) r = scale_small(r, &others);
        if (fits) x += r;
        else x = add_within(x, r, limit);
      }
      if (store) {
        store16(out, x);
        out += t->out_pixel;
      }
      if (counts) {
        store_bytes(to, spikes16(f, x, c));
        to += t->counts_pixel;
      }
    }
  }
}

static void finish_small(const qsd_finish *f, const qsd_tile *t) {
  if (!f->scale && !f->add && !f->store) count(f, t);
  else if (f->scale && f->add) small_tile(f, t, true, true);
  else if (f->scale) small_tile(f, t, true, false);
  else if (f->add) small_tile(f, t, false, true);
  else small_tile(f, t, false, false);
}

static void finish(const qsd_finish *f, const qsd_tile *t) {
  if (f->small) {
    finish_small(f, t);
    return;
  }
  for (int p = 0; p < t->pixels; p++)
    for (int v = 0; v < t->vectors; v++) {
      int c = t->channel + v * LANES;
      state s = {0};
      for (int i = 0; i < t->steps; i++) {
        size_t at = (size_t)p, step = (size_t)i, lane = (size_t)v * LANES;
        v16 x = load16(t->sums + at * t->sums_pixel + step * t->sums_step + lane);
        const int32_t *residual =
            f->add ? t->residual + at * t->residual_pixel + step * t->residual_step + lane : NULL;
        int32_t *out = f->store ? t->out + at * t->out_pixel + step * t->out_step + lane : NULL;
        x = value16(f, x, residual, out, c);
        if (f->neuron == NEURON_NONE) continue;
        uint8_t *counts = t->counts + at * t->counts_pixel + step * t->counts_step + lane;
        if (f->neuron <= NEURON_EVEN) {
          store_bytes(counts, spikes16(f, x, c));
        } else {
          neuron16(f, &s, x, i == 0);
          store_bytes(counts, s.counts);
        }
      }
    }
}

enum { DW_PIXELS = 7 };

INLINE void depthwise_tile(const qsd_depthwise *dw, const void *in, size_t pixel, const int pixels,
                           int channel, size_t sums_pixel, int32_t *sums, const bool bytes) {
  v16 acc[DW_PIXELS];
  for (int p = 0; p < pixels; p++) acc[p] = (v16){0};
  const int32_t *codes = dw->codes + channel;
  for (int i = 0; i < dw->positions; i++, codes += dw->channels) {
    v16 code = load16(codes);
    size_t at = dw->offsets[i] + (size_t)channel;
#pragma GCC unroll 7
    for (int p = 0; p < pixels; p++) {
      size_t place = at + (size_t)p * pixel;
      v16 x = bytes ? load_bytes((const uint8_t *)in + place) : load16((const int32_t *)in + place);
      if (bytes) acc[p] = add_small_products(acc[p], x, code);
      else acc[p] += x * code;
    }
  }
  for (int p = 0; p < pixels; p++) store16(sums + (size_t)p * sums_pixel, acc[p]);
}

static void depthwise(const qsd_depthwise *dw, const void *in, size_t pixel, int pixels, int vectors,
                      int channel, int32_t *sums) {
  size_t size = (size_t)dw->bytes, wide = (size_t)vectors * LANES;
  for (int p = 0; p < pixels;) {
    int take = pixels - p >= DW_PIXELS ? DW_PIXELS : 1;
    const char *from = (const char *)in + (size_t)p * pixel * size;
    for (int v = 0; v < vectors; v++) {
      int32_t *to = sums + (size_t)p * wide + (size_t)(v * LANES);
      int c = channel + v * LANES;
      if (take > 1 && size == 1) depthwise_tile(dw, from, pixel, DW_PIXELS, c, wide, to, true);
      else if (take > 1) depthwise_tile(dw, from, pixel, DW_PIXELS, c, wide, to, false);
      else depthwise_tile(dw, from, pixel, 1, c, wide, to, size == 1);
    }
    p += take;
  }
}

/* Sums of pixels x.. of the row, into scratch memory, for each time step. */
INLINE void tile_sums(const qsd_row *r, qsd_tile *t, int x) {
  const qsd_step *step = r->step;
  size_t wide = (size_t)step->vectors * LANES;
  t->sums = r->scratch;
  t->sums_pixel = step->kind == STEP_DEPTHWISE ? (size_t)t->vectors * LANES : wide;
  t->sums_step = wide * TILE;
  int32_t *sums = r->scratch;
  const uint8_t *in = r->in + (size_t)x * r->in_pixel;
  for (int s = 0; s < t->steps; s++, in += r->in_step, sums += t->sums_step) {
    if (step->kind == STEP_DOT) {
      const int8_t *codes = step->dot.codes + (size_t)r->block * step->dot.block_codes;
      const int32_t *start = step->dot.start ? step->dot.start + (size_t)r->block * wide : NULL;
      dot(&step->dot, in, r->in_pixel, t->pixels, codes, start, sums);
      continue;
    }
#ifdef QSD_OWN_DEPTHWISE
    if (step->dw.quads) {
      const uint8_t *quads[2];
      int32_t *ring = r->scratch + 2 * (size_t)t->steps * TILE * 8 * LANES;
      bool once = t->steps == 1;
      if (x == 0 || !once) find_quads(r, in - (size_t)x * r->in_pixel, ring, r->fresh || !once, quads);
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

static void row(const qsd_row *r) {
  if (r->step->kind == STEP_LOAD) {
    finish(r->step->finish, &r->tile);
    return;
  }
  qsd_tile t = r->tile;
  int tile = r->step->kind == STEP_DOT && r->step->vectors == 4 ? TILE / 2 : TILE;
  for (int x = 0; x < r->tile.pixels; x += tile) {
    t.pixels = (int)qsd_min(tile, r->tile.pixels - x);
    tile_sums(r, &t, x);
    finish(r->step->finish, &t);
    if (t.residual) t.residual += (size_t)tile * t.residual_pixel;
    if (t.out) t.out += (size_t)tile * t.out_pixel;
    if (t.counts) t.counts += (size_t)tile * t.counts_pixel;
  }
}

#ifdef QSD_OWN_ATTENTION
#include "attention_avx512vnni.h"
#endif

/* Attention of one head: kv[i][j] = sum of k * v over tokens, 8 i by 16 j at a time. */
enum { ROWS = 8 };

INLINE void key_values(const qsd_attention *a, int i, const int rows, int j, int wide) {
  v16 acc[ROWS];
  for (int r = 0; r < rows; r++) acc[r] = (v16){0};
  for (int y = 0; y < a->height; y++) {
    const uint8_t *k = a->k + (size_t)y * a->k_row + i, *v = a->v + (size_t)y * a->v_row + j;
    for (int x = 0; x < a->width; x++, k += a->k_pixel, v += a->v_pixel) {
      v16 value = load_bytes(v);
#pragma GCC unroll 8
      for (int r = 0; r < rows; r++)
        acc[r] = add_small_products(acc[r], value, (v16){0} + (int32_t)k[r]);
    }
  }
  for (int r = 0; r < rows; r++) store16(a->kv + (size_t)(i + r) * (size_t)wide + j, acc[r]);
}

/* `rows` pixels of the result from x on: sums over i of q * kv. */
INLINE void queries(const qsd_attention *a, int y, int x, const int rows, int j, int wide) {
  v16 acc[ROWS];
  for (int r = 0; r < rows; r++) acc[r] = (v16){0};
  const uint8_t *q = a->q + (size_t)y * a->q_row + (size_t)x * a->q_pixel;
  for (int i = 0; i < a->each; i++, q++) {
    v16 kv = load16(a->kv + (size_t)i * (size_t)wide + j);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
      v16 value = (v16){0} + (int32_t)q[(size_t)r * a->q_pixel];
      if (a->small) acc[r] = add_small_products(acc[r], value, kv);
      else acc[r] += value * kv;
    }
  }
  int lanes = a->wide - j < LANES ? a->wide - j : LANES;
  for (int r = 0; r < rows; r++)
    memcpy(a->out + (size_t)y * a->out_row + (size_t)(x + r) * a->out_pixel + (size_t)j, &acc[r],
           (size_t)lanes * sizeof(int32_t));
}

static void attention(const qsd_attention *a) {
#ifdef QSD_OWN_ATTENTION
  if (a->small) {
    small_attention(a);
    return;
  }
#endif
  int wide = qsd_round_up(a->wide, LANES);
  for (int j = 0; j < a->wide; j += LANES) {
    int i = 0;
    for (; i + ROWS <= a->each; i += ROWS) key_values(a, i, ROWS, j, wide);
    for (; i < a->each; i++) key_values(a, i, 1, j, wide);
    for (int y = 0; y < a->height; y++) {
      int x = 0;
      for (; x + ROWS <= a->width; x += ROWS) queries(a, y, x, ROWS, j, wide);
      for (; x < a->width; x++) queries(a, y, x, 1, j, wide);
    }
  }
}

/* A row of pixels of up to 4 channels by their tables, as `count` planes of 4 bytes a pixel. */
static void pixel_planes(const uint8_t *pixels, size_t map, int channels, const int32_t *table,
                         int width, uint32_t bias, int count, size_t plane, uint8_t *to) {
  for (int x = 0; x < width; x += LANES, to += 4 * LANES) {
    int lanes = (int)qsd_min(LANES, width - x);
    int32_t values[4][LANES] = {{0}};
    for (int c = 0; c < channels; c++)
      for (int i = 0; i < lanes; i++) values[c][i] = table[256 * c + pixels[(size_t)c * map + (size_t)(x + i)]];
    for (int i = 0; i < count; i++) {
      v16 bytes = {0};
      for (int c = 0; c < channels; c++)
        bytes |= (((load16(values[c]) + (int32_t)bias) >> (8 * i)) & 255) << (8 * c);
      if (lanes == LANES) store16((int32_t *)(void *)(to + (size_t)i * plane), bytes);
      else memcpy(to + (size_t)i * plane, &bytes, 4 * (size_t)lanes);
    }
  }
}

/* A pixel's values as bytes of `planes` planes. */
static void planes(const int32_t *values, int channels, uint32_t bias, int count, size_t plane,
                   uint8_t *to) {
  v16 offset = (v16){0} + (int32_t)bias;
  for (int c = 0; c < channels; c += LANES) {
    v16 x = load16(values + c) + offset;
    for (int i = 0; i < count; i++, x >>= 8) store_bytes(to + (size_t)i * plane + c, x & 255);
  }
}

#ifdef QSD_OWN_EVENTS
#include "events_avx512vnni.h"
#define EVENTS events, .find_active = find_active, .list_active = list_active
#else
#define EVENTS NULL

#endif

#ifdef QSD_OWN_SCALE
#define WIDE true
#else
#define WIDE false
#endif

extern const qsd_kernels JOIN(qsd_kernels_, QSD_SET);
const qsd_kernels JOIN(qsd_kernels_, QSD_SET) = {
    .name = QSD_NAME, .row = row, .finish = finish,
    .events = EVENTS, .attention = attention, .planes = planes,
    .pixel_planes = pixel_planes, .split_codes = SPLIT, .wide_products = WIDE};
