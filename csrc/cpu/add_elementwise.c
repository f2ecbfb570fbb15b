#include "cpu/kernels.h"

void GPTOSS_KERNEL(add)(float *x, const float *y, int64_t n);

/* x[i] = x[i] + y[i] */
void GPTOSS_KERNEL(add)(float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        x[i] += y[i];
}
