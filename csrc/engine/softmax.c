#include "engine/softmax.h"

#include <math.h>

#include "numeric/double_math.h"
#include "platform/allocator.h"
#include "status.h"

enum gptoss_status gptoss_softmax_row_init(struct gptoss_softmax_row *row,
                                           const struct gptoss_kernels *kernels,
                                           const float *logits, size_t vocab_size,
                                           struct gptoss_error *error) {
    size_t num_blocks = (vocab_size + GPTOSS_SOFTMAX_BLOCK - 1) / GPTOSS_SOFTMAX_BLOCK;
    *row = (struct gptoss_softmax_row){
        .kernels = kernels,
        .values = logits,
        .count = vocab_size,
        .maximum = -INFINITY,
        .maxima = gptoss_allocate(num_blocks, sizeof *row->maxima),
        .num_blocks = num_blocks,
    };
    if (row->maxima == NULL)
        return gptoss_error_memory(error, num_blocks * sizeof *row->maxima, "maxima of logits");
    kernels->block_maxima(logits, (int64_t)vocab_size, row->maxima);
    for (size_t block = 0; block < num_blocks; ++block) {
        for (size_t i = block * GPTOSS_SOFTMAX_BLOCK; isnan(row->maxima[block]); ++i) {
            if (isnan(logits[i]))
                return gptoss_error_set(error, GPTOSS_ERROR_NUMERIC,
                                        "the logit of token %zu is NaN", i);
        }
        row->maximum = row->maxima[block] > row->maximum ? row->maxima[block] : row->maximum;
    }
    if (row->maximum > -INFINITY)
        return GPTOSS_OK;
    return gptoss_error_set(error, GPTOSS_ERROR_NUMERIC,
                            "the logits of all %zu tokens are -infinity", vocab_size);
}

void gptoss_softmax_row_clear(struct gptoss_softmax_row *row) {
    gptoss_free(row->maxima);
    *row = (struct gptoss_softmax_row){0};
}

size_t gptoss_softmax_row_top(const struct gptoss_softmax_row *row) {
    size_t block = gptoss_find_maximum(row->maxima, row->num_blocks);
    return block * GPTOSS_SOFTMAX_BLOCK +
           gptoss_find_maximum(row->values + block * GPTOSS_SOFTMAX_BLOCK,
                               gptoss_softmax_block_count(row, block));
}

double gptoss_softmax_add_block(const struct gptoss_softmax_row *row, size_t block, double sum) {
    /* Below 2^-54 nothing moves a sum of 1 or more. */
    if (sum >= 1 && gptoss_softmax_distance(row->maxima[block], row->maximum) < -38)
        return sum;
    return row->kernels->add_powers(sum, row->values + block * GPTOSS_SOFTMAX_BLOCK,
                                    (int64_t)gptoss_softmax_block_count(row, block), row->maximum);
}

double gptoss_log_partition(const struct gptoss_softmax_row *row) {
    double sum = 0;
    for (size_t block = 0; block < row->num_blocks; ++block)
        sum = gptoss_softmax_add_block(row, block, sum);
    return gptoss_log(sum);
}

size_t gptoss_find_maximum(const float *values, size_t count) {
    size_t best = 0;
    for (size_t i = 1; i < count; ++i) {
        if (values[i] > values[best])
            best = i;
    }
    return best;
}
