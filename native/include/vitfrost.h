/* vitfrost's engine: runs compressed Vision Transformers from one file, in integers.
 *
 * Every function that can fail returns 0 on success, and otherwise writes one line into `message` (what, where, how to mend it).
 * A model may be run from several threads at once. The logits are the same bits for any number of threads.
 */
#ifndef VITFROST_H
#define VITFROST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VF_API __attribute__((visibility("default")))

typedef struct vf_model vf_model;

typedef struct {
    int32_t channels, height, width; /* of the pixels */
    int32_t classes, tokens, layers; /* classes: numbers that it gives for a picture, which may be features */
    int32_t threads;
    uint64_t memory_bytes; /* of unpacked weights and buffers */
    const char *isa;       /* the instructions that were chosen */
} vf_info;

/* Opens a model file. `threads`: of one forward pass, at least 1. */
VF_API int vf_open(const char *path, int32_t threads, vf_model **model, char *message, size_t message_bytes);
VF_API int vf_open_memory(const void *bytes, size_t count, int32_t threads, vf_model **model, char *message, size_t message_bytes);

/* Logits (or features) [batch, classes] of normalized pixels [batch, channels, height, width]. */
VF_API int vf_run(vf_model *model, const float *pixels, size_t batch, float *logits, char *message, size_t message_bytes);

VF_API void vf_describe(const vf_model *model, vf_info *info);
VF_API void vf_close(vf_model *model);

/* The instruction sets that this processor runs, best first, separated by commas. VITFROST_ISA forces one of them. */
VF_API const char *vf_isas(void);
VF_API const char *vf_version(void);

/* A profile: seconds and multiply-accumulates of every step, added up over all runs since it was switched on. */
VF_API void vf_profile(vf_model *model, int32_t on);
VF_API size_t vf_profile_rows(const vf_model *model);
VF_API int vf_profile_row(const vf_model *model, size_t row, char *name, size_t name_bytes, double *seconds, double *macs);

/* For tests and for the limit of a machine: the integer sums of codes x [rows, depth] times weights [columns, depth], of one instruction set.
 * `repeat`: how often it is computed. */
VF_API int vf_check_product(const char *isa, int32_t rows, int32_t columns, int32_t depth, const uint8_t *x, int32_t x_bits, const uint8_t *weights,
                            const float *weight_zero, int32_t x_zero, int32_t repeat, int32_t *sums, char *message, size_t message_bytes);

#ifdef __cplusplus
}
#endif

#endif
