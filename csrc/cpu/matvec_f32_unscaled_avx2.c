/* out[r] = dot(row r, x) over rows of f32, f16 or bf16: lane l of two registers is p[l] =
 * fma(w, x, p[l]), then the tree. Several rows at once share the loads of x and hide the latency of
 * fma. */
#include "cpu/kernels.h"
#include "cpu/simd_avx2.h"

enum { ROWS = 4, VECTORS = 2 }; /* more sums than these are not held in registers */

GPTOSS_INLINE void dot_rows(const uint8_t *rows, int64_t row_bytes, int64_t num_columns,
                            const float *x, int num_rows, int num_vectors, float *out,
                            int64_t out_stride, gptoss_load_8_fn *load, int64_t element_bytes) {
    int64_t distance = gptoss_padded_columns(num_columns, 1), column = 0;
    __m256 p[ROWS][VECTORS][2];
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            p[r][v][0] = p[r][v][1] = _mm256_setzero_ps();
    for (; column + GPTOSS_LANES <= num_columns; column += GPTOSS_LANES)
        for (int r = 0; r < num_rows; ++r)
            for (int h = 0; h < 2; ++h) {
                __m256 w = load(rows + r * row_bytes, column + 8 * h);
                for (int v = 0; v < num_vectors; ++v)
                    p[r][v][h] = _mm256_fmadd_ps(
                        w, _mm256_loadu_ps(x + v * distance + column + 8 * h), p[r][v][h]);
            }
    int64_t left = num_columns % GPTOSS_LANES;
    for (int r = 0; left > 0 && r < num_rows; ++r) {
        uint8_t elements[GPTOSS_LANES * sizeof(float)] = {0};
        memcpy(elements, rows + r * row_bytes + column * element_bytes,
               (size_t)(left * element_bytes));
        for (int h = 0; h < 2; ++h)
            for (int v = 0; v < num_vectors; ++v)
                p[r][v][h] = gptoss_fma_masked(load(elements, h * 8),
                                               _mm256_loadu_ps(x + v * distance + column + h * 8),
                                               p[r][v][h], gptoss_first_lanes(left - h * 8));
    }
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            out[v * out_stride + r] = gptoss_sum_16(p[r][v][0], p[r][v][1]);
}

GPTOSS_INLINE void multiply(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                            const float *x, int at_once, int num_vectors, float *out,
                            gptoss_load_8_fn *load, int64_t element_bytes) {
    const uint8_t *rows = matrix->data + first_row * matrix->row_bytes;
    int64_t row_bytes = matrix->row_bytes, r = 0;
    for (; r + at_once <= num_rows; r += at_once)
        dot_rows(rows + r * row_bytes, row_bytes, matrix->num_columns, x, at_once, num_vectors,
                 out + r, num_rows, load, element_bytes);
    for (; r < num_rows; ++r)
        dot_rows(rows + r * row_bytes, row_bytes, matrix->num_columns, x, 1, num_vectors, out + r,
                 num_rows, load, element_bytes);
}

GPTOSS_INLINE void matvec(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                          const float *x, int32_t num_vectors, float *out, gptoss_load_8_fn *load,
                          int64_t element_bytes) {
    int64_t distance = gptoss_padded_columns(matrix->num_columns, 1);
    for (; num_vectors >= VECTORS; num_vectors -= VECTORS) {
        multiply(matrix, first_row, num_rows, x, ROWS / VECTORS, VECTORS, out, load, element_bytes);
        x += VECTORS * distance;
        out += VECTORS * num_rows;
    }
    if (num_vectors > 0)
        multiply(matrix, first_row, num_rows, x, ROWS, 1, out, load, element_bytes);
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_f32), GPTOSS_KERNEL(matvec_f16), GPTOSS_KERNEL(matvec_bf16);

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
