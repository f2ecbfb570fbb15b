#include "cpu/simd_avx2.h"
#include "cpu/simd_bytes_x86.h"

enum { MAX_DOTS = 4 };

GPTOSS_INLINE float sum_lanes(const gptoss_vector p[2]) {
    return gptoss_sum_16(p[0], p[1]);
}

#include "cpu/matvec_f32_blocks_simd.h"
