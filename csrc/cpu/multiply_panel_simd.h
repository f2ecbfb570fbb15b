/* The panel product for any vector type; include after the level's simd header, which defines
 * gptoss_vector, and after the sizes of a strip: UNSCALED_VECTORS and SCALED_VECTORS of rows (2 or
 * 4), SCALED_TOKENS (6 or 3), as many as have their sums, scaled ones twice, in registers.
 *
 * out[token][r] = dot(row r of the panel, token's input), rows in the lanes: a strip of rows times
 * 6 (or 3) tokens advances along one chain as outer products, unscaled p = fma(w, x, p), scaled t =
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
enum { WIDTH = GPTOSS_VECTOR_LANES, SCALED_PER_LANE = 8, MAX_VECTORS = 4 };

/* The first tokens, and the first vectors of each, are in use. */
typedef gptoss_vector strip_sums[TOKENS][MAX_VECTORS];

static const uint8_t visited_lane[LANES] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};

GPTOSS_INLINE void clear(strip_sums sums, int num_tokens, int num_vectors) {
    for (int token = 0; token < num_tokens; ++token)
        for (int v = 0; v < num_vectors; ++v)
            sums[token][v] = gptoss_vector_set(0.0f);
}

GPTOSS_INLINE void add_outer_product(const float *values, const float *x, strip_sums sums,
                                     int num_tokens, int num_vectors) {
    gptoss_vector weights[MAX_VECTORS];
    for (int v = 0; v < num_vectors; ++v)
        weights[v] = gptoss_vector_load(values + v * WIDTH);
    for (int token = 0; token < num_tokens; ++token) {
        gptoss_vector x_token = gptoss_vector_set(x[token]);
        for (int v = 0; v < num_vectors; ++v)
            sums[token][v] = gptoss_vector_fma(weights[v], x_token, sums[token][v]);
    }
}

GPTOSS_INLINE void add_scaled(const float *scales, strip_sums t, strip_sums p, int num_tokens,
                              int num_vectors) {
    for (int v = 0; v < num_vectors; ++v) {
        gptoss_vector scale = gptoss_vector_load(scales + v * WIDTH);
        for (int token = 0; token < num_tokens; ++token)
            p[token][v] = gptoss_vector_fma(scale, t[token][v], p[token][v]);
    }
}

/* The sums of one chain; scales NULL: unscaled. */
GPTOSS_INLINE void sum_chain(const float *values, const float *scales, const float *x,
                             int64_t length, strip_sums p, int num_tokens, int num_vectors) {
    clear(p, num_tokens, num_vectors);
    if (scales == NULL) {
        for (; length > 0; --length, values += ROWS, x += TOKENS)
            add_outer_product(values, x, p, num_tokens, num_vectors);
        return;
    }
    for (; length > 0; length -= SCALED_PER_LANE, scales += ROWS) {
        strip_sums t;
        clear(t, num_tokens, num_vectors);
        for (int i = 0; i < SCALED_PER_LANE; ++i, values += ROWS, x += TOKENS)
            add_outer_product(values, x, t, num_tokens, num_vectors);
        add_scaled(scales, t, p, num_tokens, num_vectors);
    }
}

GPTOSS_INLINE void add_strip(const float *sums, strip_sums p, int num_tokens, int num_vectors) {
    for (int token = 0; token < num_tokens; ++token)
        for (int v = 0; v < num_vectors; ++v) {
            gptoss_vector sum = gptoss_vector_load(sums + token * ROWS + v * WIDTH);
            p[token][v] = gptoss_vector_add(sum, p[token][v]);
        }
}

GPTOSS_INLINE void store_strip(strip_sums p, float *sums, int num_tokens, int num_vectors) {
    for (int token = 0; token < num_tokens; ++token)
        for (int v = 0; v < num_vectors; ++v)
            gptoss_vector_store(sums + token * ROWS + v * WIDTH, p[token][v]);
}

/* One chain of the next tile into the second-level cache: it lies apart from this one's, where the
 * processor's own prefetching starts anew. */
GPTOSS_INLINE void prefetch_chain(const float *x, int64_t num_floats) {
    for (int64_t i = 0; i < num_floats; i += 16)
        __builtin_prefetch(x + i, 0, 2);
}

GPTOSS_INLINE void multiply(const struct gptoss_panel *panel, const float *x_tiles,
                            int64_t num_tiles, float *out, float *scratch, bool scaled) {
    int64_t num_groups = gptoss_num_groups(panel->num_columns, panel->per_lane);
    int64_t chain_stride = num_groups * panel->per_lane;
    const int num_vectors = scaled ? SCALED_VECTORS : UNSCALED_VECTORS;
    const int num_tokens = scaled ? SCALED_TOKENS : TOKENS;
    for (int visit = 0; visit < LANES; ++visit) {
        int lane = visited_lane[visit];
        const float *values = panel->values + lane * chain_stride * ROWS;
        const float *scales =
            scaled ? panel->scales + lane / GPTOSS_LANES_PER_SCALE * num_groups * ROWS : NULL;
        int64_t length = gptoss_chain_length(panel->num_columns, panel->per_lane, lane);
        for (int64_t tile = 0; tile < num_tiles; ++tile) {
            const float *x = x_tiles + (tile * LANES + lane) * chain_stride * TOKENS;
            if (tile + 1 < num_tiles)
                prefetch_chain(x + LANES * chain_stride * TOKENS, length * TOKENS);
            for (int at = 0; at < TILE_OUT; at += num_vectors * WIDTH) {
                int token = at / ROWS, row = at % ROWS;
                if (token % num_tokens != 0)
                    continue;
                strip_sums p;
                sum_chain(values + row, scaled ? scales + row : NULL, x + token, length, p,
                          num_tokens, num_vectors);
                float *level = scratch + tile * TILE_OUT;
                for (int carry = visit; carry & 1; carry >>= 1, level += num_tiles * TILE_OUT)
                    add_strip(level + at, p, num_tokens, num_vectors);
                store_strip(p, (visit < LANES - 1 ? level : out + tile * TILE_OUT) + at, num_tokens,
                            num_vectors);
            }
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
