#include "cpu/kernels.h"

void GPTOSS_KERNEL(divide)(const float *x, float divisor, int64_t n, float *out);

/* out[i] = x[i] / divisor */
void GPTOSS_KERNEL(divide)(const float *x, float divisor, int64_t n, float *out) {
    for (int64_t i = 0; i < n; ++i)
        out[i] = x[i] / divisor;
}
