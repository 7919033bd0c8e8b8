#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

struct qsd_block {
  qsd_block *next;
  void *memory;
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

/* Every piece begins at a cache line, for vectors. */
static void *allocated(qsd_pool *pool, uint64_t count, size_t size) {
  if (count && size > (UINT64_MAX - 128) / count) return NULL;
  uint64_t bytes = (count * size + 127) / 64 * 64;
  if (bytes > pool->most || pool->bytes > pool->most - bytes || bytes > SIZE_MAX - 128) return NULL;
  qsd_block *block = malloc(sizeof *block);
  if (!block) return NULL;
  /* Zeroed pages of a large piece are not touched until they are used. */
  block->memory = calloc(1, (size_t)bytes + 64);
  if (!block->memory) {
    free(block);
    return NULL;
  }
  block->next = pool->first;
  pool->first = block;
  pool->bytes += bytes;
  return (void *)(((uintptr_t)block->memory + 63) / 64 * 64);
}

void *qsd_alloc(qsd_pool *pool, uint64_t count, size_t size) {
  void *memory = allocated(pool, count, size);
  if (!memory) pool->exhausted = true;
  return memory;
}

void qsd_release(qsd_pool *pool) {
  while (pool->first) {
    qsd_block *next = pool->first->next;
    free(pool->first->memory);
    free(pool->first);
    pool->first = next;
  }
  pool->bytes = 0;
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
