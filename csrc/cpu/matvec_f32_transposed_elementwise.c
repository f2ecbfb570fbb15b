/* out[r] = dot(row r, x) where the matrix is stored [inputs][outputs]: p[column % 16] = fma(w, x,
 * p[column % 16]) for a strip of neighbouring outputs at once, then the tree.
 *
 * A strip is as wide as the sums of its 16 chains stay in the first-level cache. Of each stored row
 * it needs a few cache lines, in another page than the last: too far apart for the hardware's
 * prefetchers. */
#include <math.h>

#include "cpu/elements.h"

enum { SUMS = 128, ROWS_AHEAD = 32, CACHE_LINE = 64 };

static inline void add_input(const uint8_t *stored_row, float x, int64_t width, float *p,
                             gptoss_element_fn *element) {
    for (int64_t r = 0; r < width; ++r)
        p[r] = fmaf(element(stored_row, r), x, p[r]);
}

static inline void multiply(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                            const float *x_lanes, int32_t num_vectors, float *out,
                            gptoss_element_fn *element, int64_t element_bytes) {
    int64_t strip = num_vectors == 1   ? SUMS
                    : num_vectors == 2 ? SUMS / 2
                                       : SUMS / 4,
            distance = gptoss_padded_columns(matrix->num_columns, 1);
    for (int64_t done = 0; done < num_rows; done += strip) {
        int64_t width = num_rows - done < strip ? num_rows - done : strip;
        const uint8_t *stored = matrix->data + (first_row + done) * element_bytes;
        float p[GPTOSS_LANES][SUMS] = {{0}};
        for (int64_t column = 0; column < matrix->num_columns; ++column) {
            const uint8_t *stored_row = stored + column * matrix->row_bytes;
            for (int64_t byte = 0; byte < width * element_bytes; byte += CACHE_LINE)
                __builtin_prefetch(stored_row + ROWS_AHEAD * matrix->row_bytes + byte);
            float *sums = p[column % GPTOSS_LANES];
            add_input(stored_row, x_lanes[column], width, sums, element);
            for (int32_t v = 1; v < num_vectors; ++v)
                add_input(stored_row, x_lanes[v * distance + column], width, sums + v * strip,
                          element);
        }
        for (int half = GPTOSS_LANES / 2; half > 0; half /= 2)
            for (int l = 0; l < half; ++l)
                for (int64_t i = 0; i < SUMS; ++i)
                    p[l][i] += p[l + half][i];
        for (int32_t v = 0; v < num_vectors; ++v)
            memcpy(out + v * num_rows + done, p[0] + v * strip, (size_t)width * sizeof(float));
    }
}

static inline void matvec(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                          const float *x_lanes, int32_t num_vectors, float *out,
                          gptoss_element_fn *element, int64_t element_bytes) {
    if (num_vectors == 1)
        multiply(matrix, first_row, num_rows, x_lanes, 1, out, element, element_bytes);
    else
        multiply(matrix, first_row, num_rows, x_lanes, num_vectors, out, element, element_bytes);
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_f32_transposed), GPTOSS_KERNEL(matvec_f16_transposed),
    GPTOSS_KERNEL(matvec_bf16_transposed);

void GPTOSS_KERNEL(matvec_f32_transposed)(const struct gptoss_matrix *matrix, int64_t first_row,
                                          int64_t num_rows, const float *x_lanes,
                                          int32_t num_vectors, float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_element_f32, 4);
}

void GPTOSS_KERNEL(matvec_f16_transposed)(const struct gptoss_matrix *matrix, int64_t first_row,
                                          int64_t num_rows, const float *x_lanes,
                                          int32_t num_vectors, float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_element_f16, 2);
}

void GPTOSS_KERNEL(matvec_bf16_transposed)(const struct gptoss_matrix *matrix, int64_t first_row,
                                           int64_t num_rows, const float *x_lanes,
                                           int32_t num_vectors, float *out) {
    matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_element_bf16, 2);
}
