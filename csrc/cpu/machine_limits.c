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

__attribute__((target("avx2"))) static uint64_t read_avx2(const void *memory, size_t num_bytes) {
    return read_all(memory, num_bytes);
}

__attribute__((target("avx512f"))) static uint64_t read_avx512(const void *memory,
                                                               size_t num_bytes) {
    return read_all(memory, num_bytes);
}

int64_t gptoss_measure_fma(const char *isa, int64_t num_rounds) {
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
