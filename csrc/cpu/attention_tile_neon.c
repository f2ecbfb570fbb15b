#include "cpu/simd_neon.h"

enum { QUERIES = 4 };

GPTOSS_INLINE gptoss_vector load_f16(const void *halves) {
    return gptoss_load_4_f16(halves);
}
GPTOSS_INLINE void transpose(gptoss_vector block[4]) {
    gptoss_transpose_4(block);
}

#include "cpu/attention_tile_simd.h"
