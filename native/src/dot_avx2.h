/* Products of 4 bytes at a time in 256 bits, with AVX-VNNI or by way of 16 bits. */
#include <immintrin.h>

#ifdef QSD_AVXVNNI
#define SPLIT 0
#else
#define SPLIT 1
#endif

#define QSD_OWN_CONVERSIONS

INLINE wide_ints widen(const ints *x) {
  __m256i y = (__m256i)*x;
  return (wide_ints){(longs)_mm256_cvtepi32_epi64(_mm256_castsi256_si128(y)),
                     (longs)_mm256_cvtepi32_epi64(_mm256_extracti128_si256(y, 1))};
}

INLINE ints narrow(wide_ints x) {
  const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
  return (ints)_mm256_blend_epi32(_mm256_permutevar8x32_epi32((__m256i)x.low, even),
                                  _mm256_permutevar8x32_epi32((__m256i)x.high, even), 0xf0);
}

INLINE ints min16(ints a, ints b) { return (ints)_mm256_min_epi32((__m256i)a, (__m256i)b); }
INLINE ints max16(ints a, ints b) { return (ints)_mm256_max_epi32((__m256i)a, (__m256i)b); }

/* Of numbers that fit a byte. */
INLINE void store_bytes(uint8_t *p, ints x) {
  __m128i words = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)x),
                                   _mm256_extracti128_si256((__m256i)x, 1));
  _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(words, words));
}

INLINE ints load_bytes(const uint8_t *p) {
  return (ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}

/* sums + x * y, where x lies in 0..32767 and y fits 16 bits. */
INLINE ints add_small_products(ints sums, ints x, ints y) {
  return sums + (ints)_mm256_madd_epi16((__m256i)x, (__m256i)y);
}

INLINE longs clamp8(longs x, int64_t limit) { return plain_clamp8(x, limit); }

INLINE longs multiply8(longs x, longs multiplier, bool is_narrow) {
  if (is_narrow) return (longs)_mm256_mul_epi32((__m256i)x, (__m256i)multiplier);
  return x * multiplier;
}

INLINE __m256i add_products(__m256i acc, __m256i x, __m256i w) {
#ifdef QSD_AVXVNNI
  return _mm256_dpbusd_avx_epi32(acc, x, w);
#else
  /* Codes were split where two products could pass 16 bits. */
  __m256i pairs = _mm256_maddubs_epi16(x, w);
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

INLINE __m256i four(const uint8_t *x) {
  int32_t value;
  memcpy(&value, x, sizeof value);
  return _mm256_set1_epi32(value);
}

enum { PIXELS = 3, HALVES = 4 };

/* Groups of a position, all in order or those of a list; `common` is a constant. */
typedef struct {
  const qsd_common *common;
  size_t list;
} chosen_groups;

/* Up to 3 pixels by 4 halves of vectors, those from `first` on. */
INLINE void dot_tile(const qsd_dot *d, const uint8_t *in, size_t pixel, const int pixels,
                     const int halves, int first, size_t wide, const chosen_groups *chosen,
                     const int8_t *codes, const int32_t *start, int32_t *sums) {
  const size_t stored = (size_t)d->vectors * LANES * 4;
  __m256i acc[PIXELS][HALVES];
#pragma GCC unroll 3
  for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
    for (int v = 0; v < halves; v++) acc[p][v] = _mm256_setzero_si256();
  for (int plane = d->planes - 1; plane >= 0; plane--) {
    const int8_t *code = codes + 32 * first;
    if (plane < d->planes - 1)
#pragma GCC unroll 3
      for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
        for (int v = 0; v < halves; v++) acc[p][v] = _mm256_slli_epi32(acc[p][v], 8);
    for (int at = 0; at < d->positions; at++, code += (size_t)d->groups * stored) {
      const uint8_t *from = in + (size_t)plane * d->plane_size + d->offsets[at];
      const uint16_t *list = NULL;
      int count = d->groups;
      if (chosen) {
        list = chosen->common->lists + (chosen->list + (size_t)at) * chosen->common->pitch;
        count = chosen->common->counts[chosen->list + (size_t)at];
      }
      for (int i = 0; i < count; i++) {
        const size_t g = chosen ? list[i] : (size_t)i;
        const uint8_t *x = from + 4 * g;
        const int8_t *next = code + g * stored;
#pragma GCC unroll 3
        for (int p = 0; p < pixels; p++) {
          __m256i value = four(x + (size_t)p * pixel);
#pragma GCC unroll 4
          for (int v = 0; v < halves; v++) {
            __m256i w = _mm256_loadu_si256((const __m256i *)(next + 32 * v));
            acc[p][v] = add_products(acc[p][v], value, w);
          }
        }
      }
    }
  }
#pragma GCC unroll 3
  for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
    for (int v = 0; v < halves; v++) {
      size_t lane = 8 * (size_t)(first + v);
      if (start)
        acc[p][v] = _mm256_add_epi32(acc[p][v],
                                     _mm256_loadu_si256((const __m256i *)(start + lane)));
      _mm256_storeu_si256((__m256i *)(sums + (size_t)p * wide + lane), acc[p][v]);
    }
}

#ifndef QSD_AVXVNNI
/* The same of one plane, adding in 16 bits as long as these suffice. */
INLINE void run_tile(const qsd_dot *d, const uint8_t *in, size_t pixel, const int pixels,
                     const int halves, int first, size_t wide, const chosen_groups *chosen,
                     const int8_t *codes, const int32_t *start, int32_t *sums) {
  const size_t stored = (size_t)d->vectors * LANES * 4;
  const __m256i one = _mm256_set1_epi16(1);
  __m256i acc[PIXELS][HALVES], total[PIXELS][HALVES];
#pragma GCC unroll 3
  for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
    for (int v = 0; v < halves; v++) {
      size_t lane = 8 * (size_t)(first + v);
      acc[p][v] = _mm256_setzero_si256();
      total[p][v] = start ? _mm256_loadu_si256((const __m256i *)(start + lane)) : acc[p][v];
    }
  const int8_t *code = codes + 32 * first;
  int left = d->run;
  for (int at = 0; at < d->positions; at++, code += (size_t)d->groups * stored) {
    const uint8_t *from = in + d->offsets[at];
    const uint16_t *list = NULL;
    int count = d->groups;
    if (chosen) {
      list = chosen->common->lists + (chosen->list + (size_t)at) * chosen->common->pitch;
      count = chosen->common->counts[chosen->list + (size_t)at];
    }
    for (int i = 0; i < count;) {
      const int end = (int)qsd_min(count, i + left);
      left -= end - i;
      for (; i < end; i++) {
        const size_t g = chosen ? list[i] : (size_t)i;
        const uint8_t *x = from + 4 * g;
        const int8_t *next = code + g * stored;
#pragma GCC unroll 3
        for (int p = 0; p < pixels; p++) {
          __m256i value = four(x + (size_t)p * pixel);
#pragma GCC unroll 4
          for (int v = 0; v < halves; v++)
            acc[p][v] = _mm256_add_epi16(
                acc[p][v], _mm256_maddubs_epi16(
                               value, _mm256_loadu_si256((const __m256i *)(next + 32 * v))));
        }
      }
      if (left) continue;
      left = d->run;
#pragma GCC unroll 3
      for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
        for (int v = 0; v < halves; v++) {
          total[p][v] = _mm256_add_epi32(total[p][v], _mm256_madd_epi16(acc[p][v], one));
          acc[p][v] = _mm256_setzero_si256();
        }
    }
  }
#pragma GCC unroll 3
  for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
    for (int v = 0; v < halves; v++)
      _mm256_storeu_si256((__m256i *)(sums + (size_t)p * wide + 8 * (size_t)(first + v)),
                          _mm256_add_epi32(total[p][v], _mm256_madd_epi16(acc[p][v], one)));
}
#define PRODUCTS(pixels, halves, first) \
  if (d->run) \
    run_tile(d, x, pixel, pixels, halves, first, wide, chosen, codes, start, y); \
  else \
    dot_tile(d, x, pixel, pixels, halves, first, wide, chosen, codes, start, y)
#else
#define PRODUCTS(pixels, halves, first) \
  dot_tile(d, x, pixel, pixels, halves, first, wide, chosen, codes, start, y)
#endif

INLINE void dot_pixels(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels, int vectors,
                       const chosen_groups *chosen, const int8_t *codes, const int32_t *start,
                       int32_t *sums) {
  const int halves = 2 * vectors;
  const size_t wide = (size_t)vectors * LANES;
  for (int p = 0; p < pixels; p += PIXELS) {
    const uint8_t *x = in + (size_t)p * pixel;
    int32_t *y = sums + (size_t)p * wide;
    const int rest = pixels - p;
    for (int first = 0; first < halves; first += HALVES) {
      if (halves < HALVES && rest >= 3) {
        PRODUCTS(3, 2, first);
      } else if (halves < HALVES && rest == 2) {
        PRODUCTS(2, 2, first);
      } else if (halves < HALVES) {
        PRODUCTS(1, 2, first);
      } else if (rest >= 3) {
        PRODUCTS(3, HALVES, first);
      } else if (rest == 2) {
        PRODUCTS(2, HALVES, first);
      } else {
        PRODUCTS(1, HALVES, first);
      }
    }
  }
}

static void dot(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels, int vectors,
                const int8_t *codes, const int32_t *start, int32_t *sums) {
  dot_pixels(d, in, pixel, pixels, vectors, NULL, codes, start, sums);
}

#define QSD_OWN_LISTS
static void dot_listed(const qsd_dot *d, const uint8_t *in, size_t pixel, int vectors,
                       const qsd_common *common, size_t list, const int8_t *codes, int32_t *sums) {
  const chosen_groups chosen = {common, list};
  dot_pixels(d, in, pixel, d->vectors == 4 ? TILE / 2 : TILE, vectors, &chosen, codes, NULL, sums);
}

static int64_t find_active(const uint8_t *values, size_t bytes, uint64_t *mask) {
  int64_t active = 0;
  for (size_t at = 0; at < bytes; at += 256) {
    uint64_t word = 0;
    for (size_t i = 0; i < 256 && at + i < bytes; i += 4) {
      uint32_t value;
      memcpy(&value, values + at + i, sizeof value);
      word |= (uint64_t)(value != 0) << (i / 4);
    }
    mask[at / 256] = word;
    active += __builtin_popcountll(word);
  }
  return active;
}

/* The numbers of the bits of a word, each + first; how many. */
INLINE uint32_t list_word(uint64_t word, int first, uint16_t *list) {
  uint32_t count = 0;
  for (; word; word &= word - 1) list[count++] = (uint16_t)(first + __builtin_ctzll(word));
  return count;
}
