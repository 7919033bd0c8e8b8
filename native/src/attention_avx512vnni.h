/* Attention in products of bytes and of 16-bit numbers. Included by kernels.c. */

enum { KEYS = 12 }; /* rows of k^T v, or tokens, at a time */

/* Where the tokens from `first` on lie, at most QSD_TOKENS. */
static void find_tokens(const uint8_t *from, size_t pixel, size_t row, int width, int first,
                        int count, const uint8_t **at) {
  int y = first / width, x = first % width;
  for (int t = 0; t < count; t++) {
    at[t] = from + (size_t)y * row + (size_t)x * pixel;
    if (++x == width) x = 0, y++;
  }
}

/* [chunk of 64 channels][4 tokens][channel][token] */
static void interleave_tokens(const uint8_t *const *token, int count, int channels, uint8_t *to) {
  static const uint8_t ZEROS[64];
  int groups = (count + 3) / 4;
  for (int c = 0; c < channels; c += 64)
    for (int g = 0; g < groups; g++, to += 256) {
      const uint8_t *row[4];
      for (int i = 0; i < 4; i++) row[i] = 4 * g + i < count ? token[4 * g + i] + c : ZEROS;
      interleave(row, 0, 1, to);
    }
}

/* kv[i..][j..] += k * v over groups of 4 tokens. */
INLINE void key_tile(const uint8_t *k, const uint8_t *v, int groups, const int keys,
                     const int vectors, size_t wide, int32_t *kv) {
  __m512i acc[KEYS][2];
#pragma GCC unroll 12
  for (int i = 0; i < keys; i++)
    for (int j = 0; j < vectors; j++)
      acc[i][j] = _mm512_loadu_si512(kv + (size_t)i * wide + LANES * j);
  for (int g = 0; g < groups; g++, k += 256, v += 256)
#pragma GCC unroll 12
    for (int i = 0; i < keys; i++)
      for (int j = 0; j < vectors; j++)
        acc[i][j] = _mm512_dpbusd_epi32(acc[i][j], _mm512_loadu_si512(v + 64 * j), four(k + 4 * i));
#pragma GCC unroll 12
  for (int i = 0; i < keys; i++)
    for (int j = 0; j < vectors; j++)
      _mm512_storeu_si512(kv + (size_t)i * wide + LANES * j, acc[i][j]);
}

static void key_rows(const uint8_t *k, const uint8_t *v, int groups, int keys, int vectors,
                     size_t wide, int32_t *kv) {
  if (keys == 12 && vectors == 2) key_tile(k, v, groups, 12, 2, wide, kv);
  else if (keys == 12) key_tile(k, v, groups, 12, 1, wide, kv);
  else if (keys == 4 && vectors == 2) key_tile(k, v, groups, 4, 2, wide, kv);
  else if (keys == 4) key_tile(k, v, groups, 4, 1, wide, kv);
  else if (vectors == 2) key_tile(k, v, groups, 1, 2, wide, kv);
  else key_tile(k, v, groups, 1, 1, wide, kv);
}

/* `tokens` rows of the result: q as 16-bit numbers [token][pairs][2], kv as [pair][wide][2]. */
INLINE void query_tile(const int16_t *q, const int16_t *kv, int pairs, const int tokens,
                       const int vectors, size_t wide, int32_t *const *out, int lanes) {
  __m512i acc[KEYS][2];
#pragma GCC unroll 12
  for (int t = 0; t < tokens; t++)
    for (int j = 0; j < vectors; j++) acc[t][j] = _mm512_setzero_si512();
  for (int i = 0; i < pairs; i++, kv += 2 * wide)
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
      for (int j = 0; j < vectors; j++)
        acc[t][j] = _mm512_dpwssd_epi32(acc[t][j], _mm512_loadu_si512(kv + 2 * LANES * j),
                                        four((const uint8_t *)(q + (size_t)2 * (size_t)(t * pairs + i))));
#pragma GCC unroll 12
  for (int t = 0; t < tokens; t++)
    for (int j = 0; j < vectors; j++) {
      int rest = lanes - LANES * j;
      __mmask16 mask = rest >= LANES ? 0xffff : (__mmask16)((1u << rest) - 1);
      _mm512_mask_storeu_epi32(out[t] + LANES * j, mask, acc[t][j]);
    }
}

static void query_rows(const int16_t *q, const int16_t *kv, int pairs, int tokens, int vectors,
                       size_t wide, int32_t *const *out, int lanes) {
  if (tokens == 12 && vectors == 2) query_tile(q, kv, pairs, 12, 2, wide, out, lanes);
  else if (tokens == 12) query_tile(q, kv, pairs, 12, 1, wide, out, lanes);
  else if (tokens == 4 && vectors == 2) query_tile(q, kv, pairs, 4, 2, wide, out, lanes);
  else if (tokens == 4) query_tile(q, kv, pairs, 4, 1, wide, out, lanes);
  else if (vectors == 2) query_tile(q, kv, pairs, 1, 2, wide, out, lanes);
  else query_tile(q, kv, pairs, 1, 1, wide, out, lanes);
}

static int at_once(int left) { return left >= KEYS ? KEYS : left >= 4 ? 4 : 1; }

static void small_attention(const qsd_attention *a) {
  const int tokens = a->height * a->width, pairs = (a->each + 1) / 2;
  const size_t wide = (size_t)qsd_round_up(a->wide, LANES);
  int32_t *kv = a->kv;
  int16_t *kv_pairs = (int16_t *)(kv + (size_t)a->each * wide);
  uint8_t *k = (uint8_t *)(kv_pairs + 2 * (size_t)pairs * wide);
  uint8_t *v = k + (size_t)((a->each + 63) / 64) * QSD_TOKENS * 64;
  const uint8_t *at[QSD_TOKENS];
  memset(kv, 0, (size_t)a->each * wide * sizeof *kv);
  for (int first = 0; first < tokens; first += QSD_TOKENS) {
    int count = (int)qsd_min(QSD_TOKENS, tokens - first), groups = (count + 3) / 4;
    find_tokens(a->k, a->k_pixel, a->k_row, a->width, first, count, at);
    interleave_tokens(at, count, a->each, k);
    find_tokens(a->v, a->v_pixel, a->v_row, a->width, first, count, at);
    interleave_tokens(at, count, a->wide, v);
    size_t chunk = (size_t)groups * 256;
    for (int i = 0, keys; i < a->each; i += keys) {
      keys = at_once((int)qsd_min(a->each, (i / 64 + 1) * 64) - i); /* within a chunk */
      for (int j = 0; j < a->wide; j += 2 * LANES)
        key_rows(k + (size_t)(i / 64) * chunk + 4 * (i % 64), v + (size_t)(j / 64) * chunk + 4 * (j % 64),
                 groups, keys, a->wide - j > LANES ? 2 : 1, wide, kv + (size_t)i * wide + j);
    }
  }
  for (int i = 0; i < a->each; i += 2)
    for (size_t j = 0; j < wide; j += LANES) {
      __m512i x = _mm512_loadu_si512(kv + (size_t)i * wide + j), y = _mm512_setzero_si512();
      if (i + 1 < a->each) y = _mm512_loadu_si512(kv + (size_t)(i + 1) * wide + j);
      _mm512_storeu_si512(kv_pairs + (size_t)i * wide + 2 * j,
                          _mm512_mask_blend_epi16(0xaaaaaaaa, x, _mm512_slli_epi32(y, 16)));
    }
  int16_t *q = (int16_t *)k;
  for (int first = 0, count; first < tokens; first += count) {
    count = at_once(tokens - first);
    int32_t *out[KEYS];
    find_tokens(a->q, a->q_pixel, a->q_row, a->width, first, count, at);
    for (int t = 0; t < count; t++) {
      for (int i = 0; i < 2 * pairs; i += 32) /* past the end: overwritten, or times 0 */
        _mm512_storeu_si512(q + 2 * t * pairs + i, _mm512_cvtepu8_epi16(_mm256_loadu_si256(
                                                       (const __m256i *)(at[t] + i))));
      int token = first + t;
      out[t] = a->out + (size_t)(token / a->width) * a->out_row + (size_t)(token % a->width) * a->out_pixel;
    }
    for (int j = 0; j < a->wide; j += 2 * LANES) {
      int32_t *to[KEYS];
      for (int t = 0; t < count; t++) to[t] = out[t] + j;
      query_rows(q, kv_pairs + 2 * j, pairs, count, a->wide - j > LANES ? 2 : 1, wide, to, a->wide - j);
    }
  }
}
