#include "cpu/simd_avx2.h"

enum { QUERIES = 2 };

GPTOSS_INLINE gptoss_vector load_f16(const void *halves) {
    return _mm256_cvtph_ps(_mm_loadu_si128(halves));
}
GPTOSS_INLINE void transpose(gptoss_vector block[8]) {
    gptoss_transpose_8(block);
}

#include "cpu/attention_tile_simd.h"
