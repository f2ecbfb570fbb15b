#include "cpu/simd_avx2.h"

enum { UNSCALED_VECTORS = 2, SCALED_VECTORS = 2, SCALED_TOKENS = 3 };

#include "cpu/multiply_panel_simd.h"
