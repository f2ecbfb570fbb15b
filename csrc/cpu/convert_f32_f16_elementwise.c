#include "cpu/kernels.h"
#include "numeric/dtype.h"

void GPTOSS_KERNEL(convert_f32_f16)(const float *x, int64_t n, uint16_t *out);

/* gptoss_f16_from_float without branches, so that the loop vectorises. */
static inline uint16_t round_to_f16(float value) {
    uint32_t bits = gptoss_bits_from_float(value), magnitude = bits & 0x7FFFFFFFu;
    uint32_t normal = (magnitude + 0xFFFu + (magnitude >> 13 & 1) - 0x38000000u) >> 13;
    /* Adding 0.5 aligns the mantissa so that the FPU's own rounding is the one wanted. */
    uint32_t subnormal =
        gptoss_bits_from_float(gptoss_float_from_bits(magnitude) + 0.5f) - 0x3F000000u;
    uint32_t nan = 0x7E00u | (magnitude >> 13 & 0x3FFu);
    uint32_t rounded = magnitude < 0x38800000u ? subnormal : normal;
    rounded = magnitude >= 0x477FF000u ? 0x7C00u : rounded;
    rounded = magnitude > 0x7F800000u ? nan : rounded;
    return (uint16_t)((bits >> 16 & 0x8000u) | rounded);
}

void GPTOSS_KERNEL(convert_f32_f16)(const float *x, int64_t n, uint16_t *out) {
    for (int64_t i = 0; i < n; ++i)
        out[i] = round_to_f16(x[i]);
}
