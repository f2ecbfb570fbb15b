#include "cpu/simd_neon.h"

GPTOSS_INLINE void transpose(gptoss_vector rows[4]) {
    gptoss_transpose_4(rows);
}

#include "cpu/expand_panel_blocks_simd.h"
