/* out[token][r] = dot(row r of the panel, token's input): the chains of a row product, for 32 rows
 * side by side. unscaled:  p[l] = fma(w, x, p[l]) over the chain scaled:    t = +0; t = fma(code,
 * x, t) over the lane's elements of a group; p[l] = fma(scale, t, p[l]) then the tree. */
#include <math.h>

#include "cpu/kernels.h"

enum { ROWS = GPTOSS_PANEL_ROWS, TOKENS = GPTOSS_TILE_TOKENS };

/* x: the chain of one token, TOKENS floats apart. */
static void add_chain_unscaled(const float *values, const float *x, int64_t length, float p[ROWS]) {
    for (int64_t k = 0; k < length; ++k)
        for (int r = 0; r < ROWS; ++r)
            p[r] = fmaf(values[k * ROWS + r], x[k * TOKENS], p[r]);
}

static void add_chain_scaled(const float *values, const float *scales, const float *x,
                             int64_t num_groups, int per_lane, float p[ROWS]) {
    for (int64_t g = 0; g < num_groups; ++g) {
        float t[ROWS] = {0};
        add_chain_unscaled(values + g * per_lane * ROWS, x + g * per_lane * TOKENS, per_lane, t);
        for (int r = 0; r < ROWS; ++r)
            p[r] = fmaf(scales[g * ROWS + r], t[r], p[r]);
    }
}

static void multiply_token(const struct gptoss_panel *panel, const float *x, float *out) {
    int64_t num_groups = gptoss_num_groups(panel->num_columns, panel->per_lane);
    int64_t chain_stride = num_groups * panel->per_lane;
    float p[GPTOSS_LANES][ROWS] = {{0}};
    for (int l = 0; l < GPTOSS_LANES; ++l) {
        const float *values = panel->values + l * chain_stride * ROWS;
        const float *chain_x = x + l * chain_stride * TOKENS;
        int64_t length = gptoss_chain_length(panel->num_columns, panel->per_lane, l);
        if (panel->scales == NULL) {
            add_chain_unscaled(values, chain_x, length, p[l]);
        } else {
            const float *scales = panel->scales + l / GPTOSS_LANES_PER_SCALE * num_groups * ROWS;
            add_chain_scaled(values, scales, chain_x, length / panel->per_lane, panel->per_lane,
                             p[l]);
        }
    }
    for (int half = GPTOSS_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; ++l)
            for (int r = 0; r < ROWS; ++r)
                p[l][r] += p[l + half][r];
    for (int r = 0; r < ROWS; ++r)
        out[r] = p[0][r];
}

gptoss_multiply_panel_fn GPTOSS_KERNEL(multiply_panel_unscaled),
    GPTOSS_KERNEL(multiply_panel_scaled);

void GPTOSS_KERNEL(multiply_panel_scaled)(const struct gptoss_panel *panel, const float *x_tiles,
                                          int64_t num_tiles, float *out, float *scratch) {
    int64_t tile_size = gptoss_num_groups(panel->num_columns, panel->per_lane) * panel->per_lane *
                        GPTOSS_LANES * TOKENS;
    for (int64_t token = 0; token < num_tiles * TOKENS; ++token)
        multiply_token(panel, x_tiles + token / TOKENS * tile_size + token % TOKENS,
                       out + token * ROWS);
    (void)scratch;
}

void GPTOSS_KERNEL(multiply_panel_unscaled)(const struct gptoss_panel *panel, const float *x_tiles,
                                            int64_t num_tiles, float *out, float *scratch) {
    GPTOSS_KERNEL(multiply_panel_scaled)(panel, x_tiles, num_tiles, out, scratch);
}
