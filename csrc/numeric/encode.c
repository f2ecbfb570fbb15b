#include "numeric/encode.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "numeric/dtype.h"
#include "numeric/mx.h"

enum { BLOCK = 32 };

/* False if the format's binary16 cannot hold it. */
static bool store_f16(float value, uint8_t *out) {
    uint16_t bits = gptoss_f16_from_float(value);
    memcpy(out, &bits, 2);
    return (bits & 0x7C00) != 0x7C00;
}

static bool all_finite(const float *values, size_t count) {
    uint32_t largest = 0;
    for (size_t i = 0; i < count; ++i) {
        uint32_t magnitude = gptoss_bits_from_float(values[i]) & 0x7FFFFFFF;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest < 0x7F800000u;
}

/* ---- elements ---- */

static bool encode_f32(const float *values, uint8_t *out) {
    memcpy(out, values, 4);
    return all_finite(values, 1);
}

static bool encode_f16(const float *values, uint8_t *out) {
    return store_f16(*values, out);
}

static bool encode_bf16(const float *values, uint8_t *out) {
    float rounded = gptoss_round_to_bf16(*values);
    uint16_t bits = (uint16_t)(gptoss_bits_from_float(rounded) >> 16);
    memcpy(out, &bits, 2);
    return all_finite(&rounded, 1);
}

/* ---- blocks of 32; the operations and their order are those of ggml's reference ---- */

/* 1 / scale, 0 for a scale whose reciprocal is no number: its codes are then those of zero. */
static float reciprocal(float scale) {
    float result = 1.0f / scale;
    return isfinite(result) ? result : 0.0f;
}

static bool encode_q8_0(const float *values, uint8_t *out) {
    float largest = 0.0f;
    for (size_t i = 0; i < BLOCK; ++i)
        largest = fabsf(values[i]) > largest ? fabsf(values[i]) : largest;
    float scale = largest / 127.0f, inverse = reciprocal(scale);
    for (size_t i = 0; i < BLOCK; ++i) {
        float code = values[i] * inverse, magnitude = fabsf(code);
        int whole = (int)magnitude; /* halves away from zero */
        whole += magnitude - (float)whole >= 0.5f;
        out[2 + i] = (uint8_t)(code < 0.0f ? -whole : whole);
    }
    return store_f16(scale, out);
}

/* Codes 0 to 2 * half - 1 of value / scale + half: the value of largest magnitude, the first of
 * equals, has code 0. */
static bool codes_around_zero(const float *values, int half, uint8_t *codes, uint8_t *scale_out) {
    float extreme = values[0];
    for (size_t i = 1; i < BLOCK; ++i)
        extreme = fabsf(values[i]) > fabsf(extreme) ? values[i] : extreme;
    float scale = extreme / (float)-half, inverse = reciprocal(scale);
    for (size_t i = 0; i < BLOCK; ++i) {
        int code = (int)(values[i] * inverse + ((float)half + 0.5f));
        codes[i] = (uint8_t)(code < 2 * half ? code : 2 * half - 1);
    }
    return store_f16(scale, scale_out);
}

/* Codes 0 to levels of (value - minimum) / scale. */
static bool codes_above_minimum(const float *values, int levels, uint8_t *codes, uint8_t *scale_out,
                                uint8_t *minimum_out) {
    float least = values[0], most = values[0];
    for (size_t i = 1; i < BLOCK; ++i) {
        least = values[i] < least ? values[i] : least;
        most = values[i] > most ? values[i] : most;
    }
    float scale = (most - least) / (float)levels, inverse = reciprocal(scale);
    if (!store_f16(scale, scale_out) || !store_f16(least, minimum_out))
        return false;
    for (size_t i = 0; i < BLOCK; ++i) {
        int code = (int)((values[i] - least) * inverse + 0.5f);
        codes[i] = (uint8_t)(code < levels ? code : levels);
    }
    return true;
}

/* Element j in the low nibble of byte j, element j + 16 in the high one. */
static void pack_nibbles(const uint8_t *codes, uint8_t *out) {
    for (size_t j = 0; j < BLOCK / 2; ++j)
        out[j] = (uint8_t)((codes[j] & 15) | codes[j + 16] << 4);
}

/* Bit i is bit 4 of code i. */
static void pack_fifth_bits(const uint8_t *codes, uint8_t *out) {
    memset(out, 0, 4);
    for (size_t i = 0; i < BLOCK; ++i)
        out[i / 8] |= (uint8_t)((codes[i] >> 4 & 1) << i % 8);
}

static bool encode_q4_0(const float *values, uint8_t *out) {
    uint8_t codes[BLOCK];
    bool done = codes_around_zero(values, 8, codes, out);
    pack_nibbles(codes, out + 2);
    return done;
}

static bool encode_q4_1(const float *values, uint8_t *out) {
    uint8_t codes[BLOCK];
    if (!codes_above_minimum(values, 15, codes, out, out + 2))
        return false;
    pack_nibbles(codes, out + 4);
    return true;
}

static bool encode_q5_0(const float *values, uint8_t *out) {
    uint8_t codes[BLOCK];
    bool done = codes_around_zero(values, 16, codes, out);
    pack_fifth_bits(codes, out + 2);
    pack_nibbles(codes, out + 6);
    return done;
}

static bool encode_q5_1(const float *values, uint8_t *out) {
    uint8_t codes[BLOCK];
    if (!codes_above_minimum(values, 31, codes, out, out + 2))
        return false;
    pack_fifth_bits(codes, out + 4);
    pack_nibbles(codes, out + 8);
    return true;
}

static bool encode_mxfp4(const float *values, uint8_t *out) {
    uint8_t codes[BLOCK];
    gptoss_mx_encode(GPTOSS_MX_E2M1, true, values, 1, codes, out);
    pack_nibbles(codes, out + 1);
    return true;
}

/* ---- all formats ---- */

typedef bool encode_fn(const float *values, uint8_t *out);

static encode_fn *encoder_of(enum gptoss_dtype dtype) {
    switch (dtype) {
    case GPTOSS_DTYPE_F32: return encode_f32;
    case GPTOSS_DTYPE_F16: return encode_f16;
    case GPTOSS_DTYPE_BF16: return encode_bf16;
    case GPTOSS_DTYPE_Q8_0: return encode_q8_0;
    case GPTOSS_DTYPE_Q4_0: return encode_q4_0;
    case GPTOSS_DTYPE_Q4_1: return encode_q4_1;
    case GPTOSS_DTYPE_Q5_0: return encode_q5_0;
    case GPTOSS_DTYPE_Q5_1: return encode_q5_1;
    case GPTOSS_DTYPE_MXFP4_GGUF: return encode_mxfp4;
    case GPTOSS_DTYPE_Q4_K: return gptoss_encode_q4_k;
    case GPTOSS_DTYPE_Q5_K: return gptoss_encode_q5_k;
    case GPTOSS_DTYPE_Q6_K: return gptoss_encode_q6_k;
    default: return NULL;
    }
}

bool gptoss_can_encode(enum gptoss_dtype dtype) {
    return encoder_of(dtype) != NULL;
}

size_t gptoss_encode_blocks(enum gptoss_dtype dtype, const float *values, size_t num_blocks,
                            uint8_t *out) {
    encode_fn *encode = encoder_of(dtype);
    assert(encode != NULL);
    size_t block = gptoss_dtype_block(dtype);
    size_t block_bytes = (size_t)gptoss_dtype_row_bytes(dtype, block);
    for (size_t b = 0; b < num_blocks; ++b) {
        const float *of_block = values + block * b;
        if (!all_finite(of_block, block) || !encode(of_block, out + block_bytes * b))
            return b;
    }
    return num_blocks;
}
