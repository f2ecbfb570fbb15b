/* Products at precision bf16 with vdpbf16ps, which adds both products of a pair to a lane's sum:
 *
 *     p[l] = dp(pair l of group g, p[l]) over the groups of 32, ascending; then the tree
 *
 * Few tokens: the 16 pairs of a row's group in the lanes. More: a panel of 32 rows in the lanes,
 * the unscaled panel product on pairs. The same operations for each output, so the same bits. */
#include <string.h>

#include "cpu/bf16_rows.h"
#include "cpu/bf16_units.h"

enum { LANES = GPTOSS_LANES, GROUP = GPTOSS_BF16_GROUP, PANEL_ROWS = GPTOSS_PANEL_ROWS };
enum { TILE_TOKENS = GPTOSS_TILE_TOKENS };

static int64_t num_groups_of(const struct gptoss_product *product) {
    return gptoss_bf16_num_groups(product->matrix.num_columns);
}

/* ---- vectors ---- */

enum { TASK_ROWS = 64, ROWS = 4, MAX_VECTORS = 4, BATCH = 4 };
enum { PREFETCH_BYTES = 6144 };

static int64_t vector_bytes(const struct gptoss_product *product) {
    return num_groups_of(product) * 64;
}

/* out[g][l] = pair l of group g. */
static void pack_vector(const struct gptoss_product *product, int64_t token, void *out) {
    const float *x = gptoss_product_input(product, token);
    int64_t num_columns = product->matrix.num_columns, num_groups = num_groups_of(product);
    for (int64_t g = 0; g < num_groups; ++g)
        _mm512_storeu_si512((uint8_t *)out + g * 64,
                            gptoss_bf16_round(product->matrix.layout, x, g,
                                              gptoss_bf16_group_width(num_columns, g)));
}

static uint64_t no_scratch(const struct gptoss_product *product) {
    (void)product;
    return 0;
}

/* out[v * stride + r] for a few rows and vectors; their numbers and the layout are constants. */
GPTOSS_INLINE void dot_rows(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                            int64_t first_row, int num_rows, const uint8_t *x, int num_vectors,
                            float *out, int64_t stride) {
    int64_t num_groups = gptoss_bf16_num_groups(matrix->num_columns);
    const uint8_t *rows[ROWS], *scales[ROWS];
    __m512 p[ROWS][MAX_VECTORS];
    for (int r = 0; r < num_rows; ++r) {
        rows[r] = gptoss_bf16_row(matrix, first_row + r);
        scales[r] = gptoss_bf16_scales(matrix, first_row + r);
        for (int v = 0; v < num_vectors; ++v)
            p[r][v] = _mm512_setzero_ps();
    }
    for (int64_t first = 0; first < num_groups; first += BATCH) {
        for (int r = 0; r < num_rows; ++r)
            for (int64_t at = 0; at < BATCH * gptoss_bf16_group_bytes(layout); at += 64)
                _mm_prefetch((const char *)rows[r] + first * gptoss_bf16_group_bytes(layout) + at +
                                 PREFETCH_BYTES,
                             _MM_HINT_T0);
        int64_t end = first + BATCH < num_groups ? first + BATCH : num_groups;
        for (int64_t g = first; g < end; ++g) {
            int64_t width = gptoss_bf16_group_width(matrix->num_columns, g);
            for (int r = 0; r < num_rows; ++r) {
                __m512i weights = gptoss_bf16_load(layout, rows[r], scales[r], g, width);
                for (int v = 0; v < num_vectors; ++v)
                    p[r][v] = _mm512_dpbf16_ps(
                        p[r][v], (__m512bh)weights,
                        (__m512bh)_mm512_loadu_si512(x + (v * num_groups + g) * 64));
            }
        }
    }
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            out[v * stride + r] = gptoss_sum_16(p[r][v]);
}

GPTOSS_INLINE void dot_all(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                           int64_t first_row, int64_t num_rows, const uint8_t *x, int num_vectors,
                           float *out) {
    int64_t r = 0;
    for (; r + ROWS <= num_rows; r += ROWS)
        dot_rows(matrix, layout, first_row + r, ROWS, x, num_vectors, out + r, num_rows);
    for (; r < num_rows; ++r)
        dot_rows(matrix, layout, first_row + r, 1, x, num_vectors, out + r, num_rows);
}

GPTOSS_INLINE void dot_vectors(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                               int64_t first_row, int64_t num_rows, const uint8_t *x,
                               int64_t num_vectors, float *out) {
    switch (num_vectors) {
    case 1: dot_all(matrix, layout, first_row, num_rows, x, 1, out); break;
    case 2: dot_all(matrix, layout, first_row, num_rows, x, 2, out); break;
    case 3: dot_all(matrix, layout, first_row, num_rows, x, 3, out); break;
    default: dot_all(matrix, layout, first_row, num_rows, x, MAX_VECTORS, out); break;
    }
}

static void multiply_vectors(const struct gptoss_kernels *kernels,
                             const struct gptoss_product *product,
                             const struct gptoss_product_part *part, const float *bias,
                             void *scratch) {
    (void)scratch;
    const struct gptoss_matrix *matrix = &product->matrix;
    float results[MAX_VECTORS * TASK_ROWS];
    for (int64_t token = part->first_token; token < part->end_token; token += MAX_VECTORS) {
        const uint8_t *x = (const uint8_t *)product->packed + token * vector_bytes(product);
        int64_t left = part->end_token - token, n = left < MAX_VECTORS ? left : MAX_VECTORS;
        if (matrix->layout == GPTOSS_LAYOUT_MXFP4)
            dot_vectors(matrix, GPTOSS_LAYOUT_MXFP4, part->first_row, part->num_rows, x, n,
                        results);
        else if (matrix->layout == GPTOSS_LAYOUT_MXFP4_GGUF)
            dot_vectors(matrix, GPTOSS_LAYOUT_MXFP4_GGUF, part->first_row, part->num_rows, x, n,
                        results);
        else
            dot_vectors(matrix, GPTOSS_LAYOUT_BF16, part->first_row, part->num_rows, x, n, results);
        for (int64_t v = 0; v < n; ++v)
            gptoss_product_finish(kernels, product, part, token + v, results + v * part->num_rows,
                                  bias);
    }
}

static const struct gptoss_product_form vector_form = {
    .task_rows = TASK_ROWS,
    .piece_tokens = 1,
    .piece_bytes = vector_bytes,
    .pack = pack_vector,
    .layouts_share_input = gptoss_bf16_layouts_share_input,
    .scratch_bytes = no_scratch,
    .multiply = multiply_vectors,
};

/* ---- panels ---- */

gptoss_multiply_panel_fn GPTOSS_KERNEL(multiply_panel_unscaled);

#define RESULT_FLOATS (GPTOSS_MAX_TILES * TILE_TOKENS * PANEL_ROWS)

static int64_t tile_bytes(const struct gptoss_product *product) {
    return vector_bytes(product) * TILE_TOKENS;
}

/* out[l][g][token] = pair l of group g, 0 past the last column and the last token. */
static void pack_tile(const struct gptoss_product *product, int64_t tile, void *out_bytes) {
    float *out = out_bytes;
    int64_t num_columns = product->matrix.num_columns, num_groups = num_groups_of(product);
    int64_t first = tile * TILE_TOKENS, left = product->num_tokens - first;
    for (int64_t g = 0; g < num_groups; ++g) {
        int64_t width = gptoss_bf16_group_width(num_columns, g);
        __m512 pairs[LANES];
        for (int64_t t = 0; t < LANES; ++t)
            pairs[t] =
                t >= TILE_TOKENS || t >= left
                    ? _mm512_setzero_ps()
                    : (__m512)gptoss_bf16_round(product->matrix.layout,
                                                gptoss_product_input(product, first + t), g, width);
        gptoss_transpose_16(pairs);
        for (int64_t l = 0; l < LANES; ++l)
            _mm512_mask_storeu_ps(out + (l * num_groups + g) * TILE_TOKENS,
                                  gptoss_first_lanes(TILE_TOKENS), pairs[l]);
    }
}

/* values[l][g][r] = pair l of group g of row first_row + r, 0 past the last row. */
GPTOSS_INLINE void expand_panel(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                                int64_t first_row, int64_t num_rows, float *values) {
    int64_t num_groups = gptoss_bf16_num_groups(matrix->num_columns);
    for (int64_t half = 0; half < PANEL_ROWS; half += LANES)
        for (int64_t g = 0; g < num_groups; ++g) {
            int64_t width = gptoss_bf16_group_width(matrix->num_columns, g);
            __m512 pairs[LANES];
            for (int64_t r = 0; r < LANES; ++r) {
                int64_t row = first_row + half + r;
                pairs[r] = half + r < num_rows
                               ? (__m512)gptoss_bf16_load(layout, gptoss_bf16_row(matrix, row),
                                                          gptoss_bf16_scales(matrix, row), g, width)
                               : _mm512_setzero_ps();
            }
            gptoss_transpose_16(pairs);
            for (int64_t l = 0; l < LANES; ++l)
                _mm512_storeu_ps(values + (l * num_groups + g) * PANEL_ROWS + half, pairs[l]);
        }
}

static uint64_t panel_scratch_bytes(const struct gptoss_product *product) {
    int64_t num_values = num_groups_of(product) * LANES * PANEL_ROWS;
    return (uint64_t)(num_values + RESULT_FLOATS + GPTOSS_MULTIPLY_SCRATCH) * sizeof(float);
}

static void multiply_panel(const struct gptoss_kernels *kernels,
                           const struct gptoss_product *product,
                           const struct gptoss_product_part *part, const float *bias,
                           void *memory) {
    const struct gptoss_matrix *matrix = &product->matrix;
    float *results = memory, *scratch = results + RESULT_FLOATS,
          *values = scratch + GPTOSS_MULTIPLY_SCRATCH;
    if (matrix->layout == GPTOSS_LAYOUT_MXFP4)
        expand_panel(matrix, GPTOSS_LAYOUT_MXFP4, part->first_row, part->num_rows, values);
    else if (matrix->layout == GPTOSS_LAYOUT_MXFP4_GGUF)
        expand_panel(matrix, GPTOSS_LAYOUT_MXFP4_GGUF, part->first_row, part->num_rows, values);
    else
        expand_panel(matrix, GPTOSS_LAYOUT_BF16, part->first_row, part->num_rows, values);
    /* To the panel product a pair is an element: every lane's chain is a pair a group. */
    const struct gptoss_panel panel = {
        .num_columns = num_groups_of(product) * LANES, .per_lane = 1, .values = values};
    int64_t end = (part->end_token + TILE_TOKENS - 1) / TILE_TOKENS;
    for (int64_t tile = part->first_token / TILE_TOKENS; tile < end; tile += GPTOSS_MAX_TILES) {
        int64_t num_tiles = end - tile < GPTOSS_MAX_TILES ? end - tile : GPTOSS_MAX_TILES;
        const uint8_t *x_tiles = (const uint8_t *)product->packed + tile * tile_bytes(product);
        GPTOSS_KERNEL(multiply_panel_unscaled)
        (&panel, (const float *)x_tiles, num_tiles, results, scratch);
        int64_t first = tile * TILE_TOKENS, left = part->end_token - first;
        for (int64_t t = 0; t < num_tiles * TILE_TOKENS && t < left; ++t)
            gptoss_product_finish(kernels, product, part, first + t, results + t * PANEL_ROWS,
                                  bias);
    }
}

static const struct gptoss_product_form panel_form = {
    .task_rows = PANEL_ROWS,
    .piece_tokens = TILE_TOKENS,
    .piece_bytes = tile_bytes,
    .pack = pack_tile,
    .layouts_share_input = gptoss_bf16_layouts_share_input,
    .scratch_bytes = panel_scratch_bytes,
    .multiply = multiply_panel,
};

const struct gptoss_bf16_unit gptoss_bf16_unit_avx512_bf16 = {
    .isa = "avx512_bf16", .vector_form = &vector_form, .panel_form = &panel_form};
