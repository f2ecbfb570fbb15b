#include "cpu/elements.h"
#include "cpu/kernels.h"
#include "numeric/float_math.h"

void GPTOSS_KERNEL(layer_norm)(const float *x, const float *gain, const float *bias, int64_t n,
                               float eps, float *out);

/* out = (x - mean) / sqrt(variance + eps) * gain + bias; both sums in the lanes of an unscaled dot
 * product. */
void GPTOSS_KERNEL(layer_norm)(const float *x, const float *gain, const float *bias, int64_t n,
                               float eps, float *out) {
    float sums[GPTOSS_LANES] = {0}, squares[GPTOSS_LANES] = {0};
    int64_t whole = n / GPTOSS_LANES * GPTOSS_LANES;
    for (int64_t i = 0; i < whole; i += GPTOSS_LANES) {
        for (int l = 0; l < GPTOSS_LANES; ++l)
            sums[l] += x[i + l];
    }
    for (int64_t i = whole; i < n; ++i)
        sums[i - whole] += x[i];
    float mean = gptoss_sum_lanes(sums) / (float)n;
    for (int64_t i = 0; i < whole; i += GPTOSS_LANES) {
        for (int l = 0; l < GPTOSS_LANES; ++l)
            squares[l] = fmaf(x[i + l] - mean, x[i + l] - mean, squares[l]);
    }
    for (int64_t i = whole; i < n; ++i)
        squares[i - whole] = fmaf(x[i] - mean, x[i] - mean, squares[i - whole]);
    float scale = 1.0f / sqrtf(gptoss_sum_lanes(squares) / (float)n + eps);
    for (int64_t i = 0; i < n; ++i)
        out[i] = fmaf((x[i] - mean) * scale, gain[i], bias[i]);
}
