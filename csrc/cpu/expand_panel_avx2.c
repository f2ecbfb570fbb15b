/* Panels of 32 rows, rows in the lanes (kernels.h): 8 rows by 8 lanes are read along the rows and
 * transposed in registers. Rows past the last are zeros; elements and blocks that the last group
 * lacks are not written. */
#include "cpu/kernels.h"
#include "cpu/simd_avx2.h"

enum { LANES = GPTOSS_LANES, ROWS = GPTOSS_PANEL_ROWS, PART = 8 };

/* values[l][g][r] = element 16 g + l of row first_row + r, for 8 rows. */
GPTOSS_INLINE void expand_part(const struct gptoss_matrix *matrix, const uint8_t *rows,
                               int64_t num_rows, float *values, gptoss_load_8_fn *load,
                               int64_t element_bytes) {
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, 1);
    for (int64_t column = 0; column < matrix->num_columns; column += PART) {
        int64_t left = matrix->num_columns - column, width = left < PART ? left : PART;
        __m256 block[PART];
        for (int64_t r = 0; r < PART; ++r) {
            const uint8_t *elements = rows + r * matrix->row_bytes + column * element_bytes;
            uint8_t short_elements[PART * sizeof(float)] = {0};
            if (width < PART && r < num_rows)
                memcpy(short_elements, elements, (size_t)(width * element_bytes));
            block[r] = load(width < PART || r >= num_rows ? short_elements : elements);
        }
        gptoss_transpose_8(block);
        int64_t lane = column % LANES, group = column / LANES;
        for (int64_t l = 0; l < width; ++l)
            _mm256_storeu_ps(values + ((lane + l) * num_groups + group) * ROWS, block[l]);
    }
}

GPTOSS_INLINE void expand_unscaled(const struct gptoss_matrix *matrix, int64_t first_row,
                                   int64_t num_rows, struct gptoss_panel *panel,
                                   gptoss_load_8_fn *load, int64_t element_bytes) {
    const uint8_t *rows = matrix->data + first_row * matrix->row_bytes;
    for (int64_t r = 0; r < ROWS; r += PART)
        expand_part(matrix, rows + r * matrix->row_bytes, num_rows - r, panel->values + r, load,
                    element_bytes);
}

gptoss_expand_panel_fn GPTOSS_KERNEL(expand_panel_f32), GPTOSS_KERNEL(expand_panel_f16),
    GPTOSS_KERNEL(expand_panel_bf16), GPTOSS_KERNEL(expand_panel_mxfp4);

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

enum {
    PER_LANE = 8,
    GROUP = LANES * PER_LANE,
    PART_BYTES = PART * PER_LANE / 2,
    BLOCK = 32,
    GROUP_SCALES = 4
};

/* A dword of a row holds the 8 codes of a lane: values[l][8 g + i][r] = its nibble i, looked up,
 * for 8 rows. */
static void expand_codes(const struct gptoss_matrix *matrix, const uint8_t *rows, int64_t num_rows,
                         float *values) {
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, PER_LANE),
            num_dwords = matrix->num_columns / PER_LANE;
    for (int64_t dword = 0; dword < num_dwords; dword += PART) {
        int64_t left = num_dwords - dword, width = left < PART ? left : PART;
        __m256i mask = gptoss_first_lanes(width);
        __m256 block[PART];
        for (int64_t r = 0; r < PART; ++r)
            block[r] = r < num_rows
                           ? _mm256_maskload_ps(
                                 (const void *)(rows + r * matrix->row_bytes + dword * 4), mask)
                           : _mm256_setzero_ps();
        gptoss_transpose_8(block);
        for (int64_t l = 0; l < width; ++l) {
            int64_t lane = (dword + l) % LANES, group = (dword + l) / LANES;
            float *chain = values + (lane * num_groups + group) * PER_LANE * ROWS;
            __m256 decoded[PER_LANE];
            gptoss_decode_e2m1(_mm256_castps_si256(block[l]), decoded);
            for (int i = 0; i < PER_LANE; ++i)
                _mm256_storeu_ps(chain + i * ROWS, decoded[i]);
        }
    }
}

/* scales[b][g][r] = the scale of block 4 g + b, for 8 rows and 8 blocks at a time. */
static void expand_scales(const struct gptoss_matrix *matrix, const uint8_t *rows, int64_t num_rows,
                          float *scales) {
    int64_t num_groups = gptoss_num_groups(matrix->num_columns, PER_LANE),
            num_blocks = matrix->num_columns / BLOCK;
    for (int64_t first = 0; first < num_blocks; first += PART) {
        int64_t left = num_blocks - first, width = left < PART ? left : PART;
        __m256 block[PART];
        for (int64_t r = 0; r < PART; ++r) {
            uint64_t bytes = 0;
            if (r < num_rows)
                memcpy(&bytes, rows + r * matrix->scale_row_bytes + first, (size_t)width);
            block[r] = r < num_rows ? gptoss_decode_e8m0(bytes) : _mm256_setzero_ps();
        }
        gptoss_transpose_8(block);
        for (int64_t l = 0; l < width; ++l) {
            int64_t group = (first + l) / GROUP_SCALES, b = (first + l) % GROUP_SCALES;
            _mm256_storeu_ps(scales + (b * num_groups + group) * ROWS, block[l]);
        }
    }
}

void GPTOSS_KERNEL(expand_panel_mxfp4)(const struct gptoss_matrix *matrix, int64_t first_row,
                                       int64_t num_rows, struct gptoss_panel *panel) {
    const uint8_t *rows = matrix->data + first_row * matrix->row_bytes;
    const uint8_t *scales = matrix->scales + first_row * matrix->scale_row_bytes;
    for (int64_t r = 0; r < ROWS; r += PART) {
        expand_codes(matrix, rows + r * matrix->row_bytes, num_rows - r, panel->values + r);
        expand_scales(matrix, scales + r * matrix->scale_row_bytes, num_rows - r,
                      panel->scales + r);
    }
}
