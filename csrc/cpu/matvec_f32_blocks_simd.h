/* out[v][r] = dot(row r, vector v) over rows of blocks for any vector type: each weight is
 * decoded once for all vectors, then p[l] = fma(w, x, p[l]), then the tree. Include after the
 * level's simd header, MAX_DOTS, how many rows times vectors are summed at once in registers, and
 * sum_lanes, the tree. */
#include "cpu/block_formats_simd.h"

/* All runs of one block of some rows; x: its place in the first vector, which are `distance` floats
 * apart. */
GPTOSS_INLINE void add_block(struct format format, const struct block_column *blocks,
                             const float *x, int64_t distance, int num_rows, int num_vectors,
                             gptoss_vector p[MAX_DOTS][VECTORS_A_HALF]) {
    struct factors factors[MAX_DOTS];
    for (int r = 0; r < num_rows; ++r)
        begin_block(format, blocks, r, &factors[r]);
    for (int run = 0; run < format.num_runs; ++run)
        for (int half = 0; half < 2; ++half, x += HALF_RUN)
            for (int r = 0; r < num_rows; ++r) {
                gptoss_vector w[VECTORS_A_HALF];
                decode_half(format, blocks->data + r * blocks->row_bytes, &factors[r], run, half,
                            w);
                for (int v = 0; v < num_vectors; ++v)
                    for (int i = 0; i < VECTORS_A_HALF; ++i) {
                        gptoss_vector *sum = &p[r * num_vectors + v][i];
                        *sum = gptoss_vector_fma(
                            w[i], gptoss_vector_load(x + v * distance + i * GPTOSS_VECTOR_LANES),
                            *sum);
                    }
            }
}

GPTOSS_INLINE void dot_rows(struct format format, const struct gptoss_matrix *matrix, int64_t row,
                            const float *x, float *out, int64_t out_stride, int num_rows,
                            int num_vectors) {
    int64_t distance = gptoss_padded_columns(matrix->num_columns, 1);
    struct block_column blocks = first_blocks(format, matrix, row);
    gptoss_vector p[MAX_DOTS][VECTORS_A_HALF];
    for (int dot = 0; dot < num_rows * num_vectors; ++dot)
        for (int i = 0; i < VECTORS_A_HALF; ++i)
            p[dot][i] = gptoss_vector_set(0.0f);
    for (int64_t column = 0; column < matrix->num_columns; column += format.num_runs * RUN) {
        add_block(format, &blocks, x + column, distance, num_rows, num_vectors, p);
        next_blocks(format, &blocks);
    }
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            out[v * out_stride + r] = sum_lanes(p[r * num_vectors + v]);
}

GPTOSS_INLINE void dot_all_rows(struct format format, const struct gptoss_matrix *matrix,
                                int64_t first_row, int64_t num_rows, const float *x,
                                int num_vectors, float *out) {
    int step = MAX_DOTS / num_vectors;
    int64_t r = 0;
    for (; r + step <= num_rows; r += step)
        dot_rows(format, matrix, first_row + r, x, out + r, num_rows, step, num_vectors);
    for (; r < num_rows; ++r)
        dot_rows(format, matrix, first_row + r, x, out + r, num_rows, 1, num_vectors);
}

GPTOSS_INLINE void matvec(struct format format, const struct gptoss_matrix *matrix,
                          int64_t first_row, int64_t num_rows, const float *x, int32_t num_vectors,
                          float *out) {
    switch (num_vectors) {
    case 1: dot_all_rows(format, matrix, first_row, num_rows, x, 1, out); break;
    case 2: dot_all_rows(format, matrix, first_row, num_rows, x, 2, out); break;
    case 3: dot_all_rows(format, matrix, first_row, num_rows, x, 3, out); break;
    default: dot_all_rows(format, matrix, first_row, num_rows, x, 4, out);
    }
}

#define DEFINE(name, format)                                                                       \
    gptoss_matvec_fn GPTOSS_KERNEL(matvec_##name);                                                 \
    void GPTOSS_KERNEL(matvec_##name)(const struct gptoss_matrix *matrix, int64_t first_row,       \
                                      int64_t num_rows, const float *x_lanes, int32_t num_vectors, \
                                      float *out) {                                                \
        matvec(format, matrix, first_row, num_rows, x_lanes, num_vectors, out);                    \
    }
FOR_FORMATS(DEFINE)
