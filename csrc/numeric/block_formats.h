/* The block formats whose weights count as float32, of GGUF and, at the end, MXFP6 and MXFP8: what
 * element `index` of a row is. These functions are the specification; the SIMD kernels give the
 * same bits.
 *
 * A block has an f16 scale d, and in some formats a second one for minima. The formats of 256
 * elements divide a block into parts of 16 or 32 with a small integer scale, and in some a minimum,
 * each:
 *
 *     without minima:  w = s * q         s = d * scale
 *     with minima:     w = s * q + o     o = -(d of minima) * minimum
 *
 * In formats of 32 s is d, and o, where there is one, is stored. Every product is exact: d has 11
 * significant bits, a scale or minimum at most 7 and a code at most 5. So only the sum is rounded,
 * and a fused multiply-add gives the same bits. Source of the layouts: llama.cpp,
 * ggml/src/ggml-common.h and ggml-quants.c. */
#ifndef GPTOSS_NUMERIC_BLOCK_FORMATS_H
#define GPTOSS_NUMERIC_BLOCK_FORMATS_H

#include "numeric/dtype.h"

/* X(name, NAME, bytes of a block) */
#define GPTOSS_FOR_FORMATS_OF_32(X)                                                                \
    X(q4_0, Q4_0, 18) X(q4_1, Q4_1, 20) X(q5_0, Q5_0, 22) X(q5_1, Q5_1, 24)
#define GPTOSS_FOR_FORMATS_OF_256(X)                                                               \
    X(q2_k, Q2_K, 84) X(q3_k, Q3_K, 110) X(q4_k, Q4_K, 144) X(q5_k, Q5_K, 176) X(q6_k, Q6_K, 210)
/* Q8_0 is not among them: it has kernels of its own. */
#define GPTOSS_FOR_BLOCK_FORMATS(X) GPTOSS_FOR_FORMATS_OF_32(X) GPTOSS_FOR_FORMATS_OF_256(X)

static inline float gptoss_load_f16(const uint8_t *half) {
    uint16_t bits;
    memcpy(&bits, half, sizeof bits);
    return gptoss_float_from_f16(bits);
}

/* ---- blocks of 32 ---- */

/* Nibble i of 32 in 16 bytes: the low ones of all bytes, then the high ones. */
static inline int gptoss_nibble_32(const uint8_t *bytes, int64_t i) {
    return bytes[i % 16] >> i / 16 * 4 & 15;
}
static inline int gptoss_bit_32(const uint8_t *bytes, int64_t i) {
    return bytes[i / 8] >> i % 8 & 1;
}

/* f16 d, 32 int8 codes. */
static inline float gptoss_element_q8_0(const uint8_t *row, int64_t index) {
    const uint8_t *block = row + index / 32 * 34;
    return gptoss_load_f16(block) * (float)(int8_t)block[2 + index % 32];
}

/* f16 d, 16 bytes of nibbles: d * (nibble - 8). */
static inline float gptoss_element_q4_0(const uint8_t *row, int64_t index) {
    const uint8_t *block = row + index / 32 * 18;
    return gptoss_load_f16(block) * (float)(gptoss_nibble_32(block + 2, index % 32) - 8);
}

/* f16 d, f16 o, 16 bytes of nibbles. */
static inline float gptoss_element_q4_1(const uint8_t *row, int64_t index) {
    const uint8_t *block = row + index / 32 * 20;
    return gptoss_load_f16(block) * (float)gptoss_nibble_32(block + 4, index % 32) +
           gptoss_load_f16(block + 2);
}

/* f16 d, 32 high bits, 16 bytes of nibbles: d * (code - 16). */
static inline float gptoss_element_q5_0(const uint8_t *row, int64_t index) {
    const uint8_t *block = row + index / 32 * 22;
    int code = gptoss_nibble_32(block + 6, index % 32) | gptoss_bit_32(block + 2, index % 32) << 4;
    return gptoss_load_f16(block) * (float)(code - 16);
}

/* f16 d, f16 o, 32 high bits, 16 bytes of nibbles. */
static inline float gptoss_element_q5_1(const uint8_t *row, int64_t index) {
    const uint8_t *block = row + index / 32 * 24;
    int code = gptoss_nibble_32(block + 8, index % 32) | gptoss_bit_32(block + 4, index % 32) << 4;
    return gptoss_load_f16(block) * (float)code + gptoss_load_f16(block + 2);
}

/* ---- blocks of 256: 8 runs of 32 elements, element = 32 run + i ---- */

/* Two bits of each: 4 runs share 32 bytes, the lowest bits first. */
static inline int gptoss_two_bits_256(const uint8_t *bytes, int64_t run, int64_t i) {
    return bytes[run / 4 * 32 + i] >> run % 4 * 2 & 3;
}
/* One bit of each: 8 runs share 32 bytes. */
static inline int gptoss_bit_256(const uint8_t *bytes, int64_t run, int64_t i) {
    return bytes[i] >> run & 1;
}

/* 16 bytes of scales (low nibbles) and minima (high ones) of 16 elements each, 64 bytes of two
 * bits, f16 d, f16 d of minima. */
static inline float gptoss_element_q2_k(const uint8_t *row, int64_t index) {
    const uint8_t *block = row + index / 256 * 84;
    int64_t run = index % 256 / 32, i = index % 32;
    int part = block[index % 256 / 16];
    float scale = gptoss_load_f16(block + 80) * (float)(part & 15);
    float minimum = gptoss_load_f16(block + 82) * (float)(part >> 4);
    return scale * (float)gptoss_two_bits_256(block + 16, run, i) - minimum;
}

/* 32 bytes of third bits, 64 of two bits, 12 of scales, f16 d: the code is that of 3 bits - 4, the
 * scale that of 6 bits - 32. The low four bits of 16 scales are nibbles of 8 bytes, their high two
 * in the last 4. */
static inline float gptoss_element_q3_k(const uint8_t *row, int64_t index) {
    const uint8_t *block = row + index / 256 * 110, *scales = block + 96;
    int64_t run = index % 256 / 32, i = index % 32, part = index % 256 / 16;
    int scale = (scales[part % 8] >> part / 8 * 4 & 15) | (scales[8 + part % 4] >> part / 4 * 2 & 3)
                                                              << 4;
    int code = gptoss_two_bits_256(block + 32, run, i) | gptoss_bit_256(block, run, i) << 2;
    return gptoss_load_f16(block + 108) * (float)(scale - 32) * (float)(code - 4);
}

/* The scale (which = 0) or minimum (1) of a run, of 6 bits. Those of runs 0 to 3 are the low six
 * bits of 4 bytes each; of the others the low four bits are nibbles of the last 4 bytes and the
 * high two the bits left over in the first 8. */
static inline int gptoss_six_bits(const uint8_t *scales, int64_t run, int which) {
    if (run < 4)
        return scales[4 * which + run] & 63;
    return (scales[4 + run] >> 4 * which & 15) | (scales[4 * which + run - 4] >> 6) << 4;
}

/* s * code + o in a run of a block that begins with d, d of minima and 12 bytes of six-bit
 * scales. */
static inline float gptoss_element_of_six_bits(const uint8_t *block, int64_t run, int code) {
    float scale = gptoss_load_f16(block) * (float)gptoss_six_bits(block + 4, run, 0);
    float minimum = gptoss_load_f16(block + 2) * (float)gptoss_six_bits(block + 4, run, 1);
    return scale * (float)code - minimum;
}

/* Four bits of each: 2 runs share 32 bytes. */
static inline int gptoss_nibble_256(const uint8_t *bytes, int64_t run, int64_t i) {
    return bytes[run / 2 * 32 + i] >> run % 2 * 4 & 15;
}

/* f16 d, f16 d of minima, 12 bytes of scales and minima of a run each, 128 of nibbles. */
static inline float gptoss_element_q4_k(const uint8_t *row, int64_t index) {
    const uint8_t *block = row + index / 256 * 144;
    int64_t run = index % 256 / 32;
    return gptoss_element_of_six_bits(block, run, gptoss_nibble_256(block + 16, run, index % 32));
}

/* As Q4_K with 32 bytes of fifth bits before the nibbles. */
static inline float gptoss_element_q5_k(const uint8_t *row, int64_t index) {
    const uint8_t *block = row + index / 256 * 176;
    int64_t run = index % 256 / 32, i = index % 32;
    int code = gptoss_nibble_256(block + 48, run, i) | gptoss_bit_256(block + 16, run, i) << 4;
    return gptoss_element_of_six_bits(block, run, code);
}

/* 128 bytes of nibbles, 64 of two high bits, 16 int8 scales of 16 elements each, f16 d: the code is
 * that of 6 bits - 32. Nibbles: runs 0 and 2 share 32 bytes, as do 1 and 3, 4 and 6, 5 and 7. */
static inline float gptoss_element_q6_k(const uint8_t *row, int64_t index) {
    const uint8_t *block = row + index / 256 * 210;
    int64_t run = index % 256 / 32, i = index % 32;
    int nibble = block[run / 4 * 64 + run % 2 * 32 + i] >> run % 4 / 2 * 4 & 15;
    int code = nibble | gptoss_two_bits_256(block + 128, run, i) << 4;
    float scale = gptoss_load_f16(block + 208) * (float)(int8_t)block[192 + index % 256 / 16];
    return scale * (float)(code - 32);
}

/* ---- MXFP6 and MXFP8: codes and E8M0 scales in two planes, blocks of 32 ---- */

/* X(name, NAME, bytes of a block's codes, bits, bits of the mantissa, min_exponent, max_code as in
 * gptoss_float_from_mx) */
#define GPTOSS_FOR_PLANE_FORMATS(X)                                                                \
    X(mxfp6_e2m3, MXFP6_E2M3, 24, 6, 3, 0, 0x1F)                                                   \
    X(mxfp6_e3m2, MXFP6_E3M2, 24, 6, 2, -2, 0x1F)                                                  \
    X(mxfp8_e4m3, MXFP8_E4M3, 32, 8, 3, -6, 0x7E)                                                  \
    X(mxfp8_e5m2, MXFP8_E5M2, 32, 8, 2, -14, 0x7B)

/* Bits 6 i to 6 i + 5 of a row, counted from the lowest bit of its first byte. */
static inline uint32_t gptoss_six_bit_code(const uint8_t *row, int64_t i) {
    const uint8_t *three = row + i / 4 * 3;
    return (three[0] | (uint32_t)three[1] << 8 | (uint32_t)three[2] << 16) >> i % 4 * 6 & 63;
}

/* code * scale: exact, but infinite beyond the range of float32. */
#define GPTOSS_DEFINE_PLANE_ELEMENT(name, NAME, block_bytes, num_bits, ...)                        \
    static inline float gptoss_element_##name(const uint8_t *row, const uint8_t *scales,           \
                                              int64_t index) {                                     \
        uint32_t code = num_bits == 6 ? gptoss_six_bit_code(row, index) : row[index];              \
        return gptoss_float_from_mx(code, num_bits, __VA_ARGS__) *                                 \
               gptoss_float_from_e8m0(scales[index / 32]);                                         \
    }
GPTOSS_FOR_PLANE_FORMATS(GPTOSS_DEFINE_PLANE_ELEMENT)

#endif
