/* The floating-point environment the numerics contract needs: round to nearest even, subnormals
 * kept. Hosts may set other modes (flush to zero, most often), so every thread saves, sets and
 * restores around the engine's work. The work itself must be in functions that are not inlined:
 * compilers move arithmetic over a change of mode, but not calls. */
#ifndef GPTOSS_PLATFORM_FP_ENVIRONMENT_H
#define GPTOSS_PLATFORM_FP_ENVIRONMENT_H

#include <stdint.h>

#if defined __x86_64__
#include <xmmintrin.h>

/* Sets the default environment of this thread; returns what gptoss_fp_environment_restore puts
 * back. */
static inline uint64_t gptoss_fp_environment_set_default(void) {
    uint64_t saved = _mm_getcsr();
    /* All exceptions masked, no flush to zero, no denormals as zero, to nearest. */
    _mm_setcsr(0x1F80);
    return saved;
}
static inline void gptoss_fp_environment_restore(uint64_t saved) {
    _mm_setcsr((unsigned)saved);
}

#elif defined __aarch64__

static inline void gptoss_fp_environment_restore(uint64_t saved) {
    __asm__ volatile("msr fpcr, %0" : : "r"(saved));
}
static inline uint64_t gptoss_fp_environment_set_default(void) {
    uint64_t saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    gptoss_fp_environment_restore(0);
    return saved;
}

#else
#include <fenv.h>

static inline uint64_t gptoss_fp_environment_set_default(void) {
    uint64_t saved = (uint64_t)fegetround();
    fesetround(FE_TONEAREST);
    return saved;
}
static inline void gptoss_fp_environment_restore(uint64_t saved) {
    fesetround((int)saved);
}

#endif

#endif
