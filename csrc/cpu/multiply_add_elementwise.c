#include <math.h>

#include "cpu/kernels.h"

void GPTOSS_KERNEL(multiply_add)(float *sum, float weight, const float *y, int64_t n);

/* sum[i] = fma(weight, y[i], sum[i]) */
void GPTOSS_KERNEL(multiply_add)(float *sum, float weight, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        sum[i] = fmaf(weight, y[i], sum[i]);
}
