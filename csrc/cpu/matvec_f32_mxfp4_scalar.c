/* out[r] = dot(row r, x) over MXFP4 rows. Lane l owns the 8 codes of dword l of a 64-byte group,
 * low nibbles first: t = +0; t = fma(code, x, t) eight times; p[l] = fma(scale of the block, t,
 * p[l]); then the tree. */
#include <math.h>

#include "cpu/elements.h"

enum { PER_LANE = 8, GROUP = GPTOSS_LANES * PER_LANE, BLOCK = 32 };

static float dot(const uint8_t *codes, const uint8_t *scales, int64_t num_columns,
                 const float *x_lanes) {
    float p[GPTOSS_LANES] = {0};
    for (int64_t column = 0; column < num_columns; column += PER_LANE) {
        int64_t l = column % GROUP / PER_LANE;
        const float *x = x_lanes + column / GROUP * GROUP + l;
        float t = 0.0f;
        for (int i = 0; i < PER_LANE; ++i) {
            int code = codes[(column + i) / 2] >> (i % 2 * 4) & 15;
            t = fmaf(gptoss_e2m1_values[code], x[i * GPTOSS_LANES], t);
        }
        p[l] = fmaf(gptoss_float_from_e8m0(scales[column / BLOCK]), t, p[l]);
    }
    return gptoss_sum_lanes(p);
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_mxfp4);

void GPTOSS_KERNEL(matvec_mxfp4)(const struct gptoss_matrix *matrix, int64_t first_row,
                                 int64_t num_rows, const float *x_lanes, float *out) {
    for (int64_t r = 0; r < num_rows; ++r) {
        int64_t row = first_row + r;
        out[r] = dot(matrix->data + row * matrix->row_bytes,
                     matrix->scales + row * matrix->scale_row_bytes, matrix->num_columns, x_lanes);
    }
}
