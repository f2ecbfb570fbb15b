/* What the families share in finding their weights in a checkpoint. */
#include "engine/weights.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint/format_error.h"
#include "checkpoint/tensor_table.h"
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

enum gptoss_status gptoss_bind_vector(struct gptoss_binder *binder, int64_t num_vectors,
                                      int64_t num_elements, struct gptoss_vector *out) {
    const struct gptoss_tensor *tensor;
    int64_t shape[2] = {num_vectors, num_elements};
    bool single = num_vectors == 0;
    GPTOSS_TRY(gptoss_binder_find(binder, GPTOSS_FLOAT_DTYPES, single ? 1 : 2,
                                  single ? shape + 1 : shape, &tensor));
    *out =
        (struct gptoss_vector){tensor->dtype, single ? 1 : num_vectors, num_elements, tensor->data};
    return GPTOSS_OK;
}

/* ---- planes ---- */

/* Behind the name last spoken of. */
static void append(struct gptoss_binder *binder, size_t length, char separator,
                   const char *ending) {
    snprintf(binder->name + length, sizeof binder->name - length, "%c%s", separator, ending);
}

/* Not in GGUF files, which have blocks. */
static bool has_planes(const struct gptoss_binder *binder) {
    struct gptoss_binder codes = *binder;
    append(&codes, strlen(codes.name), '_', "blocks");
    return binder->naming != GPTOSS_NAMING_GGUF &&
           gptoss_checkpoint_find(codes.checkpoint, binder->name) == NULL &&
           gptoss_checkpoint_find(codes.checkpoint, codes.name) != NULL;
}

bool gptoss_binder_has(const struct gptoss_binder *binder) {
    return gptoss_checkpoint_find(binder->checkpoint, binder->name) != NULL || has_planes(binder);
}

static enum gptoss_status not_whole_blocks(const struct gptoss_binder *binder,
                                           enum gptoss_dtype format, int64_t num_columns) {
    struct gptoss_place place = {.file = gptoss_checkpoint_config_file(binder->checkpoint),
                                 .tensor = binder->name,
                                 .offset = -1};
    char expected[96];
    snprintf(expected, sizeof expected, "an input size in whole blocks of 32, as %s has",
             gptoss_dtype_name(format));
    return gptoss_format_error(binder->error, &place, expected, "%" PRId64, num_columns);
}

/* That blocks are as long as those of their format. */
static enum gptoss_status check_block(const struct gptoss_binder *binder,
                                      const struct gptoss_tensor *codes, const int64_t *shape,
                                      int32_t num_dims) {
    if (codes == NULL || codes->num_dims != num_dims || codes->dtype != GPTOSS_DTYPE_U8 ||
        codes->shape[num_dims - 1] == shape[num_dims - 1])
        return GPTOSS_OK;
    char wanted[96], expected[160], found[96];
    gptoss_shape_describe(shape, num_dims, wanted, sizeof wanted);
    gptoss_shape_describe(codes->shape, num_dims, found, sizeof found);
    snprintf(expected, sizeof expected, "%s, as the configuration says %s", wanted,
             gptoss_dtype_name(codes->weight_dtype));
    struct gptoss_place place = {.file = codes->file,
                                 .tensor = codes->name,
                                 .subject = "shape",
                                 .offset = (int64_t)codes->file_offset};
    return gptoss_format_error(binder->error, &place, expected, "%s", found);
}

enum gptoss_status gptoss_bind_planes(struct gptoss_binder *binder, char separator,
                                      int64_t num_matrices, int64_t num_rows, int64_t num_columns,
                                      struct gptoss_weight *out) {
    size_t length = strlen(binder->name);
    append(binder, length, separator, "blocks");
    const struct gptoss_tensor *codes = gptoss_checkpoint_find(binder->checkpoint, binder->name),
                               *scales;
    enum gptoss_dtype format = GPTOSS_DTYPE_MXFP4;
    if (codes != NULL && codes->dtype == GPTOSS_DTYPE_U8)
        format = codes->weight_dtype;
    if (num_columns % 32 != 0)
        return not_whole_blocks(binder, format, num_columns);
    bool single = num_matrices == 0;
    const int64_t whole[4] = {num_matrices, num_rows, num_columns / 32,
                              (int64_t)gptoss_dtype_row_bytes(format, 32)};
    const int64_t *shape = whole + single;
    GPTOSS_TRY(check_block(binder, codes, shape, 4 - single));
    GPTOSS_TRY(gptoss_binder_find(binder, 1u << GPTOSS_DTYPE_U8, 4 - single, shape, &codes));
    append(binder, length, separator, "scales");
    GPTOSS_TRY(gptoss_binder_find(binder, 1u << GPTOSS_DTYPE_U8, 3 - single, shape, &scales));
    *out = (struct gptoss_weight){
        .dtype = format,
        .num_matrices = single ? 1 : num_matrices,
        .num_rows = num_rows,
        .num_columns = num_columns,
        .data = codes->data,
        .scales = scales->data,
        .matrix_bytes = (uint64_t)num_rows * gptoss_dtype_row_bytes(format, (uint64_t)num_columns),
        .scale_matrix_bytes = (uint64_t)num_rows * (uint64_t)num_columns / 32,
    };
    return GPTOSS_OK;
}

/* ---- matrices ---- */

enum gptoss_status gptoss_bind_matrix(struct gptoss_binder *binder, int64_t num_rows,
                                      int64_t num_columns, struct gptoss_weight *out) {
    const struct gptoss_tensor *tensor;
    if (has_planes(binder))
        return gptoss_bind_planes(binder, '_', 0, num_rows, num_columns, out);
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
    if (has_planes(binder))
        return gptoss_bind_planes(binder, '_', 0, num_rows, num_columns, out);
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
    if (!binder->config->tied_embeddings || gptoss_binder_has(binder))
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
    if (gptoss_dtype_has_planes(weight->dtype))
        weight_out->scales += (uint64_t)first_row * ((uint64_t)weight->num_columns / 32);
    *bias_out = (struct gptoss_vector){bias->dtype, 1, num_rows, bias->data};
    if (bias->data != NULL)
        bias_out->data += (uint64_t)first_row * gptoss_dtype_bytes(bias->dtype);
}
