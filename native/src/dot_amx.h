/* Products of up to 64 bytes at a time in tiles of 16 pixels by 16 channels. Included by kernels.c
 * of 512 bits, whose kernels do all the rest, and products where tiles do not pay. */

#define WITH_TILES __attribute__((target("amx-tile,amx-int8")))

/* Numbers 0 to 3 hold sums (of two times 16 pixels by two vectors), 4 and 5 bytes, 6 and 7 codes. */
WITH_TILES static void configure(int pixels, int groups) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } c = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    c.rows[i] = (uint8_t)(i < 6 ? pixels : groups);
    c.bytes[i] = (uint16_t)(i == 4 || i == 5 ? 4 * groups : 64);
  }
  __asm__ volatile("" ::: "memory"); /* what tiles read has been written */
  _tile_loadconfig(&c);
}

/* Sums of one or two tiles of pixels, of which the second begins `second` bytes after the first. */
WITH_TILES INLINE void tiles_of(const qsd_dot *d, const uint8_t *in, size_t pixel, size_t second,
                                const int tiles, const int vectors, const int8_t *codes,
                                const int32_t *start, int32_t *sums, int32_t *second_sums,
                                size_t sums_pixel) {
  const size_t stored = (size_t)d->vectors * LANES * 4, out = 4 * sums_pixel;
  const int each = d->tile_groups;
  if (start) { /* the same for every pixel */
    _tile_loadd(0, start, 0);
    if (vectors > 1) _tile_loadd(1, start + LANES, 0);
    if (tiles > 1) _tile_loadd(2, start, 0);
    if (tiles > 1 && vectors > 1) _tile_loadd(3, start + LANES, 0);
  } else {
    _tile_zero(0);
    if (vectors > 1) _tile_zero(1);
    if (tiles > 1) _tile_zero(2);
    if (tiles > 1 && vectors > 1) _tile_zero(3);
  }
  for (int at = 0; at < d->positions; at++) {
    const uint8_t *x = in + d->offsets[at];
    for (int g = 0; g < d->groups; g += each, x += 4 * each, codes += (size_t)each * stored) {
      _tile_loadd(4, x, pixel);
      _tile_loadd(6, codes, stored);
      _tile_dpbusd(0, 4, 6);
      if (vectors > 1) {
        _tile_loadd(7, codes + 64, stored);
        _tile_dpbusd(1, 4, 7);
      }
      if (tiles > 1) {
        _tile_loadd(5, x + second, pixel);
        _tile_dpbusd(2, 5, 6);
        if (vectors > 1) _tile_dpbusd(3, 5, 7);
      }
    }
  }
  _tile_stored(0, sums, out);
  if (vectors > 1) _tile_stored(1, sums + LANES, out);
  if (tiles > 1) _tile_stored(2, second_sums, out);
  if (tiles > 1 && vectors > 1) _tile_stored(3, second_sums + LANES, out);
}

/* How a row of pixels is cut into tiles: all of one size, so that neighbours may overlap. */
typedef struct {
  int count, pixels, last;
} cut;

INLINE cut cut_row(int pixels) {
  const int each = qsd_tile_rows(pixels);
  return (cut){(pixels + each - 1) / each, each, pixels - each};
}

INLINE int tile_start(const cut *c, int i) { return (int)qsd_min(i * c->pixels, c->last); }

/* Tile i and, where there is one and `most`, 1 or 2, allows, i + 1; how many pixels these are. */
WITH_TILES INLINE int run_tiles(const qsd_dot *d, const uint8_t *in, size_t pixel, const cut *c,
                                int i, int most, int vectors, const int8_t *codes,
                                const int32_t *start, int32_t *sums) {
  const int first = tile_start(c, i), tiles = (int)qsd_min(most, c->count - i);
  const int second = tiles > 1 ? tile_start(c, i + 1) - first : 0;
  const uint8_t *from = in + (size_t)first * pixel;
  const size_t wide = (size_t)vectors * LANES;
  for (int v = 0; v < vectors; v += 2) {
    const int8_t *code = codes + 64 * v;
    const int32_t *add = start ? start + LANES * v : NULL;
    int32_t *to = sums + LANES * v, *next = to + (size_t)second * wide;
    if (tiles > 1 && vectors > 1)
      tiles_of(d, from, pixel, (size_t)second * pixel, 2, 2, code, add, to, next, wide);
    else if (tiles > 1)
      tiles_of(d, from, pixel, (size_t)second * pixel, 2, 1, code, add, to, next, wide);
    else if (vectors > 1) tiles_of(d, from, pixel, 0, 1, 2, code, add, to, to, wide);
    else tiles_of(d, from, pixel, 0, 1, 1, code, add, to, to, wide);
  }
  return second + c->pixels;
}

/* Sums of byte planes, one after the other, as one. */
INLINE void join_planes(int32_t *sums, int planes, size_t count) {
  for (size_t i = 0; i < count; i += LANES) {
    __m512i x = _mm512_loadu_si512(sums + i);
    for (int plane = 1; plane < planes; plane++)
      x = _mm512_add_epi32(x, _mm512_slli_epi32(_mm512_loadu_si512(sums + (size_t)plane * count + i),
                                                (unsigned)(8 * plane)));
    _mm512_storeu_si512(sums + i, x);
  }
}

/* Sums of all pixels of a row, and what becomes of them, two tiles at a time. */
WITH_TILES static void amx_row(qsd_row *r) {
  if (r->step->kind != STEP_DOT || r->common || !qsd_tiles_pay(&r->step->dot, r->tile.pixels)) {
    row(r);
    return;
  }
  qsd_tile *t = &r->tile;
  const qsd_step *step = r->step;
  const qsd_dot *d = &step->dot;
  const cut c = cut_row(t->pixels);
  const int vectors = qsd_made_vectors(t->vectors), most = vectors * d->planes > 2 ? 1 : 2;
  const size_t wide = (size_t)step->vectors * LANES;
  const int8_t *codes = d->codes + (size_t)r->block * d->block_codes;
  const int32_t *start = d->start ? d->start + (size_t)r->block * wide : NULL;
  t->sums = r->scratch;
  t->sums_pixel = (size_t)vectors * LANES;
  t->sums_step = (size_t)8 * TILE * LANES; /* at least `most` tiles of all vectors and planes */
  configure(c.pixels, d->tile_groups);
  for (int i = 0, at = 0; i < c.count; i += most) {
    const int before = at;
    at = tile_start(&c, i);
    const size_t on = (size_t)(at - before);
    if (t->residual) t->residual += on * t->residual_pixel;
    if (t->out) t->out += on * t->out_pixel;
    if (t->counts) t->counts += on * t->counts_pixel;
    const uint8_t *in = r->in;
    int32_t *sums = r->scratch;
    for (int s = 0; s < t->steps; s++, in += r->in_step, sums += t->sums_step) {
      t->pixels = run_tiles(d, in, r->in_pixel, &c, i, most, vectors, codes, start, sums);
      const size_t count = (size_t)t->pixels * t->sums_pixel;
      for (int plane = 1; plane < d->planes; plane++)
        run_tiles(d, in + (size_t)plane * d->plane_size, r->in_pixel, &c, i, most, vectors, codes,
                  NULL, sums + (size_t)plane * count);
      if (d->planes > 1) join_planes(sums, d->planes, count);
    }
    finish(step->finish, t);
  }
  _tile_release();
}

WITH_TILES static void amx_dots(const qsd_dot *d, const uint8_t *in, size_t pixel, int pixels,
                                int vectors, const int8_t *codes, const int32_t *start,
                                int32_t *sums) {
  if (!qsd_tiles_pay(d, pixels)) {
    dots(d, in, pixel, pixels, vectors, codes, start, sums);
    return;
  }
  const cut c = cut_row(pixels);
  configure(c.pixels, d->tile_groups);
  for (int i = 0; i < c.count; i += 2)
    run_tiles(d, in, pixel, &c, i, 2, vectors, codes, start,
              sums + (size_t)(tile_start(&c, i) * vectors) * LANES);
  _tile_release();
}
