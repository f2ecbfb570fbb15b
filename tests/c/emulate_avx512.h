/* The AVX-512, AVX512_BF16 and AMX intrinsics that csrc/cpu uses, in portable C on AVX2, so that
 * its kernels run where the processor has none of them. Included in front of their sources
 * (tests/emulation.py). Results are the instructions', bit for bit, but that NaN is any NaN. */
#ifndef GPTOSS_TESTS_EMULATE_AVX512_H
#define GPTOSS_TESTS_EMULATE_AVX512_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wpsabi"

#define EMULATED static inline __attribute__((always_inline, unused))

typedef int32_t emulated_ints __attribute__((vector_size(64), may_alias));
typedef uint32_t emulated_words __attribute__((vector_size(64), may_alias));
typedef int64_t emulated_longs __attribute__((vector_size(64), may_alias));
typedef uint16_t emulated_shorts __attribute__((vector_size(64), may_alias));

/* A loop over lanes of a result that starts as zero or as another vector. */
#define EMULATED_LANES(n) for (int i = 0; i < (n); ++i)

/* ---- loads, stores, moves ---- */

EMULATED __m512 emulated_loadu_ps(const void *from) {
    __m512 a;
    memcpy(&a, from, sizeof a);
    return a;
}
EMULATED __m512i emulated_loadu_si512(const void *from) {
    __m512i a;
    memcpy(&a, from, sizeof a);
    return a;
}
EMULATED void emulated_storeu_ps(void *to, __m512 a) {
    memcpy(to, &a, sizeof a);
}
EMULATED void emulated_storeu_si512(void *to, __m512i a) {
    memcpy(to, &a, sizeof a);
}
EMULATED __m512 emulated_maskz_loadu_ps(uint32_t mask, const void *from) {
    __m512 a = {0};
    EMULATED_LANES(16)
    if (mask >> i & 1)
        memcpy((float *)&a + i, (const float *)from + i, 4);
    return a;
}
EMULATED __m512i emulated_maskz_loadu_epi16(uint32_t mask, const void *from) {
    __m512i a = {0};
    EMULATED_LANES(32)
    if (mask >> i & 1)
        memcpy((uint8_t *)&a + 2 * i, (const uint8_t *)from + 2 * i, 2);
    return a;
}
EMULATED __m512i emulated_maskz_loadu_epi8(uint64_t mask, const void *from) {
    __m512i a = {0};
    EMULATED_LANES(64)
    if (mask >> i & 1)
        ((uint8_t *)&a)[i] = ((const uint8_t *)from)[i];
    return a;
}
EMULATED __m256i emulated_256_maskz_loadu_epi16(uint32_t mask, const void *from) {
    __m256i a = {0};
    EMULATED_LANES(16)
    if (mask >> i & 1)
        memcpy((uint8_t *)&a + 2 * i, (const uint8_t *)from + 2 * i, 2);
    return a;
}
EMULATED void emulated_mask_storeu_ps(void *to, uint32_t mask, __m512 a) {
    EMULATED_LANES(16)
    if (mask >> i & 1)
        memcpy((float *)to + i, (const float *)&a + i, 4);
}
EMULATED __m512 emulated_set1_ps(float a) {
    return (__m512){a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a};
}
EMULATED __m512i emulated_set1_epi32(int32_t a) {
    return (__m512i)((emulated_ints){0} + a);
}
EMULATED __m512 emulated_maskz_mov_ps(uint32_t mask, __m512 a) {
    EMULATED_LANES(16)
    a[i] = mask >> i & 1 ? a[i] : 0.0f;
    return a;
}
EMULATED __m512i emulated_mask_mov_epi32(__m512i a, uint32_t mask, __m512i b) {
    emulated_ints x = (emulated_ints)a, y = (emulated_ints)b;
    EMULATED_LANES(16)
    x[i] = mask >> i & 1 ? y[i] : x[i];
    return (__m512i)x;
}
EMULATED __m512 emulated_mask_broadcastss_ps(__m512 a, uint32_t mask, __m128 b) {
    EMULATED_LANES(16)
    a[i] = mask >> i & 1 ? b[0] : a[i];
    return a;
}
EMULATED __m512i emulated_broadcast_i64x4(__m256i a) {
    __m512i b;
    memcpy(&b, &a, 32);
    memcpy((uint8_t *)&b + 32, &a, 32);
    return b;
}
EMULATED __m512i emulated_castsi256_si512(__m256i a) {
    return emulated_broadcast_i64x4(a);
}
EMULATED __m512 emulated_castps128_ps512(__m128 a) {
    __m512 b = {0};
    memcpy(&b, &a, 16);
    return b;
}
EMULATED __m512i emulated_inserti64x4(__m512i a, __m256i b, int half) {
    memcpy((uint8_t *)&a + 32 * half, &b, 32);
    return a;
}
EMULATED __m256 emulated_extractf32x8_ps(__m512 a, int half) {
    __m256 b;
    memcpy(&b, (const uint8_t *)&a + 32 * half, 32);
    return b;
}

/* ---- arithmetic ---- */

EMULATED __m512 emulated_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    __m512 out;
    for (int half = 0; half < 2; ++half) {
        __m256 sum =
            _mm256_fmadd_ps(emulated_extractf32x8_ps(a, half), emulated_extractf32x8_ps(b, half),
                            emulated_extractf32x8_ps(c, half));
        memcpy((uint8_t *)&out + 32 * half, &sum, 32);
    }
    return out;
}
EMULATED __m512 emulated_mask3_fmadd_ps(__m512 a, __m512 b, __m512 c, uint32_t mask) {
    __m512 sum = emulated_fmadd_ps(a, b, c);
    EMULATED_LANES(16)
    c[i] = mask >> i & 1 ? sum[i] : c[i];
    return c;
}
EMULATED __m512i emulated_srlv_epi32(__m512i a, __m512i counts) {
    emulated_words x = (emulated_words)a, n = (emulated_words)counts;
    EMULATED_LANES(16)
    x[i] = n[i] < 32 ? x[i] >> n[i] : 0;
    return (__m512i)x;
}
EMULATED __m512i emulated_max_epu32(__m512i a, __m512i b) {
    emulated_words x = (emulated_words)a, y = (emulated_words)b;
    EMULATED_LANES(16)
    x[i] = x[i] > y[i] ? x[i] : y[i];
    return (__m512i)x;
}
EMULATED uint32_t emulated_cmpeq_epi32_mask(__m512i a, __m512i b) {
    uint32_t mask = 0;
    EMULATED_LANES(16)
    mask |= (uint32_t)(((emulated_ints)a)[i] == ((emulated_ints)b)[i]) << i;
    return mask;
}

/* ---- conversions ---- */

EMULATED __m512i emulated_cvtepi8_epi32(__m128i a) {
    emulated_ints out;
    EMULATED_LANES(16)
    out[i] = ((const int8_t *)&a)[i];
    return (__m512i)out;
}
EMULATED __m512i emulated_cvtepu8_epi32(__m128i a) {
    emulated_ints out;
    EMULATED_LANES(16)
    out[i] = ((const uint8_t *)&a)[i];
    return (__m512i)out;
}
EMULATED __m512i emulated_cvtepu16_epi32(__m256i a) {
    uint16_t in[16];
    memcpy(in, &a, sizeof in);
    emulated_ints out;
    EMULATED_LANES(16)
    out[i] = in[i];
    return (__m512i)out;
}
EMULATED __m512 emulated_cvtepi32_ps(__m512i a) {
    return __builtin_convertvector((emulated_ints)a, __m512);
}
EMULATED __m512 emulated_cvtph_ps(__m256i a) {
    __m512 out;
    for (int half = 0; half < 2; ++half) {
        __m256 wide = _mm256_cvtph_ps(_mm256_extracti128_si256(a, 0));
        a = _mm256_permute2x128_si256(a, a, 1);
        memcpy((uint8_t *)&out + 32 * half, &wide, 32);
    }
    return out;
}

/* ---- shuffles ---- */

EMULATED __m512 emulated_unpack_ps(__m512 a, __m512 b, int high) {
    __m512 out;
    EMULATED_LANES(16) {
        int from = i / 4 * 4 + 2 * high + i % 4 / 2;
        out[i] = i % 2 ? b[from] : a[from];
    }
    return out;
}
EMULATED __m512d emulated_unpack_pd(__m512d a, __m512d b, int high) {
    __m512d out;
    EMULATED_LANES(8)
    out[i] = i % 2 ? b[i / 2 * 2 + high] : a[i / 2 * 2 + high];
    return out;
}
EMULATED __m512 emulated_shuffle_f32x4(__m512 a, __m512 b, int control) {
    __m512 out;
    EMULATED_LANES(4)
    memcpy((float *)&out + 4 * i, (const float *)(i < 2 ? &a : &b) + 4 * (control >> 2 * i & 3),
           16);
    return out;
}
EMULATED __m512 emulated_permutexvar_ps(__m512i indices, __m512 table) {
    __m512 out;
    float entries[16];
    memcpy(entries, &table, sizeof entries);
    EMULATED_LANES(16)
    out[i] = entries[((emulated_ints)indices)[i] & 15];
    return out;
}
EMULATED __m512i emulated_permutexvar_epi16(__m512i indices, __m512i table) {
    emulated_shorts out;
    uint16_t entries[32], at[32];
    memcpy(entries, &table, sizeof entries);
    memcpy(at, &indices, sizeof at);
    EMULATED_LANES(32)
    out[i] = entries[at[i] & 31];
    return (__m512i)out;
}

/* ---- bf16 ---- */

/* What these instructions take for the modes of the thread: subnormals are zero. */
EMULATED unsigned emulated_begin_bf16(void) {
    unsigned before = _mm_getcsr();
    _mm_setcsr(0x1F80 | 0x8040);
    __asm__ volatile("" : : : "memory");
    return before;
}
EMULATED void emulated_end_bf16(unsigned before) {
    __asm__ volatile("" : : : "memory");
    _mm_setcsr(before);
}
EMULATED uint16_t emulated_round_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(bits >> 16 | 0x40);
    if ((bits & 0x7F800000) == 0)
        return (uint16_t)(bits >> 16 & 0x8000);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
EMULATED __m256i emulated_cvtneps_pbh(__m512 a) {
    uint16_t out[16];
    EMULATED_LANES(16)
    out[i] = emulated_round_bf16(a[i]);
    __m256i b;
    memcpy(&b, out, 32);
    return b;
}
EMULATED __m512i emulated_cvtne2ps_pbh(__m512 high, __m512 low) {
    return emulated_inserti64x4(emulated_castsi256_si512(emulated_cvtneps_pbh(low)),
                                emulated_cvtneps_pbh(high), 1);
}
/* The even or the odd elements of pairs as float32. */
EMULATED __m512 emulated_elements(__m512i pairs, int odd) {
    emulated_words bits = (emulated_words)pairs;
    bits = odd ? bits >> 16 << 16 : bits << 16;
    return (__m512)bits;
}
__attribute__((noinline, unused)) static void emulated_dpbf16(float *sums, const void *a,
                                                              const void *b) {
    unsigned before = emulated_begin_bf16();
    __m512 sum = emulated_loadu_ps(sums);
    for (int odd = 1; odd >= 0; --odd)
        sum = emulated_fmadd_ps(emulated_elements(emulated_loadu_si512(a), odd),
                                emulated_elements(emulated_loadu_si512(b), odd), sum);
    emulated_storeu_ps(sums, sum);
    emulated_end_bf16(before);
}
EMULATED __m512 emulated_dpbf16_ps(__m512 sum, __m512i a, __m512i b) {
    emulated_dpbf16((float *)&sum, &a, &b);
    return sum;
}

/* ---- tiles ---- */

struct emulated_tile_sizes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static _Thread_local struct emulated_tile_sizes emulated_sizes;
static _Thread_local _Alignas(64) uint8_t emulated_tiles[8][16][64];

EMULATED void emulated_tile_loadconfig(const void *sizes) {
    memcpy(&emulated_sizes, sizes, sizeof emulated_sizes);
    memset(emulated_tiles, 0, sizeof emulated_tiles);
}
EMULATED void emulated_tile_release(void) {
    memset(&emulated_sizes, 0, sizeof emulated_sizes);
}
/* As the processor's exception does. */
EMULATED void emulated_tile_check(int tile) {
    if (emulated_sizes.palette != 1 || emulated_sizes.rows[tile] == 0)
        __builtin_trap();
}
EMULATED void emulated_tile_loadd(int tile, const void *from, int64_t stride) {
    emulated_tile_check(tile);
    memset(emulated_tiles[tile], 0, sizeof emulated_tiles[tile]);
    for (int r = 0; r < emulated_sizes.rows[tile]; ++r)
        memcpy(emulated_tiles[tile][r], (const uint8_t *)from + r * stride,
               emulated_sizes.row_bytes[tile]);
}
EMULATED void emulated_tile_zero(int tile) {
    emulated_tile_check(tile);
    memset(emulated_tiles[tile], 0, sizeof emulated_tiles[tile]);
}
EMULATED void emulated_tile_stored(int tile, void *to, int64_t stride) {
    emulated_tile_check(tile);
    for (int r = 0; r < emulated_sizes.rows[tile]; ++r)
        memcpy((uint8_t *)to + r * stride, emulated_tiles[tile][r], emulated_sizes.row_bytes[tile]);
}
/* Intel SDM volume 2, TDPBF16PS, with the order of sums that docs/numerics.md states. */
__attribute__((noinline, unused)) static void emulated_tile_dpbf16ps(int c, int a, int b) {
    const struct emulated_tile_sizes *sizes = &emulated_sizes;
    emulated_tile_check(a), emulated_tile_check(b), emulated_tile_check(c);
    int pairs = sizes->row_bytes[a] / 4;
    if (sizes->rows[a] != sizes->rows[c] || sizes->row_bytes[b] != sizes->row_bytes[c] ||
        sizes->rows[b] != pairs)
        __builtin_trap();
    unsigned before = emulated_begin_bf16();
    for (int m = 0; m < sizes->rows[c]; ++m) {
        __m512 sums[2] = {{0}, {0}};
        for (int k = 0; k < pairs; ++k) {
            int32_t pair;
            memcpy(&pair, emulated_tiles[a][m] + 4 * k, 4);
            __m512i weights = emulated_set1_epi32(pair);
            __m512i inputs = emulated_loadu_si512(emulated_tiles[b][k]);
            for (int odd = 0; odd < 2; ++odd)
                sums[odd] = emulated_fmadd_ps(emulated_elements(weights, odd),
                                              emulated_elements(inputs, odd), sums[odd]);
        }
        __m512 sum = emulated_loadu_ps(emulated_tiles[c][m]);
        sum = sum + (sums[0] + sums[1]);
        memcpy(emulated_tiles[c][m], &sum, sizes->row_bytes[c]);
    }
    emulated_end_bf16(before);
}

/* ---- names ---- */

#define _mm512_loadu_ps emulated_loadu_ps
#define _mm512_loadu_si512 emulated_loadu_si512
#define _mm512_storeu_ps emulated_storeu_ps
#define _mm512_storeu_si512 emulated_storeu_si512
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_maskz_loadu_epi16 emulated_maskz_loadu_epi16
#define _mm512_maskz_loadu_epi8 emulated_maskz_loadu_epi8
#define _mm256_maskz_loadu_epi16 emulated_256_maskz_loadu_epi16
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#define _mm512_setzero_ps() emulated_set1_ps(0.0f)
#define _mm512_setzero_si512() emulated_set1_epi32(0)
#define _mm512_set1_ps emulated_set1_ps
#define _mm512_set1_epi32 emulated_set1_epi32
#undef _mm512_setr_ps
#define _mm512_setr_ps(...) ((__m512){__VA_ARGS__})
#undef _mm512_setr_epi32
#define _mm512_setr_epi32(...) ((__m512i)(emulated_ints){__VA_ARGS__})
#define _mm512_maskz_mov_ps emulated_maskz_mov_ps
#define _mm512_mask_mov_epi32 emulated_mask_mov_epi32
#define _mm512_mask_broadcastss_ps emulated_mask_broadcastss_ps
#define _mm512_broadcast_i64x4 emulated_broadcast_i64x4
#define _mm512_castsi256_si512 emulated_castsi256_si512
#define _mm512_castps128_ps512 emulated_castps128_ps512
#define _mm512_castps512_ps256(a) emulated_extractf32x8_ps(a, 0)
#define _mm512_castps_pd(a) ((__m512d)(a))
#define _mm512_castpd_ps(a) ((__m512)(a))
#define _mm512_castps_si512(a) ((__m512i)(a))
#define _mm512_castsi512_ps(a) ((__m512)(a))
#undef _mm512_inserti64x4
#define _mm512_inserti64x4 emulated_inserti64x4
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps emulated_extractf32x8_ps
#define _mm512_add_ps(a, b) ((a) + (b))
#define _mm512_sub_ps(a, b) ((a) - (b))
#define _mm512_mul_ps(a, b) ((a) * (b))
#define _mm512_fmadd_ps emulated_fmadd_ps
#define _mm512_mask3_fmadd_ps emulated_mask3_fmadd_ps
#define _mm512_add_epi32(a, b) ((__m512i)((emulated_words)(a) + (emulated_words)(b)))
#define _mm512_or_si512(a, b) ((a) | (b))
#undef _mm512_slli_epi32
#define _mm512_slli_epi32(a, n) ((__m512i)((emulated_words)(a) << (n)))
#undef _mm512_srli_epi32
#define _mm512_srli_epi32(a, n) ((__m512i)((emulated_words)(a) >> (n)))
#define _mm512_srlv_epi32 emulated_srlv_epi32
#define _mm512_max_epu32 emulated_max_epu32
#undef _mm512_cmpeq_epi32_mask
#define _mm512_cmpeq_epi32_mask emulated_cmpeq_epi32_mask
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_unpacklo_ps(a, b) emulated_unpack_ps(a, b, 0)
#define _mm512_unpackhi_ps(a, b) emulated_unpack_ps(a, b, 1)
#define _mm512_unpacklo_pd(a, b) emulated_unpack_pd(a, b, 0)
#define _mm512_unpackhi_pd(a, b) emulated_unpack_pd(a, b, 1)
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 emulated_shuffle_f32x4
#define _mm512_permutexvar_ps emulated_permutexvar_ps
#define _mm512_permutexvar_epi16 emulated_permutexvar_epi16
#define __m512bh __m512i
#define __m256bh __m256i
#define _mm512_cvtneps_pbh emulated_cvtneps_pbh
#define _mm512_cvtne2ps_pbh emulated_cvtne2ps_pbh
#define _mm512_dpbf16_ps emulated_dpbf16_ps
#undef _tile_loadd
#define _tile_loadd emulated_tile_loadd
#undef _tile_stored
#define _tile_stored emulated_tile_stored
#undef _tile_stream_loadd
#define _tile_stream_loadd emulated_tile_loadd
#undef _tile_zero
#define _tile_zero emulated_tile_zero
#undef _tile_dpbf16ps
#define _tile_dpbf16ps emulated_tile_dpbf16ps
#define _tile_loadconfig emulated_tile_loadconfig
#define _tile_release emulated_tile_release

#endif
