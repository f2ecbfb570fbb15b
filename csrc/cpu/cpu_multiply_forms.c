/* Few tokens: every row of the matrix times up to 4 vectors at once. More: 32 rows are expanded to
 * float32 once and multiplied by all tokens, 6 at a time. */
#include <string.h>

#include "cpu/cpu_multiply.h"

/* Weights of a task of vector products: a few microseconds of reading, still in cache for the
 * vectors after the first four. */
#define VECTOR_TASK_ROWS 64
#define VECTOR_TASK_BYTES 65536

enum { MAX_GROUP = GPTOSS_LANES * 8 };

static int64_t padded_columns(const struct gptoss_product *product) {
    return gptoss_padded_columns(product->matrix.num_columns,
                                 gptoss_layout_per_lane(product->matrix.layout));
}

/* ---- vectors ---- */

static int64_t vector_bytes(const struct gptoss_product *product) {
    return padded_columns(product) * (int64_t)sizeof(float);
}

/* out[g][i][lane] = x[group g, element i of the lane], +0 past the end. */
static void pack_vector(const struct gptoss_product *product, int64_t token, void *out_bytes) {
    const float *x = gptoss_product_input(product, token);
    float *out = out_bytes;
    enum gptoss_layout layout = product->matrix.layout;
    int64_t num_columns = product->matrix.num_columns;
    int per_lane = gptoss_layout_per_lane(layout), group = GPTOSS_LANES * per_lane;
    if (per_lane == 1) {
        memcpy(out, x, (size_t)num_columns * sizeof *out);
        memset(out + num_columns, 0, (size_t)(padded_columns(product) - num_columns) * sizeof *out);
        return;
    }
    int16_t elements[MAX_GROUP];
    for (int at = 0; at < group; ++at)
        elements[at] = (int16_t)gptoss_lane_element(layout, at % GPTOSS_LANES, at / GPTOSS_LANES);
    int64_t first = 0;
    for (; first + group <= num_columns; first += group, out += group)
        for (int at = 0; at < group; ++at)
            out[at] = x[first + elements[at]];
    for (int at = 0; first < num_columns && at < group; ++at)
        out[at] = elements[at] < num_columns - first ? x[first + elements[at]] : 0.0f;
}

static uint64_t no_scratch(const struct gptoss_product *product) {
    (void)product;
    return 0;
}

static void multiply_vectors(const struct gptoss_kernels *kernels,
                             const struct gptoss_product *product,
                             const struct gptoss_product_part *part, const float *bias,
                             void *scratch) {
    (void)scratch;
    const float *packed = product->packed;
    float results[GPTOSS_MAX_VECTORS * VECTOR_TASK_ROWS];
    for (int64_t token = part->first_token; token < part->end_token; token += GPTOSS_MAX_VECTORS) {
        int64_t left = part->end_token - token;
        int32_t num_vectors = left < GPTOSS_MAX_VECTORS ? (int32_t)left : GPTOSS_MAX_VECTORS;
        kernels->matvec[product->matrix.layout](&product->matrix, part->first_row, part->num_rows,
                                                packed + token * padded_columns(product),
                                                num_vectors, results);
        for (int32_t v = 0; v < num_vectors; ++v)
            gptoss_product_finish(kernels, product, part, token + v, results + v * part->num_rows,
                                  bias);
    }
}

const struct gptoss_product_form gptoss_vector_form = {
    .task_rows = VECTOR_TASK_ROWS,
    .task_bytes = VECTOR_TASK_BYTES,
    .piece_tokens = 1,
    .piece_bytes = vector_bytes,
    .pack = pack_vector,
    .layouts_share_input = gptoss_layouts_share_input,
    .scratch_bytes = no_scratch,
    .multiply = multiply_vectors,
};

/* ---- panels ---- */

#define RESULT_FLOATS (GPTOSS_MAX_TILES * GPTOSS_TILE_TOKENS * GPTOSS_PANEL_ROWS)

static int64_t tile_bytes(const struct gptoss_product *product) {
    return vector_bytes(product) * GPTOSS_TILE_TOKENS;
}

/* out[lane][g * per_lane + i][token], +0 past the last column and the last token. */
static void pack_tile(const struct gptoss_product *product, int64_t tile, void *out_bytes) {
    float *out = out_bytes;
    enum gptoss_layout layout = product->matrix.layout;
    int64_t num_columns = product->matrix.num_columns;
    int per_lane = gptoss_layout_per_lane(layout), group = GPTOSS_LANES * per_lane;
    int64_t num_groups = gptoss_num_groups(num_columns, per_lane);
    int64_t first = tile * GPTOSS_TILE_TOKENS, left = product->num_tokens - first;
    const float *lines[GPTOSS_TILE_TOKENS];
    for (int64_t t = 0; t < GPTOSS_TILE_TOKENS; ++t)
        lines[t] = t < left ? gptoss_product_input(product, first + t) : NULL;
    for (int lane = 0; lane < GPTOSS_LANES; ++lane)
        for (int64_t g = 0; g < num_groups; ++g)
            for (int i = 0; i < per_lane; ++i, out += GPTOSS_TILE_TOKENS) {
                int64_t element = g * group + gptoss_lane_element(layout, lane, i);
                for (int64_t t = 0; t < GPTOSS_TILE_TOKENS; ++t)
                    out[t] = lines[t] != NULL && element < num_columns ? lines[t][element] : 0.0f;
            }
}

static uint64_t panel_scratch_bytes(const struct gptoss_product *product) {
    int per_lane = gptoss_layout_per_lane(product->matrix.layout);
    uint64_t num_floats = (uint64_t)gptoss_panel_num_values(product->matrix.num_columns, per_lane) +
                          (uint64_t)gptoss_panel_num_scales(product->matrix.num_columns, per_lane) +
                          RESULT_FLOATS + GPTOSS_MULTIPLY_SCRATCH;
    return num_floats * sizeof(float);
}

/* The rows that are expanded next, most likely by this thread: reading 32 rows side by side is more
 * than processors foresee. */
static void prefetch_panel(const struct gptoss_matrix *matrix, int64_t first_row) {
    if (gptoss_layout_is_transposed(matrix->layout) ||
        first_row + GPTOSS_PANEL_ROWS > matrix->num_rows)
        return;
    const uint8_t *rows = matrix->data + first_row * matrix->row_bytes;
    for (int64_t byte = 0; byte < GPTOSS_PANEL_ROWS * matrix->row_bytes; byte += 64)
        __builtin_prefetch(rows + byte, 0, 2);
}

static void multiply_panel(const struct gptoss_kernels *kernels,
                           const struct gptoss_product *product,
                           const struct gptoss_product_part *part, const float *bias,
                           void *memory) {
    int per_lane = gptoss_layout_per_lane(product->matrix.layout);
    bool scaled = gptoss_layout_is_scaled(product->matrix.layout);
    float *results = memory, *scratch = results + RESULT_FLOATS,
          *values = scratch + GPTOSS_MULTIPLY_SCRATCH;
    struct gptoss_panel panel = {
        .num_columns = product->matrix.num_columns, .per_lane = per_lane, .values = values};
    if (scaled)
        panel.scales = values + gptoss_panel_num_values(panel.num_columns, per_lane);
    kernels->expand_panel[product->matrix.layout](&product->matrix, part->first_row, part->num_rows,
                                                  &panel);
    prefetch_panel(&product->matrix, part->first_row + part->num_rows);
    int64_t tile_floats = padded_columns(product) * GPTOSS_TILE_TOKENS;
    int64_t end = (part->end_token + GPTOSS_TILE_TOKENS - 1) / GPTOSS_TILE_TOKENS;
    for (int64_t tile = part->first_token / GPTOSS_TILE_TOKENS; tile < end;
         tile += GPTOSS_MAX_TILES) {
        int64_t num_tiles = end - tile < GPTOSS_MAX_TILES ? end - tile : GPTOSS_MAX_TILES;
        const float *x_tiles = (const float *)product->packed + tile * tile_floats;
        (scaled ? kernels->multiply_panel_scaled
                : kernels->multiply_panel_unscaled)(&panel, x_tiles, num_tiles, results, scratch);
        int64_t first = tile * GPTOSS_TILE_TOKENS, left = part->end_token - first;
        for (int64_t t = 0; t < num_tiles * GPTOSS_TILE_TOKENS && t < left; ++t)
            gptoss_product_finish(kernels, product, part, first + t,
                                  results + t * GPTOSS_PANEL_ROWS, bias);
    }
}

const struct gptoss_product_form gptoss_panel_form = {
    .task_rows = GPTOSS_PANEL_ROWS,
    .piece_tokens = GPTOSS_TILE_TOKENS,
    .piece_bytes = tile_bytes,
    .pack = pack_tile,
    .layouts_share_input = gptoss_layouts_share_input,
    .scratch_bytes = panel_scratch_bytes,
    .multiply = multiply_panel,
};
