#include "cpu/simd_avx2.h"
#include "cpu/simd_bytes_x86.h"

GPTOSS_INLINE void transpose(gptoss_vector rows[8]) {
    gptoss_transpose_8(rows);
}

#include "cpu/expand_panel_blocks_simd.h"
