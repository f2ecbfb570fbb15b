#include "cpu/machine_limits.h"

#include <string.h>

/* Enough to hide a latency of 5 cycles at 2 instructions a cycle, few enough for 16 registers with
 * their factors. */
enum { CHAINS = 12 };

typedef uint64_t line __attribute__((vector_size(64), aligned(1), may_alias));

/* Several streams far apart: one alone waits at every page until the prefetchers find it again. */
static inline __attribute__((always_inline)) uint64_t read_all(const uint8_t *bytes,
                                                               size_t num_bytes) {
    enum { STREAMS = 8 };
    size_t stream_bytes = num_bytes / STREAMS / sizeof(line) * sizeof(line);
    line sums[STREAMS] = {{0}};
    for (size_t offset = 0; offset < stream_bytes; offset += sizeof(line))
        for (size_t i = 0; i < STREAMS; ++i)
            sums[i] ^= *(const line *)(bytes + i * stream_bytes + offset);
    uint64_t sum = 0;
    for (size_t i = 0; i < STREAMS; ++i)
        for (size_t word = 0; word < sizeof(line) / sizeof sum; ++word)
            sum ^= sums[i][word];
    for (size_t i = STREAMS * stream_bytes; i < num_bytes; ++i)
        sum ^= bytes[i];
    return sum;
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2,fma"))) static int64_t fma_avx2(int64_t num_rounds) {
    __m256 sums[CHAINS], a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1.0f);
    for (int i = 0; i < CHAINS; ++i)
        sums[i] = b;
    for (int64_t round = 0; round < num_rounds; ++round)
        for (int i = 0; i < CHAINS; ++i)
            sums[i] = _mm256_fmadd_ps(sums[i], a, b);
    /* Keeps the sums without storing them. */
    for (int i = 0; i < CHAINS; ++i)
        __asm__ volatile("" : : "x"(sums[i]));
    return num_rounds * CHAINS * 8 * 2;
}

__attribute__((target("avx512f"))) static int64_t fma_avx512(int64_t num_rounds) {
    __m512 sums[CHAINS], a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1.0f);
    for (int i = 0; i < CHAINS; ++i)
        sums[i] = b;
    for (int64_t round = 0; round < num_rounds; ++round)
        for (int i = 0; i < CHAINS; ++i)
            sums[i] = _mm512_fmadd_ps(sums[i], a, b);
    for (int i = 0; i < CHAINS; ++i)
        __asm__ volatile("" : : "v"(sums[i]));
    return num_rounds * CHAINS * 16 * 2;
}

/* Pairs of bf16 whose products cancel, so that sums stay. */
#define BF16_ONES 0x3F803F80
#define BF16_HALVES ((int)0xBF003F00)

__attribute__((target("avx512f,avx512bf16"))) static int64_t fma_avx512_bf16(int64_t num_rounds) {
    __m512 sums[CHAINS];
    __m512bh a = (__m512bh)_mm512_set1_epi32(BF16_ONES);
    __m512bh b = (__m512bh)_mm512_set1_epi32(BF16_HALVES);
    for (int i = 0; i < CHAINS; ++i)
        sums[i] = _mm512_set1_ps(1.0f);
    for (int64_t round = 0; round < num_rounds; ++round)
        for (int i = 0; i < CHAINS; ++i)
            sums[i] = _mm512_dpbf16_ps(sums[i], a, b);
    for (int i = 0; i < CHAINS; ++i)
        __asm__ volatile("" : : "v"(sums[i]));
    return num_rounds * CHAINS * 16 * 2 * 2;
}

/* Six products of 16 x 32 and 32 x 16 a round, each with sums of its own: one starts every 16
 * cycles and takes 52. The tiles' numbers are parts of the instructions. */
__attribute__((target("amx-tile,amx-bf16"))) static int64_t fma_amx(int64_t num_rounds) {
    enum { ROWS = 16, ROW_BYTES = 64, TILES = 8, PRODUCTS = 6 };
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } sizes = {.palette = 1};
    int32_t a[ROWS][ROW_BYTES / sizeof(int32_t)], b[ROWS][ROW_BYTES / sizeof(int32_t)];
    for (int i = 0; i < TILES; ++i) {
        sizes.row_bytes[i] = ROW_BYTES;
        sizes.rows[i] = ROWS;
    }
    for (size_t row = 0; row < ROWS; ++row)
        for (size_t pair = 0; pair < ROW_BYTES / sizeof(int32_t); ++pair) {
            a[row][pair] = BF16_ONES;
            b[row][pair] = BF16_HALVES;
        }
    /* Compilers do not know all that the instructions read. */
    __asm__ volatile("" : : "r"(&sizes), "r"(a), "r"(b) : "memory");
    _tile_loadconfig(&sizes);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_loadd(6, a, ROW_BYTES);
    _tile_loadd(7, b, ROW_BYTES);
    for (int64_t round = 0; round < num_rounds; ++round) {
        _tile_dpbf16ps(0, 6, 7);
        _tile_dpbf16ps(1, 6, 7);
        _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7);
        _tile_dpbf16ps(4, 6, 7);
        _tile_dpbf16ps(5, 6, 7);
    }
    _tile_release();
    return num_rounds * PRODUCTS * ROWS * 16 * 32 * 2;
}

__attribute__((target("avx2"))) static uint64_t read_avx2(const void *memory, size_t num_bytes) {
    return read_all(memory, num_bytes);
}

__attribute__((target("avx512f"))) static uint64_t read_avx512(const void *memory,
                                                               size_t num_bytes) {
    return read_all(memory, num_bytes);
}

int64_t gptoss_measure_fma(const char *isa, int64_t num_rounds) {
    if (strcmp(isa, "amx") == 0)
        return fma_amx(num_rounds);
    if (strcmp(isa, "avx512_bf16") == 0)
        return fma_avx512_bf16(num_rounds);
    if (strcmp(isa, "avx512") == 0)
        return fma_avx512(num_rounds);
    if (strcmp(isa, "avx2") == 0)
        return fma_avx2(num_rounds);
    return 0;
}

uint64_t gptoss_measure_read(const char *isa, const void *memory, size_t num_bytes) {
    if (strcmp(isa, "avx512") == 0)
        return read_avx512(memory, num_bytes);
    if (strcmp(isa, "avx2") == 0)
        return read_avx2(memory, num_bytes);
    return read_all(memory, num_bytes);
}

#else

int64_t gptoss_measure_fma(const char *isa, int64_t num_rounds) {
    (void)isa, (void)num_rounds;
    return 0;
}

uint64_t gptoss_measure_read(const char *isa, const void *memory, size_t num_bytes) {
    (void)isa;
    return read_all(memory, num_bytes);
}

#endif
