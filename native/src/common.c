#define _DEFAULT_SOURCE /* madvise */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "internal.h"

#define LARGE_PAGE ((uintptr_t)2 << 20)
enum { SMALL_PAGE = 4096 };

struct qsd_block {
  qsd_block *next;
  void *memory;
  size_t mapped; /* bytes that the system was asked for; 0: by calloc */
};

int qsd_fail(qsd_error *error, int code, const char *format, ...) {
  if (error->message && error->size) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, error->size, format, arguments);
    va_end(arguments);
  }
  return code;
}

/* Zeroed memory of the system in large pages, of which fewer must be looked up. */
static void *map_memory(size_t bytes, size_t *mapped) {
  *mapped = 0;
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
  const size_t page = (size_t)sysconf(_SC_PAGESIZE); /* 4 to 64 KB: nothing less is given back */
  bytes = (bytes + page - 1) / page * page;
  size_t all = bytes + LARGE_PAGE;
  void *memory = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return NULL;
  char *first = memory, *from = (char *)(((uintptr_t)memory + LARGE_PAGE - 1) & ~(LARGE_PAGE - 1));
  if (from > first) munmap(first, (size_t)(from - first));
  if (from + bytes < first + all) munmap(from + bytes, (size_t)(first + all - from) - bytes);
  madvise(from, bytes, MADV_HUGEPAGE);
  *mapped = bytes;
  return from;
#else
  return calloc(1, bytes);
#endif
}

static void *new_block(qsd_pool *pool, size_t bytes, bool large) {
  qsd_block *block = malloc(sizeof *block);
  if (!block) return NULL;
  block->mapped = 0;
  block->memory = large ? map_memory(bytes, &block->mapped) : calloc(1, bytes);
  if (!block->memory) {
    free(block);
    return NULL;
  }
  block->next = pool->first;
  pool->first = block;
  return block->memory;
}

/* Every piece begins at a cache line, for vectors. Small pieces share blocks once there are many;
 * zeroed pages of a large one are not touched until they are used. */
static void *allocated(qsd_pool *pool, uint64_t count, size_t size) {
  if (count && size > (UINT64_MAX - 128) / count) return NULL;
  uint64_t bytes = (count * size + 127) / 64 * 64;
  if (bytes > pool->most || pool->bytes > pool->most - bytes || bytes > SIZE_MAX - 2 * LARGE_PAGE)
    return NULL;
  if (bytes > pool->left) {
#ifdef __SANITIZE_ADDRESS__
    bool many = false;
#else
    bool many = pool->bytes > LARGE_PAGE / 8;
#endif
    bool large = many && bytes > SMALL_PAGE / 2;
    size_t all = (size_t)bytes + 64;
    if (many && bytes < LARGE_PAGE / 2) all = LARGE_PAGE, large = true;
    else if (large) all = (all + SMALL_PAGE - 1) / SMALL_PAGE * SMALL_PAGE;
    char *memory = new_block(pool, all, large);
    if (!memory) return NULL;
    char *from = (char *)(((uintptr_t)memory + 63) / 64 * 64);
    size_t left = (size_t)(memory + all - from);
    if (left - (size_t)bytes < pool->left) { /* of a piece with a block of its own */
      pool->bytes += bytes;
      return from;
    }
    pool->next = from;
    pool->left = left;
  }
  void *piece = pool->next;
  pool->next += bytes;
  pool->left -= (size_t)bytes;
  pool->bytes += bytes;
  return piece;
}

void *qsd_alloc(qsd_pool *pool, uint64_t count, size_t size) {
  void *memory = allocated(pool, count, size);
  if (!memory) pool->exhausted = true;
  return memory;
}

void qsd_release(qsd_pool *pool) {
  while (pool->first) {
    qsd_block *next = pool->first->next;
#if defined(__linux__)
    if (pool->first->mapped) munmap(pool->first->memory, pool->first->mapped);
    else
#endif
      free(pool->first->memory);
    free(pool->first);
    pool->first = next;
  }
  pool->bytes = 0;
  pool->left = 0;
}

bool qsd_is(qsd_text text, const char *word) {
  return text.text && strlen(word) == text.size && memcmp(text.text, word, text.size) == 0;
}

int64_t qsd_item(const qsd_array *array, uint64_t index) {
  uint64_t bit = index * (uint64_t)array->width, value = 0;
  for (int done = 0; done < array->width;) {
    uint64_t at = bit + (uint64_t)done;
    int from = (int)(at % 8), take = (int)qsd_min(8 - from, array->width - done);
    uint64_t part = ((uint64_t)array->data[at / 8] >> from) & ((1u << take) - 1);
    value |= part << done;
    done += take;
  }
  uint64_t sign = (uint64_t)1 << (array->width - 1);
  return (int64_t)((value ^ sign) - sign);
}

void qsd_unpack8(const qsd_array *array, int8_t *codes) {
  if (array->width == 8) {
    memcpy(codes, array->data, (size_t)array->count);
    return;
  }
  int sign = 1 << (array->width - 1), mask = 2 * sign - 1;
  uint32_t stream = 0;
  int held = 0;
  const uint8_t *next = array->data;
  for (uint64_t i = 0; i < array->count; i++) {
    if (held < array->width) {
      stream |= (uint32_t)*next++ << held;
      held += 8;
    }
    codes[i] = (int8_t)((((int)stream & mask) ^ sign) - sign);
    stream >>= array->width;
    held -= array->width;
  }
}
