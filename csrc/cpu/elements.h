/* Single elements of unscaled storage, decoded to float32: exact, branch-free so that loops
 * vectorise, any alignment. */
#ifndef GPTOSS_CPU_ELEMENTS_H
#define GPTOSS_CPU_ELEMENTS_H

#include "cpu/kernels.h"
#include "numeric/block_formats.h"

typedef float gptoss_element_fn(const uint8_t *elements, int64_t index);
/* Of a row of codes and its scales. */
typedef float gptoss_plane_element_fn(const uint8_t *codes, const uint8_t *scales, int64_t index);

static inline float gptoss_element_f32(const uint8_t *elements, int64_t index) {
    float value;
    memcpy(&value, elements + index * 4, 4);
    return value;
}

static inline float gptoss_element_f16(const uint8_t *elements, int64_t index) {
    uint16_t bits;
    memcpy(&bits, elements + index * 2, 2);
    /* The exponent moves by a multiplication, which normalises subnormals; what was infinite or NaN
     * is made so again. */
    float magnitude = gptoss_float_from_bits((uint32_t)(bits & 0x7FFF) << 13) * 0x1p112f;
    uint32_t special = magnitude >= 65536.0f ? 0x7F800000u : 0;
    return gptoss_float_from_bits(gptoss_bits_from_float(magnitude) | special |
                                  (uint32_t)(bits & 0x8000) << 16);
}

static inline float gptoss_element_bf16(const uint8_t *elements, int64_t index) {
    uint16_t bits;
    memcpy(&bits, elements + index * 2, 2);
    return gptoss_float_from_bf16(bits);
}

/* The sum of 16 lanes by the documented tree; the lanes are overwritten. */
static inline float gptoss_sum_lanes(float lanes[GPTOSS_LANES]) {
    for (int half = GPTOSS_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; ++l)
            lanes[l] += lanes[l + half];
    return lanes[0];
}

#endif
