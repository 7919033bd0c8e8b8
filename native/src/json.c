/* A JSON parser for files that nobody vouches for: bounded in depth, no recursion beyond it. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { MAX_DEPTH = 64, MAX_DIGITS = 4300 };

typedef struct {
  qsd_pool *pool;
  const char *at, *end;
  qsd_json *nodes;
  uint32_t used, room;
  char *strings; /* decoded strings are never longer than the text */
  const char *wrong;
} parser;

static uint32_t fail(parser *p, const char *what) {
  if (!p->wrong) p->wrong = what;
  return 0;
}

static void skip(parser *p) {
  while (p->at < p->end && (*p->at == ' ' || *p->at == '\n' || *p->at == '\r' || *p->at == '\t'))
    p->at++;
}

static int hex4(parser *p) {
  if (p->end - p->at < 4) return -1;
  int value = 0;
  for (int i = 0; i < 4; i++) {
    char c = *p->at++;
    int digit = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
    if (digit < 0) return -1;
    value = 16 * value + digit;
  }
  return value;
}

static char *utf8(char *out, unsigned code) {
  if (code < 0x80) {
    *out++ = (char)code;
  } else if (code < 0x800) {
    *out++ = (char)(0xc0 | code >> 6);
    *out++ = (char)(0x80 | (code & 63));
  } else if (code < 0x10000) {
    *out++ = (char)(0xe0 | code >> 12);
    *out++ = (char)(0x80 | (code >> 6 & 63));
    *out++ = (char)(0x80 | (code & 63));
  } else {
    *out++ = (char)(0xf0 | code >> 18);
    *out++ = (char)(0x80 | (code >> 12 & 63));
    *out++ = (char)(0x80 | (code >> 6 & 63));
    *out++ = (char)(0x80 | (code & 63));
  }
  return out;
}

/* After a backslash: one character, or two halves of one. */
static char *escape(parser *p, char *out) {
  static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
  if (p->at == p->end) return NULL;
  char c = *p->at++;
  const char *found = c ? strchr(from, c) : NULL;
  if (found) {
    *out++ = to[found - from];
    return out;
  }
  int code = c == 'u' ? hex4(p) : -1;
  if (code < 0) return NULL;
  if (code >= 0xd800 && code < 0xdc00 && p->end - p->at >= 6 && p->at[0] == '\\' && p->at[1] == 'u') {
    const char *before = p->at;
    p->at += 2;
    int low = hex4(p);
    if (low >= 0xdc00 && low < 0xe000) return utf8(out, 0x10000u + (((unsigned)code & 0x3ff) << 10) + ((unsigned)low & 0x3ff));
    p->at = before;
  }
  return utf8(out, (unsigned)code);
}

static bool string(parser *p, qsd_text *text) {
  char *start = p->strings, *out = start;
  p->at++; /* the quote */
  while (p->at < p->end && *p->at != '"') {
    unsigned char c = (unsigned char)*p->at++;
    if (c < 0x20) return fail(p, "a control character in a string");
    if (c != '\\') {
      *out++ = (char)c;
      continue;
    }
    out = escape(p, out);
    if (!out) return fail(p, "a wrong escape in a string");
  }
  if (p->at == p->end) return fail(p, "a string without end");
  p->at++;
  *text = (qsd_text){start, (size_t)(out - start)};
  *out++ = 0;
  p->strings = out;
  return true;
}

static bool is_digit(const parser *p) { return p->at < p->end && *p->at >= '0' && *p->at <= '9'; }

/* Exact enough to tell zero and infinity from the rest, which is all that is asked of them. */
static double real_of(double mantissa, int64_t exponent) {
  if (mantissa == 0) return 0;
  exponent = qsd_max(-20000, qsd_min(20000, exponent));
  for (; exponent > 0 && mantissa < 1e308 * 10; exponent--) mantissa *= 10;
  for (; exponent < 0 && mantissa > 0; exponent++) mantissa /= 10;
  return mantissa;
}

static bool number(parser *p, qsd_json *node) {
  bool negative = *p->at == '-', real = false;
  p->at += negative;
  if (!is_digit(p)) return fail(p, "no value where one should be");
  const char *first = p->at;
  uint64_t whole = 0;
  double mantissa = 0;
  int64_t exponent = 0, shown = 0;
  if (*p->at == '0') p->at++;
  else
    for (; is_digit(p); p->at++) {
      uint64_t digit = (uint64_t)(*p->at - '0');
      whole = whole > (UINT64_MAX - 9) / 10 ? UINT64_MAX - 9 : 10 * whole + digit;
      if (mantissa < 1e300) mantissa = 10 * mantissa + (double)digit;
      else exponent++;
    }
  int64_t digits = p->at - first;
  if (p->end - p->at >= 2 && p->at[0] == '.' && p->at[1] >= '0' && p->at[1] <= '9') {
    real = true;
    for (p->at++; is_digit(p); p->at++)
      if (mantissa < 1e300) {
        mantissa = 10 * mantissa + (*p->at - '0');
        exponent--;
      }
  }
  if (p->at < p->end && (*p->at == 'e' || *p->at == 'E')) {
    const char *before = p->at++;
    bool down = p->at < p->end && *p->at == '-';
    if (p->at < p->end && (*p->at == '-' || *p->at == '+')) p->at++;
    if (is_digit(p)) {
      real = true;
      for (; is_digit(p); p->at++) shown = qsd_min(1000000000, 10 * shown + (*p->at - '0'));
      exponent += down ? -shown : shown;
    } else {
      p->at = before;
    }
  }
  if (!real && digits > MAX_DIGITS) return fail(p, "a number with too many digits");
  node->type = real ? JSON_REAL : JSON_INT;
  node->real = real_of(mantissa, exponent);
  int64_t magnitude = whole > INT64_MAX ? INT64_MAX : (int64_t)whole;
  node->integer = negative ? -magnitude : magnitude;
  if (negative) node->real = -node->real;
  return true;
}

static uint32_t new_node(parser *p) {
  if (p->used == p->room) return fail(p, "too many values");
  return p->used++;
}

static bool word(parser *p, const char *text) {
  size_t size = strlen(text);
  if ((size_t)(p->end - p->at) < size || memcmp(p->at, text, size) != 0) return false;
  p->at += size;
  return true;
}

static uint32_t value(parser *p, int depth);

/* The members of a list or an object; `p->at` is at its bracket. */
static bool members(parser *p, uint32_t self, int depth) {
  bool object = *p->at == '{';
  char close = object ? '}' : ']';
  uint32_t last = 0;
  p->at++;
  skip(p);
  if (p->at < p->end && *p->at == close) {
    p->at++;
    return true;
  }
  for (;;) {
    qsd_text key = {0};
    skip(p);
    if (object) {
      if (p->at == p->end || *p->at != '"') return fail(p, "an object without a name");
      if (!string(p, &key)) return false;
      skip(p);
      if (p->at == p->end || *p->at != ':') return fail(p, "a name without a value");
      p->at++;
      skip(p);
    }
    uint32_t child = value(p, depth + 1);
    if (p->wrong) return false;
    p->nodes[child].key = key;
    if (last) p->nodes[last].next = child;
    else p->nodes[self].child = child;
    last = child;
    p->nodes[self].count++;
    skip(p);
    if (p->at == p->end) return fail(p, "a list or an object without end");
    char c = *p->at++;
    if (c == close) return true;
    if (c != ',') return fail(p, "no comma between values");
  }
}

static uint32_t value(parser *p, int depth) {
  uint32_t self = new_node(p);
  if (p->wrong) return 0;
  qsd_json *node = &p->nodes[self];
  if (depth > MAX_DEPTH) return fail(p, "values nested too deeply");
  skip(p);
  if (p->at == p->end) return fail(p, "no value where one should be");
  char c = *p->at;
  if (c == '{' || c == '[') {
    node->type = c == '{' ? JSON_OBJECT : JSON_LIST;
    members(p, self, depth);
  } else if (c == '"') {
    node->type = JSON_STRING;
    string(p, &node->text);
  } else if (word(p, "null")) {
    node->type = JSON_NULL;
  } else if (word(p, "true")) {
    node->type = JSON_TRUE;
  } else if (word(p, "false")) {
    node->type = JSON_FALSE;
  } else {
    number(p, node);
  }
  return self;
}

static bool valid_utf8(const uint8_t *p, const uint8_t *end) {
  while (p < end) {
    if (*p < 0x80) {
      p++;
      continue;
    }
    int more = *p >= 0xf0 ? 3 : *p >= 0xe0 ? 2 : 1;
    if (*p < 0xc2 || *p > 0xf4 || end - p <= more) return false;
    if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) ||
        (*p == 0xf4 && p[1] > 0x8f))
      return false;
    for (int i = 1; i <= more; i++)
      if ((p[i] & 0xc0) != 0x80) return false;
    p += more + 1;
  }
  return true;
}

bool qsd_is_name(qsd_text text) {
  const uint8_t *first = (const uint8_t *)text.text;
  return !memchr(first, 0, text.size) && valid_utf8(first, first + text.size);
}

const qsd_json *qsd_json_parse(qsd_pool *pool, const char *text, size_t size, qsd_error *error) {
  /* A value takes two characters with what parts it from the next; strings, commas and brackets
   * outside of strings bound the number of values from above. */
  uint64_t room = 2;
  for (size_t i = 0; i < size; i++) room += text[i] == ',' || text[i] == '[' || text[i] == '{';
  parser p = {.pool = pool, .at = text, .end = text + size, .room = (uint32_t)qsd_min((int64_t)room, UINT32_MAX)};
  p.nodes = qsd_alloc(pool, room + 1, sizeof *p.nodes);
  p.strings = qsd_alloc(pool, size + 2, 1);
  if (!p.nodes || !p.strings) {
    qsd_fail(error, QSD_TOO_LARGE, "no memory for a header of %zu bytes", size);
    return NULL;
  }
  if (!valid_utf8((const uint8_t *)text, (const uint8_t *)text + size)) fail(&p, "text that is not UTF-8");
  else value(&p, 0);
  skip(&p);
  if (!p.wrong && p.at != p.end) fail(&p, "something after the end");
  if (!p.wrong) return p.nodes;
  qsd_fail(error, QSD_DAMAGED, "the artifact is damaged: its header has %s", p.wrong);
  return NULL;
}

const qsd_json *qsd_json_get(const qsd_json *nodes, const qsd_json *object, const char *name) {
  const qsd_json *found = NULL;
  if (!object || object->type != JSON_OBJECT) return NULL;
  for (uint32_t i = object->child; i; i = nodes[i].next)
    if (qsd_is(nodes[i].key, name)) found = &nodes[i];
  return found;
}
