/* Attention of one head. Included by kernels.c. */

#ifdef QSD_OWN_ATTENTION
#include "attention_avx512vnni.h"
#endif

/* Attention of one head: kv[i][j] = sum of k * v over tokens, 8 i by 16 j at a time. */
enum { ROWS = 8 };

INLINE void key_values(const qsd_attention *a, int i, const int rows, int j, int wide) {
  ints acc[ROWS];
  for (int r = 0; r < rows; r++) acc[r] = (ints){0};
  for (int y = 0; y < a->height; y++) {
    const uint8_t *k = a->k + (size_t)y * a->k_row + i, *v = a->v + (size_t)y * a->v_row + j;
    for (int x = 0; x < a->width; x++, k += a->k_pixel, v += a->v_pixel) {
      ints value = load_bytes(v);
#pragma GCC unroll 8
      for (int r = 0; r < rows; r++)
        acc[r] = add_small_products(acc[r], value, (ints){0} + (int32_t)k[r]);
    }
  }
  for (int r = 0; r < rows; r++) store_ints(a->kv + (size_t)(i + r) * (size_t)wide + j, acc[r]);
}

/* `rows` pixels of the result from x on: sums over i of q * kv. */
INLINE void queries(const qsd_attention *a, int y, int x, const int rows, int j, int wide) {
  ints acc[ROWS];
  for (int r = 0; r < rows; r++) acc[r] = (ints){0};
  const uint8_t *q = a->q + (size_t)y * a->q_row + (size_t)x * a->q_pixel;
  for (int i = 0; i < a->each; i++, q++) {
    ints kv = load_ints(a->kv + (size_t)i * (size_t)wide + j);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
      ints value = (ints){0} + (int32_t)q[(size_t)r * a->q_pixel];
      if (a->small) acc[r] = add_small_products(acc[r], value, kv);
      else acc[r] += value * kv;
    }
  }
  int lanes = a->wide - j < WIDTH ? a->wide - j : WIDTH;
  for (int r = 0; r < rows; r++)
    memcpy(a->out + (size_t)y * a->out_row + (size_t)(x + r) * a->out_pixel + (size_t)j, &acc[r],
           (size_t)lanes * sizeof(int32_t));
}

static void attention(const qsd_attention *a) {
#ifdef QSD_OWN_ATTENTION
  if (a->small) {
    small_attention(a);
    return;
  }
#endif
  int wide = qsd_round_up(a->wide, LANES);
  for (int j = 0; j < a->wide; j += WIDTH) {
    int i = 0;
    for (; i + ROWS <= a->each; i += ROWS) key_values(a, i, ROWS, j, wide);
    for (; i < a->each; i++) key_values(a, i, 1, j, wide);
    for (int y = 0; y < a->height; y++) {
      int x = 0;
      for (; x + ROWS <= a->width; x += ROWS) queries(a, y, x, ROWS, j, wide);
      for (; x < a->width; x++) queries(a, y, x, 1, j, wide);
    }
  }
}
