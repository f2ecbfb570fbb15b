/* Panels of 32 rows of blocks, rows in the lanes (kernels.h), for any vector type: as many
 * rows as a vector has lanes are decoded along the rows, 16 columns at a time, and transposed in
 * registers. Rows past the last are zeros. Include after the level's simd header and transpose
 * (WIDTH vectors in place). */
#include "cpu/block_formats_simd.h"

enum { WIDTH = GPTOSS_VECTOR_LANES, ROWS = GPTOSS_PANEL_ROWS };

/* WIDTH rows from first_row, of which num_rows exist, of one block. values: of lane 0, the block's
 * first group and the first row; chain_floats from one lane to the next. */
GPTOSS_INLINE void expand_block(struct format format, const struct block_column *blocks,
                                int64_t first_row, int64_t num_rows, float *values,
                                int64_t chain_floats) {
    struct factors factors[WIDTH];
    for (int64_t r = 0; r < WIDTH && r < num_rows; ++r)
        begin_block(format, blocks, first_row + r, &factors[r]);
    for (int run = 0; run < format.num_runs; ++run)
        for (int half = 0; half < 2; ++half, values += ROWS) {
            gptoss_vector columns[VECTORS_A_HALF][WIDTH];
            for (int64_t r = 0; r < WIDTH; ++r) {
                gptoss_vector w[VECTORS_A_HALF];
                if (r < num_rows)
                    decode_half(format, blocks->data + (first_row + r) * blocks->row_bytes,
                                &factors[r], run, half, w);
                for (int i = 0; i < VECTORS_A_HALF; ++i)
                    columns[i][r] = r < num_rows ? w[i] : gptoss_vector_set(0.0f);
            }
            for (int i = 0; i < VECTORS_A_HALF; ++i) {
                transpose(columns[i]);
                for (int l = 0; l < WIDTH; ++l)
                    gptoss_vector_store(values + (i * WIDTH + l) * chain_floats, columns[i][l]);
            }
        }
}

GPTOSS_INLINE void expand(struct format format, const struct gptoss_matrix *matrix,
                          int64_t first_row, int64_t num_rows, struct gptoss_panel *panel) {
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, 1);
    struct block_column blocks = first_blocks(format, matrix, first_row);
    float *values = panel->values;
    for (int64_t group = 0; group < num_groups; group += 2 * format.num_runs) {
        for (int64_t r = 0; r < ROWS; r += WIDTH)
            expand_block(format, &blocks, r, num_rows - r, values + group * ROWS + r,
                         num_groups * ROWS);
        next_blocks(format, &blocks);
    }
}

#define DEFINE(name, format)                                                                       \
    gptoss_expand_panel_fn GPTOSS_KERNEL(expand_panel_##name);                                     \
    void GPTOSS_KERNEL(expand_panel_##name)(const struct gptoss_matrix *matrix, int64_t first_row, \
                                            int64_t num_rows, struct gptoss_panel *panel) {        \
        expand(format, matrix, first_row, num_rows, panel);                                        \
    }
FOR_FORMATS(DEFINE)
