/* Spikes of sums, many at a time. Included by kernels.c. */

/* Thresholds on sums saturated to 16 bits: 64 of them at a time, two vectors each of two pixels, or
 * one vector of four. */
INLINE __m512i centred(const int32_t *sums, const int32_t *centre, const int32_t *flip) {
  __m512i x = _mm512_loadu_si512(sums);
  if (flip) x = _mm512_xor_si512(x, _mm512_loadu_si512(flip));
  if (centre) x = _mm512_sub_epi32(x, _mm512_loadu_si512(centre));
  return x;
}

enum { MOST_WORDS = 8 };

INLINE __m512i found_words(__m512i x, const __m512i *threshold, const int levels) {
  const __m512i one = _mm512_set1_epi16(1);
  __m512i found = _mm512_maskz_mov_epi16(_mm512_cmpge_epi16_mask(x, threshold[0]), one);
#pragma GCC unroll 8
  for (int k = 1; k < levels; k++)
    found = _mm512_mask_add_epi16(found, _mm512_cmpge_epi16_mask(x, threshold[k]), found, one);
  return found;
}

/* Bytes of two vectors of words, in order. */
INLINE __m512i packed_words(__m512i a, __m512i b) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(a, b));
}

/* Vectors `v` and `v + 1`, or `v` alone. */
INLINE void count_lanes(const qsd_finish *f, const qsd_tile *t, int v, const bool both,
                        const bool plain, const int levels) {
  const size_t lane = (size_t)v * LANES, second = both ? LANES : 0;
  const size_t channel = (size_t)t->channel + lane;
  const int32_t *centre[2] = {NULL, NULL}, *flip[2] = {NULL, NULL};
  if (!plain)
    for (int i = 0; i < 2; i++) {
      centre[i] = f->centre + channel + (i ? second : 0);
      if (f->flip) flip[i] = f->flip + channel + (i ? second : 0);
    }
  __m512i threshold[MOST_WORDS];
#pragma GCC unroll 8
  for (int k = 0; k < levels; k++) {
    const int32_t *at = f->thresholds + (size_t)k * (size_t)f->wide + channel;
    threshold[k] = _mm512_packs_epi32(centred(at, centre[0], NULL),
                                      centred(at + second, centre[1], NULL));
  }
  const int32_t *sums = t->sums + lane;
  uint8_t *to = t->counts + lane;
  const size_t next = t->sums_pixel, counts = t->counts_pixel;
  const int each = both ? 2 : 4, pixels = t->pixels;
  int p = 0;
  for (; p + each <= pixels; p += each, sums += (size_t)each * next,
                                to += (size_t)each * counts) {
    const int32_t *other = sums + (both ? next : 2 * next);
    const size_t beside = both ? LANES : next;
    __m512i a = _mm512_packs_epi32(centred(sums, centre[0], flip[0]),
                                   centred(sums + beside, centre[1], flip[1]));
    __m512i b = _mm512_packs_epi32(centred(other, centre[0], flip[0]),
                                   centred(other + beside, centre[1], flip[1]));
    __m512i bytes = packed_words(found_words(a, threshold, levels), found_words(b, threshold, levels));
    if (both) {
      _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(bytes));
      _mm256_storeu_si256((__m256i *)(to + counts), _mm512_extracti64x4_epi64(bytes, 1));
    } else {
      _mm_storeu_si128((__m128i *)to, _mm512_castsi512_si128(bytes));
      _mm_storeu_si128((__m128i *)(to + counts), _mm512_extracti32x4_epi32(bytes, 1));
      _mm_storeu_si128((__m128i *)(to + 2 * counts), _mm512_extracti32x4_epi32(bytes, 2));
      _mm_storeu_si128((__m128i *)(to + 3 * counts), _mm512_extracti32x4_epi32(bytes, 3));
    }
  }
  for (; p < pixels; p++, sums += next, to += counts) {
    __m512i a = _mm512_packs_epi32(centred(sums, centre[0], flip[0]),
                                   centred(sums + second, centre[1], flip[1]));
    __m512i found = found_words(a, threshold, levels), bytes = packed_words(found, found);
    if (both) _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(bytes));
    else _mm_storeu_si128((__m128i *)to, _mm512_castsi512_si128(bytes));
  }
}

#define COUNTS(levels_) \
  case levels_: \
    if (f->centred || f->flip) { \
      for (; v + 1 < t->vectors; v += 2) count_lanes(f, t, v, true, false, levels_); \
      if (v < t->vectors) count_lanes(f, t, v, false, false, levels_); \
    } else { \
      for (; v + 1 < t->vectors; v += 2) count_lanes(f, t, v, true, true, levels_); \
      if (v < t->vectors) count_lanes(f, t, v, false, true, levels_); \
    } \
    return true;

static bool count_words(const qsd_finish *f, const qsd_tile *t) {
  int v = 0;
  switch (f->levels) { COUNTS(1) COUNTS(2) COUNTS(3) COUNTS(4) COUNTS(6) COUNTS(8) }
  return false;
}
