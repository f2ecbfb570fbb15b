#include <math.h>

#include "cpu/kernels.h"

void GPTOSS_KERNEL(rope_neighbours)(float *x, const float *cosine, const float *sine, int64_t half,
                                    int64_t num_heads);

/* (a, b) = (x[2i], x[2i + 1]) -> (a cos - b sin, b cos + a sin) */
void GPTOSS_KERNEL(rope_neighbours)(float *x, const float *cosine, const float *sine, int64_t half,
                                    int64_t num_heads) {
    for (int64_t head = 0; head < num_heads; ++head) {
        float *restrict pairs = x + 2 * half * head;
        for (int64_t i = 0; i < half; ++i) {
            float a = pairs[2 * i], b = pairs[2 * i + 1];
            pairs[2 * i] = fmaf(-b, sine[i], a * cosine[i]);
            pairs[2 * i + 1] = fmaf(a, sine[i], b * cosine[i]);
        }
    }
}
