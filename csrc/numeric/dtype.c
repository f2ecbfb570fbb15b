#include "numeric/dtype.h"

#include <assert.h>

#include "numeric/block_formats.h"

static const struct {
    const char *name;
    uint16_t block, block_bytes;
} dtypes[] = {[GPTOSS_DTYPE_F32] = {"F32", 1, 4},
              [GPTOSS_DTYPE_F16] = {"F16", 1, 2},
              [GPTOSS_DTYPE_BF16] = {"BF16", 1, 2},
              [GPTOSS_DTYPE_F64] = {"F64", 1, 8},
              [GPTOSS_DTYPE_U8] = {"U8", 1, 1},
              [GPTOSS_DTYPE_I8] = {"I8", 1, 1},
              [GPTOSS_DTYPE_U16] = {"U16", 1, 2},
              [GPTOSS_DTYPE_I16] = {"I16", 1, 2},
              [GPTOSS_DTYPE_U32] = {"U32", 1, 4},
              [GPTOSS_DTYPE_I32] = {"I32", 1, 4},
              [GPTOSS_DTYPE_U64] = {"U64", 1, 8},
              [GPTOSS_DTYPE_I64] = {"I64", 1, 8},
              [GPTOSS_DTYPE_BOOL] = {"BOOL", 1, 1},
              [GPTOSS_DTYPE_F8_E4M3] = {"F8_E4M3", 1, 1},
              [GPTOSS_DTYPE_F8_E5M2] = {"F8_E5M2", 1, 1},
              [GPTOSS_DTYPE_MXFP4] = {"MXFP4", 32, 16},
              [GPTOSS_DTYPE_Q8_0] = {"Q8_0", 32, 34},
              [GPTOSS_DTYPE_MXFP4_GGUF] = {"MXFP4_GGUF", 32, 17},
              [GPTOSS_DTYPE_Q4_0] = {"Q4_0", 32, 18},
              [GPTOSS_DTYPE_Q4_1] = {"Q4_1", 32, 20},
              [GPTOSS_DTYPE_Q5_0] = {"Q5_0", 32, 22},
              [GPTOSS_DTYPE_Q5_1] = {"Q5_1", 32, 24},
              [GPTOSS_DTYPE_Q2_K] = {"Q2_K", 256, 84},
              [GPTOSS_DTYPE_Q3_K] = {"Q3_K", 256, 110},
              [GPTOSS_DTYPE_Q4_K] = {"Q4_K", 256, 144},
              [GPTOSS_DTYPE_Q5_K] = {"Q5_K", 256, 176},
              [GPTOSS_DTYPE_Q6_K] = {"Q6_K", 256, 210},
#define PLANES(name, NAME, block_bytes, ...) [GPTOSS_DTYPE_##NAME] = {#NAME, 32, block_bytes},
              GPTOSS_FOR_PLANE_FORMATS(PLANES)};

static bool is_known(enum gptoss_dtype dtype) {
    return (size_t)dtype < sizeof dtypes / sizeof dtypes[0];
}

const char *gptoss_dtype_name(enum gptoss_dtype dtype) {
    return is_known(dtype) ? dtypes[dtype].name : "unknown";
}

size_t gptoss_dtype_bytes(enum gptoss_dtype dtype) {
    return is_known(dtype) && dtypes[dtype].block == 1 ? dtypes[dtype].block_bytes : 0;
}

uint32_t gptoss_dtype_block(enum gptoss_dtype dtype) {
    return dtypes[dtype].block;
}

bool gptoss_dtype_has_planes(enum gptoss_dtype dtype) {
    return dtype == GPTOSS_DTYPE_MXFP4 || dtype >= GPTOSS_DTYPE_MXFP6_E2M3;
}

uint64_t gptoss_dtype_row_bytes(enum gptoss_dtype dtype, uint64_t num_elements) {
    return num_elements / dtypes[dtype].block * dtypes[dtype].block_bytes;
}

const float gptoss_e2m1_values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                      -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

#define E8M0(b) (b) == 0 ? 0x00400000u : (b) == 255 ? 0x7FC00000u : (uint32_t)(b) << 23
#define E8M0_4(b) E8M0(b), E8M0((b) + 1), E8M0((b) + 2), E8M0((b) + 3)
#define E8M0_16(b) E8M0_4(b), E8M0_4((b) + 4), E8M0_4((b) + 8), E8M0_4((b) + 12)
#define E8M0_64(b) E8M0_16(b), E8M0_16((b) + 16), E8M0_16((b) + 32), E8M0_16((b) + 48)
const uint32_t gptoss_e8m0_bits[256] = {E8M0_64(0), E8M0_64(64), E8M0_64(128), E8M0_64(192)};

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

static void decode_mxfp4_gguf(const uint8_t *block, size_t num_blocks, float *out) {
    for (; num_blocks > 0; --num_blocks, block += 17, out += 32) {
        float scale = gptoss_float_from_e8m0(block[0]);
        for (size_t k = 0; k < 16; ++k) {
            out[k] = gptoss_e2m1_values[block[1 + k] & 15] * scale;
            out[k + 16] = gptoss_e2m1_values[block[1 + k] >> 4] * scale;
        }
    }
}

#define DECODE_BLOCKS(name, NAME, block_bytes)                                                     \
    static void decode_##name(const uint8_t *row, size_t num_elements, float *out) {               \
        for (size_t i = 0; i < num_elements; ++i)                                                  \
            out[i] = gptoss_element_##name(row, (int64_t)i);                                       \
    }
DECODE_BLOCKS(q8_0, Q8_0, 34)
GPTOSS_FOR_BLOCK_FORMATS(DECODE_BLOCKS)

#define DECODE_PLANES(name, ...)                                                                   \
    static void decode_##name(const uint8_t *row, const uint8_t *scales, size_t num_elements,      \
                              float *out) {                                                        \
        for (size_t i = 0; i < num_elements; ++i)                                                  \
            out[i] = gptoss_element_##name(row, scales, (int64_t)i);                               \
    }
GPTOSS_FOR_PLANE_FORMATS(DECODE_PLANES)

void gptoss_decode_row(enum gptoss_dtype dtype, const uint8_t *data, const uint8_t *scales,
                       size_t num_elements, float *out) {
    switch (dtype) {
    case GPTOSS_DTYPE_MXFP4: gptoss_decode_mxfp4(data, scales, num_elements / 32, out); break;
    case GPTOSS_DTYPE_MXFP4_GGUF: decode_mxfp4_gguf(data, num_elements / 32, out); break;
    case GPTOSS_DTYPE_Q8_0: decode_q8_0(data, num_elements, out); break;
#define DECODE(name, NAME, block_bytes)                                                            \
    case GPTOSS_DTYPE_##NAME: decode_##name(data, num_elements, out); break;
        GPTOSS_FOR_BLOCK_FORMATS(DECODE)
#define DECODE_BOTH(name, NAME, ...)                                                               \
    case GPTOSS_DTYPE_##NAME: decode_##name(data, scales, num_elements, out); break;
        GPTOSS_FOR_PLANE_FORMATS(DECODE_BOTH)
    default: gptoss_decode_elements(dtype, data, num_elements, out);
    }
}
