/* out[r] = dot(row r, x) over rows of f32, f16, bf16 or Q8_0: lane l of one register is p[l] =
 * fma(w, x, p[l]), then the tree. Several rows at once share the loads of x and hide the latency of
 * fma. */
#include "cpu/kernels.h"
#include "cpu/simd_avx512.h"

enum { ROWS = 8 };

GPTOSS_INLINE void dot_rows(const uint8_t *rows, int64_t row_bytes, int64_t num_columns,
                            const float *x, float *out, int num_rows, gptoss_load_16_fn *load) {
    __m512 p[ROWS];
    for (int r = 0; r < num_rows; ++r)
        p[r] = _mm512_setzero_ps();
    int64_t column = 0;
    for (; column + GPTOSS_LANES <= num_columns; column += GPTOSS_LANES) {
        __m512 x_group = _mm512_loadu_ps(x + column);
        for (int r = 0; r < num_rows; ++r)
            p[r] = _mm512_fmadd_ps(load(rows + r * row_bytes, column, 0xFFFF), x_group, p[r]);
    }
    if (column < num_columns) {
        __mmask16 mask = gptoss_first_lanes(num_columns - column);
        __m512 x_group = _mm512_loadu_ps(x + column);
        for (int r = 0; r < num_rows; ++r)
            p[r] = _mm512_mask3_fmadd_ps(load(rows + r * row_bytes, column, mask), x_group, p[r],
                                         mask);
    }
    for (int r = 0; r < num_rows; ++r)
        out[r] = gptoss_sum_16(p[r]);
}

GPTOSS_INLINE void matvec_one(const struct gptoss_matrix *matrix, int64_t first_row,
                              int64_t num_rows, const float *x, float *out,
                              gptoss_load_16_fn *load) {
    const uint8_t *rows = matrix->data + first_row * matrix->row_bytes;
    int64_t r = 0;
    for (; r + ROWS <= num_rows; r += ROWS)
        dot_rows(rows + r * matrix->row_bytes, matrix->row_bytes, matrix->num_columns, x, out + r,
                 ROWS, load);
    for (; r < num_rows; ++r)
        dot_rows(rows + r * matrix->row_bytes, matrix->row_bytes, matrix->num_columns, x, out + r,
                 1, load);
}

GPTOSS_INLINE void matvec(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                          const float *x, int32_t num_vectors, float *out,
                          gptoss_load_16_fn *load) {
    for (int32_t v = 0; v < num_vectors; ++v)
        matvec_one(matrix, first_row, num_rows,
                   x + v * gptoss_padded_columns(matrix->num_columns, 1), out + v * num_rows, load);
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_f32), GPTOSS_KERNEL(matvec_f16), GPTOSS_KERNEL(matvec_bf16),
    GPTOSS_KERNEL(matvec_q8_0);

void GPTOSS_KERNEL(matvec_f32)(const struct gptoss_matrix *matrix, int64_t first_row,
                               int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                               float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_load_16_f32);
}

void GPTOSS_KERNEL(matvec_f16)(const struct gptoss_matrix *matrix, int64_t first_row,
                               int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                               float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_load_16_f16);
}

void GPTOSS_KERNEL(matvec_bf16)(const struct gptoss_matrix *matrix, int64_t first_row,
                                int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_load_16_bf16);
}

void GPTOSS_KERNEL(matvec_q8_0)(const struct gptoss_matrix *matrix, int64_t first_row,
                                int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_load_16_q8_0);
}
