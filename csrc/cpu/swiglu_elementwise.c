#include "cpu/kernels.h"
#include "numeric/float_math.h"

void GPTOSS_KERNEL(swiglu)(const float *gate_up, int64_t n, float limit, float alpha, float *out);

/* g = min(gate, limit), u = clamp(up, -limit, limit); out = g sigmoid(alpha g) (u + 1). Comparisons
 * are written so that NaN passes. */
void GPTOSS_KERNEL(swiglu)(const float *gate_up, int64_t n, float limit, float alpha, float *out) {
    for (int64_t i = 0; i < n; ++i) {
        float gate = gate_up[2 * i], up = gate_up[2 * i + 1];
        gate = gate > limit ? limit : gate;
        up = up > limit ? limit : up;
        up = up < -limit ? -limit : up;
        out[i] = gate * gptoss_sigmoidf(alpha * gate) * (up + 1.0f);
    }
}
