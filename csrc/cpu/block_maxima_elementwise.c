#include <math.h>

#include "cpu/kernels.h"
#include "numeric/softmax.h"

__typeof__(*((struct gptoss_kernels *)0)->block_maxima) GPTOSS_KERNEL(block_maxima);

/* Enough not to wait for the maximum of the step before. */
#define LANES 64

/* Which of equal zeros it is depends on nothing but the order written here. */
static float maximum_of(const float *x, int64_t n) {
    float lanes[LANES];
    int32_t has_nan = 0;
    for (int l = 0; l < LANES; ++l)
        lanes[l] = -INFINITY;
    int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        for (int l = 0; l < LANES; ++l)
            lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
    }
    for (int64_t i = whole; i < n; ++i)
        lanes[i - whole] = x[i] > lanes[i - whole] ? x[i] : lanes[i - whole];
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l)
            lanes[l] = lanes[l + half] > lanes[l] ? lanes[l + half] : lanes[l];
    }
    for (int64_t i = 0; i < n; ++i)
        has_nan |= x[i] != x[i];
    return has_nan ? NAN : lanes[0];
}

void GPTOSS_KERNEL(block_maxima)(const float *x, int64_t n, float *maxima) {
    for (int64_t start = 0; start < n; start += GPTOSS_SOFTMAX_BLOCK) {
        int64_t left = n - start;
        *maxima++ =
            maximum_of(x + start, left < GPTOSS_SOFTMAX_BLOCK ? left : GPTOSS_SOFTMAX_BLOCK);
    }
}
