#include <math.h>

#include "cpu/kernels.h"

void GPTOSS_KERNEL(rope)(float *x, const float *cosine, const float *sine, int64_t half,
                         int64_t num_heads);

/* (a, b) = (x[i], x[i + half]) -> (a cos - b sin, b cos + a sin) */
void GPTOSS_KERNEL(rope)(float *x, const float *cosine, const float *sine, int64_t half,
                         int64_t num_heads) {
    for (int64_t head = 0; head < num_heads; ++head) {
        float *restrict first = x + 2 * half * head, *restrict second = first + half;
        for (int64_t i = 0; i < half; ++i) {
            float a = first[i], b = second[i];
            first[i] = fmaf(-b, sine[i], a * cosine[i]);
            second[i] = fmaf(a, sine[i], b * cosine[i]);
        }
    }
}
