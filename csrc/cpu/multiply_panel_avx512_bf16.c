/* The panel product on pairs of bf16: fma(w, x, p) becomes the sum of both products of a pair. */
#include "cpu/simd_avx512.h"

GPTOSS_INLINE __m512 add_pair_products(__m512 a, __m512 b, __m512 sums) {
    return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
}
#define gptoss_vector_fma add_pair_products

enum { UNSCALED_VECTORS = 2, SCALED_VECTORS = 2, SCALED_TOKENS = 6 };

#include "cpu/multiply_panel_simd.h"
