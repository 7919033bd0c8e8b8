/* Depthwise products of four rows at a time. Included by kernels.c. */

/* 64 channels of four rows, column by column, as [channel][row]. */
static void interleave(const uint8_t *const row[4], size_t pixel, int columns, uint8_t *to) {
  /* Unpacking works within quarters of a vector: each gets 4 of every 16 channels. */
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  size_t at = 0;
  for (int x = 0; x < columns; x++, at += pixel, to += 4 * 64) {
    __m512i r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
      r[i] = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(row[i] + at));
    __m512i a = _mm512_unpacklo_epi8(r[0], r[1]), b = _mm512_unpackhi_epi8(r[0], r[1]);
    __m512i c = _mm512_unpacklo_epi8(r[2], r[3]), d = _mm512_unpackhi_epi8(r[2], r[3]);
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(a, c));
    _mm512_storeu_si512(to + 64, _mm512_unpackhi_epi16(a, c));
    _mm512_storeu_si512(to + 128, _mm512_unpacklo_epi16(b, d));
    _mm512_storeu_si512(to + 192, _mm512_unpackhi_epi16(b, d));
  }
}

/* The same of 16 channels: the first quarter of each column. */
static void interleave_few(const uint8_t *const row[4], size_t pixel, int columns, uint8_t *to) {
  size_t at = 0;
  for (int x = 0; x < columns; x++, at += pixel, to += 4 * 64) {
    __m128i r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) r[i] = _mm_loadu_si128((const __m128i *)(row[i] + at));
    __m128i a = _mm_unpacklo_epi8(r[0], r[1]), b = _mm_unpackhi_epi8(r[0], r[1]);
    __m128i c = _mm_unpacklo_epi8(r[2], r[3]), d = _mm_unpackhi_epi8(r[2], r[3]);
    __m256i low = _mm256_setr_m128i(_mm_unpacklo_epi16(a, c), _mm_unpackhi_epi16(a, c));
    __m256i high = _mm256_setr_m128i(_mm_unpacklo_epi16(b, d), _mm_unpackhi_epi16(b, d));
    _mm256_storeu_si256((__m256i *)to, low);
    _mm256_storeu_si256((__m256i *)(to + 32), high);
  }
}

/* 16 channels of a tile. Every column of four rows serves all pixels whose windows hold it. */
INLINE void quad_tile(const int8_t *codes, size_t code_row, const uint8_t *const quads[2],
                      const int pixels, const int kernel, size_t wide, int32_t *sums) {
  __m512i acc[TILE];
#pragma GCC unroll 14
  for (int p = 0; p < pixels; p++) acc[p] = _mm512_setzero_si512();
#pragma GCC unroll 2
  for (int q = 0; q < (kernel + 3) / 4; q++) {
    __m512i code[7];
#pragma GCC unroll 7
    for (int i = 0; i < kernel; i++, codes += code_row) code[i] = _mm512_loadu_si512(codes);
#pragma GCC unroll 20
    for (int x = 0; x < pixels + kernel - 1; x++) {
      __m512i value = _mm512_loadu_si512(quads[q] + 4 * 64 * x);
#pragma GCC unroll 7
      for (int i = 0; i < kernel; i++)
        if (x - i >= 0 && x - i < pixels) acc[x - i] = _mm512_dpbusd_epi32(acc[x - i], value, code[i]);
    }
  }
#pragma GCC unroll 14
  for (int p = 0; p < pixels; p++) _mm512_storeu_si512(sums + (size_t)p * wide, acc[p]);
}

#define QUADS3(n) case n: quad_tile(codes, row, at, n, 3, wide, to); break;
#define QUADS7(n) case n: quad_tile(codes, row, at, n, 7, wide, to); break;

static void quads_tile(const qsd_depthwise *dw, const uint8_t *const quads[2], int x, int pixels,
                       int vectors, int channel, int32_t *sums) {
  size_t wide = (size_t)vectors * LANES, row = (size_t)dw->channels * 4;
  for (int v = 0; v < vectors; v++) {
    const int8_t *codes = dw->quads + (size_t)(channel + v * LANES) * 4;
    const uint8_t *at[2] = {quads[0] + 4 * 64 * x + 64 * v, quads[1] + 4 * 64 * x + 64 * v};
    int32_t *to = sums + v * LANES;
    if (dw->kernel == 3) switch (pixels) { TILES(QUADS3) WIDE_TILES(QUADS3) }
    else switch (pixels) { TILES(QUADS7) WIDE_TILES(QUADS7) }
  }
}

/* Rows y and y + 4 of a ring of rows, interleaved each with the three that follow it. */
static void find_quads(const qsd_row *r, const uint8_t *in, int pixels, int32_t *ring, bool fresh,
                       const uint8_t *quads[2]) {
  const qsd_depthwise *dw = &r->step->dw;
  int columns = pixels + dw->kernel - 1, last = dw->kernel == 7 ? 4 : 0;
  for (int q = fresh ? 0 : last; q <= last; q++) {
    const uint8_t *row[4];
    for (int i = 0; i < 4; i++) /* rows beyond the last have codes 0 */
      row[i] = in + (size_t)qsd_min(q + i, r->rows - 1) * dw->row + r->tile.channel;
    uint8_t *to = (uint8_t *)ring + (r->y + q) % 5 * QUAD_BYTES;
    if (r->tile.vectors == 1) interleave_few(row, r->in_pixel, columns, to);
    else interleave(row, r->in_pixel, columns, to);
  }
  quads[0] = (uint8_t *)ring + r->y % 5 * QUAD_BYTES;
  quads[1] = (uint8_t *)ring + (r->y + last) % 5 * QUAD_BYTES;
}
