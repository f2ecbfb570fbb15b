/* out[r] = dot(row r, x) over rows of f32, f16, bf16 or Q8_0: lane l of four registers is p[l] =
 * fma(w, x, p[l]), then the tree. Several rows at once share the loads of x and hide the latency of
 * fma; several vectors share the decoded weights. Sums: 16 registers of the 32. */
#include "cpu/kernels.h"
#include "cpu/simd_neon.h"

enum { QUARTERS = GPTOSS_QUARTERS, MAX_DOTS = 4 };

/* Sixteen columns of a row times all vectors, `distance` floats apart. */
GPTOSS_INLINE void add_group(const uint8_t *row, int64_t column, const float *x, int64_t distance,
                             int num_vectors, float32x4_t p[][QUARTERS], gptoss_load_16_fn *load) {
    float32x4_t w[QUARTERS];
    load(row, column, w);
    for (int v = 0; v < num_vectors; ++v)
        for (int q = 0; q < QUARTERS; ++q)
            p[v][q] = vfmaq_f32(p[v][q], w[q], vld1q_f32(x + v * distance + q * 4));
}

/* Likewise the last num_left columns, alone at `elements`. */
GPTOSS_INLINE void add_rest(const uint8_t *elements, int64_t num_left, const float *x,
                            int64_t distance, int num_vectors, float32x4_t p[][QUARTERS],
                            gptoss_load_16_fn *load) {
    float32x4_t w[QUARTERS];
    load(elements, 0, w);
    for (int v = 0; v < num_vectors; ++v)
        for (int q = 0; q < QUARTERS; ++q)
            p[v][q] = gptoss_fma_first(w[q], vld1q_f32(x + v * distance + q * 4), p[v][q],
                                       num_left - q * 4);
}

GPTOSS_INLINE void dot_rows(const struct gptoss_matrix *matrix, int64_t row, const float *x,
                            float *out, int64_t out_stride, int num_rows, int num_vectors,
                            gptoss_load_16_fn *load, int64_t element_bytes) {
    int64_t row_bytes = matrix->row_bytes, num_left = matrix->num_columns % GPTOSS_LANES,
            whole = matrix->num_columns - num_left,
            distance = gptoss_padded_columns(matrix->num_columns, 1);
    const uint8_t *rows = matrix->data + row * row_bytes;
    uint8_t rest[MAX_DOTS][GPTOSS_LANES * sizeof(float)];
    /* Before there are sums: a call takes their registers. */
    for (int r = 0; r < num_rows && num_left > 0; ++r) {
        memset(rest[r], 0, sizeof rest[r]);
        memcpy(rest[r], rows + r * row_bytes + whole * element_bytes,
               (size_t)(num_left * element_bytes));
    }
    float32x4_t p[MAX_DOTS][QUARTERS];
    for (int dot = 0; dot < num_rows * num_vectors; ++dot)
        for (int q = 0; q < QUARTERS; ++q)
            p[dot][q] = vdupq_n_f32(0.0f);
    for (int64_t column = 0; column < whole; column += GPTOSS_LANES)
        for (int r = 0; r < num_rows; ++r)
            add_group(rows + r * row_bytes, column, x + column, distance, num_vectors,
                      p + r * num_vectors, load);
    if (num_left > 0)
    /* Unrolled, so that p lies in registers. */
#pragma GCC unroll 4
        for (int r = 0; r < num_rows; ++r)
            add_rest(rest[r], num_left, x + whole, distance, num_vectors, p + r * num_vectors,
                     load);
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            out[v * out_stride + r] = gptoss_sum_16(p[r * num_vectors + v]);
}

GPTOSS_INLINE void dot_all_rows(const struct gptoss_matrix *matrix, int64_t first_row,
                                int64_t num_rows, const float *x, int num_vectors, float *out,
                                gptoss_load_16_fn *load, int64_t element_bytes) {
    int step = MAX_DOTS / num_vectors;
    int64_t r = 0;
    for (; r + step <= num_rows; r += step)
        dot_rows(matrix, first_row + r, x, out + r, num_rows, step, num_vectors, load,
                 element_bytes);
    for (; r < num_rows; ++r)
        dot_rows(matrix, first_row + r, x, out + r, num_rows, 1, num_vectors, load, element_bytes);
}

GPTOSS_INLINE void matvec(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                          const float *x, int32_t num_vectors, float *out, gptoss_load_16_fn *load,
                          int64_t element_bytes) {
    switch (num_vectors) {
    case 1: dot_all_rows(matrix, first_row, num_rows, x, 1, out, load, element_bytes); break;
    case 2: dot_all_rows(matrix, first_row, num_rows, x, 2, out, load, element_bytes); break;
    case 3: dot_all_rows(matrix, first_row, num_rows, x, 3, out, load, element_bytes); break;
    default: dot_all_rows(matrix, first_row, num_rows, x, 4, out, load, element_bytes);
    }
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_f32), GPTOSS_KERNEL(matvec_f16), GPTOSS_KERNEL(matvec_bf16),
    GPTOSS_KERNEL(matvec_q8_0);

void GPTOSS_KERNEL(matvec_f32)(const struct gptoss_matrix *matrix, int64_t first_row,
                               int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                               float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_load_16_f32, 4);
}

void GPTOSS_KERNEL(matvec_f16)(const struct gptoss_matrix *matrix, int64_t first_row,
                               int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                               float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_load_16_f16, 2);
}

void GPTOSS_KERNEL(matvec_bf16)(const struct gptoss_matrix *matrix, int64_t first_row,
                                int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_load_16_bf16, 2);
}

void GPTOSS_KERNEL(matvec_q8_0)(const struct gptoss_matrix *matrix, int64_t first_row,
                                int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_load_16_q8_0, 1);
}
