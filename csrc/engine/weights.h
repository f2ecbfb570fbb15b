/* What the families share in finding their weights in a checkpoint: names in several spellings,
 * dtypes and shapes checked. */
#ifndef GPTOSS_ENGINE_WEIGHTS_H
#define GPTOSS_ENGINE_WEIGHTS_H

#include "backend.h"
#include "checkpoint/checkpoint.h"

/* Sets of dtypes: bit (1 << dtype) for each. */
#define GPTOSS_FLOAT_DTYPES                                                                        \
    (1u << GPTOSS_DTYPE_F32 | 1u << GPTOSS_DTYPE_F16 | 1u << GPTOSS_DTYPE_BF16)
#define GPTOSS_BLOCK_DTYPES (1u << GPTOSS_DTYPE_Q8_0 | 1u << GPTOSS_DTYPE_MXFP4_GGUF)

enum gptoss_naming {
    GPTOSS_NAMING_HUGGING_FACE,
    GPTOSS_NAMING_ORIGINAL, /* openai's release */
    GPTOSS_NAMING_GGUF      /* llama.cpp's */
};

/* Goes through a checkpoint, tensor by tensor. */
struct gptoss_binder {
    const struct gptoss_checkpoint *checkpoint;
    const struct gptoss_config *config;
    enum gptoss_naming naming;
    int32_t layer;
    struct gptoss_error *error;
    char name[128]; /* of the tensor last spoken of */
};

/* Speaks of a tensor by the spelling of the checkpoint's naming; "%d" stands for the layer. */
const char *gptoss_binder_spell(struct gptoss_binder *binder, const char *hugging_face,
                                const char *original, const char *gguf);

/* What follows takes the tensor last spoken of; errors: gptoss_checkpoint_require. */
enum gptoss_status gptoss_binder_find(struct gptoss_binder *binder, uint32_t dtypes,
                                      int32_t num_dims, const int64_t *shape,
                                      const struct gptoss_tensor **tensor_out);
/* num_vectors vectors, or 0: one, stored without that dimension. */
enum gptoss_status gptoss_bind_vector_of(struct gptoss_binder *binder, uint32_t dtypes,
                                         int64_t num_vectors, int64_t num_elements,
                                         struct gptoss_vector *out);
enum gptoss_status gptoss_bind_vector(struct gptoss_binder *binder, int64_t num_vectors,
                                      int64_t num_elements, struct gptoss_vector *out);
enum gptoss_status gptoss_bind_matrix(struct gptoss_binder *binder, int64_t num_rows,
                                      int64_t num_columns, struct gptoss_weight *out);
/* A matrix stored [inputs][outputs]. */
enum gptoss_status gptoss_bind_transposed(struct gptoss_binder *binder, int64_t num_rows,
                                          int64_t num_columns, struct gptoss_weight *out);
/* The output matrix; the embedding serves where the configuration ties them and there is none. */
enum gptoss_status gptoss_bind_unembedding(struct gptoss_binder *binder,
                                           const struct gptoss_weight *embedding,
                                           struct gptoss_weight *out);

/* num_rows outputs from first_row of a matrix and its bias. */
void gptoss_slice_rows(const struct gptoss_weight *weight, const struct gptoss_vector *bias,
                       int64_t first_row, int64_t num_rows, struct gptoss_weight *weight_out,
                       struct gptoss_vector *bias_out);

#endif
