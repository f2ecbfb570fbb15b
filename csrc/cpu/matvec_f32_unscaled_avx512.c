/* out[r] = dot(row r, x) over rows of f32, f16 or bf16: lane l of one register is p[l] =
 * fma(w, x, p[l]), then the tree. Several rows at once share the loads of x and hide the latency of
 * fma. */
#include "cpu/kernels.h"
#include "cpu/simd_avx512.h"

enum { ROWS = 8 };

GPTOSS_INLINE void dot_rows(const uint8_t *rows, int64_t row_bytes, int64_t num_columns,
                            const float *x, int num_rows, int num_vectors, float *out,
                            int64_t out_stride, gptoss_load_16_fn *load) {
    int64_t distance = gptoss_padded_columns(num_columns, 1), column = 0;
    __m512 p[ROWS][GPTOSS_MAX_VECTORS];
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            p[r][v] = _mm512_setzero_ps();
    for (; column + GPTOSS_LANES <= num_columns; column += GPTOSS_LANES) {
        __m512 x_group[GPTOSS_MAX_VECTORS];
        for (int v = 0; v < num_vectors; ++v)
            x_group[v] = _mm512_loadu_ps(x + v * distance + column);
        for (int r = 0; r < num_rows; ++r) {
            __m512 w = load(rows + r * row_bytes, column, 0xFFFF);
            for (int v = 0; v < num_vectors; ++v)
                p[r][v] = _mm512_fmadd_ps(w, x_group[v], p[r][v]);
        }
    }
    if (column < num_columns) {
        __mmask16 mask = gptoss_first_lanes(num_columns - column);
        for (int r = 0; r < num_rows; ++r) {
            __m512 w = load(rows + r * row_bytes, column, mask);
            for (int v = 0; v < num_vectors; ++v)
                p[r][v] = _mm512_mask3_fmadd_ps(w, _mm512_loadu_ps(x + v * distance + column),
                                                p[r][v], mask);
        }
    }
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            out[v * out_stride + r] = gptoss_sum_16(p[r][v]);
}

GPTOSS_INLINE void multiply(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                            const float *x, int at_once, int num_vectors, float *out,
                            gptoss_load_16_fn *load) {
    const uint8_t *rows = matrix->data + first_row * matrix->row_bytes;
    int64_t row_bytes = matrix->row_bytes, r = 0;
    for (; r + at_once <= num_rows; r += at_once)
        dot_rows(rows + r * row_bytes, row_bytes, matrix->num_columns, x, at_once, num_vectors,
                 out + r, num_rows, load);
    for (; r < num_rows; ++r)
        dot_rows(rows + r * row_bytes, row_bytes, matrix->num_columns, x, 1, num_vectors, out + r,
                 num_rows, load);
}

GPTOSS_INLINE void matvec(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                          const float *x, int32_t num_vectors, float *out,
                          gptoss_load_16_fn *load) {
    switch (num_vectors) {
    case 1: multiply(matrix, first_row, num_rows, x, ROWS, 1, out, load); break;
    case 2: multiply(matrix, first_row, num_rows, x, ROWS / 2, 2, out, load); break;
    case 3: multiply(matrix, first_row, num_rows, x, ROWS / 2, 3, out, load); break;
    default: multiply(matrix, first_row, num_rows, x, ROWS / 2, 4, out, load);
    }
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_f32), GPTOSS_KERNEL(matvec_f16), GPTOSS_KERNEL(matvec_bf16);

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
