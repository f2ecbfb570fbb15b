/* out[r] = dot(row r, x) over rows of f32, f16, bf16 or GGUF's unscaled blocks: p[column % 16] =
 * fma(w, x, p[column % 16]), then the tree. */
#include <math.h>

#include "cpu/elements.h"

static inline void matvec(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                          const float *x_lanes, int32_t num_vectors, float *out,
                          gptoss_element_fn *element) {
    for (int64_t at = 0; at < num_vectors * num_rows; ++at) {
        const float *x = x_lanes + at / num_rows * gptoss_padded_columns(matrix->num_columns, 1);
        const uint8_t *row = matrix->data + (first_row + at % num_rows) * matrix->row_bytes;
        float p[GPTOSS_LANES] = {0};
        for (int64_t column = 0; column < matrix->num_columns; ++column) {
            int64_t l = column % GPTOSS_LANES;
            p[l] = fmaf(element(row, column), x[column], p[l]);
        }
        out[at] = gptoss_sum_lanes(p);
    }
}

#define DEFINE(name, ...)                                                                          \
    gptoss_matvec_fn GPTOSS_KERNEL(matvec_##name);                                                 \
    void GPTOSS_KERNEL(matvec_##name)(const struct gptoss_matrix *matrix, int64_t first_row,       \
                                      int64_t num_rows, const float *x_lanes, int32_t num_vectors, \
                                      float *out) {                                                \
        matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, gptoss_element_##name);     \
    }
DEFINE(f32)
DEFINE(f16)
DEFINE(bf16)
DEFINE(q8_0)
GPTOSS_FOR_BLOCK_FORMATS(DEFINE)
