/* out[r] = dot(row r, x) over MXFP4 rows. Lane l of a group owns the 8 codes of a dword of its
 * block, low nibbles first: t = +0; t = fma(code, x, t) eight times; p[l] = fma(scale of the block,
 * t, p[l]); then the tree. */
#include <math.h>

#include "cpu/elements.h"
#include "cpu/mxfp4_row.h"

enum { PER_LANE = 8, LANES_PER_BLOCK = 4, GROUP = GPTOSS_LANES * PER_LANE };

static float dot(const struct gptoss_mxfp4_row *row, int64_t num_columns, const float *x_lanes) {
    float p[GPTOSS_LANES] = {0};
    for (int64_t dword = 0; dword < num_columns / PER_LANE; ++dword) {
        int64_t block = dword / LANES_PER_BLOCK, l = dword % GPTOSS_LANES;
        const uint8_t *codes = row->codes + block * row->codes_step + dword % LANES_PER_BLOCK * 4;
        const float *x = x_lanes + dword / GPTOSS_LANES * GROUP + l;
        float t = 0.0f;
        for (int i = 0; i < PER_LANE; ++i) {
            int code = codes[i / 2] >> (i % 2 * 4) & 15;
            t = fmaf(gptoss_e2m1_values[code], x[i * GPTOSS_LANES], t);
        }
        p[l] = fmaf(gptoss_float_from_e8m0(row->scales[block * row->scale_step]), t, p[l]);
    }
    return gptoss_sum_lanes(p);
}

static inline void matvec(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                          int64_t first_row, int64_t num_rows, const float *x_lanes,
                          int32_t num_vectors, float *out) {
    for (int64_t at = 0; at < num_vectors * num_rows; ++at) {
        struct gptoss_mxfp4_row row = gptoss_mxfp4_row(matrix, layout, first_row + at % num_rows);
        const float *x =
            x_lanes + at / num_rows * gptoss_padded_columns(matrix->num_columns, PER_LANE);
        out[at] = dot(&row, matrix->num_columns, x);
    }
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_mxfp4), GPTOSS_KERNEL(matvec_mxfp4_gguf);

void GPTOSS_KERNEL(matvec_mxfp4)(const struct gptoss_matrix *matrix, int64_t first_row,
                                 int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                 float *out) {
    matvec(matrix, GPTOSS_LAYOUT_MXFP4, first_row, num_rows, x_lanes, num_vectors, out);
}

void GPTOSS_KERNEL(matvec_mxfp4_gguf)(const struct gptoss_matrix *matrix, int64_t first_row,
                                      int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                      float *out) {
    matvec(matrix, GPTOSS_LAYOUT_MXFP4_GGUF, first_row, num_rows, x_lanes, num_vectors, out);
}
