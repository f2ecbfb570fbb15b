/* The panel product for any vector type; include after the level's simd header, which defines
 * gptoss_vector.
 *
 * out[token][r] = dot(row r of the panel, token's input), rows in the lanes: 2 vectors of rows
 * times 6 tokens advance along one chain as outer products, unscaled p = fma(w, x, p), scaled t =
 * fma(code, x, t) and p = fma(scale, t, p).
 *
 * The chains of a tile are visited in bit-reversed order, 0 8 4 12 2 10 6 14 1 9 ...: whenever both
 * halves of a subtree of the documented tree are complete they are added, as a binary counter
 * carries. One chain of the weights stays in the first-level cache while all tiles pass. */
#include "cpu/kernels.h"

enum {
    LANES = GPTOSS_LANES,
    ROWS = GPTOSS_PANEL_ROWS,
    TOKENS = GPTOSS_TILE_TOKENS,
    TILE_OUT = TOKENS * ROWS
};
enum { WIDTH = GPTOSS_VECTOR_LANES, STRIP_ROWS = 2 * WIDTH, SCALED_PER_LANE = 8 };

static const uint8_t visited_lane[LANES] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};

GPTOSS_INLINE void clear(gptoss_vector sums[TOKENS][2]) {
    for (int token = 0; token < TOKENS; ++token)
        sums[token][0] = sums[token][1] = gptoss_vector_set(0.0f);
}

GPTOSS_INLINE void add_outer_product(const float *values, const float *x,
                                     gptoss_vector sums[TOKENS][2]) {
    gptoss_vector low = gptoss_vector_load(values), high = gptoss_vector_load(values + WIDTH);
    for (int token = 0; token < TOKENS; ++token) {
        gptoss_vector x_token = gptoss_vector_set(x[token]);
        sums[token][0] = gptoss_vector_fma(low, x_token, sums[token][0]);
        sums[token][1] = gptoss_vector_fma(high, x_token, sums[token][1]);
    }
}

GPTOSS_INLINE void add_scaled(const float *scales, gptoss_vector t[TOKENS][2],
                              gptoss_vector p[TOKENS][2]) {
    gptoss_vector low = gptoss_vector_load(scales), high = gptoss_vector_load(scales + WIDTH);
    for (int token = 0; token < TOKENS; ++token) {
        p[token][0] = gptoss_vector_fma(low, t[token][0], p[token][0]);
        p[token][1] = gptoss_vector_fma(high, t[token][1], p[token][1]);
    }
}

/* The sums of one chain; scales NULL: unscaled. */
GPTOSS_INLINE void sum_chain(const float *values, const float *scales, const float *x,
                             int64_t length, gptoss_vector p[TOKENS][2]) {
    clear(p);
    if (scales == NULL) {
        for (; length > 0; --length, values += ROWS, x += TOKENS)
            add_outer_product(values, x, p);
        return;
    }
    for (; length > 0; length -= SCALED_PER_LANE, scales += ROWS) {
        gptoss_vector t[TOKENS][2];
        clear(t);
        for (int i = 0; i < SCALED_PER_LANE; ++i, values += ROWS, x += TOKENS)
            add_outer_product(values, x, t);
        add_scaled(scales, t, p);
    }
}

GPTOSS_INLINE void add_tile(const float *sums, gptoss_vector p[TOKENS][2]) {
    for (int token = 0; token < TOKENS; ++token)
        for (int h = 0; h < 2; ++h)
            p[token][h] =
                gptoss_vector_add(gptoss_vector_load(sums + token * ROWS + h * WIDTH), p[token][h]);
}

GPTOSS_INLINE void store_tile(gptoss_vector p[TOKENS][2], float *sums) {
    for (int token = 0; token < TOKENS; ++token)
        for (int h = 0; h < 2; ++h)
            gptoss_vector_store(sums + token * ROWS + h * WIDTH, p[token][h]);
}

GPTOSS_INLINE void multiply(const struct gptoss_panel *panel, const float *x_tiles,
                            int64_t num_tiles, float *out, float *scratch, bool scaled) {
    int64_t num_groups = gptoss_num_groups(panel->num_columns, panel->per_lane);
    int64_t chain_stride = num_groups * panel->per_lane;
    for (int visit = 0; visit < LANES; ++visit) {
        int lane = visited_lane[visit];
        const float *values = panel->values + lane * chain_stride * ROWS;
        const float *scales =
            scaled ? panel->scales + lane / GPTOSS_LANES_PER_SCALE * num_groups * ROWS : NULL;
        int64_t length = gptoss_chain_length(panel->num_columns, panel->per_lane, lane);
        for (int64_t tile = 0; tile < num_tiles; ++tile)
            for (int64_t row = 0; row < ROWS; row += STRIP_ROWS) {
                const float *x = x_tiles + (tile * LANES + lane) * chain_stride * TOKENS;
                gptoss_vector p[TOKENS][2];
                sum_chain(values + row, scaled ? scales + row : NULL, x, length, p);
                float *level = scratch + tile * TILE_OUT;
                for (int carry = visit; carry & 1; carry >>= 1, level += num_tiles * TILE_OUT)
                    add_tile(level + row, p);
                store_tile(p, (visit < LANES - 1 ? level : out + tile * TILE_OUT) + row);
            }
    }
}

gptoss_multiply_panel_fn GPTOSS_KERNEL(multiply_panel_unscaled),
    GPTOSS_KERNEL(multiply_panel_scaled);

void GPTOSS_KERNEL(multiply_panel_unscaled)(const struct gptoss_panel *panel, const float *x_tiles,
                                            int64_t num_tiles, float *out, float *scratch) {
    multiply(panel, x_tiles, num_tiles, out, scratch, false);
}

void GPTOSS_KERNEL(multiply_panel_scaled)(const struct gptoss_panel *panel, const float *x_tiles,
                                          int64_t num_tiles, float *out, float *scratch) {
    multiply(panel, x_tiles, num_tiles, out, scratch, true);
}
