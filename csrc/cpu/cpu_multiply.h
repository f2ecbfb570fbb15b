/* Matrix products of the CPU back end, and the forms they are carried out in. */
#ifndef GPTOSS_CPU_CPU_MULTIPLY_H
#define GPTOSS_CPU_CPU_MULTIPLY_H

#include "cpu/cpu_backend.h"

struct gptoss_product_form;

enum gptoss_product_end {
    GPTOSS_PRODUCT_STORE,
    GPTOSS_PRODUCT_ADD,    /* out += the result */
    GPTOSS_PRODUCT_GELU,   /* out = gelu(the result) */
    GPTOSS_PRODUCT_SWIGLU, /* half as many results: rows are gate and up in turn */
    /* With a matrix `up`; the other is the gate's. */
    GPTOSS_PRODUCT_SWIGLU_UP,
    GPTOSS_PRODUCT_SILU_UP /* out = silu(gate) * up */
};

/* factor * values, added to results after the bias. values: [num_tokens][rows of the matrix] */
struct gptoss_addend {
    const float *values;
    float factor;
};

/* One matrix product: for every token i, out line = matrix * x line + bias, where the x line is
 * number x_lines[i] (i if NULL) and the out line number out_lines[i]. All lines of out differ. */
struct gptoss_product {
    struct gptoss_matrix matrix, up; /* up: shape and layout of matrix; data NULL without it */
    const uint8_t *bias, *up_bias;   /* NULL: none */
    enum gptoss_dtype bias_dtype;
    int64_t num_tokens;
    const float *x;
    int64_t x_stride;
    const int32_t *x_lines;
    float *out;
    int64_t out_stride;
    const int32_t *out_lines;
    enum gptoss_product_end end;
    float limit, alpha; /* of the two SWIGLU */
    /* Low-rank terms of matrix and up, for gptoss_cpu_multiply_dense, which sets the addends. */
    const struct gptoss_low_rank *low_rank, *up_low_rank;
    const struct gptoss_addend *addends, *up_addends;
    int32_t num_addends, num_up_addends;
    /* Set by gptoss_cpu_multiply. */
    const struct gptoss_product_form *form;
    int64_t task_rows, task_tokens;
    const void *packed; /* the pieces of its input */
};

/* What a task computes: some rows of a matrix with some tokens, all of them but where the matrix
 * has too few rows for the threads. */
struct gptoss_product_part {
    int64_t first_row, num_rows;
    int64_t first_token, end_token; /* the first is a multiple of GPTOSS_PART_TOKENS */
};
/* Whole pieces and blocks of every form. */
#define GPTOSS_PART_TOKENS 96

/* All products at once, spread over the threads. */
enum gptoss_status gptoss_cpu_multiply(struct gptoss_cpu_backend *backend,
                                       struct gptoss_product *products, int32_t num_products);

/* The same of products whose weights may have low-rank terms; lines of x and out in order. */
enum gptoss_status gptoss_cpu_multiply_dense(struct gptoss_cpu_backend *backend,
                                             struct gptoss_product *products, int32_t num_products);

/* ---- forms ---- */

#define GPTOSS_MAX_TASK_ROWS 64

/* A way to carry out products: what the input is packed into, and what multiplies it. A task has
 * task_rows rows of a matrix, or fewer where task_bytes says so. */
struct gptoss_product_form {
    int64_t task_rows;    /* a multiple of 8, at most GPTOSS_MAX_TASK_ROWS */
    int64_t task_bytes;   /* of weights that a task should read, 0: any number */
    int64_t piece_tokens; /* tokens packed together */
    int64_t (*piece_bytes)(const struct gptoss_product *product);
    void (*pack)(const struct gptoss_product *product, int64_t piece, void *out);
    bool (*layouts_share_input)(enum gptoss_layout a, enum gptoss_layout b);
    uint64_t (*scratch_bytes)(const struct gptoss_product *product); /* of a thread */
    /* bias: [num_rows] or NULL. Ends in gptoss_product_finish for every token. */
    void (*multiply)(const struct gptoss_kernels *kernels, const struct gptoss_product *product,
                     const struct gptoss_product_part *part, const float *bias, void *scratch);
};

static inline int64_t gptoss_product_num_pieces(const struct gptoss_product *product) {
    return (product->num_tokens + product->form->piece_tokens - 1) / product->form->piece_tokens;
}
static inline const float *gptoss_product_input(const struct gptoss_product *product,
                                                int64_t token) {
    int64_t line = product->x_lines == NULL ? token : product->x_lines[token];
    return product->x + line * product->x_stride;
}
/* Adds bias and addends to one token's results for the part's rows and puts them where they belong;
 * results is overwritten. */
void gptoss_product_finish(const struct gptoss_kernels *kernels,
                           const struct gptoss_product *product,
                           const struct gptoss_product_part *part, int64_t token, float *results,
                           const float *bias);

/* The form for so many tokens: each row of the matrix times each vector, read once from memory;
 * or panels of rows expanded to float32 once and multiplied by all tokens, a tile at a time. Both
 * keep the chains of kernels.h, so the choice never shows in the bits. */
extern const struct gptoss_product_form gptoss_vector_form, gptoss_panel_form;

#endif
