/* A processor that has what tests/c/emulate_avx512.h emulates: linked with
 * --wrap=gptoss_cpu_features,--wrap=gptoss_amx_request. */
#include "platform/cpu_features.h"

uint32_t __real_gptoss_cpu_features(void);
uint32_t __wrap_gptoss_cpu_features(void);
bool __wrap_gptoss_amx_request(void);

uint32_t __wrap_gptoss_cpu_features(void) {
    return __real_gptoss_cpu_features() | GPTOSS_CPU_AVX512F | GPTOSS_CPU_AVX512BW |
           GPTOSS_CPU_AVX512DQ | GPTOSS_CPU_AVX512VL | GPTOSS_CPU_AVX512_BF16 |
           GPTOSS_CPU_AMX_TILE | GPTOSS_CPU_AMX_BF16;
}

bool __wrap_gptoss_amx_request(void) {
    return true;
}
