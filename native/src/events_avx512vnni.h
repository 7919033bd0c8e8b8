/* Products of active groups of 4 channels alone. Included by kernels.c. */

/* Runs of neighbouring groups in a part of a window. */
enum { PART_SEGMENTS = 16 };

static int64_t find_active(const uint8_t *values, size_t bytes, uint64_t *mask) {
  int64_t active = 0;
  for (size_t at = 0; at < bytes; at += 256) {
    uint64_t word = 0;
    for (size_t i = 0; i < 4 && at + 64 * i < bytes; i++) {
      size_t left = (bytes - at - 64 * i) / 4;
      __mmask16 there = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
      __m512i x = _mm512_maskz_loadu_epi32(there, values + at + 64 * i);
      word |= (uint64_t)_mm512_test_epi32_mask(x, x) << (16 * i);
    }
    mask[at / 256] = word;
    active += __builtin_popcountll(word);
  }
  return active;
}

/* The numbers of the bits of a word, each + first; how many. */
INLINE uint32_t list_word(uint64_t word, int first, uint16_t *list) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  uint32_t count = 0;
  for (int i = 0; i < 64 && word >> i; i += 16) {
    __mmask16 bits = (__mmask16)(word >> i);
    __m512i found = _mm512_add_epi32(lanes, _mm512_set1_epi32(first + i));
    found = _mm512_maskz_compress_epi32(bits, found);
    _mm256_storeu_si256((__m256i *)(list + count), _mm512_cvtepi32_epi16(found));
    count += (uint32_t)_mm_popcnt_u32(bits);
  }
  return count;
}

static uint32_t list_active(const uint64_t *mask, size_t words, uint32_t before, uint32_t *ranks,
                            uint16_t *list) {
  for (size_t at = 0; at < words; at++) {
    ranks[at] = before;
    before += list_word(mask[at], (int)at * 64, list + before);
  }
  return before;
}

/* Neighbouring groups of a window: where their words, bytes and codes begin for the first pixel. */
typedef struct {
  const uint64_t *mask;
  const uint32_t *ranks;
  const uint8_t *x;    /* less what the first group's number counts */
  const int8_t *codes; /* likewise */
  size_t bit, groups;
} segment;

/* Where in the list the groups from `bit` on begin. */
INLINE size_t rank_at(const segment *s, size_t bit) {
  size_t word = bit / 64;
  return s->ranks[word] + (size_t)_mm_popcnt_u64(s->mask[word] & (((uint64_t)1 << (bit % 64)) - 1));
}

/* A pixel's sums of a part. `groups` and `at` are the pixel's distance from the first, in groups. */
INLINE void event_pixel(const uint16_t *list, const segment *segments, int count, size_t at,
                        size_t block, const int vectors, const int each, const bool first,
                        int32_t *sums) {
  static const uint8_t NONE[4];
  const int sets = vectors >= 4 ? 2 : 4;
  uint32_t from[PART_SEGMENTS], to[PART_SEGMENTS], any = 0;
  for (int i = 0; i < count; i++) {
    size_t bit = segments[i].bit + at;
    from[i] = (uint32_t)rank_at(&segments[i], bit);
    to[i] = (uint32_t)rank_at(&segments[i], bit + segments[i].groups);
    any |= to[i] - from[i];
  }
  if (!any && !first) return;
  __m512i acc[4][8];
#pragma GCC unroll 8
  for (int v = 0; v < vectors; v++) {
    acc[0][v] = first ? _mm512_setzero_si512() : _mm512_loadu_si512(sums + LANES * v);
#pragma GCC unroll 3
    for (int s = 1; s < sets; s++) acc[s][v] = _mm512_setzero_si512();
  }
  for (int i = 0; i < count; i++) {
    const uint8_t *x = segments[i].x;
    /* Opaque, or the compiler adds them up anew for every product. */
    const int8_t *codes[4] = {segments[i].codes - (at * (size_t)each * 64)};
#pragma GCC unroll 3
    for (int b = 1; b < vectors / each; b++) {
      codes[b] = codes[b - 1] + block;
      __asm__("" : "+r"(codes[b]));
    }
    const uint16_t *next = list + from[i], *end = list + to[i];
    for (; next < end; next += sets)
#pragma GCC unroll 4
      for (int s = 0; s < sets; s++) {
        const bool there = s == 0 || next + s < end; /* or the first once more, times 0 */
        size_t group = next[there ? s : 0];
        __m512i value = four(there ? x + 4 * group : NONE);
        size_t offset = group * (size_t)each * 64;
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
          acc[s][v] = _mm512_dpbusd_epi32(
              acc[s][v], value, _mm512_loadu_si512(codes[v / each] + offset + 64 * (v % each)));
      }
  }
#pragma GCC unroll 8
  for (int v = 0; v < vectors; v++) {
#pragma GCC unroll 3
    for (int s = 1; s < sets; s++) acc[0][v] = _mm512_add_epi32(acc[0][v], acc[s][v]);
    _mm512_storeu_si512(sums + LANES * v, acc[0][v]);
  }
}

/* The next segments of the window, from group `*from` of position `*at` on. */
INLINE int next_part(const qsd_events *e, const int each, int most, int *at, int *from,
                     segment segments[PART_SEGMENTS]) {
  const qsd_dot *d = e->dot;
  int count = 0, part = 0;
  while (*at < d->positions && count < PART_SEGMENTS) {
    int groups = (int)qsd_min(d->groups - *from, most);
    if (count && part + groups > most) break;
    size_t bit = e->bit + e->bits_at[*at] + (size_t)*from;
    size_t words = (size_t)e->rows_at[*at] * e->mask_row;
    segments[count++] = (segment){
        .mask = e->mask + words,
        .ranks = e->ranks + words,
        .x = e->row + (size_t)e->rows_at[*at] * e->row_bytes,
        .codes = e->codes + ((size_t)(*at * d->groups + *from) - bit) * (size_t)each * 64,
        .bit = bit,
        .groups = (size_t)groups};
    part += groups;
    *from += groups;
    if (*from == d->groups) ++*at, *from = 0;
  }
  return count;
}

/* Window by window in parts, of which the codes stay in the nearest cache while all pixels pass;
 * where few groups are active that does not pay, and all is one part (0). */
INLINE void event_pixels(const qsd_events *e, const int vectors, const int each) {
  const qsd_dot *d = e->dot;
  const int most = e->part ? e->part * 8 / vectors : INT32_MAX;
  const size_t pixel = e->in_pixel / 4;
  int at = 0, from = 0; /* position, group */
  for (bool first = true; at < d->positions; first = false) {
    segment segments[PART_SEGMENTS];
    int count = next_part(e, each, most, &at, &from, segments);
    int32_t *sums = e->sums;
    for (int r = 0; r < e->rows; r++) {
      for (int p = 0; p < e->pixels; p++, sums += vectors * LANES)
        if (first)
          event_pixel(e->list, segments, count, (size_t)p * pixel, d->block_codes, vectors, each,
                      true, sums);
        else
          event_pixel(e->list, segments, count, (size_t)p * pixel, d->block_codes, vectors, each,
                      false, sums);
      for (int i = 0; i < count; i++) {
        segments[i].mask += e->mask_step;
        segments[i].ranks += e->mask_step;
        segments[i].x += e->in_row;
      }
    }
  }
}

#define EVENTS_OF(vectors, each) \
  static void events##vectors##by##each(const qsd_events *e) { event_pixels(e, vectors, each); }
EVENTS_OF(8, 2) EVENTS_OF(8, 4) EVENTS_OF(4, 2) EVENTS_OF(4, 4) EVENTS_OF(2, 2) EVENTS_OF(1, 1)

static void events(const qsd_events *e) {
  int each = e->dot->vectors;
  if (e->vectors == 8) (each == 4 ? events8by4 : events8by2)(e);
  else if (e->vectors == 4) (each == 4 ? events4by4 : events4by2)(e);
  else if (e->vectors == 2) events2by2(e);
  else events1by1(e);
}
