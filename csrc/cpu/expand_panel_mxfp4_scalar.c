/* values[l][8 g + i][r] = code 128 g + 8 l + i of row first_row + r, unscaled; scales[b][g][r] =
 * the scale of its block 4 g + b. Elements and blocks that the last group lacks are not written. */
#include "cpu/elements.h"

enum {
    PER_LANE = 8,
    GROUP = GPTOSS_LANES * PER_LANE,
    BLOCK = 32,
    BLOCKS_PER_GROUP = GROUP / BLOCK
};

gptoss_expand_panel_fn GPTOSS_KERNEL(expand_panel_mxfp4);

void GPTOSS_KERNEL(expand_panel_mxfp4)(const struct gptoss_matrix *matrix, int64_t first_row,
                                       int64_t num_rows, struct gptoss_panel *panel) {
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, PER_LANE);
    for (int64_t column = 0; column < matrix->num_columns; ++column) {
        int64_t group = column / GROUP, lane = column % GROUP / PER_LANE, i = column % PER_LANE;
        float *values =
            panel->values + ((lane * num_groups + group) * PER_LANE + i) * GPTOSS_PANEL_ROWS;
        for (int64_t r = 0; r < GPTOSS_PANEL_ROWS; ++r) {
            if (r >= num_rows) {
                values[r] = 0.0f;
                continue;
            }
            uint8_t byte = matrix->data[(first_row + r) * matrix->row_bytes + column / 2];
            values[r] = gptoss_e2m1_values[byte >> (column % 2 * 4) & 15];
        }
    }
    for (int64_t block = 0; block < matrix->num_columns / BLOCK; ++block) {
        int64_t group = block / BLOCKS_PER_GROUP, b = block % BLOCKS_PER_GROUP;
        float *scales = panel->scales + (b * num_groups + group) * GPTOSS_PANEL_ROWS;
        for (int64_t r = 0; r < GPTOSS_PANEL_ROWS; ++r) {
            const uint8_t *row_scales = matrix->scales + (first_row + r) * matrix->scale_row_bytes;
            scales[r] = r < num_rows ? gptoss_float_from_e8m0(row_scales[block]) : 0.0f;
        }
    }
}
