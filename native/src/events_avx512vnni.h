/* Products of active groups of 4 channels alone. Included by kernels.c. */

/* A part of a window: as many groups of 8 vectors, neighbouring ones together. */
enum { PART_GROUPS = 80, PART_SEGMENTS = 12 };

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

/* `count` bits from `at` on, at most 64. */
INLINE uint64_t bits_at(const uint64_t *mask, int at, int count) {
  uint64_t low = mask[at / 64] >> (at % 64), high = mask[at / 64 + 1] << 1 << (63 - at % 64);
  uint64_t bits = low | high;
  return count < 64 ? bits & (((uint64_t)1 << count) - 1) : bits;
}

/* The next active group: its bytes and its codes; zeros where there is none left. */
INLINE __m512i next_group(uint64_t *left, const uint8_t *x, const int8_t **codes, size_t group) {
  static const uint8_t NONE[4];
  uint64_t bits = *left;
  size_t at = bits ? (size_t)__builtin_ctzll(bits) : 0;
  *codes += at * group;
  *left = bits & (bits - 1);
  return four(bits ? x + 4 * at : NONE);
}

/* Adds the products of the groups in `bits` to sums of `vectors` vectors, `each` in a block. */
INLINE void add_groups(uint64_t bits, const uint8_t *x, const int8_t *codes, size_t block,
                       const int vectors, const int each, const int sets, __m512i acc[4][8]) {
  while (bits) {
#pragma GCC unroll 4
    for (int s = 0; s < sets; s++) {
      const int8_t *code = codes;
      __m512i value = next_group(&bits, x, &code, (size_t)each * 64);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++)
        acc[s][v] = _mm512_dpbusd_epi32(
            acc[s][v], value, _mm512_loadu_si512(code + (size_t)(v / each) * block + 64 * (v % each)));
    }
  }
}

/* Neighbouring groups of a window: where their bits, bytes and codes begin for the first pixel. */
typedef struct {
  const uint64_t *mask;
  const uint8_t *x;
  const int8_t *codes;
  int bit, groups;
} segment;

/* A pixel's sums of a part; `at` is the pixel's distance from the first in bytes. */
INLINE void event_pixel(const segment *segments, int count, size_t at, size_t block,
                        const int vectors, const int each, int32_t *sums) {
  const int sets = vectors >= 4 ? 2 : 4;
  uint64_t bits[PART_SEGMENTS], any = 0;
  for (int i = 0; i < count; i++)
    any |= bits[i] = bits_at(segments[i].mask, segments[i].bit + (int)(at / 4), segments[i].groups);
  if (!any) return;
  __m512i acc[4][8];
#pragma GCC unroll 8
  for (int v = 0; v < vectors; v++) {
    acc[0][v] = _mm512_loadu_si512(sums + LANES * v);
#pragma GCC unroll 3
    for (int s = 1; s < sets; s++) acc[s][v] = _mm512_setzero_si512();
  }
  for (int i = 0; i < count; i++)
    add_groups(bits[i], segments[i].x + at, segments[i].codes, block, vectors, each, sets, acc);
#pragma GCC unroll 8
  for (int v = 0; v < vectors; v++) {
#pragma GCC unroll 3
    for (int s = 1; s < sets; s++) acc[0][v] = _mm512_add_epi32(acc[0][v], acc[s][v]);
    _mm512_storeu_si512(sums + LANES * v, acc[0][v]);
  }
}

/* All segments, in parts of which the codes stay in the nearest cache while all pixels pass. */
INLINE void event_pixels(const qsd_events *e, const int vectors, const int each) {
  const qsd_dot *d = e->dot;
  const int most = PART_GROUPS * 8 / vectors;
  int at = 0, from = 0; /* position, group */
  while (at < d->positions) {
    segment segments[PART_SEGMENTS];
    int count = 0, part = 0;
    while (at < d->positions && count < PART_SEGMENTS) {
      int groups = (int)qsd_min(d->groups - from, 64);
      if (count && part + groups > most) break;
      size_t offset = d->offsets[at];
      segments[count++] = (segment){
          .mask = e->mask + (int)(offset / e->row_bytes) * e->mask_row,
          .x = e->in + offset + 4 * from,
          .codes = e->codes + (size_t)(at * d->groups + from) * (size_t)each * 64,
          .bit = e->bit + (int)(offset % e->row_bytes / 4) + from,
          .groups = groups};
      part += groups;
      from += groups;
      if (from == d->groups) at++, from = 0;
    }
    int32_t *sums = e->sums;
    for (int r = 0; r < e->rows; r++) {
      for (int p = 0; p < e->pixels; p++, sums += vectors * LANES)
        event_pixel(segments, count, (size_t)p * e->in_pixel, d->block_codes, vectors, each, sums);
      for (int i = 0; i < count; i++) {
        segments[i].mask += e->mask_step;
        segments[i].x += e->in_row;
      }
    }
  }
}

/* How many groups are active before bit `bit` of a row of the mask. */
INLINE size_t rank_at(const qsd_events *e, size_t row, size_t bit) {
  size_t word = row + bit / 64;
  uint64_t before = e->mask[word] & (((uint64_t)1 << (bit % 64)) - 1);
  return e->ranks[word] + (size_t)__builtin_popcountll(before);
}

INLINE void add_listed(const uint16_t *list, const uint8_t *x, const int8_t *codes, size_t block,
                       const int vectors, const int each, __m512i *acc) {
  const int8_t *code = codes + (size_t)*list * (size_t)each * 64;
  __m512i value = four(x + 4 * (size_t)*list);
#pragma GCC unroll 8
  for (int v = 0; v < vectors; v++)
    acc[v] = _mm512_dpbusd_epi32(
        acc[v], value, _mm512_loadu_si512(code + (size_t)(v / each) * block + 64 * (v % each)));
}

/* A pixel by the lists of its rows: sums stay in registers, codes come from wherever they are. */
INLINE void list_pixel(const qsd_events *e, int row, int pixel, const int vectors, const int each,
                       int32_t *sums) {
  const qsd_dot *d = e->dot;
  const int sets = vectors >= 4 ? 2 : 4;
  __m512i acc[4][8];
#pragma GCC unroll 4
  for (int s = 0; s < sets; s++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) acc[s][v] = _mm512_setzero_si512();
  for (int at = 0; at < d->positions; at++) {
    size_t mask = (size_t)row * (size_t)e->mask_step + e->rows_at[at] * (size_t)e->mask_row;
    size_t bit = (size_t)e->bit + e->bits_at[at] + (size_t)pixel * (e->in_pixel / 4);
    size_t from = rank_at(e, mask, bit), to = rank_at(e, mask, bit + (size_t)d->groups);
    const uint8_t *x = e->in + (size_t)row * e->in_row + (size_t)pixel * e->in_pixel + d->offsets[at] - 4 * bit;
    const int8_t *codes = e->codes + ((size_t)(at * d->groups) - bit) * (size_t)each * 64;
    for (; from + (size_t)sets <= to; from += (size_t)sets)
#pragma GCC unroll 4
      for (int s = 0; s < sets; s++)
        add_listed(e->list + from + s, x, codes, d->block_codes, vectors, each, acc[s]);
    for (; from < to; from++)
      add_listed(e->list + from, x, codes, d->block_codes, vectors, each, acc[0]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < vectors; v++) {
#pragma GCC unroll 3
    for (int s = 1; s < sets; s++) acc[0][v] = _mm512_add_epi32(acc[0][v], acc[s][v]);
    _mm512_storeu_si512(sums + LANES * v, acc[0][v]);
  }
}

INLINE void list_pixels(const qsd_events *e, const int vectors, const int each) {
  int32_t *sums = e->sums;
  for (int r = 0; r < e->rows; r++)
    for (int p = 0; p < e->pixels; p++, sums += vectors * LANES)
      list_pixel(e, r, p, vectors, each, sums);
}

#define EVENTS_OF(vectors, each) \
  static void events##vectors##by##each(const qsd_events *e) { \
    if (e->list) list_pixels(e, vectors, each); \
    else event_pixels(e, vectors, each); \
  }
EVENTS_OF(8, 2) EVENTS_OF(8, 4) EVENTS_OF(4, 2) EVENTS_OF(4, 4) EVENTS_OF(2, 2) EVENTS_OF(1, 1)

static void events(const qsd_events *e) {
  int each = e->dot->vectors;
  if (e->vectors == 8) (each == 4 ? events8by4 : events8by2)(e);
  else if (e->vectors == 4) (each == 4 ? events4by4 : events4by2)(e);
  else if (e->vectors == 2) events2by2(e);
  else events1by1(e);
}
