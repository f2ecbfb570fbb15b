/* Operands of precision bf16, 32 elements of a row in one register: 16 pairs of a 32-bit slot each,
 * as the instructions that multiply bf16 take them. Include only from files compiled for
 * AVX512_BF16. */
#ifndef GPTOSS_CPU_BF16_ROWS_H
#define GPTOSS_CPU_BF16_ROWS_H

#include "cpu/kernels.h"
#include "cpu/simd_avx512.h"

enum { GPTOSS_BF16_GROUP = 32, GPTOSS_BF16_PAIRS = 16 };

/* The bf16 of each E2M1 code times each E8M0 scale: exact but for infinity beyond the range; scale
 * 0xFF is NaN. */
extern const uint16_t gptoss_mxfp4_bf16[256][16];

static inline int64_t gptoss_bf16_num_groups(int64_t num_columns) {
    return (num_columns + GPTOSS_BF16_GROUP - 1) / GPTOSS_BF16_GROUP;
}
/* Bytes of a group of 32 in a row. */
static inline int64_t gptoss_bf16_group_bytes(enum gptoss_layout layout) {
    return layout == GPTOSS_LAYOUT_MXFP4 ? 16 : layout == GPTOSS_LAYOUT_MXFP4_GGUF ? 17 : 64;
}
/* Elements of group g that the row has. */
static inline int64_t gptoss_bf16_group_width(int64_t num_columns, int64_t g) {
    int64_t left = num_columns - g * GPTOSS_BF16_GROUP;
    return left < GPTOSS_BF16_GROUP ? left : GPTOSS_BF16_GROUP;
}

static inline const uint8_t *gptoss_bf16_row(const struct gptoss_matrix *matrix, int64_t row) {
    return matrix->data + row * matrix->row_bytes;
}
static inline const uint8_t *gptoss_bf16_scales(const struct gptoss_matrix *matrix, int64_t row) {
    return matrix->layout == GPTOSS_LAYOUT_MXFP4 ? matrix->scales + row * matrix->scale_row_bytes
                                                 : NULL;
}

/* Both codes of byte l to pair l. A permutation of 32 words counts only the low five bits of an
 * index, and the table stands there twice: the low code needs no mask. */
GPTOSS_INLINE __m512i gptoss_bf16_decode_mxfp4(const uint8_t *codes, uint8_t scale) {
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)codes));
    __m512i indices = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
    __m512i values =
        _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)gptoss_mxfp4_bf16[scale]));
    return _mm512_permutexvar_epi16(indices, values);
}

/* Group g of a row, 0 past its `width` elements. Pair l holds elements 2 l and 2 l + 1; of GGUF's
 * MXFP4, which keeps them in one byte, l and l + 16. */
GPTOSS_INLINE __m512i gptoss_bf16_load(enum gptoss_layout layout, const uint8_t *row,
                                       const uint8_t *scales, int64_t g, int64_t width) {
    const uint8_t *group = row + g * gptoss_bf16_group_bytes(layout);
    if (layout == GPTOSS_LAYOUT_MXFP4)
        return gptoss_bf16_decode_mxfp4(group, scales[g]);
    if (layout == GPTOSS_LAYOUT_MXFP4_GGUF)
        return gptoss_bf16_decode_mxfp4(group + 1, group[0]);
    if (width == GPTOSS_BF16_GROUP)
        return _mm512_loadu_si512(group);
    return _mm512_maskz_loadu_epi16((__mmask32)((UINT32_C(1) << width) - 1), group);
}

/* Group g of an input, rounded, with pairs as a row of that layout has them. */
GPTOSS_INLINE __m512i gptoss_bf16_round(enum gptoss_layout layout, const float *x, int64_t g,
                                        int64_t width) {
    const float *group = x + g * GPTOSS_BF16_GROUP;
    int64_t num_low = width < 16 ? width : 16;
    __m512 low = _mm512_maskz_loadu_ps(gptoss_first_lanes(num_low), group);
    __m512 high = _mm512_maskz_loadu_ps(gptoss_first_lanes(width - num_low), group + num_low);
    if (layout != GPTOSS_LAYOUT_MXFP4_GGUF)
        return (__m512i)_mm512_cvtne2ps_pbh(high, low);
    __m512i even = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
    __m512i odd = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
    return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

#endif
