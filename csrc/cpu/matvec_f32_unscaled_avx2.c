/* out[r] = dot(row r, x) over rows of f32, f16, bf16 or Q8_0: lane l of two registers is p[l] =
 * fma(w, x, p[l]), then the tree. Several rows at once share the loads of x and hide the latency of
 * fma. */
#include "cpu/kernels.h"
#include "cpu/simd_avx2.h"

enum { ROWS = 4 };

GPTOSS_INLINE void dot_rows(const uint8_t *rows, int64_t row_bytes, int64_t num_columns,
                            const float *x, float *out, int num_rows, gptoss_load_8_fn *load,
                            int64_t element_bytes) {
    __m256 p[ROWS][2];
    for (int r = 0; r < num_rows; ++r)
        p[r][0] = p[r][1] = _mm256_setzero_ps();
    int64_t column = 0;
    for (; column + GPTOSS_LANES <= num_columns; column += GPTOSS_LANES) {
        __m256 x_low = _mm256_loadu_ps(x + column), x_high = _mm256_loadu_ps(x + column + 8);
        for (int r = 0; r < num_rows; ++r) {
            const uint8_t *row = rows + r * row_bytes;
            p[r][0] = _mm256_fmadd_ps(load(row, column), x_low, p[r][0]);
            p[r][1] = _mm256_fmadd_ps(load(row, column + 8), x_high, p[r][1]);
        }
    }
    int64_t left = num_columns % GPTOSS_LANES;
    for (int r = 0; left > 0 && r < num_rows; ++r) {
        uint8_t elements[GPTOSS_LANES * sizeof(float)] = {0};
        memcpy(elements, rows + r * row_bytes + column * element_bytes,
               (size_t)(left * element_bytes));
        for (int h = 0; h < 2; ++h)
            p[r][h] = gptoss_fma_masked(load(elements, h * 8), _mm256_loadu_ps(x + column + h * 8),
                                        p[r][h], gptoss_first_lanes(left - h * 8));
    }
    for (int r = 0; r < num_rows; ++r)
        out[r] = gptoss_sum_16(p[r][0], p[r][1]);
}

GPTOSS_INLINE void matvec_one(const struct gptoss_matrix *matrix, int64_t first_row,
                              int64_t num_rows, const float *x, float *out, gptoss_load_8_fn *load,
                              int64_t element_bytes) {
    const uint8_t *rows = matrix->data + first_row * matrix->row_bytes;
    int64_t row_bytes = matrix->row_bytes, r = 0;
    for (; r + ROWS <= num_rows; r += ROWS)
        dot_rows(rows + r * row_bytes, row_bytes, matrix->num_columns, x, out + r, ROWS, load,
                 element_bytes);
    for (; r < num_rows; ++r)
        dot_rows(rows + r * row_bytes, row_bytes, matrix->num_columns, x, out + r, 1, load,
                 element_bytes);
}

GPTOSS_INLINE void matvec(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                          const float *x, int32_t num_vectors, float *out, gptoss_load_8_fn *load,
                          int64_t element_bytes) {
    for (int32_t v = 0; v < num_vectors; ++v)
        matvec_one(matrix, first_row, num_rows,
                   x + v * gptoss_padded_columns(matrix->num_columns, 1), out + v * num_rows, load,
                   element_bytes);
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_f32), GPTOSS_KERNEL(matvec_f16), GPTOSS_KERNEL(matvec_bf16),
    GPTOSS_KERNEL(matvec_q8_0);

void GPTOSS_KERNEL(matvec_f32)(const struct gptoss_matrix *matrix, int64_t first_row,
                               int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                               float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_load_8_f32, 4);
}

void GPTOSS_KERNEL(matvec_f16)(const struct gptoss_matrix *matrix, int64_t first_row,
                               int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                               float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_load_8_f16, 2);
}

void GPTOSS_KERNEL(matvec_bf16)(const struct gptoss_matrix *matrix, int64_t first_row,
                                int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_load_8_bf16, 2);
}

void GPTOSS_KERNEL(matvec_q8_0)(const struct gptoss_matrix *matrix, int64_t first_row,
                                int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_load_8_q8_0, 1);
}
