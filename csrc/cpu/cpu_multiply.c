/* Matrix products for any number of tokens. Few tokens: every row of the matrix times each vector,
 * read once from memory. More: 32 rows are expanded to float32 once and multiplied by all tokens, 6
 * at a time. Both keep the chains of kernels.h, so the choice never shows in the bits. */
#include <assert.h>
#include <string.h>

#include "cpu/cpu_backend.h"
#include "numeric/dtype.h"

/* Up to this many tokens the vector kernels are faster than expanding a panel. */
#define MAX_VECTOR_TOKENS 3
/* Rows of a task of vector products: a few hundred kilobytes of weights, so that a second token
 * finds them in cache. */
#define VECTOR_TASK_ROWS 64

struct multiplication {
    struct gptoss_cpu_backend *backend;
    struct gptoss_product *products;
    int32_t num_products;
};

static bool uses_vectors(const struct gptoss_product *product) {
    return product->num_tokens <= MAX_VECTOR_TOKENS;
}

static int64_t padded_columns(const struct gptoss_product *product) {
    int per_lane = gptoss_layout_per_lane(product->matrix.layout);
    return gptoss_num_groups(product->matrix.num_columns, per_lane) * per_lane * GPTOSS_LANES;
}

/* Pieces the input is packed in: vectors, or tiles of 6 tokens. */
static int64_t num_pieces(const struct gptoss_product *product) {
    if (uses_vectors(product))
        return product->num_tokens;
    return (product->num_tokens + GPTOSS_TILE_TOKENS - 1) / GPTOSS_TILE_TOKENS;
}

static int64_t piece_floats(const struct gptoss_product *product) {
    return padded_columns(product) * (uses_vectors(product) ? 1 : GPTOSS_TILE_TOKENS);
}

static int64_t task_rows(const struct gptoss_product *product) {
    return uses_vectors(product) ? VECTOR_TASK_ROWS : GPTOSS_PANEL_ROWS;
}

static int64_t num_row_tasks(const struct gptoss_product *product) {
    return (product->matrix.num_rows + task_rows(product) - 1) / task_rows(product);
}

static const float *input_line(const struct gptoss_product *product, int64_t token) {
    int64_t line = product->x_lines == NULL ? token : product->x_lines[token];
    return product->x + line * product->x_stride;
}

static bool same_input(const struct gptoss_product *a, const struct gptoss_product *b) {
    return a->x == b->x && a->x_lines == b->x_lines && a->num_tokens == b->num_tokens &&
           a->x_stride == b->x_stride && a->matrix.num_columns == b->matrix.num_columns &&
           gptoss_layout_per_lane(a->matrix.layout) == gptoss_layout_per_lane(b->matrix.layout);
}

/* ---- packing ---- */

/* out[g][i][lane] = x[g * 16 * per_lane + lane * per_lane + i], +0 past the end. */
static void pack_vector(const float *x, int64_t num_columns, int per_lane, float *out) {
    int64_t num_groups = gptoss_num_groups(num_columns, per_lane);
    if (per_lane == 1) {
        memcpy(out, x, (size_t)num_columns * sizeof *out);
        memset(out + num_columns, 0,
               (size_t)(num_groups * GPTOSS_LANES - num_columns) * sizeof *out);
        return;
    }
    for (int64_t g = 0; g < num_groups; ++g)
        for (int lane = 0; lane < GPTOSS_LANES; ++lane)
            for (int i = 0; i < per_lane; ++i) {
                int64_t element = (g * GPTOSS_LANES + lane) * per_lane + i;
                out[(g * per_lane + i) * GPTOSS_LANES + lane] =
                    element < num_columns ? x[element] : 0.0f;
            }
}

/* out[lane][g * per_lane + i][token], +0 past the last column and the last token. */
static void pack_tile(const struct gptoss_product *product, int64_t tile, float *out) {
    int64_t num_columns = product->matrix.num_columns;
    int per_lane = gptoss_layout_per_lane(product->matrix.layout);
    int64_t chain_stride = gptoss_num_groups(num_columns, per_lane) * per_lane;
    int64_t first = tile * GPTOSS_TILE_TOKENS, left = product->num_tokens - first;
    const float *lines[GPTOSS_TILE_TOKENS];
    for (int64_t t = 0; t < GPTOSS_TILE_TOKENS; ++t)
        lines[t] = t < left ? input_line(product, first + t) : NULL;
    for (int lane = 0; lane < GPTOSS_LANES; ++lane)
        for (int64_t k = 0; k < chain_stride; ++k) {
            int64_t element = (k / per_lane * GPTOSS_LANES + lane) * per_lane + k % per_lane;
            float *to = out + (lane * chain_stride + k) * GPTOSS_TILE_TOKENS;
            for (int64_t t = 0; t < GPTOSS_TILE_TOKENS; ++t)
                to[t] = lines[t] != NULL && element < num_columns ? lines[t][element] : 0.0f;
        }
}

static void pack_task(void *context, int64_t task, int thread) {
    (void)thread;
    struct multiplication *work = context;
    for (int32_t p = 0; p < work->num_products; ++p) {
        const struct gptoss_product *product = &work->products[p];
        if (p > 0 && same_input(product, product - 1))
            continue;
        if (task >= num_pieces(product)) {
            task -= num_pieces(product);
            continue;
        }
        float *out =
            (float *)work->backend->packed.memory + product->packed + task * piece_floats(product);
        if (uses_vectors(product))
            pack_vector(input_line(product, task), product->matrix.num_columns,
                        gptoss_layout_per_lane(product->matrix.layout), out);
        else
            pack_tile(product, task, out);
        return;
    }
}

/* ---- multiplying ---- */

/* Adds the bias to one token's results for rows first_row .. and puts them where they belong. */
static void finish(const struct gptoss_kernels *kernels, const struct gptoss_product *product,
                   int64_t token, int64_t first_row, int64_t num_rows, float *results,
                   const float *bias) {
    int64_t line = product->out_lines == NULL ? token : product->out_lines[token];
    float *out = product->out + line * product->out_stride;
    if (bias != NULL)
        kernels->add(results, bias, num_rows);
    switch (product->end) {
    case GPTOSS_PRODUCT_STORE:
        memcpy(out + first_row, results, (size_t)num_rows * sizeof *out);
        break;
    case GPTOSS_PRODUCT_ADD: kernels->add(out + first_row, results, num_rows); break;
    case GPTOSS_PRODUCT_SWIGLU:
        kernels->swiglu(results, num_rows / 2, product->limit, product->alpha, out + first_row / 2);
        break;
    }
}

static void multiply_vectors(struct gptoss_cpu_backend *backend,
                             const struct gptoss_product *product, int64_t first_row,
                             int64_t num_rows, const float *bias) {
    const float *packed = (const float *)backend->packed.memory + product->packed;
    float results[VECTOR_TASK_ROWS];
    for (int64_t token = 0; token < product->num_tokens; ++token) {
        backend->kernels->matvec[product->matrix.layout](
            &product->matrix, first_row, num_rows, packed + token * piece_floats(product), results);
        finish(backend->kernels, product, token, first_row, num_rows, results, bias);
    }
}

#define RESULT_FLOATS (GPTOSS_MAX_TILES * GPTOSS_TILE_TOKENS * GPTOSS_PANEL_ROWS)

static uint64_t panel_scratch_floats(const struct gptoss_product *product) {
    int per_lane = gptoss_layout_per_lane(product->matrix.layout);
    return (uint64_t)gptoss_panel_num_values(product->matrix.num_columns, per_lane) +
           (uint64_t)gptoss_panel_num_scales(product->matrix.num_columns, per_lane) +
           RESULT_FLOATS + GPTOSS_MULTIPLY_SCRATCH;
}

static void multiply_panel(struct gptoss_cpu_backend *backend, const struct gptoss_product *product,
                           int64_t first_row, int64_t num_rows, const float *bias, float *memory) {
    const struct gptoss_kernels *kernels = backend->kernels;
    int per_lane = gptoss_layout_per_lane(product->matrix.layout);
    bool scaled = gptoss_layout_is_scaled(product->matrix.layout);
    float *results = memory, *scratch = results + RESULT_FLOATS,
          *values = scratch + GPTOSS_MULTIPLY_SCRATCH;
    struct gptoss_panel panel = {
        .num_columns = product->matrix.num_columns, .per_lane = per_lane, .values = values};
    if (scaled)
        panel.scales = values + gptoss_panel_num_values(panel.num_columns, per_lane);
    kernels->expand_panel[product->matrix.layout](&product->matrix, first_row, num_rows, &panel);
    const float *packed = (const float *)backend->packed.memory + product->packed;
    int64_t all_tiles = num_pieces(product);
    for (int64_t tile = 0; tile < all_tiles; tile += GPTOSS_MAX_TILES) {
        int64_t num_tiles =
            all_tiles - tile < GPTOSS_MAX_TILES ? all_tiles - tile : GPTOSS_MAX_TILES;
        const float *x_tiles = packed + tile * piece_floats(product);
        (scaled ? kernels->multiply_panel_scaled
                : kernels->multiply_panel_unscaled)(&panel, x_tiles, num_tiles, results, scratch);
        int64_t first = tile * GPTOSS_TILE_TOKENS, left = product->num_tokens - first;
        for (int64_t t = 0; t < num_tiles * GPTOSS_TILE_TOKENS && t < left; ++t)
            finish(kernels, product, first + t, first_row, num_rows,
                   results + t * GPTOSS_PANEL_ROWS, bias);
    }
}

static void multiply_task(void *context, int64_t task, int thread) {
    struct multiplication *work = context;
    const struct gptoss_product *product = work->products;
    while (task >= num_row_tasks(product))
        task -= num_row_tasks(product++);
    int64_t first_row = task * task_rows(product);
    int64_t num_rows = product->matrix.num_rows - first_row;
    if (num_rows > task_rows(product))
        num_rows = task_rows(product);
    float decoded[VECTOR_TASK_ROWS];
    const float *bias = NULL;
    if (product->bias != NULL) {
        gptoss_decode_elements(product->bias_dtype,
                               product->bias +
                                   (uint64_t)first_row * gptoss_dtype_bytes(product->bias_dtype),
                               (size_t)num_rows, decoded);
        bias = decoded;
    }
    if (uses_vectors(product))
        multiply_vectors(work->backend, product, first_row, num_rows, bias);
    else
        multiply_panel(work->backend, product, first_row, num_rows, bias,
                       work->backend->thread_scratch[thread].memory);
}

enum gptoss_status gptoss_cpu_multiply(struct gptoss_cpu_backend *backend,
                                       struct gptoss_product *products, int32_t num_products) {
    struct multiplication work = {
        .backend = backend, .products = products, .num_products = num_products};
    int64_t packed_floats = 0, pack_tasks = 0, row_tasks = 0;
    uint64_t scratch_floats = 0;
    for (int32_t p = 0; p < num_products; ++p) {
        struct gptoss_product *product = &products[p];
        assert(product->end != GPTOSS_PRODUCT_SWIGLU || product->matrix.num_rows % 2 == 0);
        row_tasks += num_row_tasks(product);
        if (!uses_vectors(product) && panel_scratch_floats(product) > scratch_floats)
            scratch_floats = panel_scratch_floats(product);
        if (p > 0 && same_input(product, product - 1)) {
            product->packed = product[-1].packed;
            continue;
        }
        product->packed = packed_floats;
        packed_floats += num_pieces(product) * piece_floats(product);
        pack_tasks += num_pieces(product);
    }
    enum gptoss_status status =
        gptoss_scratch_reserve(&backend->packed, (uint64_t)packed_floats * sizeof(float));
    if (status == GPTOSS_OK)
        status = gptoss_thread_scratch_reserve(backend, scratch_floats * sizeof(float));
    if (status != GPTOSS_OK)
        return status;
    if (pack_tasks <= MAX_VECTOR_TOKENS) /* not worth waking the threads */
        for (int64_t task = 0; task < pack_tasks; ++task)
            pack_task(&work, task, 0);
    else
        status = gptoss_cpu_run(backend, pack_task, &work, pack_tasks);
    if (status != GPTOSS_OK)
        return status;
    return gptoss_cpu_run(backend, multiply_task, &work, row_tasks);
}
