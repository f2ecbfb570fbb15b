/* What the NEON kernels share. 16 lanes are four registers: lanes 4 q .. 4 q + 3 are quarter q.
 * Include only from files compiled for that level. */
#ifndef GPTOSS_CPU_SIMD_NEON_H
#define GPTOSS_CPU_SIMD_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define GPTOSS_INLINE static inline __attribute__((always_inline))

enum { GPTOSS_VECTOR_LANES = 4, GPTOSS_QUARTERS = 4 };
typedef float32x4_t gptoss_vector;
GPTOSS_INLINE gptoss_vector gptoss_vector_load(const float *from) {
    return vld1q_f32(from);
}
GPTOSS_INLINE void gptoss_vector_store(float *to, gptoss_vector a) {
    vst1q_f32(to, a);
}
GPTOSS_INLINE gptoss_vector gptoss_vector_set(float a) {
    return vdupq_n_f32(a);
}
GPTOSS_INLINE gptoss_vector gptoss_vector_add(gptoss_vector a, gptoss_vector b) {
    return vaddq_f32(a, b);
}
GPTOSS_INLINE gptoss_vector gptoss_vector_multiply(gptoss_vector a, gptoss_vector b) {
    return vmulq_f32(a, b);
}
/* a * b + c, rounded once. */
GPTOSS_INLINE gptoss_vector gptoss_vector_fma(gptoss_vector a, gptoss_vector b, gptoss_vector c) {
    return vfmaq_f32(c, a, b);
}

/* ---- sixteen bytes, for codes of fewer bits ---- */

typedef uint8x16_t gptoss_bytes;

GPTOSS_INLINE gptoss_bytes gptoss_bytes_load(const uint8_t *from) {
    return vld1q_u8(from);
}
GPTOSS_INLINE gptoss_bytes gptoss_bytes_set(uint64_t low, uint64_t high) {
    return vcombine_u8(vcreate_u8(low), vcreate_u8(high));
}
/* (byte >> shift) & mask of each. */
GPTOSS_INLINE gptoss_bytes gptoss_bytes_bits(gptoss_bytes a, int shift, int mask) {
    return vandq_u8(vshlq_u8(a, vdupq_n_s8((int8_t)-shift)), vdupq_n_u8((uint8_t)mask));
}
/* low | high << shift of each. */
GPTOSS_INLINE gptoss_bytes gptoss_bytes_join(gptoss_bytes low, gptoss_bytes high, int shift) {
    return vorrq_u8(low, vshlq_u8(high, vdupq_n_s8((int8_t)shift)));
}
GPTOSS_INLINE gptoss_bytes gptoss_bytes_subtract(gptoss_bytes a, int b) {
    return vsubq_u8(a, vdupq_n_u8((uint8_t)b));
}
/* The 16 bits of two bytes, lowest first, as 0 or 1. */
GPTOSS_INLINE gptoss_bytes gptoss_bytes_spread(const uint8_t *two) {
    uint8x8_t bits = vreinterpret_u8_u64(vdup_n_u64(0x8040201008040201));
    uint8x16_t spread = vcombine_u8(vdup_n_u8(two[0]), vdup_n_u8(two[1]));
    return vandq_u8(vtstq_u8(spread, vcombine_u8(bits, bits)), vdupq_n_u8(1));
}
/* Four signed bytes of 16, from 4 i on. */
GPTOSS_INLINE gptoss_vector gptoss_vector_from_bytes(gptoss_bytes bytes, int i) {
    int8x16_t codes = vreinterpretq_s8_u8(bytes);
    int16x8_t half = i < 2 ? vmovl_s8(vget_low_s8(codes)) : vmovl_high_s8(codes);
    int32x4_t four = i % 2 == 0 ? vmovl_s16(vget_low_s16(half)) : vmovl_high_s16(half);
    return vcvtq_f32_s32(four);
}

/* ---- sixteen halfwords ---- */

typedef uint16x8x2_t gptoss_halves;

/* The bytes, each in the high half. */
GPTOSS_INLINE gptoss_halves gptoss_halves_from_bytes(gptoss_bytes a) {
    const uint8x16_t zero = vdupq_n_u8(0);
    return (gptoss_halves){
        {vreinterpretq_u16_u8(vzip1q_u8(zero, a)), vreinterpretq_u16_u8(vzip2q_u8(zero, a))}};
}
/* Sixteen codes of 6 bits, which are 12 bytes from number `first` on, each in the high bits; what
 * is below is left over from its neighbours. */
GPTOSS_INLINE gptoss_halves gptoss_halves_from_six_bits(gptoss_bytes a, int first) {
    static const uint8_t order[16] = {0, 1, 0, 1, 1, 2, 1, 2, 3, 4, 3, 4, 4, 5, 4, 5};
    static const int16_t shifts[8] = {10, 4, 6, 0, 10, 4, 6, 0};
    gptoss_halves out;
    for (int h = 0; h < 2; ++h) {
        uint8x16_t from = vaddq_u8(vld1q_u8(order), vdupq_n_u8((uint8_t)(first + 6 * h)));
        out.val[h] = vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(a, from)), vld1q_s16(shifts));
    }
    return out;
}
/* (a >> shift) & mask of each, the sign bit moving in from the left. */
GPTOSS_INLINE gptoss_halves gptoss_halves_shift(gptoss_halves a, int shift, int mask) {
    for (int h = 0; h < 2; ++h) {
        int16x8_t moved = vshlq_s16(vreinterpretq_s16_u16(a.val[h]), vdupq_n_s16((int16_t)-shift));
        a.val[h] = vandq_u16(vreinterpretq_u16_s16(moved), vdupq_n_u16((uint16_t)mask));
    }
    return a;
}
/* All ones, a NaN, where all but the sign is equal to magnitude. */
GPTOSS_INLINE gptoss_halves gptoss_halves_make_nan(gptoss_halves a, int magnitude) {
    for (int h = 0; h < 2; ++h) {
        uint16x8_t rest = vandq_u16(a.val[h], vdupq_n_u16(0x7FFF));
        a.val[h] = vorrq_u16(a.val[h], vceqq_u16(rest, vdupq_n_u16((uint16_t)magnitude)));
    }
    return a;
}
/* Four binary16 numbers of 16, from 4 i on. */
GPTOSS_INLINE gptoss_vector gptoss_vector_from_halves(gptoss_halves halves, int i) {
    float16x8_t half = vreinterpretq_f16_u16(halves.val[i / 2]);
    return i % 2 == 0 ? vcvt_f32_f16(vget_low_f16(half)) : vcvt_high_f32_f16(half);
}

GPTOSS_INLINE float gptoss_widen_f16(const uint8_t *half) {
    uint16_t bits;
    memcpy(&bits, half, sizeof bits);
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}

/* p = fma(a, b, p) in the first n of 4 lanes, the others keep p; n may be below 0 or above 4. */
GPTOSS_INLINE float32x4_t gptoss_fma_first(float32x4_t a, float32x4_t b, float32x4_t p, int64_t n) {
    static const int32_t lane[4] = {0, 1, 2, 3};
    int32_t count = n < 0 ? 0 : n > 4 ? 4 : (int32_t)n;
    uint32x4_t mask = vcltq_s32(vld1q_s32(lane), vdupq_n_s32(count));
    return vbslq_f32(mask, vfmaq_f32(p, a, b), p);
}

/* The tree of a dot product: l += l+8, +4, +2, +1. */
GPTOSS_INLINE float gptoss_sum_16(const float32x4_t p[GPTOSS_QUARTERS]) {
    float32x4_t four = vaddq_f32(vaddq_f32(p[0], p[2]), vaddq_f32(p[1], p[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(vpadd_f32(two, two), 0);
}

/* Sixteen elements of a row from a column on, any alignment. */
typedef void gptoss_load_16_fn(const uint8_t *row, int64_t column,
                               float32x4_t out[GPTOSS_QUARTERS]);

GPTOSS_INLINE void gptoss_load_16_f32(const uint8_t *row, int64_t column,
                                      float32x4_t out[GPTOSS_QUARTERS]) {
    for (int q = 0; q < GPTOSS_QUARTERS; ++q)
        out[q] = vreinterpretq_f32_u8(vld1q_u8(row + column * 4 + q * 16));
}
GPTOSS_INLINE float32x4_t gptoss_load_4_f16(const uint8_t *halves) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(halves)));
}
GPTOSS_INLINE void gptoss_load_16_f16(const uint8_t *row, int64_t column,
                                      float32x4_t out[GPTOSS_QUARTERS]) {
    for (int h = 0; h < 2; ++h) {
        float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8(row + column * 2 + h * 16));
        out[2 * h] = vcvt_f32_f16(vget_low_f16(halves));
        out[2 * h + 1] = vcvt_high_f32_f16(halves);
    }
}
GPTOSS_INLINE void gptoss_load_16_bf16(const uint8_t *row, int64_t column,
                                       float32x4_t out[GPTOSS_QUARTERS]) {
    const uint16x8_t zero = vdupq_n_u16(0);
    for (int h = 0; h < 2; ++h) {
        uint16x8_t bits = vreinterpretq_u16_u8(vld1q_u8(row + column * 2 + h * 16));
        out[2 * h] = vreinterpretq_f32_u16(vzip1q_u16(zero, bits));
        out[2 * h + 1] = vreinterpretq_f32_u16(vzip2q_u16(zero, bits));
    }
}
/* Of a row of Q8_0 blocks; columns are multiples of 16. */
GPTOSS_INLINE void gptoss_load_16_q8_0(const uint8_t *row, int64_t column,
                                       float32x4_t out[GPTOSS_QUARTERS]) {
    const uint8_t *block = row + column / 32 * 34;
    uint16_t scale_bits;
    memcpy(&scale_bits, block, sizeof scale_bits);
    float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(scale_bits)));
    int8x16_t codes = vreinterpretq_s8_u8(vld1q_u8(block + 2 + column % 32));
    int16x8_t low = vmovl_s8(vget_low_s8(codes)), high = vmovl_high_s8(codes);
    out[0] = vmulq_f32(scale, vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))));
    out[1] = vmulq_f32(scale, vcvtq_f32_s32(vmovl_high_s16(low)));
    out[2] = vmulq_f32(scale, vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))));
    out[3] = vmulq_f32(scale, vcvtq_f32_s32(vmovl_high_s16(high)));
}

/* The 8 codes of each of 4 dwords, low nibbles first, to E2M1 values: values[i] holds code i of
 * every dword. Bytes are looked up all at once: the values are exact in bf16, whose two bytes come
 * from two 16-entry tables. The bytes of each table are then put together two to a dword, and each
 * of the two becomes a float by a mask or a shift. */
GPTOSS_INLINE void gptoss_decode_e2m1(uint8x16_t codes, float32x4_t values[8]) {
    static const uint8_t high_bytes[16] = {0x00, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40,
                                           0x80, 0xBF, 0xBF, 0xBF, 0xC0, 0xC0, 0xC0, 0xC0};
    static const uint8_t low_bytes[16] = {0x00, 0x00, 0x80, 0xC0, 0x00, 0x40, 0x80, 0xC0,
                                          0x00, 0x00, 0x80, 0xC0, 0x00, 0x40, 0x80, 0xC0};
    const uint8x16_t high_table = vld1q_u8(high_bytes), low_table = vld1q_u8(low_bytes);
    const uint32x4_t high_half = vdupq_n_u32(0xFFFF0000u);
    for (int odd = 0; odd < 2; ++odd) {
        uint8x16_t index = odd ? vshrq_n_u8(codes, 4) : vandq_u8(codes, vdupq_n_u8(15));
        uint8x16_t high = vqtbl1q_u8(high_table, index), low = vqtbl1q_u8(low_table, index);
        uint32x4_t bytes_0_2 = vreinterpretq_u32_u8(vtrn1q_u8(low, high)),
                   bytes_1_3 = vreinterpretq_u32_u8(vtrn2q_u8(low, high));
        values[odd] = vreinterpretq_f32_u32(vshlq_n_u32(bytes_0_2, 16));
        values[odd + 2] = vreinterpretq_f32_u32(vshlq_n_u32(bytes_1_3, 16));
        values[odd + 4] = vreinterpretq_f32_u32(vandq_u32(bytes_0_2, high_half));
        values[odd + 6] = vreinterpretq_f32_u32(vandq_u32(bytes_1_3, high_half));
    }
}

/* Four E8M0 bytes, lowest first, to scales: byte 0 is 2^-127, 0xFF is NaN. */
GPTOSS_INLINE float32x4_t gptoss_decode_e8m0(uint32_t bytes) {
    uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes)));
    uint32x4_t exponents = vshll_n_u16(vget_low_u16(wide), 7);
    exponents = vshlq_n_u32(exponents, 16);
    uint32x4_t quiet = vdupq_n_u32(0x00400000), infinite = vdupq_n_u32(0x7F800000);
    uint32x4_t is_nan = vceqq_u32(exponents, infinite);
    return vreinterpretq_f32_u32(vorrq_u32(vmaxq_u32(exponents, quiet), vandq_u32(is_nan, quiet)));
}

/* Transposes 4 vectors of 4 lanes in place. */
GPTOSS_INLINE void gptoss_transpose_4(float32x4_t v[4]) {
    float64x2_t t[4];
    for (int i = 0; i < 4; i += 2) {
        t[i] = vreinterpretq_f64_f32(vtrn1q_f32(v[i], v[i + 1]));
        t[i + 1] = vreinterpretq_f64_f32(vtrn2q_f32(v[i], v[i + 1]));
    }
    for (int j = 0; j < 2; ++j) {
        v[j] = vreinterpretq_f32_f64(vtrn1q_f64(t[j], t[j + 2]));
        v[j + 2] = vreinterpretq_f32_f64(vtrn2q_f64(t[j], t[j + 2]));
    }
}

#endif
