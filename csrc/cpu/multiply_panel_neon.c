#include "cpu/simd_neon.h"

enum { UNSCALED_VECTORS = 4, SCALED_VECTORS = 2, SCALED_TOKENS = 6 };

#include "cpu/multiply_panel_simd.h"
