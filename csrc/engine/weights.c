/* What the families share in finding their weights in a checkpoint. */
#include "engine/weights.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "numeric/dtype.h"
#include "status.h"

const char *gptoss_binder_spell(struct gptoss_binder *binder, const char *hugging_face,
                                const char *original, const char *gguf) {
    const char *format = binder->naming == GPTOSS_NAMING_HUGGING_FACE ? hugging_face
                         : binder->naming == GPTOSS_NAMING_ORIGINAL   ? original
                                                                      : gguf;
    const char *number = strstr(format, "%d");
    if (number == NULL)
        snprintf(binder->name, sizeof binder->name, "%s", format);
    else
        snprintf(binder->name, sizeof binder->name, "%.*s%" PRId32 "%s", (int)(number - format),
                 format, binder->layer, number + 2);
    return binder->name;
}

enum gptoss_status gptoss_binder_find(struct gptoss_binder *binder, uint32_t dtypes,
                                      int32_t num_dims, const int64_t *shape,
                                      const struct gptoss_tensor **tensor_out) {
    return gptoss_checkpoint_require(binder->checkpoint, binder->name, dtypes, num_dims, shape,
                                     tensor_out, binder->error);
}

enum gptoss_status gptoss_bind_vector_of(struct gptoss_binder *binder, uint32_t dtypes,
                                         int64_t num_vectors, int64_t num_elements,
                                         struct gptoss_vector *out) {
    const struct gptoss_tensor *tensor;
    int64_t shape[2] = {num_vectors, num_elements};
    bool single = num_vectors == 0;
    GPTOSS_TRY(
        gptoss_binder_find(binder, dtypes, single ? 1 : 2, single ? shape + 1 : shape, &tensor));
    *out =
        (struct gptoss_vector){tensor->dtype, single ? 1 : num_vectors, num_elements, tensor->data};
    return GPTOSS_OK;
}

enum gptoss_status gptoss_bind_vector(struct gptoss_binder *binder, int64_t num_vectors,
                                      int64_t num_elements, struct gptoss_vector *out) {
    return gptoss_bind_vector_of(binder, GPTOSS_FLOAT_DTYPES, num_vectors, num_elements, out);
}

enum gptoss_status gptoss_bind_matrix(struct gptoss_binder *binder, int64_t num_rows,
                                      int64_t num_columns, struct gptoss_weight *out) {
    const struct gptoss_tensor *tensor;
    uint32_t dtypes = binder->naming == GPTOSS_NAMING_GGUF
                          ? GPTOSS_FLOAT_DTYPES | GPTOSS_BLOCK_DTYPES
                          : GPTOSS_FLOAT_DTYPES;
    GPTOSS_TRY(gptoss_binder_find(binder, dtypes, 2, (int64_t[]){num_rows, num_columns}, &tensor));
    *out = (struct gptoss_weight){.dtype = tensor->dtype,
                                  .num_matrices = 1,
                                  .num_rows = num_rows,
                                  .num_columns = num_columns,
                                  .data = tensor->data};
    return GPTOSS_OK;
}

enum gptoss_status gptoss_bind_transposed(struct gptoss_binder *binder, int64_t num_rows,
                                          int64_t num_columns, struct gptoss_weight *out) {
    const struct gptoss_tensor *tensor;
    GPTOSS_TRY(gptoss_binder_find(binder, GPTOSS_FLOAT_DTYPES, 2,
                                  (int64_t[]){num_columns, num_rows}, &tensor));
    *out = (struct gptoss_weight){.dtype = tensor->dtype,
                                  .transposed = true,
                                  .num_matrices = 1,
                                  .num_rows = num_rows,
                                  .num_columns = num_columns,
                                  .data = tensor->data};
    return GPTOSS_OK;
}

enum gptoss_status gptoss_bind_unembedding(struct gptoss_binder *binder,
                                           const struct gptoss_weight *embedding,
                                           struct gptoss_weight *out) {
    if (!binder->config->tied_embeddings ||
        gptoss_checkpoint_find(binder->checkpoint, binder->name) != NULL)
        return gptoss_bind_matrix(binder, binder->config->vocab_size, binder->config->hidden_size,
                                  out);
    *out = *embedding;
    return GPTOSS_OK;
}

void gptoss_slice_rows(const struct gptoss_weight *weight, const struct gptoss_vector *bias,
                       int64_t first_row, int64_t num_rows, struct gptoss_weight *weight_out,
                       struct gptoss_vector *bias_out) {
    uint64_t row_bytes = weight->transposed
                             ? gptoss_dtype_bytes(weight->dtype)
                             : gptoss_dtype_row_bytes(weight->dtype, (uint64_t)weight->num_columns);
    *weight_out = *weight;
    weight_out->num_rows = num_rows;
    weight_out->num_stored = weight->transposed ? weight->num_rows : 0;
    weight_out->data += (uint64_t)first_row * row_bytes;
    *bias_out = (struct gptoss_vector){bias->dtype, 1, num_rows, bias->data};
    if (bias->data != NULL)
        bias_out->data += (uint64_t)first_row * gptoss_dtype_bytes(bias->dtype);
}
