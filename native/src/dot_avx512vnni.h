/* Products of 4 bytes at a time in 512 bits: sums stay in registers, 14 pixels by 2 vectors. */
#include <immintrin.h>

#define SPLIT 0

INLINE v8 clamp8(v8 x, int64_t limit) {
  __m512i most = _mm512_set1_epi64(limit), least = _mm512_set1_epi64(-limit);
  return (v8)_mm512_max_epi64(_mm512_min_epi64((__m512i)x, most), least);
}

INLINE v8 multiply8(v8 x, v8 multiplier, bool is_narrow) {
  if (is_narrow) return (v8)_mm512_mul_epi32((__m512i)x, (__m512i)multiplier);
  return (v8)_mm512_mullo_epi64((__m512i)x, (__m512i)multiplier);
}

INLINE __m512i four(const uint8_t *x) {
  int32_t value;
  memcpy(&value, x, sizeof value);
  return _mm512_set1_epi32(value);
}

/* `pixels` and `vectors` are constants where this is inlined. */
INLINE void dot_tile(const qsd_dot *d, const uint8_t *in, size_t pixel, const int pixels,
                     const int vectors, const int8_t *codes, const int32_t *start, int32_t *sums) {
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
      for (int g = 0; g < d->groups; g++, x += 4, half += 4, code += vectors * LANES * 4) {
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

static void dot2(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels, const int8_t *codes,
                 const int32_t *start, int32_t *sums) {
  switch (pixels) { TILES(CASE2) WIDE_TILES(CASE2) }
}

static void dot4(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels, const int8_t *codes,
                 const int32_t *start, int32_t *sums) {
  switch (pixels) { TILES(CASE4) }
}

static void dot(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels, const int8_t *codes,
                const int32_t *start, int32_t *sums) {
  if (d->vectors == 1) dot1(d, in, pixel, pixels, codes, start, sums);
  else if (d->vectors == 2) dot2(d, in, pixel, pixels, codes, start, sums);
  else dot4(d, in, pixel, pixels, codes, start, sums);
}
