/* Reads files from standard input, each after its size (8 bytes, little-endian), and writes the
 * status of each, one byte. What can be read is run on grey pixels. Built with sanitizers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qsd.h"

enum { MOST = 256 << 20, LARGEST_RUN = 1 << 22 };

static void run(qsd_model *model) {
  char message[256];
  qsd_info info;
  qsd_describe(model, &info);
  size_t pixels = (size_t)info.channels * (size_t)info.height * (size_t)info.width *
                  (size_t)info.time_steps;
  if (info.scratch_bytes > LARGEST_RUN || pixels > LARGEST_RUN) return;
  uint8_t *image = malloc(pixels);
  int32_t *logits = malloc(((size_t)info.classes + 1) * sizeof *logits);
  if (image && logits) {
    memset(image, 128, pixels);
    qsd_reset_statistics(model);
    qsd_run(model, image, 1, info.takes_frames, logits, NULL, NULL, message, sizeof message);
  }
  free(image);
  free(logits);
}

int main(void) {
  uint8_t length[8];
  while (fread(length, 1, sizeof length, stdin) == sizeof length) {
    size_t size = 0;
    for (int i = 0; i < 8; i++) size |= (size_t)length[i] << (8 * i);
    uint8_t *data = malloc(size + !size);
    if (!data || fread(data, 1, size, stdin) != size) return 1;
    char message[256];
    qsd_model *model;
    qsd_options options = {.threads = 1, .max_memory = MOST};
    int status = qsd_load(data, size, &options, &model, message, sizeof message);
    free(data);
    if (!status) run(model);
    qsd_free(model);
    putchar('0' + status);
  }
  return 0;
}
