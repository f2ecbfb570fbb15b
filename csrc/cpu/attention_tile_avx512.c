#include "cpu/simd_avx512.h"

enum { QUERIES = 4 };

GPTOSS_INLINE gptoss_vector load_f16(const void *halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(halves));
}
GPTOSS_INLINE void transpose(gptoss_vector block[16]) {
    gptoss_transpose_16(block);
}

#include "cpu/attention_tile_simd.h"
