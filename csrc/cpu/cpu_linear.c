/* Embedding, norms and dense matrix products. */
#include <string.h>

#include "cpu/cpu_multiply.h"
#include "numeric/dtype.h"
#include "status.h"

struct norm_rows {
    const struct gptoss_kernels *kernels;
    const float *x, *gain;
    float *normed;
    int64_t num_elements;
    float epsilon;
};

static void norm_task(void *context, int64_t row, int thread) {
    (void)thread;
    const struct norm_rows *work = context;
    work->kernels->rms_norm(work->x + row * work->num_elements, work->gain, work->num_elements,
                            work->epsilon, work->normed + row * work->num_elements);
}

enum gptoss_status gptoss_cpu_norm_rows(struct gptoss_cpu_backend *backend, const float *x,
                                        float *normed, const struct gptoss_vector *gain,
                                        float epsilon, int64_t num_rows) {
    int64_t n = gain->num_elements;
    enum gptoss_status status =
        gptoss_scratch_reserve(&backend->decoded, (uint64_t)n * sizeof(float));
    if (status != GPTOSS_OK)
        return status;
    gptoss_decode_elements(gain->dtype, gain->data, (size_t)n, backend->decoded.memory);
    struct norm_rows work = {backend->kernels, x, backend->decoded.memory, normed, n, epsilon};
    return gptoss_cpu_run_rows(backend, norm_task, &work, num_rows, num_rows);
}

static struct gptoss_product dense_product(const struct gptoss_weight *weight,
                                           const struct gptoss_vector *bias, const float *x,
                                           float *out, int64_t num_rows) {
    return (struct gptoss_product){
        .matrix = gptoss_matrix_at(weight, 0),
        .bias = bias != NULL ? gptoss_vector_at(bias, 0) : NULL,
        .bias_dtype = bias != NULL ? bias->dtype : GPTOSS_DTYPE_F32,
        .num_tokens = num_rows,
        .x = x,
        .x_stride = weight->num_columns,
        .out = out,
        .out_stride = weight->num_rows,
    };
}

struct embedding {
    const struct gptoss_row *rows;
    const struct gptoss_embed *operation;
};

static void embed_task(void *context, int64_t row, int thread) {
    (void)thread;
    const struct embedding *work = context;
    const struct gptoss_weight *embedding = work->operation->embedding;
    uint64_t hidden = (uint64_t)embedding->num_columns;
    uint64_t row_bytes = gptoss_dtype_row_bytes(embedding->dtype, hidden);
    gptoss_decode_row(embedding->dtype,
                      embedding->data + (uint64_t)work->rows[row].token * row_bytes, NULL, hidden,
                      gptoss_buffer_floats(work->operation->out) + row * (int64_t)hidden);
}

enum gptoss_status gptoss_cpu_embed(struct gptoss_backend *base,
                                    const struct gptoss_row_table *table,
                                    const struct gptoss_embed *operation) {
    struct embedding work = {table->rows, operation};
    return gptoss_cpu_run_rows((struct gptoss_cpu_backend *)base, embed_task, &work,
                               table->num_rows, table->num_rows);
}

enum gptoss_status gptoss_cpu_norm_linear(struct gptoss_backend *base,
                                          const struct gptoss_row_table *table,
                                          const struct gptoss_norm_linear *operation) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    float *normed = gptoss_buffer_floats(operation->normed);
    enum gptoss_status status =
        gptoss_cpu_norm_rows(backend, gptoss_buffer_floats(operation->x), normed, operation->gain,
                             operation->epsilon, table->num_rows);
    if (status != GPTOSS_OK)
        return status;
    struct gptoss_product products[3];
    for (int32_t i = 0; i < operation->num_outs; ++i)
        products[i] = dense_product(operation->weights[i], operation->biases[i], normed,
                                    gptoss_buffer_floats(operation->outs[i]), table->num_rows);
    return gptoss_cpu_multiply(backend, products, operation->num_outs);
}

enum gptoss_status gptoss_cpu_linear_residual(struct gptoss_backend *base,
                                              const struct gptoss_row_table *table,
                                              const struct gptoss_linear_residual *operation) {
    struct gptoss_product product =
        dense_product(operation->weight, operation->bias, gptoss_buffer_floats(operation->x),
                      gptoss_buffer_floats(operation->residual), table->num_rows);
    product.end = GPTOSS_PRODUCT_ADD;
    return gptoss_cpu_multiply((struct gptoss_cpu_backend *)base, &product, 1);
}

static enum gptoss_status norm_rows_of(struct gptoss_cpu_backend *backend,
                                       const struct gptoss_unembed *operation) {
    int64_t hidden = operation->gain->num_elements;
    const float *x = gptoss_buffer_floats(operation->x);
    float *normed = gptoss_buffer_floats(operation->normed);
    if (operation->rows == NULL)
        return gptoss_cpu_norm_rows(backend, x + operation->first_row * hidden, normed,
                                    operation->gain, operation->epsilon, operation->num_rows);
    for (int64_t i = 0; i < operation->num_rows; ++i)
        GPTOSS_TRY(gptoss_cpu_norm_rows(backend, x + operation->rows[i] * hidden,
                                        normed + i * hidden, operation->gain, operation->epsilon,
                                        1));
    return GPTOSS_OK;
}

enum gptoss_status gptoss_cpu_unembed(struct gptoss_backend *base,
                                      const struct gptoss_row_table *table,
                                      const struct gptoss_unembed *operation) {
    (void)table;
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    GPTOSS_TRY(norm_rows_of(backend, operation));
    if (operation->weight == NULL)
        return GPTOSS_OK;
    struct gptoss_product product =
        dense_product(operation->weight, NULL, gptoss_buffer_floats(operation->normed),
                      operation->logits, operation->num_rows);
    return gptoss_cpu_multiply(backend, &product, 1);
}
