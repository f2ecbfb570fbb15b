#include "cpu/simd_neon.h"

enum { MAX_DOTS = 4 };

GPTOSS_INLINE float sum_lanes(const gptoss_vector p[GPTOSS_QUARTERS]) {
    return gptoss_sum_16(p);
}

#include "cpu/matvec_f32_blocks_simd.h"
