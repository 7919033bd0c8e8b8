/* Products of 4 bytes at a time in 512 bits: sums stay in registers, 14 pixels by 2 vectors. */
#include <immintrin.h>

#define SPLIT 0
#define QSD_OWN_CONVERSIONS
#define QSD_OWN_WORDS
#define QSD_OWN_DEPTHWISE
#define QSD_OWN_COUNTS
#define QSD_OWN_EVENTS
#define QSD_OWN_LISTS
#define QSD_OWN_SCALE
#define QSD_OWN_ATTENTION

INLINE wide_ints widen(const ints *x) {
  __m512i y = (__m512i)*x;
  return (wide_ints){(longs)_mm512_cvtepi32_epi64(_mm512_castsi512_si256(y)),
                  (longs)_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(y, 1))};
}

INLINE ints narrow(wide_ints x) {
  __m256i low = _mm512_cvtepi64_epi32((__m512i)x.low), high = _mm512_cvtepi64_epi32((__m512i)x.high);
  return (ints)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

INLINE ints min16(ints a, ints b) { return (ints)_mm512_min_epi32((__m512i)a, (__m512i)b); }
INLINE ints max16(ints a, ints b) { return (ints)_mm512_max_epi32((__m512i)a, (__m512i)b); }

INLINE void store_bytes(uint8_t *p, ints x) {
  _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)x));
}

INLINE void store_words(uint8_t *p, ints x) {
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)x));
}

INLINE ints load_words(const uint8_t *p) {
  return (ints)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)p));
}

INLINE ints load_bytes(const uint8_t *p) {
  return (ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}

/* sums + x * y, where x lies in 0..32767 and y fits 16 bits. */
INLINE ints add_small_products(ints sums, ints x, ints y) {
  return (ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)x, (__m512i)y);
}

/* Factors of even and odd lanes, for products of 64 bits. */
typedef struct {
  __m512i even, odd, half_even, half_odd, right, left, plus;
} small_factors;

INLINE small_factors load_factors(const qsd_factors *f, int c) {
  const __m512i one = _mm512_set1_epi64(1);
  __m512i m = _mm512_loadu_si512(f->factor + c), s = _mm512_loadu_si512(f->places + c);
  __m512i odd = _mm512_srli_epi64(s, 32), even = _mm512_and_si512(s, _mm512_set1_epi64(0xffffffff));
  return (small_factors){.even = m,
                         .odd = _mm512_srli_epi64(m, 32),
                         .half_even = _mm512_srli_epi64(_mm512_sllv_epi64(one, even), 1),
                         .half_odd = _mm512_srli_epi64(_mm512_sllv_epi64(one, odd), 1),
                         .right = even,
                         .left = _mm512_sub_epi64(_mm512_set1_epi64(32), odd),
                         .plus = _mm512_loadu_si512(f->plus + c)};
}

/* Of the products only the bits from the shift on count, as many as 32. */
INLINE ints scale_small(ints x, const small_factors *f) {
  __m512i y = (__m512i)x;
  __m512i even = _mm512_add_epi64(_mm512_mul_epi32(y, f->even), f->half_even);
  __m512i odd = _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(y, 32), f->odd), f->half_odd);
  y = _mm512_mask_blend_epi32(0xaaaa, _mm512_srlv_epi64(even, f->right), _mm512_sllv_epi64(odd, f->left));
  return (ints)_mm512_add_epi32(y, f->plus);
}

INLINE longs clamp8(longs x, int64_t limit) {
  __m512i most = _mm512_set1_epi64(limit), least = _mm512_set1_epi64(-limit);
  return (longs)_mm512_max_epi64(_mm512_min_epi64((__m512i)x, most), least);
}

INLINE longs multiply8(longs x, longs multiplier, bool is_narrow) {
  if (is_narrow) return (longs)_mm512_mul_epi32((__m512i)x, (__m512i)multiplier);
  return (longs)_mm512_mullo_epi64((__m512i)x, (__m512i)multiplier);
}

INLINE __m512i four(const uint8_t *x) {
  int32_t value;
  memcpy(&value, x, sizeof value);
  return _mm512_set1_epi32(value);
}

INLINE __m512i eight(const uint8_t *x) {
  int64_t value;
  memcpy(&value, x, sizeof value);
  return _mm512_set1_epi64(value);
}

/* `pixels` and `vectors` are constants where this is inlined. */
INLINE void dot_tile(const qsd_dot *d, const uint8_t *in, size_t pixel, const int pixels,
                     const int vectors, const int8_t *codes, const int32_t *start, int32_t *sums) {
  const size_t stored = (size_t)d->vectors * LANES * 4;
  __m512i acc[TILE][4];
#pragma GCC unroll 14
  for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) acc[p][v] = _mm512_setzero_si512();
  for (int plane = d->planes - 1; plane >= 0; plane--) {
    const int8_t *code = codes;
    if (plane < d->planes - 1)
#pragma GCC unroll 14
      for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) acc[p][v] = _mm512_slli_epi32(acc[p][v], 8);
    for (int at = 0; at < d->positions; at++) {
      const uint8_t *x = in + (size_t)plane * d->plane_size + d->offsets[at];
      const uint8_t *half = x + 7 * pixel;
      for (int g = 0; g < d->groups; g++, x += 4, half += 4, code += stored) {
        __m512i w[4];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) w[v] = _mm512_loadu_si512(code + 64 * v);
#pragma GCC unroll 14
        for (int p = 0; p < pixels; p++) {
          __m512i value = four(p < 7 ? x + (size_t)p * pixel : half + (size_t)(p - 7) * pixel);
#pragma GCC unroll 4
          for (int v = 0; v < vectors; v++) acc[p][v] = _mm512_dpbusd_epi32(acc[p][v], value, w[v]);
        }
      }
    }
  }
#pragma GCC unroll 14
  for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
      if (start) acc[p][v] = _mm512_add_epi32(acc[p][v], _mm512_loadu_si512(start + LANES * v));
      _mm512_storeu_si512(sums + (p * vectors + v) * LANES, acc[p][v]);
    }
}

/* Pairs of groups: up to 8 channels, of which the sums of even and odd groups lie side by side. */
INLINE void pairs_tile(const qsd_dot *d, const uint8_t *in, size_t pixel, const int pixels,
                       const int8_t *codes, const int32_t *start, int32_t *sums) {
  __m512i acc[TILE];
#pragma GCC unroll 14
  for (int p = 0; p < pixels; p++) acc[p] = _mm512_setzero_si512();
  for (int plane = d->planes - 1; plane >= 0; plane--) {
    const int8_t *code = codes;
    if (plane < d->planes - 1)
#pragma GCC unroll 14
      for (int p = 0; p < pixels; p++) acc[p] = _mm512_slli_epi32(acc[p], 8);
    for (int at = 0; at < d->positions; at++) {
      const uint8_t *x = in + (size_t)plane * d->plane_size + d->offsets[at];
      const uint8_t *half = x + 7 * pixel;
      for (int g = 0; g < d->groups; g++, x += 8, half += 8, code += 64) {
        __m512i w = _mm512_loadu_si512(code);
#pragma GCC unroll 14
        for (int p = 0; p < pixels; p++)
          acc[p] = _mm512_dpbusd_epi32(
              acc[p], eight(p < 7 ? x + (size_t)p * pixel : half + (size_t)(p - 7) * pixel), w);
      }
    }
  }
#pragma GCC unroll 14
  for (int p = 0; p < pixels; p++) {
    __m512i both = _mm512_add_epi32(acc[p], _mm512_srli_epi64(acc[p], 32));
    __m512i sum = _mm512_zextsi256_si512(_mm512_cvtepi64_epi32(both));
    if (start) sum = _mm512_add_epi32(sum, _mm512_loadu_si512(start));
    _mm512_storeu_si512(sums + p * LANES, sum);
  }
}

#define TILES(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define WIDE_TILES(X) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#define CASE(pixels_, vectors_) \
  case pixels_: dot_tile(d, in, pixel, pixels_, vectors_, codes, start, sums); break;
#define CASE1(n) CASE(n, 1)
#define CASE2(n) CASE(n, 2)
#define CASE4(n) CASE(n, 4)

static void dot1(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels, const int8_t *codes,
                 const int32_t *start, int32_t *sums) {
  switch (pixels) { TILES(CASE1) WIDE_TILES(CASE1) }
}

#define PAIRS(n) case n: pairs_tile(d, in, pixel, n, codes, start, sums); break;
static void dot_pairs(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels,
                      const int8_t *codes, const int32_t *start, int32_t *sums) {
  switch (pixels) { TILES(PAIRS) WIDE_TILES(PAIRS) }
}

static void dot2(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels, const int8_t *codes,
                 const int32_t *start, int32_t *sums) {
  switch (pixels) { TILES(CASE2) WIDE_TILES(CASE2) }
}

static void dot4(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels, const int8_t *codes,
                 const int32_t *start, int32_t *sums) {
  switch (pixels) { TILES(CASE4) }
}

static void dot(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels, int vectors,
                const int8_t *codes, const int32_t *start, int32_t *sums) {
  if (d->pairs) dot_pairs(d, in, pixel, pixels, codes, start, sums);
  else if (vectors == 1) dot1(d, in, pixel, pixels, codes, start, sums);
  else if (vectors == 2) dot2(d, in, pixel, pixels, codes, start, sums);
  else dot4(d, in, pixel, pixels, codes, start, sums);
}

/* The same by lists of groups. */
INLINE void listed_tile(const qsd_dot *d, const uint8_t *in, size_t pixel, const int pixels,
                        const int vectors, const qsd_common *common, size_t list,
                        const int8_t *codes, int32_t *sums) {
  const size_t stored = (size_t)d->vectors * LANES * 4;
  __m512i acc[TILE][4];
#pragma GCC unroll 14
  for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) acc[p][v] = _mm512_setzero_si512();
  for (int at = 0; at < d->positions; at++, codes += (size_t)d->groups * stored) {
    const uint8_t *from = in + d->offsets[at];
    const uint16_t *next = common->lists + (list + (size_t)at) * common->pitch;
    for (const uint16_t *end = next + common->counts[list + (size_t)at]; next < end; next++) {
      const uint8_t *x = from + 4 * (size_t)*next, *half = x + 7 * pixel;
      const int8_t *code = codes + (size_t)*next * stored;
      __m512i w[4];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) w[v] = _mm512_loadu_si512(code + 64 * v);
#pragma GCC unroll 14
      for (int p = 0; p < pixels; p++) {
        __m512i value = four(p < 7 ? x + (size_t)p * pixel : half + (size_t)(p - 7) * pixel);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) acc[p][v] = _mm512_dpbusd_epi32(acc[p][v], value, w[v]);
      }
    }
  }
#pragma GCC unroll 14
  for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) _mm512_storeu_si512(sums + (p * vectors + v) * LANES, acc[p][v]);
}

static void dot_listed(const qsd_dot *d, const uint8_t *in, size_t pixel, int vectors,
                       const qsd_common *common, size_t list, const int8_t *codes, int32_t *sums) {
  if (d->vectors < 4 && vectors == 1)
    listed_tile(d, in, pixel, TILE, 1, common, list, codes, sums);
  else if (d->vectors < 4) listed_tile(d, in, pixel, TILE, 2, common, list, codes, sums);
  else if (vectors == 1) listed_tile(d, in, pixel, TILE / 2, 1, common, list, codes, sums);
  else if (vectors == 2) listed_tile(d, in, pixel, TILE / 2, 2, common, list, codes, sums);
  else listed_tile(d, in, pixel, TILE / 2, 4, common, list, codes, sums);
}
