#include "cpu/simd_avx512.h"

#include "cpu/multiply_panel_simd.h"
