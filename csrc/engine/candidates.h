/* Tokens that may be drawn, some of a vocabulary, and the cutoffs of top-k and top-p. */
#ifndef GPTOSS_ENGINE_CANDIDATES_H
#define GPTOSS_ENGINE_CANDIDATES_H

#include "engine/softmax.h"

/* In ascending order of tokens; clear them after a failure, too. A key is an integer whose
 * descending order is value descending, then token ascending. */
struct gptoss_candidates {
    uint64_t *keys, *weights; /* one allocation */
    size_t count;
};

int32_t gptoss_key_token(uint64_t key);
float gptoss_key_value(uint64_t key);

/* All tokens of logits from the least upwards, without weights. */
enum gptoss_status gptoss_candidates_gather(struct gptoss_candidates *candidates,
                                            const struct gptoss_softmax_row *row, float least,
                                            struct gptoss_error *error);
/* The first k in the order of keys, without weights. */
enum gptoss_status gptoss_candidates_gather_first(struct gptoss_candidates *candidates,
                                                  const struct gptoss_softmax_row *row, size_t k,
                                                  struct gptoss_error *error);
void gptoss_candidates_clear(struct gptoss_candidates *candidates);

/* round(2^40 e^((value - maximum) / temperature)) */
void gptoss_candidates_weigh(struct gptoss_candidates *candidates,
                             const struct gptoss_softmax_row *row, float temperature);
uint64_t gptoss_candidates_total(const struct gptoss_candidates *candidates);
/* Keeps the shortest prefix in the order of keys whose weights reach goal, which is at most their
 * sum. */
enum gptoss_status gptoss_candidates_keep_mass(struct gptoss_candidates *candidates, uint64_t goal,
                                               struct gptoss_error *error);

#endif
