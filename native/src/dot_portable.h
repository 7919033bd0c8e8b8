/* Products for any processor. */
#define SPLIT 0

INLINE longs clamp8(longs x, int64_t limit) { return plain_clamp8(x, limit); }

INLINE longs multiply8(longs x, longs multiplier, bool is_narrow) {
  (void)is_narrow;
  return x * multiplier;
}

static void dot(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels, int vectors,
                const int8_t *codes, const int32_t *start, int32_t *sums) {
  const int wide = vectors * LANES, stored = d->vectors * LANES;
  for (int p = 0; p < pixels; p++, in += pixel, sums += wide) {
    uint32_t acc[4 * LANES] = {0};
    for (int plane = d->planes - 1; plane >= 0; plane--) {
      const int8_t *code = codes;
      for (int i = 0; i < wide; i++) acc[i] <<= 8;
      for (int at = 0; at < d->positions; at++) {
        const uint8_t *x = in + (size_t)plane * d->plane_size + d->offsets[at];
        for (int g = 0; g < d->groups; g++, x += 4, code += 4 * stored) {
          if (!(x[0] | x[1] | x[2] | x[3])) continue;
          for (int i = 0; i < wide; i++)
            acc[i] += (uint32_t)(x[0] * code[4 * i] + x[1] * code[4 * i + 1] +
                                 x[2] * code[4 * i + 2] + x[3] * code[4 * i + 3]);
        }
      }
    }
    for (int i = 0; i < wide; i++) sums[i] = (int32_t)(acc[i] + (start ? (uint32_t)start[i] : 0));
  }
}
