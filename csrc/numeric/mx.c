#include "numeric/mx.h"

#include <string.h>

#include "numeric/dtype.h"

const struct gptoss_mx_format gptoss_mx_formats[GPTOSS_MX_NUM_ELEMENTS] = {
    [GPTOSS_MX_E2M1] = {"e2m1", 4, 1, 0, 2, 0x07},
    [GPTOSS_MX_E2M3] = {"e2m3", 6, 3, 0, 2, 0x1F},
    [GPTOSS_MX_E3M2] = {"e3m2", 6, 2, -2, 4, 0x1F},
    [GPTOSS_MX_E4M3] = {"e4m3", 8, 3, -6, 8, 0x7E},
    [GPTOSS_MX_E5M2] = {"e5m2", 8, 2, -14, 15, 0x7B},
    [GPTOSS_MX_INT8] = {"int8", 8, 6, 0, 0, 0x7F},
};

enum { EXPONENT_MASK = 0x7F800000, NAN_SCALE = 0xFF };

static float power_of_two(int exponent) { /* -126 to 127 */
    return gptoss_float_from_bits((uint32_t)(exponent + 127) << 23);
}

/* ---- elements; the loops are free of branches, for the compiler to vectorise ---- */

static void encode_floats(const struct gptoss_mx_format *format, const float *scaled,
                          uint8_t *codes) {
    int mantissa_bits = format->mantissa_bits, sign_shift = 32 - format->num_bits;
    int32_t least = (format->min_exponent + 127) << 23, max_code = format->max_code;
    for (size_t i = 0; i < GPTOSS_MX_BLOCK; ++i) {
        uint32_t bits = gptoss_bits_from_float(scaled[i]);
        int32_t magnitude = (int32_t)(bits & 0x7FFFFFFF), exponent = magnitude & EXPONENT_MASK;
        exponent = exponent > least ? exponent : least;
        /* In units of the last place, below 16: the sum has them in its mantissa, rounded. A carry
         * into the next exponent is that exponent's first code. */
        float per_unit =
            gptoss_float_from_bits(((uint32_t)(254 + mantissa_bits) << 23) - (uint32_t)exponent);
        float sum = gptoss_float_from_bits((uint32_t)magnitude) * per_unit + 0x1p23f;
        int32_t units = (int32_t)(gptoss_bits_from_float(sum) & 0x7FFFFF);
        int32_t code = ((exponent - least) >> (23 - mantissa_bits)) + units;
        code = code < max_code ? code : max_code;
        codes[i] = (uint8_t)((uint32_t)code | (bits & 0x80000000u) >> sign_shift);
    }
}

static void encode_int8(const float *scaled, uint8_t *codes) {
    for (size_t i = 0; i < GPTOSS_MX_BLOCK; ++i) {
        float sum = scaled[i] * 64.0f + 0x1.8p23f; /* |scaled| < 2 */
        int32_t code = (int32_t)(gptoss_bits_from_float(sum) - 0x4B400000u);
        code = code > 127 ? 127 : code < -127 ? -127 : code;
        codes[i] = (uint8_t)code;
    }
}

static void decode_floats(const struct gptoss_mx_format *format, const uint8_t *codes, float *out) {
    for (size_t i = 0; i < GPTOSS_MX_BLOCK; ++i)
        out[i] = gptoss_float_from_mx(codes[i], format->num_bits, format->mantissa_bits,
                                      format->min_exponent, format->max_code);
}

static void encode_elements(enum gptoss_mx_element element, const float *scaled, uint8_t *codes) {
    if (element == GPTOSS_MX_INT8)
        encode_int8(scaled, codes);
    else
        encode_floats(&gptoss_mx_formats[element], scaled, codes);
}

static void decode_elements(enum gptoss_mx_element element, const uint8_t *codes, float *out) {
    if (element != GPTOSS_MX_INT8) {
        decode_floats(&gptoss_mx_formats[element], codes, out);
        return;
    }
    for (size_t i = 0; i < GPTOSS_MX_BLOCK; ++i)
        out[i] = (float)(int8_t)codes[i] * 0x1p-6f;
}

/* ---- blocks ---- */

/* The bits of the largest magnitude; above EXPONENT_MASK - 1 if one is not finite. */
static int32_t largest_magnitude(const float *values) {
    int32_t largest = 0;
    for (size_t i = 0; i < GPTOSS_MX_BLOCK; ++i) {
        int32_t magnitude = (int32_t)(gptoss_bits_from_float(values[i]) & 0x7FFFFFFF);
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

/* Codes at a scale of byte 0 to 254. */
static void encode_at(enum gptoss_mx_element element, const float *values, int scale,
                      uint8_t *codes) {
    float scaled[GPTOSS_MX_BLOCK];
    /* 2^(127 - scale); 2^-127 is subnormal. */
    float inverse = scale == 254 ? 0x1p-127f : power_of_two(127 - scale);
    for (size_t i = 0; i < GPTOSS_MX_BLOCK; ++i)
        scaled[i] = values[i] * inverse;
    encode_elements(element, scaled, codes);
}

static double squared_error(enum gptoss_mx_element element, const float *values, int scale,
                            const uint8_t *codes) {
    float elements[GPTOSS_MX_BLOCK];
    decode_elements(element, codes, elements);
    double sum = 0.0, factor = (double)gptoss_float_from_e8m0((uint8_t)scale);
    for (size_t i = 0; i < GPTOSS_MX_BLOCK; ++i) {
        double error = (double)values[i] - (double)elements[i] * factor;
        sum += error * error;
    }
    return sum;
}

/* Beyond its neighbours no scale is better: one more step up, nothing saturates already and codes
 * are only coarser; two steps down, the largest value loses more than all others can win. */
static int search_scale(enum gptoss_mx_element element, const float *values, int scale,
                        uint8_t *codes) {
    uint8_t tried[GPTOSS_MX_BLOCK];
    int best = scale;
    double least = squared_error(element, values, scale, codes);
    for (int candidate = scale + 1; candidate >= scale - 1; candidate -= 2) {
        if (candidate < 0 || candidate > 254)
            continue;
        encode_at(element, values, candidate, tried);
        double error = squared_error(element, values, candidate, tried);
        if (error < least) {
            least = error;
            best = candidate;
            memcpy(codes, tried, sizeof tried);
        }
    }
    return best;
}

void gptoss_mx_encode(enum gptoss_mx_element element, bool search, const float *values,
                      size_t num_blocks, uint8_t *codes_out, uint8_t *scales_out) {
    for (size_t b = 0; b < num_blocks; ++b) {
        const float *block = values + GPTOSS_MX_BLOCK * b;
        uint8_t *codes = codes_out + GPTOSS_MX_BLOCK * b;
        int32_t largest = largest_magnitude(block);
        if (largest >= EXPONENT_MASK) {
            memset(codes, 0, GPTOSS_MX_BLOCK);
            scales_out[b] = NAN_SCALE;
            continue;
        }
        int scale = (largest >> 23) - gptoss_mx_formats[element].max_exponent;
        scale = scale < 0 ? 0 : scale;
        encode_at(element, block, scale, codes);
        if (search)
            scale = search_scale(element, block, scale, codes);
        scales_out[b] = (uint8_t)scale;
    }
}

void gptoss_mx_decode(enum gptoss_mx_element element, const uint8_t *codes, const uint8_t *scales,
                      size_t num_blocks, float *out) {
    for (size_t b = 0; b < num_blocks; ++b, out += GPTOSS_MX_BLOCK) {
        float scale = gptoss_float_from_e8m0(scales[b]);
        decode_elements(element, codes + GPTOSS_MX_BLOCK * b, out);
        for (size_t i = 0; i < GPTOSS_MX_BLOCK; ++i)
            out[i] *= scale;
    }
}

/* ---- MXFP4 with a binary16 scale ---- */

void gptoss_mx_encode_f16_scaled(int exponent_bias, const float *values, size_t num_blocks,
                                 uint8_t *out) {
    float unit = exponent_bias == 1 ? 1.0f : 0.5f;
    for (; num_blocks > 0; --num_blocks, values += 32, out += GPTOSS_MX_F16_BLOCK_BYTES) {
        float scaled[GPTOSS_MX_BLOCK] = {0};
        uint8_t codes[GPTOSS_MX_BLOCK];
        float largest = gptoss_float_from_bits((uint32_t)largest_magnitude(values));
        uint16_t bits = 0x7E00;
        if (gptoss_bits_from_float(largest) < EXPONENT_MASK) {
            float wanted = largest / (6.0f * unit);
            bits = gptoss_f16_from_float(wanted < 65504.0f ? wanted : 65504.0f);
            float divisor = gptoss_float_from_f16(bits) * unit;
            for (size_t i = 0; i < GPTOSS_MX_BLOCK && divisor > 0; ++i)
                scaled[i] = values[i] / divisor;
        }
        encode_elements(GPTOSS_MX_E2M1, scaled, codes);
        memcpy(out, &bits, 2);
        for (size_t k = 0; k < 16; ++k)
            out[2 + k] = (uint8_t)(codes[2 * k] | codes[2 * k + 1] << 4);
    }
}

void gptoss_mx_decode_f16_scaled(int exponent_bias, const uint8_t *blocks, size_t num_blocks,
                                 float *out) {
    float unit = exponent_bias == 1 ? 1.0f : 0.5f;
    for (; num_blocks > 0; --num_blocks, blocks += GPTOSS_MX_F16_BLOCK_BYTES) {
        uint16_t bits;
        memcpy(&bits, blocks, 2);
        float scale = gptoss_float_from_f16(bits) * unit;
        for (size_t k = 0; k < 16; ++k) {
            *out++ = gptoss_e2m1_values[blocks[2 + k] & 15] * scale;
            *out++ = gptoss_e2m1_values[blocks[2 + k] >> 4] * scale;
        }
    }
}
