/* Panels of 32 rows, rows in the lanes (kernels.h): 16 rows by 16 lanes are read along the rows and
 * transposed in registers. Rows past the last are zeros; elements and blocks that the last group
 * lacks are not written. */
#include "cpu/kernels.h"
#include "cpu/simd_avx512.h"

enum { LANES = GPTOSS_LANES, ROWS = GPTOSS_PANEL_ROWS, HALF = 16 };

/* values[l][g][r] = element 16 g + l of row first_row + r. */
GPTOSS_INLINE void expand_unscaled(const struct gptoss_matrix *matrix, int64_t first_row,
                                   int64_t num_rows, struct gptoss_panel *panel,
                                   gptoss_load_16_fn *load) {
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, 1);
    for (int64_t half = 0; half < ROWS; half += HALF)
        for (int64_t g = 0; g < num_groups; ++g) {
            int64_t width =
                matrix->num_columns - g * LANES < LANES ? matrix->num_columns - g * LANES : LANES;
            __mmask16 mask = gptoss_first_lanes(width);
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

gptoss_expand_panel_fn GPTOSS_KERNEL(expand_panel_f32), GPTOSS_KERNEL(expand_panel_f16),
    GPTOSS_KERNEL(expand_panel_bf16), GPTOSS_KERNEL(expand_panel_mxfp4);

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

enum { PER_LANE = 8, GROUP = LANES * PER_LANE, GROUP_BYTES = GROUP / 2, GROUP_SCALES = 4 };

/* Dword l of a row's 64 bytes holds the 8 codes of lane l: values[l][8 g + i][r] = its nibble i,
 * looked up. */
static void expand_codes(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                         float *values, int64_t half) {
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, PER_LANE);
    for (int64_t g = 0; g < num_groups; ++g) {
        int64_t left = (matrix->num_columns - g * GROUP) / PER_LANE,
                width = left < LANES ? left : LANES;
        __mmask16 mask = gptoss_first_lanes(width);
        const uint8_t *rows =
            matrix->data + (first_row + half) * matrix->row_bytes + g * GROUP_BYTES;
        __m512 block[HALF];
        for (int64_t r = 0; r < HALF; ++r)
            block[r] = half + r < num_rows
                           ? _mm512_maskz_loadu_ps(mask, rows + r * matrix->row_bytes)
                           : _mm512_setzero_ps();
        gptoss_transpose_16(block);
        for (int64_t l = 0; l < width; ++l) {
            __m512i codes = _mm512_castps_si512(block[l]);
            float *chain = values + (l * num_groups + g) * PER_LANE * ROWS + half;
            for (int i = 0; i < PER_LANE; ++i)
                _mm512_storeu_ps(chain + i * ROWS,
                                 gptoss_decode_e2m1(_mm512_srli_epi32(codes, 4 * i)));
        }
    }
}

/* scales[b][g][r] = the scale of block 4 g + b: four groups, 16 blocks, of 16 rows at a time. */
static void expand_scales(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                          float *scales, int64_t half) {
    int64_t num_blocks = matrix->num_columns / 32,
            num_groups = gptoss_num_groups(matrix->num_columns, PER_LANE);
    for (int64_t first = 0; first < num_blocks; first += LANES) {
        int64_t width = num_blocks - first < LANES ? num_blocks - first : LANES;
        __mmask16 mask = gptoss_first_lanes(width);
        const uint8_t *rows = matrix->scales + (first_row + half) * matrix->scale_row_bytes + first;
        __m512 block[HALF];
        for (int64_t r = 0; r < HALF; ++r)
            block[r] = half + r < num_rows ? gptoss_decode_e8m0(_mm_maskz_loadu_epi8(
                                                 mask, rows + r * matrix->scale_row_bytes))
                                           : _mm512_setzero_ps();
        gptoss_transpose_16(block);
        for (int64_t l = 0; l < width; ++l) {
            int64_t group = (first + l) / GROUP_SCALES, b = (first + l) % GROUP_SCALES;
            _mm512_storeu_ps(scales + (b * num_groups + group) * ROWS + half, block[l]);
        }
    }
}

void GPTOSS_KERNEL(expand_panel_mxfp4)(const struct gptoss_matrix *matrix, int64_t first_row,
                                       int64_t num_rows, struct gptoss_panel *panel) {
    for (int64_t half = 0; half < ROWS; half += HALF) {
        expand_codes(matrix, first_row, num_rows, panel->values, half);
        expand_scales(matrix, first_row, num_rows, panel->scales, half);
    }
}
