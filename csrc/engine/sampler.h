/* What a draw is made of, for those who guess it, and draws by the kernels of any instruction set,
 * whose results are the same. */
#ifndef GPTOSS_ENGINE_SAMPLER_H
#define GPTOSS_ENGINE_SAMPLER_H

#include "gptoss.h"

struct gptoss_kernels;

/* The random bits of a draw after `position` tokens. */
uint64_t gptoss_sampler_random(uint64_t seed, uint64_t position);

/* gptoss_sample and gptoss_top_logprobs, which take the best kernels. */
enum gptoss_status gptoss_sample_by(const struct gptoss_kernels *kernels, const float *logits,
                                    size_t vocab_size, const struct gptoss_sampling *sampling,
                                    const int32_t *history, size_t num_history, int32_t *token_out,
                                    float *logprob_out, struct gptoss_error *error);
enum gptoss_status gptoss_top_logprobs_by(const struct gptoss_kernels *kernels, const float *logits,
                                          size_t vocab_size, size_t k, int32_t *tokens_out,
                                          float *logprobs_out, struct gptoss_error *error);

#endif
