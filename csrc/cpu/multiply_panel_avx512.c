#include "cpu/simd_avx512.h"

enum { UNSCALED_VECTORS = 2, SCALED_VECTORS = 2, SCALED_TOKENS = 6 };

#include "cpu/multiply_panel_simd.h"
