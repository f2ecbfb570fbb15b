/* out[r] = dot(row r, x) over rows of f32, f16, bf16 or unscaled blocks, GGUF's or of two planes:
 * p[column % 16] = fma(w, x, p[column % 16]), then the tree. */
#include <math.h>

#include "cpu/elements.h"

static inline void matvec(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                          const float *x_lanes, int32_t num_vectors, float *out,
                          gptoss_element_fn *element, gptoss_plane_element_fn *plane_element) {
    for (int64_t at = 0; at < num_vectors * num_rows; ++at) {
        const float *x = x_lanes + at / num_rows * gptoss_padded_columns(matrix->num_columns, 1);
        const uint8_t *row = matrix->data + (first_row + at % num_rows) * matrix->row_bytes;
        const uint8_t *scales = NULL;
        if (plane_element != NULL)
            scales = matrix->scales + (first_row + at % num_rows) * matrix->scale_row_bytes;
        float p[GPTOSS_LANES] = {0};
        for (int64_t column = 0; column < matrix->num_columns; ++column) {
            int64_t l = column % GPTOSS_LANES;
            float w = scales != NULL ? plane_element(row, scales, column) : element(row, column);
            p[l] = fmaf(w, x[column], p[l]);
        }
        out[at] = gptoss_sum_lanes(p);
    }
}

#define DEFINE(name, element, plane_element)                                                       \
    gptoss_matvec_fn GPTOSS_KERNEL(matvec_##name);                                                 \
    void GPTOSS_KERNEL(matvec_##name)(const struct gptoss_matrix *matrix, int64_t first_row,       \
                                      int64_t num_rows, const float *x_lanes, int32_t num_vectors, \
                                      float *out) {                                                \
        matvec(matrix, first_row, num_rows, x_lanes, num_vectors, out, element, plane_element);    \
    }
#define DEFINE_PLAIN(name, ...) DEFINE(name, gptoss_element_##name, NULL)
#define DEFINE_PLANES(name, ...) DEFINE(name, NULL, gptoss_element_##name)
DEFINE_PLAIN(f32)
DEFINE_PLAIN(f16)
DEFINE_PLAIN(bf16)
DEFINE_PLAIN(q8_0)
GPTOSS_FOR_BLOCK_FORMATS(DEFINE_PLAIN)
GPTOSS_FOR_PLANE_FORMATS(DEFINE_PLANES)
