#include "numeric/dtype.h"

#include <assert.h>

static const struct {
    const char *name;
    uint8_t num_bytes;
} dtypes[] = {
    [GPTOSS_DTYPE_F32] = {"F32", 4},         [GPTOSS_DTYPE_F16] = {"F16", 2},
    [GPTOSS_DTYPE_BF16] = {"BF16", 2},       [GPTOSS_DTYPE_F64] = {"F64", 8},
    [GPTOSS_DTYPE_U8] = {"U8", 1},           [GPTOSS_DTYPE_I8] = {"I8", 1},
    [GPTOSS_DTYPE_U16] = {"U16", 2},         [GPTOSS_DTYPE_I16] = {"I16", 2},
    [GPTOSS_DTYPE_U32] = {"U32", 4},         [GPTOSS_DTYPE_I32] = {"I32", 4},
    [GPTOSS_DTYPE_U64] = {"U64", 8},         [GPTOSS_DTYPE_I64] = {"I64", 8},
    [GPTOSS_DTYPE_BOOL] = {"BOOL", 1},       [GPTOSS_DTYPE_F8_E4M3] = {"F8_E4M3", 1},
    [GPTOSS_DTYPE_F8_E5M2] = {"F8_E5M2", 1}, [GPTOSS_DTYPE_MXFP4] = {"MXFP4", 0},
    [GPTOSS_DTYPE_Q8_0] = {"Q8_0", 0},       [GPTOSS_DTYPE_MXFP4_GGUF] = {"MXFP4_GGUF", 0},
};

const char *gptoss_dtype_name(enum gptoss_dtype dtype) {
    return (size_t)dtype < sizeof dtypes / sizeof dtypes[0] ? dtypes[dtype].name : "unknown";
}

size_t gptoss_dtype_bytes(enum gptoss_dtype dtype) {
    return (size_t)dtype < sizeof dtypes / sizeof dtypes[0] ? dtypes[dtype].num_bytes : 0;
}

const float gptoss_e2m1_values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                      -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

#define E8M0(b) (b) == 0 ? 0x00400000u : (b) == 255 ? 0x7FC00000u : (uint32_t)(b) << 23
#define E8M0_4(b) E8M0(b), E8M0((b) + 1), E8M0((b) + 2), E8M0((b) + 3)
#define E8M0_16(b) E8M0_4(b), E8M0_4((b) + 4), E8M0_4((b) + 8), E8M0_4((b) + 12)
#define E8M0_64(b) E8M0_16(b), E8M0_16((b) + 16), E8M0_16((b) + 32), E8M0_16((b) + 48)
const uint32_t gptoss_e8m0_bits[256] = {E8M0_64(0), E8M0_64(64), E8M0_64(128), E8M0_64(192)};

float gptoss_float_from_f16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
    uint32_t exponent = bits >> 10 & 0x1F, mantissa = bits & 0x3FF;
    if (exponent == 0x1F)
        return gptoss_float_from_bits(sign | 0x7F800000u | mantissa << 13);
    if (exponent != 0)
        return gptoss_float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float magnitude = (float)mantissa * 0x1p-24f;
    return gptoss_float_from_bits(sign | gptoss_bits_from_float(magnitude));
}

uint16_t gptoss_f16_from_float(float value) {
    uint32_t bits = gptoss_bits_from_float(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000u)
        return sign | 0x7E00 | (magnitude >> 13 & 0x3FF);
    if (magnitude >= 0x477FF000u)
        return sign | 0x7C00;
    if (magnitude < 0x38800000u) {
        /* Subnormal in f16: adding 0.5 aligns the mantissa so that the FPU's own rounding is the
         * one wanted. */
        float aligned = gptoss_float_from_bits(magnitude) + 0.5f;
        return sign | (uint16_t)(gptoss_bits_from_float(aligned) - 0x3F000000u);
    }
    uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
    return sign | (uint16_t)((rounded - 0x38000000u) >> 13);
}

void gptoss_decode_elements(enum gptoss_dtype dtype, const void *elements, size_t num_elements,
                            float *out) {
    const uint8_t *bytes = elements;
    switch (dtype) {
    case GPTOSS_DTYPE_F32: memcpy(out, elements, num_elements * 4); break;
    case GPTOSS_DTYPE_BF16:
        for (size_t i = 0; i < num_elements; ++i) {
            uint16_t bits;
            memcpy(&bits, bytes + 2 * i, 2);
            out[i] = gptoss_float_from_bf16(bits);
        }
        break;
    case GPTOSS_DTYPE_F16:
        for (size_t i = 0; i < num_elements; ++i) {
            uint16_t bits;
            memcpy(&bits, bytes + 2 * i, 2);
            out[i] = gptoss_float_from_f16(bits);
        }
        break;
    default: assert(!"not an element format");
    }
}

void gptoss_decode_mxfp4(const uint8_t *blocks, const uint8_t *scales, size_t num_blocks,
                         float *out) {
    for (size_t b = 0; b < num_blocks; ++b) {
        float scale = gptoss_float_from_e8m0(scales[b]);
        for (size_t k = 0; k < 16; ++k) {
            out[32 * b + 2 * k] = gptoss_e2m1_values[blocks[16 * b + k] & 15] * scale;
            out[32 * b + 2 * k + 1] = gptoss_e2m1_values[blocks[16 * b + k] >> 4] * scale;
        }
    }
}

uint64_t gptoss_dtype_row_bytes(enum gptoss_dtype dtype, uint64_t num_elements) {
    switch (dtype) {
    case GPTOSS_DTYPE_MXFP4: return num_elements / 2;
    case GPTOSS_DTYPE_MXFP4_GGUF: return num_elements / 32 * 17;
    case GPTOSS_DTYPE_Q8_0: return num_elements / 32 * 34;
    default: return num_elements * gptoss_dtype_bytes(dtype);
    }
}

static void decode_mxfp4_gguf(const uint8_t *block, size_t num_blocks, float *out) {
    for (; num_blocks > 0; --num_blocks, block += 17, out += 32) {
        float scale = gptoss_float_from_e8m0(block[0]);
        for (size_t k = 0; k < 16; ++k) {
            out[k] = gptoss_e2m1_values[block[1 + k] & 15] * scale;
            out[k + 16] = gptoss_e2m1_values[block[1 + k] >> 4] * scale;
        }
    }
}

static void decode_q8_0(const uint8_t *block, size_t num_blocks, float *out) {
    for (; num_blocks > 0; --num_blocks, block += 34, out += 32) {
        uint16_t bits;
        memcpy(&bits, block, 2);
        float scale = gptoss_float_from_f16(bits);
        for (size_t k = 0; k < 32; ++k)
            out[k] = scale * (float)(int8_t)block[2 + k];
    }
}

void gptoss_decode_row(enum gptoss_dtype dtype, const uint8_t *data, const uint8_t *scales,
                       size_t num_elements, float *out) {
    switch (dtype) {
    case GPTOSS_DTYPE_MXFP4: gptoss_decode_mxfp4(data, scales, num_elements / 32, out); break;
    case GPTOSS_DTYPE_MXFP4_GGUF: decode_mxfp4_gguf(data, num_elements / 32, out); break;
    case GPTOSS_DTYPE_Q8_0: decode_q8_0(data, num_elements / 32, out); break;
    default: gptoss_decode_elements(dtype, data, num_elements, out);
    }
}
