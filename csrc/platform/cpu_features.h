/* What the processor has and the operating system lets programs use. */
#ifndef GPTOSS_PLATFORM_CPU_FEATURES_H
#define GPTOSS_PLATFORM_CPU_FEATURES_H

#include <stdbool.h>
#include <stdint.h>

enum gptoss_cpu_feature {
#if defined(__x86_64__)
    GPTOSS_CPU_AVX = 1 << 0,
    GPTOSS_CPU_F16C = 1 << 1,
    GPTOSS_CPU_FMA = 1 << 2,
    GPTOSS_CPU_AVX2 = 1 << 3,
    GPTOSS_CPU_AVX512F = 1 << 4,
    GPTOSS_CPU_AVX512BW = 1 << 5,
    GPTOSS_CPU_AVX512DQ = 1 << 6,
    GPTOSS_CPU_AVX512VL = 1 << 7,
    GPTOSS_CPU_AVX512_VNNI = 1 << 8,
    GPTOSS_CPU_AVX512_BF16 = 1 << 9,
    GPTOSS_CPU_AMX_TILE = 1 << 10,
    GPTOSS_CPU_AMX_BF16 = 1 << 11,
#elif defined(__aarch64__)
    GPTOSS_CPU_ASIMD = 1 << 0,
    GPTOSS_CPU_ASIMDDP = 1 << 1,
    GPTOSS_CPU_SVE = 1 << 2,
#endif
    GPTOSS_CPU_NONE = 0
};

/* The bits of enum gptoss_cpu_feature that hold on this machine. Asks the processor at every call.
 */
uint32_t gptoss_cpu_features(void);

#if defined(__x86_64__)
/* Asks the system to let this process, all its threads and its children use the AMX tiles; false if
 * it refuses. */
bool gptoss_amx_request(void);
#endif

#endif
