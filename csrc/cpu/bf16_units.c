#include "cpu/bf16_units.h"

#include <string.h>

#include "platform/cpu_features.h"

#if defined(__x86_64__)
extern const struct gptoss_bf16_unit gptoss_bf16_unit_avx512_bf16, gptoss_bf16_unit_amx;
#endif

/* Worst first. */
static const struct {
    const struct gptoss_bf16_unit *unit;
    const char *kernels_isa; /* the level that does the rest */
    uint32_t features;       /* beyond that level's */
    bool (*request)(void);   /* what the process must ask the system for first; NULL: nothing */
} units[] = {
#if defined(__x86_64__)
    {&gptoss_bf16_unit_avx512_bf16, "avx512", GPTOSS_CPU_AVX512_BF16, NULL},
    {&gptoss_bf16_unit_amx, "avx512",
     GPTOSS_CPU_AVX512_BF16 | GPTOSS_CPU_AMX_TILE | GPTOSS_CPU_AMX_BF16, gptoss_amx_request},
#endif
    {NULL, NULL, 0, NULL},
};

size_t gptoss_num_bf16_isas(void) {
    return sizeof units / sizeof units[0] - 1;
}

const char *gptoss_bf16_isa_name(size_t index) {
    return index < gptoss_num_bf16_isas() ? units[index].unit->isa : NULL;
}

bool gptoss_bf16_isa_available(size_t index) {
    return index < gptoss_num_bf16_isas() &&
           (units[index].features & ~gptoss_cpu_features()) == 0 &&
           gptoss_kernels_select(units[index].kernels_isa) != NULL;
}

const struct gptoss_bf16_unit *gptoss_bf16_unit_select(const char *isa,
                                                       const struct gptoss_kernels **kernels_out) {
    for (size_t i = gptoss_num_bf16_isas(); i-- > 0;) {
        if ((isa != NULL && strcmp(isa, units[i].unit->isa) != 0) || !gptoss_bf16_isa_available(i))
            continue;
        if (units[i].request != NULL && !units[i].request())
            continue;
        *kernels_out = gptoss_kernels_select(units[i].kernels_isa);
        return units[i].unit;
    }
    return NULL;
}
