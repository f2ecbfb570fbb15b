#include "cpu/simd_avx512.h"
#include "cpu/simd_bytes_x86.h"

enum { MAX_DOTS = 8 };

GPTOSS_INLINE float sum_lanes(const gptoss_vector p[1]) {
    return gptoss_sum_16(p[0]);
}

#include "cpu/matvec_f32_blocks_simd.h"
