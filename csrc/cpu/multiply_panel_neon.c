#include "cpu/simd_neon.h"

enum { UNSCALED_VECTORS = 4, SCALED_VECTORS = 2 };

#include "cpu/multiply_panel_simd.h"
