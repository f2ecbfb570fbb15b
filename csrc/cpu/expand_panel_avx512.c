/* Panels of 32 rows, rows in the lanes (kernels.h): 16 rows by 16 lanes are read along the rows and
 * transposed in registers. Rows past the last are zeros; elements and blocks that the last group
 * lacks are not written. */
#include "cpu/mxfp4_row.h"
#include "cpu/simd_avx512.h"

enum { LANES = GPTOSS_LANES, ROWS = GPTOSS_PANEL_ROWS, HALF = 16 };

/* values[l][g][r] = element 16 g + l of row first_row + r. */
GPTOSS_INLINE void expand_unscaled(const struct gptoss_matrix *matrix, int64_t first_row,
                                   int64_t num_rows, struct gptoss_panel *panel,
                                   gptoss_load_16_fn *load) {
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, 1);
    for (int64_t g = 0; g < num_groups; ++g) {
        int64_t left = matrix->num_columns - g * LANES, width = left < LANES ? left : LANES;
        __mmask16 mask = gptoss_first_lanes(width);
        for (int64_t half = 0; half < ROWS; half += HALF) {
            const uint8_t *rows = matrix->data + (first_row + half) * matrix->row_bytes;
            __m512 block[HALF];
            for (int64_t r = 0; r < HALF; ++r)
                block[r] = half + r < num_rows ? load(rows + r * matrix->row_bytes, g * LANES, mask)
                                               : _mm512_setzero_ps();
            gptoss_transpose_16(block);
            for (int64_t l = 0; l < width; ++l)
                _mm512_storeu_ps(panel->values + (l * num_groups + g) * ROWS + half, block[l]);
        }
    }
}

gptoss_expand_panel_fn GPTOSS_KERNEL(expand_panel_f32), GPTOSS_KERNEL(expand_panel_f16),
    GPTOSS_KERNEL(expand_panel_bf16), GPTOSS_KERNEL(expand_panel_mxfp4),
    GPTOSS_KERNEL(expand_panel_mxfp4_gguf), GPTOSS_KERNEL(expand_panel_q8_0);

void GPTOSS_KERNEL(expand_panel_f32)(const struct gptoss_matrix *matrix, int64_t first_row,
                                     int64_t num_rows, struct gptoss_panel *panel) {
    expand_unscaled(matrix, first_row, num_rows, panel, gptoss_load_16_f32);
}

void GPTOSS_KERNEL(expand_panel_f16)(const struct gptoss_matrix *matrix, int64_t first_row,
                                     int64_t num_rows, struct gptoss_panel *panel) {
    expand_unscaled(matrix, first_row, num_rows, panel, gptoss_load_16_f16);
}

void GPTOSS_KERNEL(expand_panel_bf16)(const struct gptoss_matrix *matrix, int64_t first_row,
                                      int64_t num_rows, struct gptoss_panel *panel) {
    expand_unscaled(matrix, first_row, num_rows, panel, gptoss_load_16_bf16);
}

void GPTOSS_KERNEL(expand_panel_q8_0)(const struct gptoss_matrix *matrix, int64_t first_row,
                                      int64_t num_rows, struct gptoss_panel *panel) {
    expand_unscaled(matrix, first_row, num_rows, panel, gptoss_load_16_q8_0);
}

enum { PER_LANE = 8, LANES_PER_BLOCK = 4, BLOCKS_PER_GROUP = LANES / LANES_PER_BLOCK };

/* Dword l of a group's codes holds the 8 codes of lane l: values[l][8 g + i][r] = its nibble i,
 * looked up, for the lanes of the first num_blocks blocks. */
GPTOSS_INLINE void expand_codes(const __m512i codes[HALF], int64_t num_blocks, float *values,
                                int64_t num_groups) {
    __m512 block[HALF];
    for (int r = 0; r < HALF; ++r)
        block[r] = _mm512_castsi512_ps(codes[r]);
    gptoss_transpose_16(block);
    for (int64_t l = 0; l < num_blocks * LANES_PER_BLOCK; ++l) {
        __m512i dwords = _mm512_castps_si512(block[l]);
        float *chain = values + l * num_groups * PER_LANE * ROWS;
        for (int i = 0; i < PER_LANE; ++i)
            _mm512_storeu_ps(chain + i * ROWS,
                             gptoss_decode_e2m1(_mm512_srli_epi32(dwords, 4 * i)));
    }
}

/* The first num_blocks blocks of a group in sixteen rows, of which num_rows exist, scales and all;
 * values and scales are theirs. */
GPTOSS_INLINE void expand_group(const struct gptoss_mxfp4_row *first, int64_t row_bytes,
                                int64_t scale_row_bytes, int64_t num_rows, int64_t num_blocks,
                                int64_t num_groups, float *values, float *scales) {
    uint8_t scale_bytes[BLOCKS_PER_GROUP][HALF] = {{0}};
    __m512i codes[HALF];
    for (int64_t r = 0; r < HALF; ++r) {
        codes[r] = _mm512_setzero_si512();
        if (r >= num_rows)
            continue;
        __m128i blocks[BLOCKS_PER_GROUP];
        for (int64_t b = 0; b < BLOCKS_PER_GROUP; ++b) {
            blocks[b] = _mm_setzero_si128();
            if (b >= num_blocks)
                continue;
            blocks[b] = _mm_loadu_si128(
                (const void *)(first->codes + r * row_bytes + b * first->codes_step));
            scale_bytes[b][r] = first->scales[r * scale_row_bytes + b * first->scale_step];
        }
        codes[r] =
            _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(blocks[1], blocks[0])),
                               _mm256_set_m128i(blocks[3], blocks[2]), 1);
    }
    expand_codes(codes, num_blocks, values, num_groups);
    __mmask16 exist = gptoss_first_lanes(num_rows < 0 ? 0 : num_rows < HALF ? num_rows : HALF);
    for (int64_t b = 0; b < num_blocks; ++b) {
        __m512 decoded = gptoss_decode_e8m0(_mm_loadu_si128((const void *)scale_bytes[b]));
        _mm512_storeu_ps(scales + b * num_groups * ROWS, _mm512_maskz_mov_ps(exist, decoded));
    }
}

GPTOSS_INLINE void expand_mxfp4(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                                int64_t first_row, int64_t num_rows, struct gptoss_panel *panel) {
    int64_t scale_row_bytes =
        layout == GPTOSS_LAYOUT_MXFP4 ? matrix->scale_row_bytes : matrix->row_bytes;
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, PER_LANE);
    struct gptoss_mxfp4_row row = gptoss_mxfp4_row(matrix, layout, first_row);
    for (int64_t g = 0; g < num_groups; ++g) {
        int64_t left = matrix->num_columns / 32 - g * BLOCKS_PER_GROUP;
        for (int64_t half = 0; half < ROWS; half += HALF) {
            struct gptoss_mxfp4_row first = row;
            first.codes += half * matrix->row_bytes;
            first.scales += half * scale_row_bytes;
            float *values = panel->values + g * PER_LANE * ROWS + half,
                  *scales = panel->scales + g * ROWS + half;
            if (left >= BLOCKS_PER_GROUP && num_rows == ROWS)
                expand_group(&first, matrix->row_bytes, scale_row_bytes, HALF, BLOCKS_PER_GROUP,
                             num_groups, values, scales);
            else
                expand_group(&first, matrix->row_bytes, scale_row_bytes, num_rows - half,
                             left < BLOCKS_PER_GROUP ? left : BLOCKS_PER_GROUP, num_groups, values,
                             scales);
        }
        row.codes += BLOCKS_PER_GROUP * row.codes_step;
        row.scales += BLOCKS_PER_GROUP * row.scale_step;
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
