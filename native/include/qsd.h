/* libqsd: runs the integer graph of a `.qsd` file (see docs/artifact.md). Plain C; the only global
 * state is what products cost on this processor, measured once under a lock.
 *
 * A function that can fail returns QSD_OK or another qsd_status and writes one line to `message`
 * (which may be NULL). Nothing is allocated while a network runs. Different models may be used by
 * different threads at once; on one model, calls of qsd_run and of the functions of statistics wait
 * for each other. */
#ifndef QSD_H
#define QSD_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define QSD_API __attribute__((visibility("default")))
#else
#define QSD_API
#endif

#define QSD_ABI 2

typedef enum qsd_status {
  QSD_OK = 0,
  QSD_DAMAGED = 1,     /* not an artifact, damaged, or its parts do not fit together */
  QSD_VERSION = 2,     /* a format version that this library does not read */
  QSD_TOO_LARGE = 3,   /* needs more memory than qsd_options allows, or is there */
  QSD_BAD_ARGUMENT = 4 /* a wrong size, number or pointer */
} qsd_status;

typedef struct qsd_model qsd_model;

typedef struct qsd_options {
  int threads;         /* at least 1; 0 is 1 */
  const char *isa;     /* "portable", "avx2", "avxvnni", "avx512vnni", "amx"; NULL: the best one */
  uint64_t max_memory; /* bytes a model may take; 0 is 4 GiB */
} qsd_options;

typedef struct qsd_info {
  int channels, height, width; /* of the uint8 pixels (B, channels, height, width) */
  int time_steps;           /* T */
  int takes_frames;         /* 1: pixels must be (T, B, ...), 0: may be */
  int classes;              /* 0: no logits */
  int fraction;             /* a logit's real value is integer * 2^-fraction */
  int outputs, neurons, threads;
  uint64_t weight_bytes;  /* weights and tables, unpacked for the kernels */
  uint64_t scratch_bytes; /* values of one image in flight, for all threads together */
  const char *isa;
} qsd_info;

/* An output or a neuron: its values are (steps * B, channels, height, width), time slowest. They
 * may have more steps where a run is given frames. */
typedef struct qsd_value {
  const char *name;
  int steps, channels, height, width;
} qsd_value;

/* What a neuron did since the last qsd_reset_statistics. */
typedef struct qsd_activity {
  uint64_t elements;      /* counts that there were */
  uint64_t active;        /* of these, not zero */
  uint64_t spikes;        /* their sum */
  uint64_t groups;        /* groups of 4 neighbouring channels of a pixel */
  uint64_t active_groups; /* of these, not all zero */
} qsd_activity;

/* The library's version of this interface: QSD_ABI. */
QSD_API int qsd_abi(void);

/* Reads an artifact; `data` may be freed afterwards. `*model` is NULL where it fails. */
QSD_API int qsd_load(const void *data, size_t size, const qsd_options *options, qsd_model **model,
                     char *message, size_t message_size);

QSD_API void qsd_free(qsd_model *model);

QSD_API int qsd_describe(const qsd_model *model, qsd_info *info);

/* Names are UTF-8, end with a zero byte and live as long as the model. NULL: there is none.
 * QSD_BAD_ARGUMENT with `frames` where the network takes none. */
QSD_API const char *qsd_class_name(const qsd_model *model, int index);
QSD_API int qsd_output(const qsd_model *model, int index, int frames, qsd_value *value);
QSD_API int qsd_neuron(const qsd_model *model, int index, int frames, qsd_value *value);

/* Runs `batch` images. `frames` is 0 for pixels (B, C, H, W) and 1 for (T, B, C, H, W).
 * `logits` (B, classes), `outputs` and `counts`, one array for each output and each neuron, may be
 * NULL, and so may be single ones of the arrays. */
QSD_API int qsd_run(qsd_model *model, const uint8_t *pixels, size_t batch, int frames,
                    int32_t *logits, int32_t *const *outputs, uint8_t *const *counts,
                    char *message, size_t message_size);

/* Statistics are taken of every run from the first qsd_reset_statistics on. */
QSD_API int qsd_reset_statistics(qsd_model *model);
QSD_API int qsd_statistics(const qsd_model *model, int neuron, qsd_activity *activity);

#ifdef __cplusplus
}
#endif
#endif
