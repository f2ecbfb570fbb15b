/* What the AVX2 matrix kernels share. 16 lanes are two registers: low (0..7) and high (8..15).
 * Include only from files compiled for that level. */
#ifndef GPTOSS_CPU_SIMD_AVX2_H
#define GPTOSS_CPU_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define GPTOSS_INLINE static inline __attribute__((always_inline))

enum { GPTOSS_VECTOR_LANES = 8 };
typedef __m256 gptoss_vector;
GPTOSS_INLINE gptoss_vector gptoss_vector_load(const float *from) {
    return _mm256_loadu_ps(from);
}
GPTOSS_INLINE void gptoss_vector_store(float *to, gptoss_vector a) {
    _mm256_storeu_ps(to, a);
}
GPTOSS_INLINE gptoss_vector gptoss_vector_set(float a) {
    return _mm256_set1_ps(a);
}
GPTOSS_INLINE gptoss_vector gptoss_vector_add(gptoss_vector a, gptoss_vector b) {
    return _mm256_add_ps(a, b);
}
GPTOSS_INLINE gptoss_vector gptoss_vector_multiply(gptoss_vector a, gptoss_vector b) {
    return _mm256_mul_ps(a, b);
}
/* a * b + c, rounded once. */
GPTOSS_INLINE gptoss_vector gptoss_vector_fma(gptoss_vector a, gptoss_vector b, gptoss_vector c) {
    return _mm256_fmadd_ps(a, b, c);
}

/* Eight signed bytes of 16, the low (i = 0) or the high ones. */
GPTOSS_INLINE gptoss_vector gptoss_vector_from_bytes(__m128i bytes, int i) {
    __m128i low = i == 0 ? bytes : _mm_unpackhi_epi64(bytes, bytes);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low));
}

/* Eight binary16 numbers of 16, the low (i = 0) or the high ones. */
GPTOSS_INLINE gptoss_vector gptoss_vector_from_halves(__m256i halves, int i) {
    return _mm256_cvtph_ps(i == 0 ? _mm256_castsi256_si128(halves)
                                  : _mm256_extracti128_si256(halves, 1));
}

/* All ones in the first n of 8 lanes; n may be below 0 or above 8. */
GPTOSS_INLINE __m256i gptoss_first_lanes(int64_t n) {
    int count = n < 0 ? 0 : n > 8 ? 8 : (int)n;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* p = fma(a, b, p) in the lanes of mask; the others keep p. */
GPTOSS_INLINE __m256 gptoss_fma_masked(__m256 a, __m256 b, __m256 p, __m256i mask) {
    return _mm256_blendv_ps(p, _mm256_fmadd_ps(a, b, p), _mm256_castsi256_ps(mask));
}

/* Brings what lies `distance` bytes behind num_bytes that are being read; it may not exist. */
GPTOSS_INLINE void gptoss_prefetch_next(const uint8_t *from, int64_t distance, int64_t num_bytes) {
    for (int64_t byte = 0; byte < num_bytes; byte += 64)
        _mm_prefetch((const char *)from + distance + byte, _MM_HINT_T0);
}

/* The tree of a dot product: l += l+8, +4, +2, +1. */
GPTOSS_INLINE float gptoss_sum_16(__m256 low, __m256 high) {
    __m256 eight = _mm256_add_ps(low, high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Eight elements of a row from a column on, any alignment. */
typedef __m256 gptoss_load_8_fn(const uint8_t *row, int64_t column);

GPTOSS_INLINE __m256 gptoss_load_8_f32(const uint8_t *row, int64_t column) {
    return _mm256_loadu_ps((const void *)(row + column * 4));
}
GPTOSS_INLINE __m256 gptoss_load_8_f16(const uint8_t *row, int64_t column) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)(row + column * 2)));
}
GPTOSS_INLINE __m256 gptoss_load_8_bf16(const uint8_t *row, int64_t column) {
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(row + column * 2)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
/* Of a row of Q8_0 blocks; columns are multiples of 8. */
GPTOSS_INLINE __m256 gptoss_load_8_q8_0(const uint8_t *row, int64_t column) {
    const uint8_t *block = row + column / 32 * 34;
    uint16_t scale;
    memcpy(&scale, block, sizeof scale);
    __m256i codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(block + 2 + column % 32)));
    return _mm256_mul_ps(_mm256_set1_ps(_cvtsh_ss(scale)), _mm256_cvtepi32_ps(codes));
}

/* The 8 codes of each of 8 dwords, low nibbles first, as E2M1 values in bf16: pairs[odd + 2 * k]
 * holds codes odd + 2 * k and odd + 2 * k + 4 of every dword, low half first. Bytes are looked up
 * all at once, the two bytes of a bf16 in a table each. They were brought into such an order that
 * joining the two puts a pair into its dword. */
GPTOSS_INLINE void gptoss_look_up_e2m1(__m256i codes, __m256i pairs[4]) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    const __m256i high_table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0x00, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40, (char)0x80, (char)0xBF,
                      (char)0xBF, (char)0xBF, (char)0xC0, (char)0xC0, (char)0xC0, (char)0xC0));
    const __m256i low_table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0x00, 0x00, (char)0x80, (char)0xC0, 0x00, 0x40, (char)0x80, (char)0xC0, 0x00,
                      0x00, (char)0x80, (char)0xC0, 0x00, 0x40, (char)0x80, (char)0xC0));
    const __m256i nibble = _mm256_set1_epi8(15);
    codes = _mm256_shuffle_epi8(codes, order);
    for (int odd = 0; odd < 2; ++odd) {
        __m256i index = _mm256_and_si256(odd ? _mm256_srli_epi16(codes, 4) : codes, nibble);
        __m256i high = _mm256_shuffle_epi8(high_table, index),
                low = _mm256_shuffle_epi8(low_table, index);
        pairs[odd] = _mm256_unpacklo_epi8(low, high);
        pairs[odd + 2] = _mm256_unpackhi_epi8(low, high);
    }
}

/* Code i of every dword. */
GPTOSS_INLINE __m256 gptoss_e2m1_value(const __m256i pairs[4], int i) {
    return _mm256_castsi256_ps(
        i < 4 ? _mm256_slli_epi32(pairs[i], 16)
              : _mm256_and_si256(pairs[i - 4], _mm256_set1_epi32((int)0xFFFF0000)));
}

GPTOSS_INLINE void gptoss_decode_e2m1(__m256i codes, __m256 values[8]) {
    __m256i pairs[4];
    gptoss_look_up_e2m1(codes, pairs);
    for (int i = 0; i < 8; ++i)
        values[i] = gptoss_e2m1_value(pairs, i);
}

/* Eight E8M0 bytes to scales: byte 0 is 2^-127, 0xFF is NaN. */
GPTOSS_INLINE __m256 gptoss_decode_e8m0(uint64_t bytes) {
    __m256i exponents =
        _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes)), 23);
    __m256i scales = _mm256_max_epu32(exponents, _mm256_set1_epi32(0x00400000));
    __m256i is_nan = _mm256_cmpeq_epi32(exponents, _mm256_set1_epi32(0x7F800000));
    return _mm256_castsi256_ps(
        _mm256_or_si256(scales, _mm256_and_si256(is_nan, _mm256_set1_epi32(0x00400000))));
}

/* Transposes 8 vectors of 8 lanes in place. */
GPTOSS_INLINE void gptoss_transpose_8(__m256 v[8]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            __m256d a = _mm256_castps_pd(t[i + j]), b = _mm256_castps_pd(t[i + j + 2]);
            v[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
            v[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
        }
    for (int j = 0; j < 4; ++j) {
        t[j] = _mm256_permute2f128_ps(v[j], v[j + 4], 0x20);
        t[j + 4] = _mm256_permute2f128_ps(v[j], v[j + 4], 0x31);
    }
    for (int j = 0; j < 8; ++j)
        v[j] = t[j];
}

#endif
