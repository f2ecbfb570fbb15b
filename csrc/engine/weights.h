/* What the families share in finding their weights in a checkpoint: names in several spellings,
 * dtypes and shapes checked. */
#ifndef GPTOSS_ENGINE_WEIGHTS_H
#define GPTOSS_ENGINE_WEIGHTS_H

#include "backend.h"
#include "checkpoint/checkpoint.h"
#include "numeric/block_formats.h"

/* Sets of dtypes: bit (1 << dtype) for each. */
#define GPTOSS_FLOAT_DTYPES                                                                        \
    (1u << GPTOSS_DTYPE_F32 | 1u << GPTOSS_DTYPE_F16 | 1u << GPTOSS_DTYPE_BF16)
#define GPTOSS_OR_DTYPE(name, NAME, block_bytes) | 1u << GPTOSS_DTYPE_##NAME
#define GPTOSS_BLOCK_DTYPES                                                                        \
    (1u << GPTOSS_DTYPE_Q8_0 |                                                                     \
     1u << GPTOSS_DTYPE_MXFP4_GGUF GPTOSS_FOR_BLOCK_FORMATS(GPTOSS_OR_DTYPE))

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
enum gptoss_status gptoss_bind_vector(struct gptoss_binder *binder, int64_t num_vectors,
                                      int64_t num_elements, struct gptoss_vector *out);
/* Whether there is a tensor of the name, or NAME_blocks, the codes of one in two planes. */
bool gptoss_binder_has(const struct gptoss_binder *binder);
enum gptoss_status gptoss_bind_matrix(struct gptoss_binder *binder, int64_t num_rows,
                                      int64_t num_columns, struct gptoss_weight *out);
/* num_matrices matrices, or 0: one, stored without that dimension, as NAME_blocks and NAME_scales:
 * [matrices][outputs][inputs / 32][bytes of a block] and [matrices][outputs][inputs / 32]. Those
 * of openai's release have a '.' for a separator. */
enum gptoss_status gptoss_bind_planes(struct gptoss_binder *binder, char separator,
                                      int64_t num_matrices, int64_t num_rows, int64_t num_columns,
                                      struct gptoss_weight *out);
/* A matrix stored [inputs][outputs]; in two planes it lies as others do. */
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
