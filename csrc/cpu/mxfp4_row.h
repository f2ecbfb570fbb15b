/* One row of MXFP4 blocks, in either of the two layouts. */
#ifndef GPTOSS_CPU_MXFP4_ROW_H
#define GPTOSS_CPU_MXFP4_ROW_H

#include "cpu/kernels.h"
#include "numeric/dtype.h"

/* Block b: 16 bytes of codes at codes + b * codes_step, an E8M0 byte at scales + b * scale_step.
 * Lane l of group g owns dword l % 4 of block 4 g + l / 4, nibbles in ascending order, in both
 * layouts; only what elements these are differs (gptoss_lane_element). */
struct gptoss_mxfp4_row {
    const uint8_t *codes, *scales;
    int64_t codes_step, scale_step;
};

static inline struct gptoss_mxfp4_row gptoss_mxfp4_row(const struct gptoss_matrix *matrix,
                                                       enum gptoss_layout layout, int64_t row) {
    const uint8_t *data = matrix->data + row * matrix->row_bytes;
    if (layout == GPTOSS_LAYOUT_MXFP4_GGUF)
        return (struct gptoss_mxfp4_row){data + 1, data, 17, 17};
    return (struct gptoss_mxfp4_row){data, matrix->scales + row * matrix->scale_row_bytes, 16, 1};
}

/* The scale of an E8M0 byte, by table: a load instead of a few instructions. */
static inline float gptoss_e8m0_value(uint8_t byte) {
    return gptoss_float_from_bits(gptoss_e8m0_bits[byte]);
}

#endif
