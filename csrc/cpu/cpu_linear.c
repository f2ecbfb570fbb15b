/* Embedding, norms and dense matrix products. */
#include <string.h>

#include "cpu/cpu_multiply.h"
#include "numeric/dtype.h"
#include "status.h"

struct norm_rows {
    const struct gptoss_kernels *kernels;
    const float *x, *gain, *bias; /* bias: NULL for RMSNorm */
    float *normed;
    int64_t num_elements;
    float epsilon;
};

static void norm_task(void *context, int64_t row, int thread) {
    (void)thread;
    const struct norm_rows *work = context;
    int64_t n = work->num_elements;
    const float *x = work->x + row * n;
    float *normed = work->normed + row * n;
    if (work->bias == NULL)
        work->kernels->rms_norm(x, work->gain, n, work->epsilon, normed);
    else
        work->kernels->layer_norm(x, work->gain, work->bias, n, work->epsilon, normed);
}

/* normed line r = norm(x line r) for num_rows rows. */
static enum gptoss_status norm_rows(struct gptoss_cpu_backend *backend, const float *x,
                                    float *normed, const struct gptoss_norm *norm,
                                    int64_t num_rows) {
    int64_t n = norm->gain->num_elements;
    GPTOSS_TRY(gptoss_scratch_reserve(&backend->decoded, 2 * (uint64_t)n * sizeof(float)));
    float *gain = backend->decoded.memory, *bias = norm->bias != NULL ? gain + n : NULL;
    gptoss_decode_elements(norm->gain->dtype, norm->gain->data, (size_t)n, gain);
    if (bias != NULL)
        gptoss_decode_elements(norm->bias->dtype, norm->bias->data, (size_t)n, bias);
    struct norm_rows work = {backend->kernels, x, gain, bias, normed, n, norm->epsilon};
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
        .low_rank = weight->low_rank,
    };
}

struct embedding {
    struct gptoss_cpu_backend *backend;
    const struct gptoss_row *rows;
    const struct gptoss_embed *operation;
};

static void decode_line(const struct gptoss_weight *weight, int64_t line, float *out) {
    uint64_t n = (uint64_t)weight->num_columns;
    uint64_t row_bytes = gptoss_dtype_row_bytes(weight->dtype, n);
    const uint8_t *scales = NULL;
    if (gptoss_dtype_has_planes(weight->dtype))
        scales = weight->scales + (uint64_t)line * (n / 32);
    gptoss_decode_row(weight->dtype, weight->data + (uint64_t)line * row_bytes, scales, n, out);
}

static void embed_task(void *context, int64_t row, int thread) {
    const struct embedding *work = context;
    const struct gptoss_embed *operation = work->operation;
    int64_t hidden = operation->embedding->num_columns;
    float *out = gptoss_buffer_floats(operation->out) + row * hidden;
    decode_line(operation->embedding, work->rows[row].token, out);
    if (operation->positions == NULL)
        return;
    float *position = work->backend->thread_scratch[thread].memory;
    decode_line(operation->positions, work->rows[row].position, position);
    work->backend->kernels->add(out, position, hidden);
}

enum gptoss_status gptoss_cpu_embed(struct gptoss_backend *base,
                                    const struct gptoss_row_table *table,
                                    const struct gptoss_embed *operation) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    if (operation->positions != NULL)
        GPTOSS_TRY(gptoss_thread_scratch_reserve(
            backend, (uint64_t)operation->positions->num_columns * sizeof(float)));
    struct embedding work = {backend, table->rows, operation};
    return gptoss_cpu_run_rows(backend, embed_task, &work, table->num_rows, table->num_rows);
}

enum gptoss_status gptoss_cpu_norm_linear(struct gptoss_backend *base,
                                          const struct gptoss_row_table *table,
                                          const struct gptoss_norm_linear *operation) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    float *normed = gptoss_buffer_floats(operation->normed);
    GPTOSS_TRY(norm_rows(backend, gptoss_buffer_floats(operation->x), normed, &operation->norm,
                         table->num_rows));
    struct gptoss_product products[3];
    for (int32_t i = 0; i < operation->num_outs; ++i)
        products[i] = dense_product(operation->weights[i], operation->biases[i], normed,
                                    gptoss_buffer_floats(operation->outs[i]), table->num_rows);
    return gptoss_cpu_multiply_dense(backend, products, operation->num_outs);
}

struct residual {
    const struct gptoss_kernels *kernels;
    float *residual;
    const float *y;
    int64_t hidden;
};

static void residual_task(void *context, int64_t row, int thread) {
    (void)thread;
    const struct residual *work = context;
    work->kernels->add(work->residual + row * work->hidden, work->y + row * work->hidden,
                       work->hidden);
}

enum gptoss_status gptoss_cpu_linear_residual(struct gptoss_backend *base,
                                              const struct gptoss_row_table *table,
                                              const struct gptoss_linear_residual *operation) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    float *residual = gptoss_buffer_floats(operation->residual);
    float *out = operation->out != NULL ? gptoss_buffer_floats(operation->out) : residual;
    struct gptoss_product product =
        dense_product(operation->weight, operation->bias, gptoss_buffer_floats(operation->x), out,
                      table->num_rows);
    product.end = operation->out != NULL ? GPTOSS_PRODUCT_STORE : GPTOSS_PRODUCT_ADD;
    GPTOSS_TRY(gptoss_cpu_multiply_dense(backend, &product, 1));
    if (operation->out == NULL)
        return GPTOSS_OK;
    struct residual work = {backend->kernels, residual, out, operation->weight->num_rows};
    return gptoss_cpu_run_rows(backend, residual_task, &work, table->num_rows, table->num_rows);
}

enum gptoss_status gptoss_cpu_mlp_up(struct gptoss_backend *base,
                                     const struct gptoss_row_table *table,
                                     const struct gptoss_mlp_up *operation) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    float *normed = gptoss_buffer_floats(operation->normed);
    GPTOSS_TRY(norm_rows(backend, gptoss_buffer_floats(operation->x), normed, &operation->norm,
                         table->num_rows));
    struct gptoss_product product =
        dense_product(operation->weight, operation->bias, normed,
                      gptoss_buffer_floats(operation->out), table->num_rows);
    const struct gptoss_weight *up = operation->up;
    if (up == NULL) {
        product.end = GPTOSS_PRODUCT_GELU;
    } else if (up->dtype == operation->weight->dtype &&
               operation->up_bias->dtype == operation->bias->dtype) {
        product.end = GPTOSS_PRODUCT_SILU_UP;
        product.up = gptoss_matrix_at(up, 0);
        product.up_bias = gptoss_vector_at(operation->up_bias, 0);
        product.up_low_rank = operation->up->low_rank;
    } else {
        /* One product has one format: the gate's results wait in out. */
        GPTOSS_TRY(gptoss_cpu_multiply_dense(backend, &product, 1));
        product = dense_product(up, operation->up_bias, normed,
                                gptoss_buffer_floats(operation->out), table->num_rows);
        product.end = GPTOSS_PRODUCT_SILU_UP;
    }
    return gptoss_cpu_multiply_dense(backend, &product, 1);
}

static enum gptoss_status norm_rows_of(struct gptoss_cpu_backend *backend,
                                       const struct gptoss_unembed *operation) {
    int64_t hidden = operation->norm.gain->num_elements;
    const float *x = gptoss_buffer_floats(operation->x);
    float *normed = gptoss_buffer_floats(operation->normed);
    if (operation->rows == NULL)
        return norm_rows(backend, x + operation->first_row * hidden, normed, &operation->norm,
                         operation->num_rows);
    for (int64_t i = 0; i < operation->num_rows; ++i)
        GPTOSS_TRY(norm_rows(backend, x + operation->rows[i] * hidden, normed + i * hidden,
                             &operation->norm, 1));
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
    return gptoss_cpu_multiply_dense(backend, &product, 1);
}
