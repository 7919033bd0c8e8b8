/* Classifies an image without Python: qsd_example MODEL.qsd PIXELS, the latter a file of the bytes
 * (C, H, W) that the network takes. Prints the likeliest class and the memory that was needed. */
#include <stdio.h>
#include <stdlib.h>

#include "qsd.h"

static unsigned char *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) return NULL;
  *size = (size_t)ftell(file);
  unsigned char *data = malloc(*size + 1);
  rewind(file);
  if (data && fread(data, 1, *size, file) != *size) return NULL;
  fclose(file);
  return data;
}

static int classify(qsd_model *model, const qsd_info *info, const uint8_t *pixels) {
  char message[256];
  int32_t *logits = malloc((size_t)info->classes * sizeof *logits);
  int best = 0, status = logits ? qsd_run(model, pixels, 1, 0, logits, NULL, NULL, message,
                                          sizeof message) : QSD_TOO_LARGE;
  for (int i = 1; !status && i < info->classes; i++)
    if (logits[i] > logits[best]) best = i;
  if (!status) printf("%s %d\n", qsd_class_name(model, best), (int)logits[best]);
  free(logits);
  return status;
}

int main(int count, char **arguments) {
  if (count != 3) return fprintf(stderr, "usage: %s MODEL.qsd PIXELS\n", arguments[0]), 2;
  char message[256] = "cannot read the files";
  size_t size, bytes;
  qsd_model *model = NULL;
  qsd_info info = {0};
  unsigned char *data = read_file(arguments[1], &size), *pixels = read_file(arguments[2], &bytes);
  int status = data && pixels ? qsd_load(data, size, NULL, &model, message, sizeof message) : 2;
  free(data);
  qsd_describe(model, &info);
  size_t expected = (size_t)info.channels * (size_t)info.image_size * (size_t)info.image_size;
  if (!status && (bytes != expected || !info.classes)) {
    snprintf(message, sizeof message, "this network takes %zu bytes of pixels", expected);
    status = 2;
  }
  if (status || classify(model, &info, pixels)) fprintf(stderr, "%s\n", message), status = 2;
  else printf("weights %llu, values %llu bytes, %s\n", (unsigned long long)info.weight_bytes,
              (unsigned long long)info.scratch_bytes, info.isa);
  qsd_free(model);
  free(pixels);
  return status;
}
