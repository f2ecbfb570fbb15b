/* The terms of a softmax over a vocabulary, in double. */
#ifndef GPTOSS_NUMERIC_SOFTMAX_H
#define GPTOSS_NUMERIC_SOFTMAX_H

/* Exponentials are computed so many at a time, in loops of their own that vectorise. */
enum { GPTOSS_SOFTMAX_BLOCK = 256 };

/* value - maximum, where the maximum may be infinite: it is 0 for all that equal it. */
static inline double gptoss_softmax_distance(float value, float maximum) {
    return value == maximum ? 0.0 : (double)value - (double)maximum;
}

#endif
