/* Routing and the experts. Tokens are grouped by expert, so that an expert's weights are read once
 * for all of them. */
#include <math.h>
#include <string.h>

#include "cpu/cpu_multiply.h"
#include "numeric/dtype.h"
#include "numeric/float_math.h"
#include "status.h"

/* Floats of a piece of a row when the experts' outputs are summed. */
#define SUM_PIECE 1024

/* ---- routing ---- */

/* NaN ranks above all numbers, so that it reaches the logits, where it is reported, instead of
 * being passed over. */
static bool ranks_above(float a, float b) {
    return a > b || (isnan(a) && !isnan(b));
}

static void choose(const float *logits, int32_t num_experts, int32_t num_chosen, int32_t *experts,
                   float *weights) {
    int32_t filled = 0;
    for (int32_t expert = 0; expert < num_experts; ++expert) {
        int32_t rank = filled;
        while (rank > 0 && ranks_above(logits[expert], logits[experts[rank - 1]]))
            --rank;
        if (rank == num_chosen)
            continue;
        int32_t last = filled < num_chosen ? filled++ : num_chosen - 1;
        memmove(experts + rank + 1, experts + rank, (size_t)(last - rank) * sizeof *experts);
        experts[rank] = expert;
    }
    float sum = 0.0f;
    for (int32_t rank = 0; rank < num_chosen; ++rank) {
        weights[rank] = gptoss_expf(logits[experts[rank]] - logits[experts[0]]);
        sum += weights[rank];
    }
    for (int32_t rank = 0; rank < num_chosen; ++rank)
        weights[rank] /= sum;
}

static void choose_task(void *context, int64_t row, int thread) {
    (void)thread;
    const struct gptoss_route *operation = context;
    int32_t num_experts = (int32_t)operation->weight->num_rows, num_chosen = operation->num_chosen;
    choose(gptoss_buffer_floats(operation->logits) + row * num_experts, num_experts, num_chosen,
           gptoss_buffer_ints(operation->experts) + row * num_chosen,
           gptoss_buffer_floats(operation->weights) + row * num_chosen);
}

enum gptoss_status gptoss_cpu_route(struct gptoss_backend *base,
                                    const struct gptoss_row_table *table,
                                    const struct gptoss_route *operation) {
    const struct gptoss_norm_linear router = {
        .x = operation->x,
        .normed = operation->normed,
        .norm = operation->norm,
        .num_outs = 1,
        .weights = {operation->weight},
        .biases = {operation->bias},
        .outs = {operation->logits},
    };
    GPTOSS_TRY(gptoss_cpu_norm_linear(base, table, &router));
    return gptoss_cpu_run_rows((struct gptoss_cpu_backend *)base, choose_task, (void *)operation,
                               table->num_rows, table->num_rows);
}

/* ---- grouping ---- */

/* Routes (row * num_chosen + rank) in order of their experts. */
struct groups {
    int32_t num_experts;
    int32_t *start;  /* [num_experts + 1], into routes and rows */
    int32_t *routes; /* output lines */
    int32_t *rows;   /* routes / num_chosen: input lines of gate and up */
    struct gptoss_product *products;
};

static enum gptoss_status group_by_expert(struct gptoss_cpu_backend *backend,
                                          const int32_t *experts, int64_t num_routes,
                                          int32_t num_chosen, int32_t num_experts,
                                          struct groups *groups) {
    uint64_t num_ints = (uint64_t)num_experts + 1 + 2 * (uint64_t)num_routes;
    uint64_t product_bytes = (uint64_t)num_experts * sizeof(struct gptoss_product);
    enum gptoss_status status =
        gptoss_scratch_reserve(&backend->grouping, product_bytes + num_ints * sizeof(int32_t));
    if (status != GPTOSS_OK)
        return status;
    groups->num_experts = num_experts;
    groups->products = backend->grouping.memory;
    groups->start = (int32_t *)((uint8_t *)backend->grouping.memory + product_bytes);
    groups->routes = groups->start + num_experts + 1;
    groups->rows = groups->routes + num_routes;
    memset(groups->start, 0, ((size_t)num_experts + 1) * sizeof *groups->start);
    for (int64_t route = 0; route < num_routes; ++route)
        ++groups->start[experts[route] + 1];
    for (int32_t expert = 0; expert < num_experts; ++expert)
        groups->start[expert + 1] += groups->start[expert];
    for (int64_t route = 0; route < num_routes; ++route) {
        int32_t at = groups->start[experts[route]]++;
        groups->routes[at] = (int32_t)route;
        groups->rows[at] = (int32_t)(route / num_chosen);
    }
    for (int32_t expert = num_experts; expert > 0; --expert)
        groups->start[expert] = groups->start[expert - 1];
    groups->start[0] = 0;
    return GPTOSS_OK;
}

/* Products of the experts that were chosen at all, as model does them; returns how many. up: NULL
 * for a single matrix. */
static int32_t expert_products(const struct groups *groups, const struct gptoss_weight *weight,
                               const struct gptoss_vector *bias, const struct gptoss_weight *up,
                               const struct gptoss_vector *up_bias,
                               const struct gptoss_product *model, const int32_t *x_lines) {
    int32_t num_products = 0;
    for (int32_t expert = 0; expert < groups->num_experts; ++expert) {
        int32_t start = groups->start[expert], num_tokens = groups->start[expert + 1] - start;
        if (num_tokens == 0)
            continue;
        struct gptoss_product *product = &groups->products[num_products++];
        *product = *model;
        product->matrix = gptoss_matrix_at(weight, expert);
        product->bias = gptoss_vector_at(bias, expert);
        product->bias_dtype = bias->dtype;
        if (up != NULL) {
            product->up = gptoss_matrix_at(up, expert);
            product->up_bias = gptoss_vector_at(up_bias, expert);
        }
        product->num_tokens = num_tokens;
        product->x_lines = x_lines + start;
        product->out_lines = groups->routes + start;
    }
    return num_products;
}

enum gptoss_status gptoss_cpu_expert_gate_up(struct gptoss_backend *base,
                                             const struct gptoss_row_table *table,
                                             const struct gptoss_expert_gate_up *operation) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    const struct gptoss_weight *weight = operation->weight;
    struct groups groups;
    enum gptoss_status status = group_by_expert(
        backend, gptoss_buffer_ints(operation->experts), table->num_rows * operation->num_chosen,
        operation->num_chosen, (int32_t)weight->num_matrices, &groups);
    if (status != GPTOSS_OK)
        return status;
    struct gptoss_product model = {
        .x = gptoss_buffer_floats(operation->x),
        .x_stride = weight->num_columns,
        .out = gptoss_buffer_floats(operation->out),
        .out_stride = operation->up != NULL ? weight->num_rows : weight->num_rows / 2,
        .end = operation->up != NULL ? GPTOSS_PRODUCT_SWIGLU_UP : GPTOSS_PRODUCT_SWIGLU,
        .limit = operation->limit,
        .alpha = operation->alpha,
    };
    int32_t num_products = expert_products(&groups, weight, operation->bias, operation->up,
                                           operation->up_bias, &model, groups.rows);
    return gptoss_cpu_multiply(backend, groups.products, num_products);
}

/* ---- down, weighted sum, residual ---- */

struct weighted_sum {
    const struct gptoss_kernels *kernels;
    const float *outputs, *weights;
    float *sum, *residual;
    int64_t hidden, pieces;
    int32_t num_chosen;
};

static void weighted_sum_task(void *context, int64_t task, int thread) {
    (void)thread;
    const struct weighted_sum *work = context;
    int64_t row = task / work->pieces, start = task % work->pieces * SUM_PIECE;
    int64_t n = work->hidden - start < SUM_PIECE ? work->hidden - start : SUM_PIECE;
    float *sum = work->sum + row * work->hidden + start;
    memset(sum, 0, (size_t)n * sizeof *sum);
    for (int32_t rank = 0; rank < work->num_chosen; ++rank) {
        int64_t route = row * work->num_chosen + rank;
        work->kernels->multiply_add(sum, work->weights[route],
                                    work->outputs + route * work->hidden + start, n);
    }
    work->kernels->add(work->residual + row * work->hidden + start, sum, n);
}

enum gptoss_status gptoss_cpu_expert_down(struct gptoss_backend *base,
                                          const struct gptoss_row_table *table,
                                          const struct gptoss_expert_down *operation) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    const struct gptoss_weight *weight = operation->weight;
    struct groups groups;
    enum gptoss_status status = group_by_expert(
        backend, gptoss_buffer_ints(operation->experts), table->num_rows * operation->num_chosen,
        operation->num_chosen, (int32_t)weight->num_matrices, &groups);
    if (status != GPTOSS_OK)
        return status;
    struct gptoss_product model = {
        .x = gptoss_buffer_floats(operation->x),
        .x_stride = weight->num_columns,
        .out = gptoss_buffer_floats(operation->outputs),
        .out_stride = weight->num_rows,
    };
    int32_t num_products =
        expert_products(&groups, weight, operation->bias, NULL, NULL, &model, groups.routes);
    status = gptoss_cpu_multiply(backend, groups.products, num_products);
    if (status != GPTOSS_OK)
        return status;
    struct weighted_sum work = {
        .kernels = backend->kernels,
        .outputs = gptoss_buffer_floats(operation->outputs),
        .weights = gptoss_buffer_floats(operation->weights),
        .sum = gptoss_buffer_floats(operation->sum),
        .residual = gptoss_buffer_floats(operation->residual),
        .hidden = weight->num_rows,
        .pieces = (weight->num_rows + SUM_PIECE - 1) / SUM_PIECE,
        .num_chosen = operation->num_chosen,
    };
    int64_t num_tasks = table->num_rows * work.pieces;
    return gptoss_cpu_run_rows(backend, weighted_sum_task, &work, num_tasks, table->num_rows);
}
