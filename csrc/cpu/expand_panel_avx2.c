/* Panels of 32 rows, rows in the lanes (kernels.h): 8 rows by 8 lanes are read along the rows and
 * transposed in registers. Rows past the last are zeros; elements and blocks that the last group
 * lacks are not written. */
#include "cpu/mxfp4_row.h"
#include "cpu/simd_avx2.h"

enum { LANES = GPTOSS_LANES, ROWS = GPTOSS_PANEL_ROWS, PART = 8 };

/* values[l][g][r] = element 16 g + l of row first_row + r: all rows of 8 columns, then the next. */
GPTOSS_INLINE void expand_unscaled(const struct gptoss_matrix *matrix, int64_t first_row,
                                   int64_t num_rows, struct gptoss_panel *panel,
                                   gptoss_load_8_fn *load, int64_t element_bytes) {
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, 1);
    for (int64_t column = 0; column < matrix->num_columns; column += PART) {
        int64_t left = matrix->num_columns - column, width = left < PART ? left : PART;
        float *values = panel->values + (column % LANES * num_groups + column / LANES) * ROWS;
        for (int64_t part = 0; part < ROWS; part += PART) {
            __m256 block[PART];
            for (int64_t r = 0; r < PART; ++r) {
                const uint8_t *row = matrix->data + (first_row + part + r) * matrix->row_bytes;
                bool exists = part + r < num_rows;
                uint8_t short_elements[PART * sizeof(float)] = {0};
                if (width < PART && exists)
                    memcpy(short_elements, row + column * element_bytes,
                           (size_t)(width * element_bytes));
                block[r] = width < PART || !exists ? load(short_elements, 0) : load(row, column);
            }
            gptoss_transpose_8(block);
            for (int64_t l = 0; l < width; ++l)
                _mm256_storeu_ps(values + l * num_groups * ROWS + part, block[l]);
        }
    }
}

gptoss_expand_panel_fn GPTOSS_KERNEL(expand_panel_f32), GPTOSS_KERNEL(expand_panel_f16),
    GPTOSS_KERNEL(expand_panel_bf16), GPTOSS_KERNEL(expand_panel_mxfp4),
    GPTOSS_KERNEL(expand_panel_mxfp4_gguf), GPTOSS_KERNEL(expand_panel_q8_0);

void GPTOSS_KERNEL(expand_panel_f32)(const struct gptoss_matrix *matrix, int64_t first_row,
                                     int64_t num_rows, struct gptoss_panel *panel) {
    expand_unscaled(matrix, first_row, num_rows, panel, gptoss_load_8_f32, 4);
}

void GPTOSS_KERNEL(expand_panel_f16)(const struct gptoss_matrix *matrix, int64_t first_row,
                                     int64_t num_rows, struct gptoss_panel *panel) {
    expand_unscaled(matrix, first_row, num_rows, panel, gptoss_load_8_f16, 2);
}

void GPTOSS_KERNEL(expand_panel_bf16)(const struct gptoss_matrix *matrix, int64_t first_row,
                                      int64_t num_rows, struct gptoss_panel *panel) {
    expand_unscaled(matrix, first_row, num_rows, panel, gptoss_load_8_bf16, 2);
}

void GPTOSS_KERNEL(expand_panel_q8_0)(const struct gptoss_matrix *matrix, int64_t first_row,
                                      int64_t num_rows, struct gptoss_panel *panel) {
    expand_unscaled(matrix, first_row, num_rows, panel, gptoss_load_8_q8_0, 1);
}

enum { PER_LANE = 8, LANES_PER_BLOCK = 4, BLOCKS_PER_GROUP = 4 };

/* One block of 8 rows, of which num_rows exist: a dword of it holds the 8 codes of a lane. values:
 * of its first lane. */
GPTOSS_INLINE void expand_block(const struct gptoss_mxfp4_row *first, int64_t row_bytes,
                                int64_t scale_row_bytes, int64_t num_rows, int64_t chain_floats,
                                float *values, float *scales) {
    __m128i codes[PART];
    uint64_t scale_bytes = 0;
    for (int64_t r = 0; r < PART; ++r) {
        codes[r] = _mm_setzero_si128();
        if (r >= num_rows)
            continue;
        codes[r] = _mm_loadu_si128((const void *)(first->codes + r * row_bytes));
        scale_bytes |= (uint64_t)first->scales[r * scale_row_bytes] << (8 * r);
    }
    __m256i exist = gptoss_first_lanes(num_rows);
    _mm256_storeu_ps(scales,
                     _mm256_and_ps(gptoss_decode_e8m0(scale_bytes), _mm256_castsi256_ps(exist)));
    __m256i pairs[4], fours[4]; /* rows r and r + 4 in the halves of a register */
    for (int r = 0; r < 4; ++r)
        pairs[r] = _mm256_set_m128i(codes[r + 4], codes[r]);
    for (int h = 0; h < 2; ++h) {
        fours[2 * h] = _mm256_unpacklo_epi32(pairs[2 * h], pairs[2 * h + 1]);
        fours[2 * h + 1] = _mm256_unpackhi_epi32(pairs[2 * h], pairs[2 * h + 1]);
    }
    for (int l = 0; l < LANES_PER_BLOCK; ++l) {
        __m256i dwords = l % 2 == 0 ? _mm256_unpacklo_epi64(fours[l / 2], fours[l / 2 + 2])
                                    : _mm256_unpackhi_epi64(fours[l / 2], fours[l / 2 + 2]);
        __m256 decoded[PER_LANE];
        gptoss_decode_e2m1(dwords, decoded);
        for (int i = 0; i < PER_LANE; ++i)
            _mm256_storeu_ps(values + l * chain_floats + i * ROWS, decoded[i]);
    }
}

GPTOSS_INLINE void expand_mxfp4(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                                int64_t first_row, int64_t num_rows, struct gptoss_panel *panel) {
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, PER_LANE),
            chain_floats = num_groups * PER_LANE * ROWS;
    int64_t scale_row_bytes =
        layout == GPTOSS_LAYOUT_MXFP4 ? matrix->scale_row_bytes : matrix->row_bytes;
    struct gptoss_mxfp4_row row = gptoss_mxfp4_row(matrix, layout, first_row);
    for (int64_t block = 0; block < matrix->num_columns / 32; ++block) {
        int64_t g = block / BLOCKS_PER_GROUP, b = block % BLOCKS_PER_GROUP;
        float *values = panel->values + b * LANES_PER_BLOCK * chain_floats + g * PER_LANE * ROWS,
              *scales = panel->scales + (b * num_groups + g) * ROWS;
        for (int64_t part = 0; part < ROWS; part += PART) {
            struct gptoss_mxfp4_row first = row;
            first.codes += part * matrix->row_bytes + block * row.codes_step;
            first.scales += part * scale_row_bytes + block * row.scale_step;
            expand_block(&first, matrix->row_bytes, scale_row_bytes, num_rows - part, chain_floats,
                         values + part, scales + part);
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
