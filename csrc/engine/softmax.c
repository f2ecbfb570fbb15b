#include "engine/softmax.h"

#include "numeric/double_math.h"

size_t gptoss_find_maximum(const float *values, size_t count) {
    size_t best = 0;
    for (size_t i = 1; i < count; ++i) {
        if (values[i] > values[best])
            best = i;
    }
    return best;
}

double gptoss_log_partition(const float *logits, size_t vocab_size, float maximum) {
    double sum = 0, powers[GPTOSS_SOFTMAX_BLOCK];
    for (size_t start = 0; start < vocab_size; start += GPTOSS_SOFTMAX_BLOCK) {
        size_t left = vocab_size - start;
        size_t count = left < GPTOSS_SOFTMAX_BLOCK ? left : GPTOSS_SOFTMAX_BLOCK;
        for (size_t i = 0; i < count; ++i)
            powers[i] = gptoss_exp(gptoss_softmax_distance(logits[start + i], maximum));
        for (size_t i = 0; i < count; ++i)
            sum += powers[i];
    }
    return gptoss_log(sum);
}
