/* What becomes of sums. Included by kernels.c. */

INLINE longs scale8(longs x, const qsd_factors *f, int c) {
  longs y = multiply8(x, load_longs(f->multiplier + c), f->narrow) + load_longs(f->round + c);
  return clamp8((y >> load_longs(f->shift + c)) + load_longs(f->bias + c), f->limit);
}

INLINE wide_ints scale16(wide_ints x, const qsd_factors *f, int c) {
  return (wide_ints){scale8(x.low, f, c), scale8(x.high, f, c + WIDTH / 2)};
}

INLINE wide_ints clamp16(wide_ints x, int64_t limit) {
  return (wide_ints){clamp8(x.low, limit), clamp8(x.high, limit)};
}

#ifndef QSD_OWN_SCALE
typedef struct {
  ints high, low, half, places, plus;
} small_factors;

INLINE small_factors load_factors(const qsd_factors *f, int c) {
  return (small_factors){load_ints(f->high + c), load_ints(f->low + c), load_ints(f->half + c),
                         load_ints(f->places + c), load_ints(f->plus + c)};
}

INLINE ints scale_small(ints x, const small_factors *f) {
  return x * f->high + ((x * f->low + f->half) >> f->places) + f->plus;
}
#endif

/* The sum within +-limit, also where it passes 32 bits. */
INLINE ints add_within(ints x, ints y, int32_t limit) {
  ints sum = x + y, passed = ((x ^ sum) & (y ^ sum)) >> 31;
  sum = choose16(passed, (x >> 31) ^ INT32_MAX, sum);
  return max16(min16(sum, (ints){0} + limit), (ints){0} - limit);
}

/* Potentials, in 16 bits where that is proved to hold them. */
INLINE ints load_value(const uint8_t *p, bool is_narrow) {
  return is_narrow ? load_words(p) : load_ints((const int32_t *)(const void *)p);
}

INLINE void store_value(uint8_t *p, ints x, bool is_narrow) {
  if (is_narrow) store_words(p, x);
  else store_ints((int32_t *)(void *)p, x);
}

/* The value of a pixel's vector after factor, shortcut, storing and the neuron's factor. */
INLINE ints value16(const qsd_finish *f, ints x, const uint8_t *residual, uint8_t *out, int c) {
  if (f->scale || f->add) {
    wide_ints y = widen(&x);
    if (f->scale) y = scale16(y, f->scale, c);
    if (f->add) {
      ints r = load_value(residual, f->narrow_residual);
      wide_ints z = widen(&r);
      if (f->residual_scale) z = scale16(z, f->residual_scale, c);
      y = clamp16((wide_ints){y.low + z.low, y.high + z.high}, f->add_limit);
    }
    x = narrow(y);
  }
  if (f->store) store_value(out, x, f->narrow_out);
  if (f->neuron_scale) x = narrow(scale16(widen(&x), f->neuron_scale, c));
  return x;
}

/* What spikes of a vector of channels take, held apart from memory that bytes are written to: the
 * compiler would fetch it anew after each of them. */
typedef struct {
  ints top, offset, flip;
  int shift, levels, wide;
  const int32_t *thresholds;
  bool even;
} spiking;

INLINE spiking load_spiking(const qsd_finish *f, int c) {
  spiking s = {.even = f->neuron == NEURON_EVEN};
  if (s.even) {
    s.top = (ints){0} + f->even_top;
    s.offset = (ints){0} + f->even_offset;
    s.shift = f->even_shift;
  } else if (f->neuron == NEURON_THRESHOLDS) {
    s.thresholds = f->thresholds + c;
    s.levels = f->levels;
    s.wide = f->wide;
    if (f->flip) s.flip = load_ints(f->flip + c);
  }
  return s;
}

INLINE ints spikes16(const spiking *s, ints x) {
  if (s->even) return max16((min16(x, s->top) + s->offset) >> s->shift, (ints){0});
  ints found = {0};
  const int32_t *threshold = s->thresholds;
  x ^= s->flip;
  for (int k = 0; k < s->levels; k++, threshold += s->wide) found -= x >= load_ints(threshold);
  return found;
}

typedef struct {
  wide_ints v;
  ints counts;
} state;

/* IE-LIF and LIF, half a vector at a time: the potential after the spikes, and their number. */
INLINE longs ielif8(const qsd_finish *f, longs x, longs v, bool first, longs *counts) {
  longs h = x;
  if (!first) h = clamp8(x + ((v * f->decay + (1 << 15)) >> 16), f->limit);
  longs found = {0}, drop = (longs){0} + f->reset;
  for (int k = 0; k < f->levels; k++) {
    longs reached = h >= (longs){0} + (int64_t)f->level[k];
    found -= reached;
    drop += reached & ((longs){0} + f->drop[k]);
  }
  *counts = found;
  return h - drop;
}

INLINE longs lif8(const qsd_finish *f, longs x, longs v, longs *counts) {
  longs h = v + (((x - v) * f->leak + (1 << 15)) >> 16);
  longs reached = h >= (longs){0} + f->threshold;
  *counts = -reached;
  return h & ~reached;
}

INLINE void neuron16(const qsd_finish *f, state *s, ints x, bool first) {
  wide_ints y = widen(&x), counts;
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
  const size_t from_pixel = t->sums_pixel, to_pixel = t->counts_pixel;
  const int pixels = t->pixels;
  for (int lane = 0; lane < t->vectors * LANES; lane += WIDTH) {
    const spiking s = load_spiking(f, t->channel + lane);
    const int32_t *from = t->sums + lane;
    uint8_t *to = t->counts + lane;
    for (int p = 0; p < pixels; p++, from += from_pixel, to += to_pixel)
      store_bytes(to, spikes16(&s, load_ints(from)));
  }
}

INLINE void small_tile(const qsd_finish *f, const qsd_tile *t, const bool scale, const bool add) {
  const bool narrow_residual = f->narrow_residual, narrow_out = f->narrow_out;
  const int residual_lane = narrow_residual ? 2 : 4, out_lane = narrow_out ? 2 : 4; /* bytes */
  const bool scales_residual = add && f->residual_scale, fits = f->add_fits, store = f->store;
  const bool counts = f->neuron;
  const int32_t limit = (int32_t)f->add_limit;
  const size_t sums_pixel = t->sums_pixel, residual_pixel = t->residual_pixel;
  const size_t out_pixel = t->out_pixel, counts_pixel = t->counts_pixel;
  const int pixels = t->pixels;
  for (int lane = 0; lane < t->vectors * LANES; lane += WIDTH) {
    const int c = t->channel + lane;
    const int32_t *sums = t->sums + lane;
    const uint8_t *residual = add ? t->residual + lane * residual_lane : NULL;
    uint8_t *out = store ? t->out + lane * out_lane : NULL;
    uint8_t *to = counts ? t->counts + lane : NULL;
    small_factors factors = {0}, others = {0};
    if (scale) factors = load_factors(f->scale, c);
    if (scales_residual) others = load_factors(f->residual_scale, c);
    const spiking spikes = load_spiking(f, c);
    for (int p = 0; p < pixels; p++) {
      ints x = load_ints(sums);
      sums += sums_pixel;
      if (scale) x = scale_small(x, &factors);
      if (add) {
        ints r = load_value(residual, narrow_residual);
        residual += residual_pixel;
        if (scales_residual) r = scale_small(r, &others);
        if (fits) x += r;
        else x = add_within(x, r, limit);
      }
      if (store) {
        store_value(out, x, narrow_out);
        out += out_pixel;
      }
      if (counts) {
        store_bytes(to, spikes16(&spikes, x));
        to += counts_pixel;
      }
    }
  }
}

static void finish_small(const qsd_finish *f, const qsd_tile *t) {
  if (!f->scale && !f->add && !f->store) {
    if (f->neuron != NEURON_NONE) count(f, t); /* otherwise nothing reads the sums */
  } else if (f->scale && f->add) small_tile(f, t, true, true);
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
    for (int v = 0; v < t->vectors * LANES; v += WIDTH) {
      int c = t->channel + v;
      state s = {0};
      const spiking spikes = load_spiking(f, c);
      for (int i = 0; i < t->steps; i++) {
        size_t at = (size_t)p, step = (size_t)i, lane = (size_t)v;
        ints x = load_ints(t->sums + at * t->sums_pixel + step * t->sums_step + lane);
        const uint8_t *residual = f->add ? t->residual + at * t->residual_pixel +
                                               step * t->residual_step +
                                               lane * (f->narrow_residual ? 2 : 4)
                                         : NULL;
        uint8_t *out = f->store ? t->out + at * t->out_pixel + step * t->out_step +
                                      lane * (f->narrow_out ? 2 : 4)
                                : NULL;
        x = value16(f, x, residual, out, c);
        if (f->neuron == NEURON_NONE) continue;
        uint8_t *counts = t->counts + at * t->counts_pixel + step * t->counts_step + lane;
        if (f->neuron <= NEURON_EVEN) {
          store_bytes(counts, spikes16(&spikes, x));
        } else {
          neuron16(f, &s, x, i == 0);
          store_bytes(counts, s.counts);
        }
      }
    }
}
