/* Panels of 32 rows, rows in the lanes (kernels.h): 4 rows by 16 lanes are read along the rows and
 * transposed in registers. Rows past the last are zeros; elements and blocks that the last group
 * lacks are not written. */
#include "cpu/mxfp4_row.h"
#include "cpu/simd_neon.h"

enum { LANES = GPTOSS_LANES, ROWS = GPTOSS_PANEL_ROWS, PART = 4 };

/* values[l][g][r] = element 16 g + l of row first_row + r, for 4 rows of one group. values: of lane
 * 0; chain_floats from one lane to the next. */
GPTOSS_INLINE void expand_part(const uint8_t *rows, int64_t row_bytes, int64_t num_rows,
                               int64_t column, int64_t width, float *values, int64_t chain_floats,
                               gptoss_load_16_fn *load, int64_t element_bytes) {
    float32x4_t block[PART][GPTOSS_QUARTERS];
    for (int64_t r = 0; r < PART; ++r) {
        const uint8_t *row = rows + r * row_bytes;
        uint8_t elements[LANES * sizeof(float)] = {0};
        if (r < num_rows && width == LANES) {
            load(row, column, block[r]);
        } else {
            if (r < num_rows)
                memcpy(elements, row + column * element_bytes, (size_t)(width * element_bytes));
            load(elements, 0, block[r]);
        }
    }
    for (int q = 0; q < GPTOSS_QUARTERS; ++q) {
        float32x4_t lanes[4] = {block[0][q], block[1][q], block[2][q], block[3][q]};
        gptoss_transpose_4(lanes);
        for (int l = 0; l < 4 && q * 4 + l < width; ++l)
            vst1q_f32(values + (q * 4 + l) * chain_floats, lanes[l]);
    }
}

GPTOSS_INLINE void expand_unscaled(const struct gptoss_matrix *matrix, int64_t first_row,
                                   int64_t num_rows, struct gptoss_panel *panel,
                                   gptoss_load_16_fn *load, int64_t element_bytes) {
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, 1), row_bytes = matrix->row_bytes;
    const uint8_t *rows = matrix->data + first_row * row_bytes;
    for (int64_t g = 0; g < num_groups; ++g) {
        int64_t left = matrix->num_columns - g * LANES;
        for (int64_t r = 0; r < ROWS; r += PART)
            expand_part(rows + r * row_bytes, row_bytes, num_rows - r, g * LANES,
                        left < LANES ? left : LANES, panel->values + g * ROWS + r,
                        num_groups * ROWS, load, element_bytes);
    }
}

gptoss_expand_panel_fn GPTOSS_KERNEL(expand_panel_f32), GPTOSS_KERNEL(expand_panel_f16),
    GPTOSS_KERNEL(expand_panel_bf16), GPTOSS_KERNEL(expand_panel_mxfp4),
    GPTOSS_KERNEL(expand_panel_mxfp4_gguf), GPTOSS_KERNEL(expand_panel_q8_0);

void GPTOSS_KERNEL(expand_panel_f32)(const struct gptoss_matrix *matrix, int64_t first_row,
                                     int64_t num_rows, struct gptoss_panel *panel) {
    expand_unscaled(matrix, first_row, num_rows, panel, gptoss_load_16_f32, 4);
}

void GPTOSS_KERNEL(expand_panel_f16)(const struct gptoss_matrix *matrix, int64_t first_row,
                                     int64_t num_rows, struct gptoss_panel *panel) {
    expand_unscaled(matrix, first_row, num_rows, panel, gptoss_load_16_f16, 2);
}

void GPTOSS_KERNEL(expand_panel_bf16)(const struct gptoss_matrix *matrix, int64_t first_row,
                                      int64_t num_rows, struct gptoss_panel *panel) {
    expand_unscaled(matrix, first_row, num_rows, panel, gptoss_load_16_bf16, 2);
}

void GPTOSS_KERNEL(expand_panel_q8_0)(const struct gptoss_matrix *matrix, int64_t first_row,
                                      int64_t num_rows, struct gptoss_panel *panel) {
    expand_unscaled(matrix, first_row, num_rows, panel, gptoss_load_16_q8_0, 1);
}

enum { PER_LANE = 8, LANES_PER_BLOCK = 4, BLOCKS_PER_GROUP = 4 };

/* One block of 4 rows, of which num_rows exist: a dword of it holds the 8 codes of a lane. values:
 * of its first lane. */
GPTOSS_INLINE void expand_block(const struct gptoss_mxfp4_row *first, int64_t row_bytes,
                                int64_t scale_row_bytes, int64_t num_rows, int64_t chain_floats,
                                float *values, float *scales) {
    float32x4_t dwords[PART];
    uint32_t scale_bytes = 0, exist[PART];
    for (int64_t r = 0; r < PART; ++r) {
        exist[r] = r < num_rows ? UINT32_MAX : 0;
        dwords[r] = vdupq_n_f32(0.0f);
        if (r >= num_rows)
            continue;
        dwords[r] = vreinterpretq_f32_u8(vld1q_u8(first->codes + r * row_bytes));
        scale_bytes |= (uint32_t)first->scales[r * scale_row_bytes] << (8 * r);
    }
    uint32x4_t decoded = vreinterpretq_u32_f32(gptoss_decode_e8m0(scale_bytes));
    vst1q_f32(scales, vreinterpretq_f32_u32(vandq_u32(decoded, vld1q_u32(exist))));
    gptoss_transpose_4(dwords);
    for (int l = 0; l < LANES_PER_BLOCK; ++l) {
        float32x4_t codes[PER_LANE];
        gptoss_decode_e2m1(vreinterpretq_u8_f32(dwords[l]), codes);
        for (int i = 0; i < PER_LANE; ++i)
            vst1q_f32(values + l * chain_floats + i * ROWS, codes[i]);
    }
}

GPTOSS_INLINE void expand_mxfp4(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                                int64_t first_row, int64_t num_rows, struct gptoss_panel *panel) {
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, PER_LANE),
            chain_floats = num_groups * PER_LANE * ROWS;
    int64_t scale_row_bytes =
        layout == GPTOSS_LAYOUT_MXFP4 ? matrix->scale_row_bytes : matrix->row_bytes;
    for (int64_t block = 0; block < matrix->num_columns / 32; ++block) {
        int64_t g = block / BLOCKS_PER_GROUP, b = block % BLOCKS_PER_GROUP;
        float *values = panel->values + b * LANES_PER_BLOCK * chain_floats + g * PER_LANE * ROWS;
        float *scales = panel->scales + (b * num_groups + g) * ROWS;
        for (int64_t r = 0; r < ROWS; r += PART) {
            struct gptoss_mxfp4_row first = gptoss_mxfp4_row(matrix, layout, first_row + r);
            first.codes += block * first.codes_step;
            first.scales += block * first.scale_step;
            expand_block(&first, matrix->row_bytes, scale_row_bytes, num_rows - r, chain_floats,
                         values + r, scales + r);
        }
    }
}

void GPTOSS_KERNEL(expand_panel_mxfp4)(const struct gptoss_matrix *matrix, int64_t first_row,
                                       int64_t num_rows, struct gptoss_panel *panel) {
    expand_mxfp4(matrix, GPTOSS_LAYOUT_MXFP4, first_row, num_rows, panel);
}

void GPTOSS_KERNEL(expand_panel_mxfp4_gguf)(const struct gptoss_matrix *matrix, int64_t first_row,
                                            int64_t num_rows, struct gptoss_panel *panel) {
    expand_mxfp4(matrix, GPTOSS_LAYOUT_MXFP4_GGUF, first_row, num_rows, panel);
}
