#include "cpu/elements.h"
#include "cpu/kernels.h"
#include "numeric/float_math.h"

void GPTOSS_KERNEL(rms_norm)(const float *x, const float *gain, int64_t n, float eps, float *out);

/* out = x / sqrt(mean(x^2) + eps) * gain; the sum of squares in the lane order of an unscaled dot
 * product. */
void GPTOSS_KERNEL(rms_norm)(const float *x, const float *gain, int64_t n, float eps, float *out) {
    float lanes[GPTOSS_LANES] = {0};
    int64_t whole = n / GPTOSS_LANES * GPTOSS_LANES;
    for (int64_t i = 0; i < whole; i += GPTOSS_LANES) {
        for (int l = 0; l < GPTOSS_LANES; ++l)
            lanes[l] = fmaf(x[i + l], x[i + l], lanes[l]);
    }
    for (int64_t i = whole; i < n; ++i)
        lanes[i - whole] = fmaf(x[i], x[i], lanes[i - whole]);
    float scale = 1.0f / sqrtf(gptoss_sum_lanes(lanes) / (float)n + eps);
    for (int64_t i = 0; i < n; ++i)
        out[i] = x[i] * scale * gain[i];
}
