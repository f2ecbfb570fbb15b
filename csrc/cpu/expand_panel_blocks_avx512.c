#include "cpu/simd_avx512.h"
#include "cpu/simd_bytes_x86.h"

GPTOSS_INLINE void transpose(gptoss_vector rows[16]) {
    gptoss_transpose_16(rows);
}

#include "cpu/expand_panel_blocks_simd.h"
