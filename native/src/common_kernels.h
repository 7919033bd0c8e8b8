/* Groups that the pixels of a tile have in common. Included by kernels.c. */

/* Of 64 bits from any place on. */
INLINE uint64_t bits_from(const uint64_t *mask, size_t bit) {
  size_t word = bit / 64, shift = bit % 64;
  return mask[word] >> shift | (mask[word + 1] << 1) << (63 - shift);
}

static size_t list_common(const qsd_events *e, size_t pitch, uint16_t *lists, uint16_t *counts) {
  const size_t pixel = e->in_pixel / 4;
  const int groups = e->dot->groups;
  size_t all = 0;
  for (int at = 0; at < e->dot->positions; at++, lists += pitch) {
    const uint64_t *mask = e->mask + (size_t)e->rows_at[at] * e->mask_row;
    size_t bit = e->bit + e->bits_at[at];
    uint32_t count = 0;
    for (int from = 0; from < groups; from += 64, bit += 64) {
      uint64_t word = 0;
      for (size_t p = 0; p < (size_t)e->pixels; p++) word |= bits_from(mask, bit + p * pixel);
      if (groups - from < 64) word &= ((uint64_t)1 << (groups - from)) - 1;
      count += list_word(word, from, lists + count);
    }
    counts[at] = (uint16_t)count;
    all += count;
  }
  return all;
}
