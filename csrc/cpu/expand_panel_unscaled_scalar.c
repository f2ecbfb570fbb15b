/* values[l][g][r] = element 16 g + l of row first_row + r. Elements that the last group lacks are
 * not written. */
#include "cpu/elements.h"

static inline void expand(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                          struct gptoss_panel *panel, gptoss_element_fn *element,
                          gptoss_plane_element_fn *plane_element) {
    int64_t chain_stride = gptoss_num_groups(matrix->num_columns, 1);
    const uint8_t *rows = matrix->data + first_row * matrix->row_bytes, *scales = NULL;
    if (plane_element != NULL)
        scales = matrix->scales + first_row * matrix->scale_row_bytes;
    for (int64_t column = 0; column < matrix->num_columns; ++column) {
        int64_t lane = column % GPTOSS_LANES, group = column / GPTOSS_LANES;
        float *values = panel->values + (lane * chain_stride + group) * GPTOSS_PANEL_ROWS;
        for (int64_t r = 0; r < GPTOSS_PANEL_ROWS; ++r) {
            const uint8_t *row = rows + r * matrix->row_bytes;
            values[r] = r >= num_rows ? 0.0f
                        : scales == NULL
                            ? element(row, column)
                            : plane_element(row, scales + r * matrix->scale_row_bytes, column);
        }
    }
}

#define DEFINE(name, element, plane_element)                                                       \
    gptoss_expand_panel_fn GPTOSS_KERNEL(expand_panel_##name);                                     \
    void GPTOSS_KERNEL(expand_panel_##name)(const struct gptoss_matrix *matrix, int64_t first_row, \
                                            int64_t num_rows, struct gptoss_panel *panel) {        \
        expand(matrix, first_row, num_rows, panel, element, plane_element);                        \
    }
#define DEFINE_PLAIN(name, ...) DEFINE(name, gptoss_element_##name, NULL)
#define DEFINE_PLANES(name, ...) DEFINE(name, NULL, gptoss_element_##name)
DEFINE_PLAIN(f32)
DEFINE_PLAIN(f16)
DEFINE_PLAIN(bf16)
DEFINE_PLAIN(q8_0)
GPTOSS_FOR_BLOCK_FORMATS(DEFINE_PLAIN)
GPTOSS_FOR_PLANE_FORMATS(DEFINE_PLANES)
