#include "platform/cpu_features.h"

#include "gptoss.h"

#define UNKNOWN UINT32_MAX

static const struct {
    const char *name;
    uint32_t bit;
} names[] = {
#if defined(__x86_64__)
    {"avx", GPTOSS_CPU_AVX},
    {"f16c", GPTOSS_CPU_F16C},
    {"fma", GPTOSS_CPU_FMA},
    {"avx2", GPTOSS_CPU_AVX2},
    {"avx512f", GPTOSS_CPU_AVX512F},
    {"avx512bw", GPTOSS_CPU_AVX512BW},
    {"avx512dq", GPTOSS_CPU_AVX512DQ},
    {"avx512vl", GPTOSS_CPU_AVX512VL},
    {"avx512_vnni", GPTOSS_CPU_AVX512_VNNI},
    {"avx512_bf16", GPTOSS_CPU_AVX512_BF16},
    {"amx_tile", GPTOSS_CPU_AMX_TILE},
    {"amx_bf16", GPTOSS_CPU_AMX_BF16},
#elif defined(__aarch64__)
    {"asimd", GPTOSS_CPU_ASIMD},
    {"asimddp", GPTOSS_CPU_ASIMDDP},
    {"sve", GPTOSS_CPU_SVE},
#endif
    {NULL, 0},
};

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Intel SDM volume 2, CPUID. A register file the system does not save (XCR0) is as good as none. */
static uint32_t ask_processor(void) {
    unsigned int eax, ebx, ecx, edx;
    uint32_t features = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE))
        return 0;
    uint32_t saved, high;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    const uint32_t ymm_state = 0x06, zmm_state = 0xE6;
    if ((saved & ymm_state) != ymm_state || !(ecx & bit_AVX))
        return 0;
    features |= GPTOSS_CPU_AVX;
    if (ecx & bit_F16C)
        features |= GPTOSS_CPU_F16C;
    if (ecx & bit_FMA)
        features |= GPTOSS_CPU_FMA;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        return features;
    if (ebx & bit_AVX2)
        features |= GPTOSS_CPU_AVX2;
    if ((saved & zmm_state) != zmm_state || !(ebx & bit_AVX512F))
        return features;
    features |= GPTOSS_CPU_AVX512F;
    if (ebx & bit_AVX512BW)
        features |= GPTOSS_CPU_AVX512BW;
    if (ebx & bit_AVX512DQ)
        features |= GPTOSS_CPU_AVX512DQ;
    if (ebx & bit_AVX512VL)
        features |= GPTOSS_CPU_AVX512VL;
    if (ecx & bit_AVX512VNNI)
        features |= GPTOSS_CPU_AVX512_VNNI;
    /* Of leaf 7, EDX: not every compiler's cpuid.h names them. */
    const uint32_t tile_state = 0x60000, amx_tile = 1u << 24, amx_bf16 = 1u << 22;
    if ((saved & tile_state) == tile_state && (edx & amx_tile)) {
        features |= GPTOSS_CPU_AMX_TILE;
        if (edx & amx_bf16)
            features |= GPTOSS_CPU_AMX_BF16;
    }
    unsigned int max_subleaf = eax;
    if (max_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
        (eax & bit_AVX512BF16))
        features |= GPTOSS_CPU_AVX512_BF16;
    return features;
}

/* Linux, Documentation/arch/x86/xstate.rst: the tiles' 8 KiB are not part of a thread's saved state
 * until its process asks. */
bool gptoss_amx_request(void) {
    const int arch_req_xcomp_perm = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) == 0;
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

/* Linux, Documentation/arch/arm64/elf_hwcaps.rst. */
static uint32_t ask_processor(void) {
    const unsigned long hwcap_asimd = 1ul << 1, hwcap_asimddp = 1ul << 20, hwcap_sve = 1ul << 22;
    unsigned long capabilities = getauxval(AT_HWCAP);
    return (capabilities & hwcap_asimd ? GPTOSS_CPU_ASIMD : 0u) |
           (capabilities & hwcap_asimddp ? GPTOSS_CPU_ASIMDDP : 0u) |
           (capabilities & hwcap_sve ? GPTOSS_CPU_SVE : 0u);
}

#else
static uint32_t ask_processor(void) {
    return 0;
}
#endif

uint32_t gptoss_cpu_features(void) {
    /* The answer never changes, and CPUID is slow in a virtual machine: asked once. */
    static _Atomic uint32_t answer = UNKNOWN;
    if (answer == UNKNOWN)
        answer = ask_processor();
    return answer;
}

size_t gptoss_num_cpu_features(void) {
    return sizeof names / sizeof names[0] - 1;
}

const char *gptoss_cpu_feature(size_t index, bool *available_out) {
    if (index >= gptoss_num_cpu_features())
        return NULL;
    if (available_out != NULL)
        *available_out = (gptoss_cpu_features() & names[index].bit) != 0;
    return names[index].name;
}
