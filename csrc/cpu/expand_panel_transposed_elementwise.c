/* values[l][g][r] = the weight of output first_row + r and input 16 g + l, where the matrix is
 * stored [inputs][outputs]. */
#include "cpu/elements.h"

static inline void expand(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                          struct gptoss_panel *panel, gptoss_element_fn *element) {
    int64_t chain_stride = gptoss_num_groups(matrix->num_columns, 1);
    for (int64_t column = 0; column < matrix->num_columns; ++column) {
        int64_t lane = column % GPTOSS_LANES, group = column / GPTOSS_LANES;
        const uint8_t *stored_row = matrix->data + column * matrix->row_bytes;
        float *values = panel->values + (lane * chain_stride + group) * GPTOSS_PANEL_ROWS;
        if (num_rows == GPTOSS_PANEL_ROWS) {
            for (int64_t r = 0; r < GPTOSS_PANEL_ROWS; ++r)
                values[r] = element(stored_row, first_row + r);
        } else {
            for (int64_t r = 0; r < num_rows; ++r)
                values[r] = element(stored_row, first_row + r);
            for (int64_t r = num_rows; r < GPTOSS_PANEL_ROWS; ++r)
                values[r] = 0.0f;
        }
    }
}

gptoss_expand_panel_fn GPTOSS_KERNEL(expand_panel_f32_transposed),
    GPTOSS_KERNEL(expand_panel_f16_transposed), GPTOSS_KERNEL(expand_panel_bf16_transposed);

void GPTOSS_KERNEL(expand_panel_f32_transposed)(const struct gptoss_matrix *matrix,
                                                int64_t first_row, int64_t num_rows,
                                                struct gptoss_panel *panel) {
    expand(matrix, first_row, num_rows, panel, gptoss_element_f32);
}

void GPTOSS_KERNEL(expand_panel_f16_transposed)(const struct gptoss_matrix *matrix,
                                                int64_t first_row, int64_t num_rows,
                                                struct gptoss_panel *panel) {
    expand(matrix, first_row, num_rows, panel, gptoss_element_f16);
}

void GPTOSS_KERNEL(expand_panel_bf16_transposed)(const struct gptoss_matrix *matrix,
                                                 int64_t first_row, int64_t num_rows,
                                                 struct gptoss_panel *panel) {
    expand(matrix, first_row, num_rows, panel, gptoss_element_bf16);
}
