/* values[l][8 g + i][r] = code i of lane l in group g of row first_row + r, unscaled;
 * scales[b][g][r] = the scale of its block 4 g + b. Elements and blocks that the last group lacks
 * are not written. */
#include "cpu/elements.h"
#include "cpu/mxfp4_row.h"

enum { PER_LANE = 8, BLOCK = 32, LANES_PER_BLOCK = 4, ROWS = GPTOSS_PANEL_ROWS };

static float *scale_of(const struct gptoss_panel *panel, int64_t block, int64_t r) {
    int64_t num_groups = gptoss_num_groups(panel->num_columns, PER_LANE);
    int64_t group = block / LANES_PER_BLOCK, b = block % LANES_PER_BLOCK;
    return &panel->scales[(b * num_groups + group) * ROWS + r];
}

/* One row, number r of the panel. */
static void expand_row(const struct gptoss_mxfp4_row *row, int64_t r, struct gptoss_panel *panel) {
    int64_t num_groups = gptoss_num_groups(panel->num_columns, PER_LANE);
    for (int64_t block = 0; block < panel->num_columns / BLOCK; ++block) {
        int64_t group = block / LANES_PER_BLOCK, b = block % LANES_PER_BLOCK;
        *scale_of(panel, block, r) = gptoss_float_from_e8m0(row->scales[block * row->scale_step]);
        for (int64_t k = 0; k < BLOCK; ++k) {
            int64_t lane = b * LANES_PER_BLOCK + k / PER_LANE;
            int64_t i = k % PER_LANE;
            uint8_t byte = row->codes[block * row->codes_step + k / 2];
            panel->values[((lane * num_groups + group) * PER_LANE + i) * ROWS + r] =
                gptoss_e2m1_values[byte >> (i % 2 * 4) & 15];
        }
    }
}

static inline void expand(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                          int64_t first_row, int64_t num_rows, struct gptoss_panel *panel) {
    for (int64_t r = 0; r < num_rows; ++r) {
        struct gptoss_mxfp4_row row = gptoss_mxfp4_row(matrix, layout, first_row + r);
        expand_row(&row, r, panel);
    }
    /* Code 0 is +0; so is scale 0 of what is not there. */
    static const uint8_t zeros[16];
    const struct gptoss_mxfp4_row absent = {zeros, zeros, 0, 0};
    for (int64_t r = num_rows; r < ROWS; ++r) {
        expand_row(&absent, r, panel);
        for (int64_t block = 0; block < panel->num_columns / BLOCK; ++block)
            *scale_of(panel, block, r) = 0.0f;
    }
}

gptoss_expand_panel_fn GPTOSS_KERNEL(expand_panel_mxfp4), GPTOSS_KERNEL(expand_panel_mxfp4_gguf);

void GPTOSS_KERNEL(expand_panel_mxfp4)(const struct gptoss_matrix *matrix, int64_t first_row,
                                       int64_t num_rows, struct gptoss_panel *panel) {
    expand(matrix, GPTOSS_LAYOUT_MXFP4, first_row, num_rows, panel);
}

void GPTOSS_KERNEL(expand_panel_mxfp4_gguf)(const struct gptoss_matrix *matrix, int64_t first_row,
                                            int64_t num_rows, struct gptoss_panel *panel) {
    expand(matrix, GPTOSS_LAYOUT_MXFP4_GGUF, first_row, num_rows, panel);
}
