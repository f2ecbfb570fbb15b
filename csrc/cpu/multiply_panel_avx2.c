#include "cpu/simd_avx2.h"

#include "cpu/multiply_panel_simd.h"
