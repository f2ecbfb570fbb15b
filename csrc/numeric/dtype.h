/* Storage formats: names, sizes, and decoding to float32, the truth that every kernel is tested
 * against. */
#ifndef GPTOSS_NUMERIC_DTYPE_H
#define GPTOSS_NUMERIC_DTYPE_H

#include <stdint.h>
#include <string.h>

#include "gptoss.h"

static inline float gptoss_float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline uint32_t gptoss_bits_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float gptoss_float_from_bf16(uint16_t bits) {
    return gptoss_float_from_bits((uint32_t)bits << 16);
}
/* The nearest bf16, of two the even one; NaN stays NaN. */
static inline float gptoss_round_to_bf16(float value) {
    uint32_t bits = gptoss_bits_from_float(value);
    uint32_t rounded = bits + 0x7FFFu + (bits >> 16 & 1), nan = bits | 0x400000u;
    uint32_t chosen = (bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded;
    return gptoss_float_from_bits(chosen & 0xFFFF0000u);
}

/* IEEE binary16, exact. */
static inline float gptoss_float_from_f16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
    uint32_t exponent = bits >> 10 & 0x1F, mantissa = bits & 0x3FF;
    if (exponent == 0x1F)
        return gptoss_float_from_bits(sign | 0x7F800000u | mantissa << 13);
    if (exponent != 0)
        return gptoss_float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float magnitude = (float)mantissa * 0x1p-24f;
    return gptoss_float_from_bits(sign | gptoss_bits_from_float(magnitude));
}
/* Round to nearest even; beyond 65504 to infinity; NaN stays NaN. The value every ISA's conversion
 * gives. */
uint16_t gptoss_f16_from_float(float value);

/* OCP MX v1.0 E8M0: 2^(byte-127); 0 is 2^-127 (a subnormal), 0xFF is NaN. */
static inline float gptoss_float_from_e8m0(uint8_t byte) {
    return gptoss_float_from_bits(byte == 0xFF ? 0x7FC00000u
                                  : byte == 0  ? 0x00400000u
                                               : (uint32_t)byte << 23);
}
/* An OCP MX element of num_bits, exact: sign, exponent, mantissa_bits; exponent field 0 is
 * subnormal, 1 is 2^min_exponent. Codes above max_code: 0x7C (E5M2's) is infinite, others NaN. Bits
 * of the code above num_bits are ignored. */
static inline float gptoss_float_from_mx(uint32_t code, int num_bits, int mantissa_bits,
                                         int min_exponent, uint32_t max_code) {
    uint32_t sign = 1u << (num_bits - 1), magnitude = code & (sign - 1);
    /* The code's bits are those of a float32 with another bias, subnormals included. */
    float rebias = gptoss_float_from_bits((uint32_t)(253 + min_exponent) << 23);
    float value = gptoss_float_from_bits(magnitude << (23 - mantissa_bits)) * rebias;
    uint32_t special = magnitude == 0x7C ? 0x7F800000u : 0x7FC00000u;
    uint32_t bits = magnitude > max_code ? special : gptoss_bits_from_float(value);
    return gptoss_float_from_bits(bits | (code & sign) << (32 - num_bits));
}

/* The bits of E8M0's float32 for every byte, for kernels. */
extern const uint32_t gptoss_e8m0_bits[256];
/* OCP MX v1.0 E2M1, codes 0..15; 8 is -0. */
extern const float gptoss_e2m1_values[16];

/* Elements that share a block: 1, 32 or 256. */
uint32_t gptoss_dtype_block(enum gptoss_dtype dtype);
/* Whether codes and scales are apart: MXFP4, MXFP6 and MXFP8, blocks of 32 with an E8M0 byte each.
 */
bool gptoss_dtype_has_planes(enum gptoss_dtype dtype);
/* Bytes of num_elements in a row, whole blocks. Where there are planes: of the codes. */
uint64_t gptoss_dtype_row_bytes(enum gptoss_dtype dtype, uint64_t num_elements);

/* Elements of F32, F16 or BF16 to float32, exact. */
void gptoss_decode_elements(enum gptoss_dtype dtype, const void *elements, size_t num_elements,
                            float *out);
/* MXFP4 as Hugging Face stores it: 16 bytes a block, low nibble first; one scale byte a block. */
void gptoss_decode_mxfp4(const uint8_t *blocks, const uint8_t *scales, size_t num_blocks,
                         float *out);

/* A row of a weight in any format that is multiplied, num_elements as above. scales: of planes
 * only. Exact, but where an E8M0 scale makes an element infinite and where a weight has a minimum,
 * which is added with one rounding (block_formats.h). */
void gptoss_decode_row(enum gptoss_dtype dtype, const uint8_t *data, const uint8_t *scales,
                       size_t num_elements, float *out);

#endif
