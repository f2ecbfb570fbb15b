/* Softmax over a vocabulary: what sampling and scoring share. In the default floating-point
 * environment. */
#ifndef GPTOSS_ENGINE_SOFTMAX_H
#define GPTOSS_ENGINE_SOFTMAX_H

#include "cpu/kernels.h"
#include "numeric/softmax.h"

/* Logits that are a distribution: without NaN, not all -infinity. */
struct gptoss_softmax_row {
    const struct gptoss_kernels *kernels;
    const float *values;
    size_t count;
    float maximum;
    float *maxima; /* of each block of GPTOSS_SOFTMAX_BLOCK */
    size_t num_blocks;
};

/* Clear it after a failure, too. */
enum gptoss_status gptoss_softmax_row_init(struct gptoss_softmax_row *row,
                                           const struct gptoss_kernels *kernels,
                                           const float *logits, size_t vocab_size,
                                           struct gptoss_error *error);
void gptoss_softmax_row_clear(struct gptoss_softmax_row *row);

static inline size_t gptoss_softmax_block_count(const struct gptoss_softmax_row *row,
                                                size_t block) {
    size_t left = row->count - block * GPTOSS_SOFTMAX_BLOCK;
    return left < GPTOSS_SOFTMAX_BLOCK ? left : GPTOSS_SOFTMAX_BLOCK;
}

/* Index of the largest value, of equals the first. */
size_t gptoss_softmax_row_top(const struct gptoss_softmax_row *row);
/* sum + e^(logit - maximum) of each of a block's, in ascending order of tokens. */
double gptoss_softmax_add_block(const struct gptoss_softmax_row *row, size_t block, double sum);
/* log(sum e^(logit - maximum)), summed in ascending order of tokens. */
double gptoss_log_partition(const struct gptoss_softmax_row *row);

/* Index of the largest of count >= 1 values, of equals the first. */
size_t gptoss_find_maximum(const float *values, size_t count);

#endif
