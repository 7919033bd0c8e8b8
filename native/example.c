/* Classifies an image without Python: qsd_example MODEL.qsd PIXELS, the latter a file of the bytes
 * (C, H, W) that the network takes. Prints the likeliest class and the memory that was needed. */
#include <stdio.h>
#include <stdlib.h>

#include "qsd.h"

static void *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) return NULL;
  *size = (size_t)ftell(file);
  void *data = malloc(*size + 1);
  rewind(file);
  if (data && fread(data, 1, *size, file) != *size) return NULL;
  fclose(file);
  return data;
}

int main(int count, char **arguments) {
  if (count != 3) return fprintf(stderr, "usage: %s MODEL.qsd PIXELS\n", arguments[0]), 2;
  char message[256] = "cannot read the files";
  size_t size, bytes;
  void *data = read_file(arguments[1], &size), *pixels = read_file(arguments[2], &bytes);
  qsd_model *model = NULL;
  qsd_info info = {0};
  int best = 0, status = 2;
  if (data && pixels) status = qsd_load(data, size, NULL, &model, message, sizeof message);
  free(data);
  qsd_describe(model, &info);
  size_t expected = (size_t)info.channels * (size_t)info.height * (size_t)info.width;
  int32_t *logits = calloc((size_t)info.classes + 1, sizeof *logits);
  if (!status && (bytes != expected || !info.classes || !logits))
    status = snprintf(message, sizeof message, "give %zu bytes of pixels to a classifier", expected);
  if (!status) status = qsd_run(model, pixels, 1, 0, logits, NULL, NULL, message, sizeof message);
  for (int i = 1; !status && i < info.classes; i++)
    if (logits[i] > logits[best]) best = i;
  if (status) fprintf(stderr, "%s\n", message);
  else printf("%s %d\nweights %llu, values %llu bytes, %s\n", qsd_class_name(model, best),
              (int)logits[best], (unsigned long long)info.weight_bytes,
              (unsigned long long)info.scratch_bytes, info.isa);
  qsd_free(model);
  free(logits);
  free(pixels);
  return status ? 2 : 0;
}
