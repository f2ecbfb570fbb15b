/* Draws tokens from logits. Weights are integers, so that their sums do not depend on an order: a
 * filter can stop where the ordered candidates would reach a mass without sorting them, and sums of
 * blocks find the token that is drawn. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/candidates.h"
#include "engine/sampler.h"
#include "numeric/double_math.h"
#include "platform/allocator.h"
#include "platform/fp_environment.h"
#include "status.h"

/* A weight is e^((value - maximum) / temperature) in units of 2^-40; the sum of 2^24 of them fits
 * 64 bits. */
#define WEIGHT_ONE 0x1p40
#define MAX_VOCAB_SIZE (1 << 24)

/* Philox4x32-10 (Salmon et al., SC 2011): a random function of (seed, position). */
uint64_t gptoss_sampler_random(uint64_t key, uint64_t counter) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), 0, 0};
    for (int round = 0; round < 10; ++round) {
        uint64_t first = (uint64_t)c[0] * 0xD2511F53u, second = (uint64_t)c[2] * 0xCD9E8D57u;
        uint32_t next[4] = {
            (uint32_t)(second >> 32) ^ c[1] ^ k0,
            (uint32_t)second,
            (uint32_t)(first >> 32) ^ c[3] ^ k1,
            (uint32_t)first,
        };
        memcpy(c, next, sizeof c);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (uint64_t)c[1] << 32 | c[0];
}

/* ---- checks ---- */

static enum gptoss_status refuse(struct gptoss_error *error, const char *option,
                                 const char *expected, double found) {
    gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT, "%s must be %s, not %g", option, expected,
                     found);
    gptoss_error_expected(error, "%s", expected);
    gptoss_error_found(error, "%g", found);
    return GPTOSS_ERROR_ARGUMENT;
}

static enum gptoss_status check_vocab_size(size_t vocab_size, struct gptoss_error *error) {
    if (vocab_size >= 1 && vocab_size <= MAX_VOCAB_SIZE)
        return GPTOSS_OK;
    return refuse(error, "vocab_size", "between 1 and 2^24", (double)vocab_size);
}

static enum gptoss_status check_token(const char *what, int32_t token, size_t vocab_size,
                                      struct gptoss_error *error) {
    if (token >= 0 && (size_t)token < vocab_size)
        return GPTOSS_OK;
    gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT, "%s %d is not a token: there are %zu", what,
                     token, vocab_size);
    gptoss_error_expected(error, "0 to %zu", vocab_size - 1);
    gptoss_error_found(error, "%d", token);
    return GPTOSS_ERROR_ARGUMENT;
}

static enum gptoss_status check_sampling(const struct gptoss_sampling *s, size_t vocab_size,
                                         struct gptoss_error *error) {
    if (!(s->temperature >= 0 && s->temperature < INFINITY))
        return refuse(error, "temperature", "finite and at least 0", s->temperature);
    if (s->top_k < 0)
        return refuse(error, "top_k", "at least 0", s->top_k);
    if (!(s->top_p >= 0 && s->top_p <= 1))
        return refuse(error, "top_p", "between 0 and 1", s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return refuse(error, "min_p", "between 0 and 1", s->min_p);
    if (!(s->repetition_penalty > 0 && s->repetition_penalty < INFINITY))
        return refuse(error, "repetition_penalty", "finite and above 0", s->repetition_penalty);
    if (!isfinite(s->frequency_penalty))
        return refuse(error, "frequency_penalty", "finite", s->frequency_penalty);
    if (!isfinite(s->presence_penalty))
        return refuse(error, "presence_penalty", "finite", s->presence_penalty);
    for (size_t i = 0; i < s->num_biases; ++i) {
        enum gptoss_status status =
            check_token("logit bias token", s->bias_tokens[i], vocab_size, error);
        if (status != GPTOSS_OK)
            return status;
        if (isnan(s->bias_values[i]))
            return refuse(error, "logit bias", "a number", s->bias_values[i]);
    }
    return GPTOSS_OK;
}

/* ---- the steps ---- */

/* Whether anything changes the logits. */
static bool has_changes(const struct gptoss_sampling *sampling, size_t num_history) {
    bool has_penalty = sampling->repetition_penalty != 1 || sampling->frequency_penalty != 0 ||
                       sampling->presence_penalty != 0;
    return sampling->num_biases > 0 || (has_penalty && num_history > 0);
}

/* Divides what is positive and multiplies what is negative by the repetition penalty, once for each
 * distinct token of the history; then takes off count * frequency_penalty and presence_penalty. */
static enum gptoss_status apply_penalties(const struct gptoss_sampling *sampling,
                                          const int32_t *history, size_t num_history, float *values,
                                          size_t vocab_size, struct gptoss_error *error) {
    bool is_off = sampling->repetition_penalty == 1 && sampling->frequency_penalty == 0 &&
                  sampling->presence_penalty == 0;
    if (is_off || num_history == 0)
        return GPTOSS_OK;
    enum gptoss_status status = GPTOSS_OK;
    uint32_t *counts = gptoss_allocate(vocab_size, sizeof *counts);
    if (counts == NULL)
        return gptoss_error_memory(error, vocab_size * sizeof *counts, "token counts");
    for (size_t i = 0; i < num_history && status == GPTOSS_OK; ++i) {
        status = check_token("history token", history[i], vocab_size, error);
        if (status == GPTOSS_OK)
            ++counts[history[i]];
    }
    for (size_t i = 0; i < num_history && status == GPTOSS_OK; ++i) {
        int32_t token = history[i];
        if (counts[token] == 0)
            continue;
        float value = values[token], penalty = sampling->repetition_penalty;
        value = value > 0 ? value / penalty : value * penalty;
        value -= (float)counts[token] * sampling->frequency_penalty;
        values[token] = value - sampling->presence_penalty;
        counts[token] = 0;
    }
    gptoss_free(counts);
    return status;
}

/* The logits with biases and penalties. */
static enum gptoss_status change(const struct gptoss_sampling *sampling, const int32_t *history,
                                 size_t num_history, const float *logits, size_t vocab_size,
                                 float **values_out, struct gptoss_error *error) {
    float *values = gptoss_allocate(vocab_size, sizeof *values);
    if (values == NULL)
        return gptoss_error_memory(error, vocab_size * sizeof *values, "logits");
    *values_out = values;
    memcpy(values, logits, vocab_size * sizeof *values);
    for (size_t i = 0; i < sampling->num_biases; ++i)
        values[sampling->bias_tokens[i]] += sampling->bias_values[i];
    return apply_penalties(sampling, history, num_history, values, vocab_size, error);
}

/* The least weight that min_p keeps. */
static uint64_t least_weight(const struct gptoss_sampling *sampling) {
    return (uint64_t)ceil(sampling->min_p * WEIGHT_ONE);
}

/* One token of a row: what is to be found, and with what. */
struct draw {
    const struct gptoss_sampling *sampling;
    const struct gptoss_softmax_row *row;
    uint64_t random;
    double *sum; /* of e^(logit - maximum), or NULL: not wanted, or of other logits */
};

/* ---- without candidates: weights of a block at a time ---- */

/* Weights of at least `least`, summed by block; their sum, and draw->sum on the way. */
static uint64_t weigh_blocks(const struct draw *draw, uint64_t least, uint64_t *totals) {
    const struct gptoss_softmax_row *row = draw->row;
    float temperature = draw->sampling->temperature;
    /* The exponent below which no weight is that large; that of weight 1/2 is -28.4. */
    double floor = least > 1 ? gptoss_log((double)(least - 1) / WEIGHT_ONE) - 0x1p-20 : -29;
    uint64_t total = 0;
    for (size_t block = 0; block < row->num_blocks; ++block) {
        const float *values = row->values + block * GPTOSS_SOFTMAX_BLOCK;
        int64_t count = (int64_t)gptoss_softmax_block_count(row, block);
        uint64_t weights[GPTOSS_SOFTMAX_BLOCK];
        if (gptoss_softmax_distance(row->maxima[block], row->maximum) / temperature < floor) {
            totals[block] = 0;
            if (draw->sum != NULL)
                *draw->sum = gptoss_softmax_add_block(row, block, *draw->sum);
        } else if (draw->sum != NULL && temperature == 1) {
            *draw->sum = row->kernels->add_powers_and_weigh(*draw->sum, values, count, row->maximum,
                                                            least, &totals[block]);
        } else {
            totals[block] =
                row->kernels->weigh(values, count, row->maximum, temperature, least, weights);
        }
        total += totals[block];
    }
    return total;
}

/* floor(total * random / 2^64), a number below the total. */
static uint64_t target_of(uint64_t total, uint64_t random) {
    return (uint64_t)((unsigned __int128)total * random >> 64);
}

/* The first, in ascending order, at which the running sum of weights exceeds the target; that is
 * reduced by the sum before. */
static size_t find_share(const uint64_t *weights, uint64_t *target) {
    size_t i = 0;
    while (*target >= weights[i])
        *target -= weights[i++];
    return i;
}

static int32_t draw_from_blocks(const struct draw *draw, const uint64_t *totals, uint64_t total) {
    const struct gptoss_softmax_row *row = draw->row;
    uint64_t weights[GPTOSS_SOFTMAX_BLOCK], target = target_of(total, draw->random);
    size_t block = find_share(totals, &target), start = block * GPTOSS_SOFTMAX_BLOCK;
    row->kernels->weigh(row->values + start, (int64_t)gptoss_softmax_block_count(row, block),
                        row->maximum, draw->sampling->temperature, least_weight(draw->sampling),
                        weights);
    return (int32_t)(start + find_share(weights, &target));
}

/* ---- with candidates ---- */

/* ceil(top_p * total), at least 1. */
static uint64_t goal_of(const struct gptoss_sampling *sampling, uint64_t total) {
    double goal = ceil(sampling->top_p * (double)total);
    return goal < 1 ? 1 : (uint64_t)goal;
}

/* The candidates that top_p leaves of a vocabulary. Tokens below an n-th of 1 - top_p of the total
 * are together no more than that, so that the others reach the goal; should they fail to, all are
 * taken. */
static enum gptoss_status gather_mass(const struct draw *draw, uint64_t total,
                                      struct gptoss_candidates *candidates,
                                      struct gptoss_error *error) {
    const struct gptoss_softmax_row *row = draw->row;
    float temperature = draw->sampling->temperature;
    uint64_t goal = goal_of(draw->sampling, total);
    double share = (1.0 - draw->sampling->top_p) * (double)total / (double)row->count / WEIGHT_ONE;
    double exponent = gptoss_log(share * 0.99);
    exponent = exponent > -29 ? exponent : -29; /* weights below are 0 */
    float least = (float)(row->maximum + exponent * temperature);
    for (;; least = -INFINITY) {
        GPTOSS_TRY(gptoss_candidates_gather(candidates, row, least, error));
        gptoss_candidates_weigh(candidates, row, temperature);
        if (least == -INFINITY || gptoss_candidates_total(candidates) >= goal)
            break;
        gptoss_candidates_clear(candidates);
    }
    return gptoss_candidates_keep_mass(candidates, goal, error);
}

static int32_t draw_from_candidates(const struct draw *draw, struct gptoss_candidates *candidates) {
    uint64_t least = least_weight(draw->sampling);
    for (size_t i = 0; i < candidates->count; ++i) {
        if (candidates->weights[i] < least)
            candidates->weights[i] = 0;
    }
    uint64_t target = target_of(gptoss_candidates_total(candidates), draw->random);
    return gptoss_key_token(candidates->keys[find_share(candidates->weights, &target)]);
}

static enum gptoss_status draw_of_first(const struct draw *draw, int32_t *token_out,
                                        struct gptoss_error *error) {
    const struct gptoss_sampling *sampling = draw->sampling;
    struct gptoss_candidates candidates = {0};
    enum gptoss_status status =
        gptoss_candidates_gather_first(&candidates, draw->row, (size_t)sampling->top_k, error);
    if (status == GPTOSS_OK)
        gptoss_candidates_weigh(&candidates, draw->row, sampling->temperature);
    if (status == GPTOSS_OK && sampling->top_p < 1)
        status = gptoss_candidates_keep_mass(
            &candidates, goal_of(sampling, gptoss_candidates_total(&candidates)), error);
    if (status == GPTOSS_OK)
        *token_out = draw_from_candidates(draw, &candidates);
    gptoss_candidates_clear(&candidates);
    return status;
}

/* draw->sum becomes NULL if it was not found on the way. */
static enum gptoss_status draw_token(struct draw *draw, int32_t *token_out,
                                     struct gptoss_error *error) {
    const struct gptoss_sampling *sampling = draw->sampling;
    const struct gptoss_softmax_row *row = draw->row;
    bool is_first = sampling->top_k > 0 && (size_t)sampling->top_k < row->count;
    if (sampling->temperature != 1 || is_first)
        draw->sum = NULL;
    if (sampling->temperature == 0) {
        *token_out = (int32_t)gptoss_softmax_row_top(row);
        return GPTOSS_OK;
    }
    if (is_first)
        return draw_of_first(draw, token_out, error);
    uint64_t *totals = gptoss_allocate(row->num_blocks, sizeof *totals);
    if (totals == NULL)
        return gptoss_error_memory(error, row->num_blocks * sizeof *totals, "sums of weights");
    bool has_top_p = sampling->top_p < 1;
    uint64_t total = weigh_blocks(draw, has_top_p ? 0 : least_weight(sampling), totals);
    enum gptoss_status status = GPTOSS_OK;
    struct gptoss_candidates candidates = {0};
    if (has_top_p)
        status = gather_mass(draw, total, &candidates, error);
    if (status == GPTOSS_OK)
        *token_out = has_top_p ? draw_from_candidates(draw, &candidates)
                               : draw_from_blocks(draw, totals, total);
    gptoss_candidates_clear(&candidates);
    gptoss_free(totals);
    return status;
}

static enum gptoss_status sample_rows(const struct gptoss_softmax_row *logits,
                                      const struct gptoss_softmax_row *changed,
                                      const struct gptoss_sampling *sampling, size_t num_history,
                                      int32_t *token_out, float *logprob_out,
                                      struct gptoss_error *error) {
    double sum = 0;
    struct draw draw = {
        .sampling = sampling,
        .row = changed,
        .random = gptoss_sampler_random(sampling->seed, num_history),
        .sum = logprob_out != NULL && changed == logits ? &sum : NULL,
    };
    GPTOSS_TRY(draw_token(&draw, token_out, error));
    if (logprob_out == NULL)
        return GPTOSS_OK;
    double partition = draw.sum != NULL ? gptoss_log(sum) : gptoss_log_partition(logits);
    float value = logits->values[*token_out];
    *logprob_out = (float)(gptoss_softmax_distance(value, logits->maximum) - partition);
    return GPTOSS_OK;
}

/* Not inlined, like top_logprobs: see fp_environment.h. */
__attribute__((noinline)) static enum gptoss_status
sample(const struct gptoss_kernels *kernels, const float *logits, size_t vocab_size,
       const struct gptoss_sampling *sampling, const int32_t *history, size_t num_history,
       int32_t *token_out, float *logprob_out, struct gptoss_error *error) {
    GPTOSS_TRY(check_vocab_size(vocab_size, error));
    GPTOSS_TRY(check_sampling(sampling, vocab_size, error));
    struct gptoss_softmax_row row = {0}, changed = {0};
    float *values = NULL;
    enum gptoss_status status = gptoss_softmax_row_init(&row, kernels, logits, vocab_size, error);
    bool has_changed = has_changes(sampling, num_history);
    if (status == GPTOSS_OK && has_changed)
        status = change(sampling, history, num_history, logits, vocab_size, &values, error);
    if (status == GPTOSS_OK && has_changed)
        status = gptoss_softmax_row_init(&changed, kernels, values, vocab_size, error);
    if (status == GPTOSS_OK)
        status = sample_rows(&row, has_changed ? &changed : &row, sampling, num_history, token_out,
                             logprob_out, error);
    gptoss_softmax_row_clear(&changed);
    gptoss_softmax_row_clear(&row);
    gptoss_free(values);
    return status;
}

static int compare_descending(const void *a, const void *b) {
    uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;
    return (first < second) - (first > second);
}

static void fill_logprobs(const struct gptoss_softmax_row *row,
                          const struct gptoss_candidates *candidates, int32_t *tokens_out,
                          float *logprobs_out) {
    double partition = gptoss_log_partition(row);
    for (size_t i = 0; i < candidates->count; ++i) {
        float value = gptoss_key_value(candidates->keys[i]);
        tokens_out[i] = gptoss_key_token(candidates->keys[i]);
        logprobs_out[i] = (float)(gptoss_softmax_distance(value, row->maximum) - partition);
    }
}

__attribute__((noinline)) static enum gptoss_status
top_logprobs(const struct gptoss_kernels *kernels, const float *logits, size_t vocab_size, size_t k,
             int32_t *tokens_out, float *logprobs_out, struct gptoss_error *error) {
    GPTOSS_TRY(check_vocab_size(vocab_size, error));
    if (k < 1 || k > vocab_size)
        return refuse(error, "k", "between 1 and the number of tokens", (double)k);
    struct gptoss_candidates candidates = {0};
    struct gptoss_softmax_row row = {0};
    enum gptoss_status status = gptoss_softmax_row_init(&row, kernels, logits, vocab_size, error);
    if (status == GPTOSS_OK)
        status = gptoss_candidates_gather_first(&candidates, &row, k, error);
    if (status == GPTOSS_OK) {
        qsort(candidates.keys, candidates.count, sizeof *candidates.keys, compare_descending);
        fill_logprobs(&row, &candidates, tokens_out, logprobs_out);
    }
    gptoss_candidates_clear(&candidates);
    gptoss_softmax_row_clear(&row);
    return status;
}

/* ---- in the floating-point environment that the numbers are defined in ---- */

enum gptoss_status gptoss_sample_by(const struct gptoss_kernels *kernels, const float *logits,
                                    size_t vocab_size, const struct gptoss_sampling *sampling,
                                    const int32_t *history, size_t num_history, int32_t *token_out,
                                    float *logprob_out, struct gptoss_error *error) {
    uint64_t saved = gptoss_fp_environment_set_default();
    enum gptoss_status status = sample(kernels, logits, vocab_size, sampling, history, num_history,
                                       token_out, logprob_out, error);
    gptoss_fp_environment_restore(saved);
    return status;
}

enum gptoss_status gptoss_top_logprobs_by(const struct gptoss_kernels *kernels, const float *logits,
                                          size_t vocab_size, size_t k, int32_t *tokens_out,
                                          float *logprobs_out, struct gptoss_error *error) {
    uint64_t saved = gptoss_fp_environment_set_default();
    enum gptoss_status status =
        top_logprobs(kernels, logits, vocab_size, k, tokens_out, logprobs_out, error);
    gptoss_fp_environment_restore(saved);
    return status;
}

/* ---- the public functions ---- */

enum gptoss_status gptoss_sample(const float *logits, size_t vocab_size,
                                 const struct gptoss_sampling *sampling, const int32_t *history,
                                 size_t num_history, int32_t *token_out, float *logprob_out,
                                 struct gptoss_error *error) {
    return gptoss_sample_by(gptoss_kernels_select(NULL), logits, vocab_size, sampling, history,
                            num_history, token_out, logprob_out, error);
}

enum gptoss_status gptoss_top_logprobs(const float *logits, size_t vocab_size, size_t k,
                                       int32_t *tokens_out, float *logprobs_out,
                                       struct gptoss_error *error) {
    return gptoss_top_logprobs_by(gptoss_kernels_select(NULL), logits, vocab_size, k, tokens_out,
                                  logprobs_out, error);
}
