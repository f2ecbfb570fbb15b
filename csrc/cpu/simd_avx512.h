/* What the AVX-512 matrix kernels share. Include only from files compiled for that level. */
#ifndef GPTOSS_CPU_SIMD_AVX512_H
#define GPTOSS_CPU_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define GPTOSS_INLINE static inline __attribute__((always_inline))

enum { GPTOSS_VECTOR_LANES = 16 };
typedef __m512 gptoss_vector;
GPTOSS_INLINE gptoss_vector gptoss_vector_load(const float *from) {
    return _mm512_loadu_ps(from);
}
GPTOSS_INLINE void gptoss_vector_store(float *to, gptoss_vector a) {
    _mm512_storeu_ps(to, a);
}
GPTOSS_INLINE gptoss_vector gptoss_vector_set(float a) {
    return _mm512_set1_ps(a);
}
GPTOSS_INLINE gptoss_vector gptoss_vector_add(gptoss_vector a, gptoss_vector b) {
    return _mm512_add_ps(a, b);
}
GPTOSS_INLINE gptoss_vector gptoss_vector_multiply(gptoss_vector a, gptoss_vector b) {
    return _mm512_mul_ps(a, b);
}
/* a * b + c, rounded once. */
GPTOSS_INLINE gptoss_vector gptoss_vector_fma(gptoss_vector a, gptoss_vector b, gptoss_vector c) {
    return _mm512_fmadd_ps(a, b, c);
}

/* Sixteen signed bytes; i is 0. */
GPTOSS_INLINE gptoss_vector gptoss_vector_from_bytes(__m128i bytes, int i) {
    (void)i;
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

/* Sixteen binary16 numbers; i is 0. */
GPTOSS_INLINE gptoss_vector gptoss_vector_from_halves(__m256i halves, int i) {
    (void)i;
    return _mm512_cvtph_ps(halves);
}

/* The first n of 16 lanes, 0 <= n <= 16. */
GPTOSS_INLINE __mmask16 gptoss_first_lanes(int64_t n) {
    return (__mmask16)((1u << n) - 1);
}

/* Brings what lies `distance` bytes behind num_bytes that are being read; it may not exist. */
GPTOSS_INLINE void gptoss_prefetch_next(const uint8_t *from, int64_t distance, int64_t num_bytes) {
    for (int64_t byte = 0; byte < num_bytes; byte += 64)
        _mm_prefetch((const char *)from + distance + byte, _MM_HINT_T0);
}

/* The tree of a dot product: l += l+8, +4, +2, +1. */
GPTOSS_INLINE float gptoss_sum_16(__m512 p) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(p), _mm512_extractf32x8_ps(p, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Sixteen elements from a row's column on, of which those in mask are read; the others are +0. */
typedef __m512 gptoss_load_16_fn(const uint8_t *row, int64_t column, __mmask16 mask);

GPTOSS_INLINE __m512 gptoss_load_16_f32(const uint8_t *row, int64_t column, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, row + column * 4);
}
GPTOSS_INLINE __m512 gptoss_load_16_f16(const uint8_t *row, int64_t column, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, row + column * 2));
}
GPTOSS_INLINE __m512 gptoss_load_16_bf16(const uint8_t *row, int64_t column, __mmask16 mask) {
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + column * 2));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

/* Of a row of Q8_0 blocks; columns are multiples of 16 and none is absent. */
GPTOSS_INLINE __m512 gptoss_load_16_q8_0(const uint8_t *row, int64_t column, __mmask16 mask) {
    const uint8_t *block = row + column / 32 * 34;
    uint16_t scale;
    memcpy(&scale, block, sizeof scale);
    __m512i codes = _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(block + 2 + column % 32)));
    (void)mask;
    return _mm512_mul_ps(_mm512_set1_ps(_cvtsh_ss(scale)), _mm512_cvtepi32_ps(codes));
}

/* E2M1 codes in the low four bits of each lane (the others may hold anything) to their values. */
GPTOSS_INLINE __m512 gptoss_decode_e2m1(__m512i codes) {
    const __m512 values = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f,
                                         -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
    return _mm512_permutexvar_ps(codes, values);
}

/* E8M0 bytes to scales: byte 0 is 2^-127, 0xFF is NaN. */
GPTOSS_INLINE __m512 gptoss_decode_e8m0(__m128i bytes) {
    __m512i exponents = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23);
    __m512i scales = _mm512_max_epu32(exponents, _mm512_set1_epi32(0x00400000));
    __mmask16 is_nan = _mm512_cmpeq_epi32_mask(exponents, _mm512_set1_epi32(0x7F800000));
    return _mm512_castsi512_ps(
        _mm512_mask_mov_epi32(scales, is_nan, _mm512_set1_epi32(0x7FC00000)));
}

/* Transposes 16 vectors of 16 lanes in place: pairs, fours, then 128-bit quarters twice. */
GPTOSS_INLINE void gptoss_transpose_16(__m512 v[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
            v[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            v[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; ++j) {
            t[i + j] = _mm512_shuffle_f32x4(v[i + j], v[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_f32x4(v[i + j], v[i + j + 4], 0xDD);
        }
    for (int j = 0; j < 8; ++j) {
        v[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
        v[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xDD);
    }
}

#endif
