/* out[r] = dot(row r, x) over MXFP4 rows. The 16 bytes of codes of block b of a group are one
 * register, whose dwords are lanes 4 b .. 4 b + 3, low nibbles first: t = +0; t = fma(code, x, t)
 * eight times; p = fma(scale of the block, t, p); then the tree. A block that the last group lacks
 * is a register left alone. The scales of a group are decoded at once. */
#include "cpu/kernels.h"
#include "cpu/mxfp4_row.h"
#include "cpu/simd_neon.h"

enum { PER_LANE = 8, BLOCK = 32, GROUP = 128, GROUP_BLOCKS = GROUP / BLOCK };

/* The scale bytes of the first num_blocks blocks of a group, lowest first; the others are 0. */
GPTOSS_INLINE uint32_t load_scale_bytes(const uint8_t *scales, int64_t step, int num_blocks) {
    uint32_t bytes = 0;
    if (num_blocks == GROUP_BLOCKS && step == 1)
        memcpy(&bytes, scales, sizeof bytes);
    else
        for (int b = 0; b < num_blocks; ++b)
            bytes |= (uint32_t)scales[b * step] << (8 * b);
    return bytes;
}

/* One group of num_blocks blocks times all vectors. */
GPTOSS_INLINE void add_group(const struct gptoss_mxfp4_row *row, int num_blocks,
                             const float *const x[GPTOSS_MAX_VECTORS], int num_vectors,
                             float32x4_t p[GPTOSS_MAX_VECTORS][GROUP_BLOCKS]) {
    float32x4_t scales =
        gptoss_decode_e8m0(load_scale_bytes(row->scales, row->scale_step, num_blocks));
    /* Unrolled, so that p lies in registers. */
#pragma GCC unroll 4
    for (int b = 0; b < num_blocks; ++b) {
        float32x4_t codes[PER_LANE], scale = vdupq_n_f32(scales[b]);
        gptoss_decode_e2m1(vld1q_u8(row->codes + b * row->codes_step), codes);
        for (int v = 0; v < num_vectors; ++v) {
            const float *lanes = x[v] + b * 4;
            float32x4_t t = vdupq_n_f32(0.0f);
            for (int i = 0; i < PER_LANE; ++i)
                t = vfmaq_f32(t, codes[i], vld1q_f32(lanes + i * GPTOSS_LANES));
            p[v][b] = vfmaq_f32(p[v][b], scale, t);
        }
    }
}

GPTOSS_INLINE void dot_row(struct gptoss_mxfp4_row row, int64_t num_columns, const float *x,
                           int num_vectors, float *out, int64_t out_stride) {
    int64_t distance = gptoss_padded_columns(num_columns, PER_LANE);
    float32x4_t p[GPTOSS_MAX_VECTORS][GROUP_BLOCKS];
    const float *vectors[GPTOSS_MAX_VECTORS];
    for (int v = 0; v < num_vectors; ++v) {
        vectors[v] = x + v * distance;
        for (int b = 0; b < GROUP_BLOCKS; ++b)
            p[v][b] = vdupq_n_f32(0.0f);
    }
    for (; num_columns >= GROUP; num_columns -= GROUP) {
        add_group(&row, GROUP_BLOCKS, vectors, num_vectors, p);
        for (int v = 0; v < num_vectors; ++v)
            vectors[v] += GROUP;
        row.codes += GROUP_BLOCKS * row.codes_step;
        row.scales += GROUP_BLOCKS * row.scale_step;
    }
    if (num_columns == BLOCK)
        add_group(&row, 1, vectors, num_vectors, p);
    else if (num_columns == 2 * BLOCK)
        add_group(&row, 2, vectors, num_vectors, p);
    else if (num_columns == 3 * BLOCK)
        add_group(&row, 3, vectors, num_vectors, p);
    for (int v = 0; v < num_vectors; ++v)
        out[v * out_stride] = gptoss_sum_16(p[v]);
}

GPTOSS_INLINE void matvec(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                          int64_t first_row, int64_t num_rows, const float *x, int32_t num_vectors,
                          float *out) {
    for (int64_t r = 0; r < num_rows; ++r) {
        struct gptoss_mxfp4_row row = gptoss_mxfp4_row(matrix, layout, first_row + r);
        switch (num_vectors) {
        case 1: dot_row(row, matrix->num_columns, x, 1, out + r, num_rows); break;
        case 2: dot_row(row, matrix->num_columns, x, 2, out + r, num_rows); break;
        case 3: dot_row(row, matrix->num_columns, x, 3, out + r, num_rows); break;
        default: dot_row(row, matrix->num_columns, x, 4, out + r, num_rows);
        }
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
