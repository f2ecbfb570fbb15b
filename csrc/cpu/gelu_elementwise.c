#include "cpu/kernels.h"
#include "numeric/float_math.h"

void GPTOSS_KERNEL(gelu)(const float *x, int64_t n, float *out);

/* x / 2 (1 + tanh(v)), v = sqrt(2 / pi) (x + 0.044715 x^3). Since (1 + tanh(v)) / 2 = sigmoid(2 v),
 * no difference of nearly equal numbers is taken. */
void GPTOSS_KERNEL(gelu)(const float *x, int64_t n, float *out) {
    const float linear = 0x1.988454p+0f,
                cubic = 0x1.2444f2p-4f; /* 2 sqrt(2 / pi), 0.044715 of it */
    for (int64_t i = 0; i < n; ++i)
        out[i] = x[i] * gptoss_sigmoidf(x[i] * fmaf(x[i] * x[i], cubic, linear));
}
