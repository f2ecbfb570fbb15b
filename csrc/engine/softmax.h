/* Softmax over a vocabulary, in double: what sampling and scoring share. In the default
 * floating-point environment. */
#ifndef GPTOSS_ENGINE_SOFTMAX_H
#define GPTOSS_ENGINE_SOFTMAX_H

#include <stddef.h>

/* Exponentials are computed so many at a time, in loops of their own that vectorise. */
enum { GPTOSS_SOFTMAX_BLOCK = 256 };

/* value - maximum, where the maximum may be infinite: it is 0 for all that equal it. */
static inline double gptoss_softmax_distance(float value, float maximum) {
    return value == maximum ? 0.0 : (double)value - (double)maximum;
}

/* Index of the largest of count >= 1 values, of equals the first. */
size_t gptoss_find_maximum(const float *values, size_t count);
/* log(sum e^(logit - maximum)), summed in ascending order of tokens. */
double gptoss_log_partition(const float *logits, size_t vocab_size, float maximum);

#endif
