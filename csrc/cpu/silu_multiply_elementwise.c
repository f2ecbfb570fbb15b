#include "cpu/kernels.h"
#include "numeric/float_math.h"

void GPTOSS_KERNEL(silu_multiply)(float *gate, const float *up, int64_t n);

/* gate = gate sigmoid(gate) up */
void GPTOSS_KERNEL(silu_multiply)(float *gate, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        gate[i] = gate[i] * gptoss_sigmoidf(gate[i]) * up[i];
}
