#include <string.h>

#include "cpu/kernels.h"
#include "platform/cpu_features.h"

extern const struct gptoss_kernels gptoss_kernels_scalar;
#if defined(__x86_64__)
extern const struct gptoss_kernels gptoss_kernels_scalar_fma, gptoss_kernels_avx2,
    gptoss_kernels_avx512;
#elif defined(__aarch64__)
extern const struct gptoss_kernels gptoss_kernels_neon;
#endif

static const struct {
    const struct gptoss_kernels *kernels;
    uint32_t features; /* all that the level's compiler flags let the compiler use */
} levels[] = {
    {&gptoss_kernels_scalar, 0},
#if defined(__x86_64__)
    {&gptoss_kernels_scalar_fma, GPTOSS_CPU_AVX | GPTOSS_CPU_FMA},
    {&gptoss_kernels_avx2, GPTOSS_CPU_AVX | GPTOSS_CPU_FMA | GPTOSS_CPU_F16C | GPTOSS_CPU_AVX2},
    {&gptoss_kernels_avx512, GPTOSS_CPU_AVX | GPTOSS_CPU_FMA | GPTOSS_CPU_F16C | GPTOSS_CPU_AVX2 |
                                 GPTOSS_CPU_AVX512F | GPTOSS_CPU_AVX512BW | GPTOSS_CPU_AVX512DQ |
                                 GPTOSS_CPU_AVX512VL},
#elif defined(__aarch64__)
    {&gptoss_kernels_neon, GPTOSS_CPU_ASIMD},
#endif
};

static bool runs_here(size_t index) {
    return (levels[index].features & ~gptoss_cpu_features()) == 0;
}

size_t gptoss_num_isas(void) {
    return sizeof levels / sizeof levels[0];
}

const char *gptoss_isa_name(size_t index) {
    return index < gptoss_num_isas() ? levels[index].kernels->isa : NULL;
}

bool gptoss_isa_available(size_t index) {
    return index < gptoss_num_isas() && runs_here(index);
}

const struct gptoss_kernels *gptoss_kernels_at(size_t index) {
    return index < gptoss_num_isas() ? levels[index].kernels : NULL;
}

const struct gptoss_kernels *gptoss_kernels_select(const char *isa) {
    for (size_t i = gptoss_num_isas(); i-- > 0;)
        if ((isa == NULL || strcmp(isa, levels[i].kernels->isa) == 0) && runs_here(i))
            return levels[i].kernels;
    return NULL;
}
