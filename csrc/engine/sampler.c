/* Draws tokens from logits. Weights are integers, so that their sums do not depend on an order: a
 * filter can stop where the ordered candidates would reach a mass without sorting them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"
#include "engine/softmax.h"
#include "numeric/double_math.h"
#include "numeric/dtype.h"
#include "platform/allocator.h"
#include "platform/fp_environment.h"
#include "status.h"

/* A weight is e^((value - maximum) / temperature) in units of 2^-40; the sum of 2^24 of them fits
 * 64 bits. */
#define WEIGHT_ONE 0x1p40
#define MAX_VOCAB_SIZE (1 << 24)
/* A key has 32 bits of value and 28 of token: five digits of 12. */
#define TOKEN_BITS 28
#define DIGIT_BITS 12
#define NUM_DIGITS 5

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

/* ---- keys: one integer whose descending order is value descending, then token ascending ---- */

static uint64_t key_from(float value, uint32_t token) {
    uint32_t bits = gptoss_bits_from_float(value + 0.0f); /* -0 becomes +0: they are equal */
    uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)ordered << TOKEN_BITS | ((1u << TOKEN_BITS) - 1 - token);
}

static int32_t token_of(uint64_t key) {
    uint32_t mask = (1u << TOKEN_BITS) - 1;
    return (int32_t)(mask - ((uint32_t)key & mask));
}

static float value_of(uint64_t key) {
    uint32_t ordered = (uint32_t)(key >> TOKEN_BITS);
    return gptoss_float_from_bits(ordered >> 31 ? ordered & 0x7FFFFFFFu : ~ordered);
}

/* Tokens that may still be drawn, in ascending order. */
struct candidates {
    uint64_t *keys, *weights; /* one allocation */
    size_t count;
};

/* The key at which the running sum of the weights (NULL: 1 each), in descending order of keys,
 * reaches goal, which is at most their sum. Digit by digit from the top: at which digit does the
 * sum over the keys with this prefix pass the goal? */
static uint64_t find_cutoff(const struct candidates *candidates, const uint64_t *weights,
                            uint64_t goal) {
    uint64_t prefix = 0, above = 0;
    for (int shift = (NUM_DIGITS - 1) * DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        uint64_t sums[1 << DIGIT_BITS] = {0};
        for (size_t i = 0; i < candidates->count; ++i) {
            uint64_t key = candidates->keys[i] >> shift;
            if (key >> DIGIT_BITS == prefix)
                sums[key & ((1 << DIGIT_BITS) - 1)] += weights == NULL ? 1 : weights[i];
        }
        int digit = (1 << DIGIT_BITS) - 1;
        while (digit > 0 && above + sums[digit] < goal)
            above += sums[digit--];
        prefix = prefix << DIGIT_BITS | (uint64_t)digit;
    }
    return prefix;
}

/* Keeps the candidates from cutoff upwards. Without branches: their outcomes would be as random as
 * the logits. */
static void keep_from(struct candidates *candidates, uint64_t cutoff) {
    size_t kept = 0;
    for (size_t i = 0; i < candidates->count; ++i) {
        uint64_t key = candidates->keys[i];
        candidates->keys[kept] = key;
        candidates->weights[kept] = candidates->weights[i];
        kept += key >= cutoff;
    }
    candidates->count = kept;
}

static uint64_t total_weight(const struct candidates *candidates) {
    uint64_t total = 0;
    for (size_t i = 0; i < candidates->count; ++i)
        total += candidates->weights[i];
    return total;
}

/* round(WEIGHT_ONE e^((value - maximum) / temperature)); adding 2^52 leaves the integer in the low
 * bits. */
static void weigh(struct candidates *candidates, float maximum, double temperature) {
    double powers[GPTOSS_SOFTMAX_BLOCK];
    for (size_t start = 0; start < candidates->count; start += GPTOSS_SOFTMAX_BLOCK) {
        size_t left = candidates->count - start;
        size_t count = left < GPTOSS_SOFTMAX_BLOCK ? left : GPTOSS_SOFTMAX_BLOCK;
        const uint64_t *keys = candidates->keys + start;
        uint64_t *weights = candidates->weights + start;
        for (size_t i = 0; i < count; ++i)
            powers[i] = gptoss_softmax_distance(value_of(keys[i]), maximum) / temperature;
        for (size_t i = 0; i < count; ++i)
            powers[i] = gptoss_exp(powers[i]) * WEIGHT_ONE + 0x1p52;
        for (size_t i = 0; i < count; ++i)
            weights[i] = gptoss_bits_from_double(powers[i]) & 0xFFFFFFFFFFFFFu;
    }
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

static enum gptoss_status check_logits(const float *logits, size_t vocab_size,
                                       struct gptoss_error *error) {
    int has_nan = 0, has_token = 0;
    for (size_t i = 0; i < vocab_size; ++i) {
        has_nan |= logits[i] != logits[i];
        has_token |= logits[i] > -INFINITY;
    }
    for (size_t i = 0; has_nan && i < vocab_size; ++i) {
        if (isnan(logits[i]))
            return gptoss_error_set(error, GPTOSS_ERROR_NUMERIC, "the logit of token %zu is NaN",
                                    i);
    }
    if (has_token)
        return GPTOSS_OK;
    return gptoss_error_set(error, GPTOSS_ERROR_NUMERIC,
                            "the logits of all %zu tokens are -infinity", vocab_size);
}

/* ---- the steps ---- */

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
    for (size_t token = 0; token < vocab_size && status == GPTOSS_OK; ++token) {
        if (counts[token] == 0)
            continue;
        float value = values[token], penalty = sampling->repetition_penalty;
        value = value > 0 ? value / penalty : value * penalty;
        value -= (float)counts[token] * sampling->frequency_penalty;
        values[token] = value - sampling->presence_penalty;
    }
    gptoss_free(counts);
    return status;
}

static enum gptoss_status create_candidates(const float *values, size_t vocab_size,
                                            struct candidates *candidates_out,
                                            struct gptoss_error *error) {
    uint64_t *memory = gptoss_allocate(2 * vocab_size, sizeof *memory);
    if (memory == NULL)
        return gptoss_error_memory(error, 2 * vocab_size * sizeof *memory, "candidate tokens");
    *candidates_out =
        (struct candidates){.keys = memory, .weights = memory + vocab_size, .count = vocab_size};
    for (size_t token = 0; token < vocab_size; ++token)
        memory[token] = key_from(values[token], (uint32_t)token);
    return GPTOSS_OK;
}

/* The filters; afterwards the weights are those to draw by. */
static void filter(const struct gptoss_sampling *sampling, float maximum,
                   struct candidates *candidates) {
    if (sampling->top_k > 0 && (size_t)sampling->top_k < candidates->count) {
        keep_from(candidates, find_cutoff(candidates, NULL, (uint64_t)sampling->top_k));
    }
    weigh(candidates, maximum, sampling->temperature);
    if (sampling->top_p < 1) {
        double goal = ceil(sampling->top_p * (double)total_weight(candidates));
        keep_from(candidates,
                  find_cutoff(candidates, candidates->weights, goal < 1 ? 1 : (uint64_t)goal));
    }
    for (size_t i = 0; i < candidates->count; ++i) {
        if ((double)candidates->weights[i] < sampling->min_p * WEIGHT_ONE)
            candidates->weights[i] = 0;
    }
}

/* floor(total * random / 2^64) is a number below the total: the candidate, in ascending order, in
 * whose share it lies. */
static int32_t draw(const struct candidates *candidates, uint64_t random) {
    uint64_t target = (uint64_t)((unsigned __int128)total_weight(candidates) * random >> 64);
    size_t i = 0;
    while (target >= candidates->weights[i])
        target -= candidates->weights[i++];
    return token_of(candidates->keys[i]);
}

/* Not inlined, like top_logprobs: see fp_environment.h. */
__attribute__((noinline)) static enum gptoss_status
sample(const float *logits, size_t vocab_size, const struct gptoss_sampling *sampling,
       const int32_t *history, size_t num_history, int32_t *token_out, float *logprob_out,
       struct gptoss_error *error) {
    enum gptoss_status status = check_vocab_size(vocab_size, error);
    if (status == GPTOSS_OK)
        status = check_sampling(sampling, vocab_size, error);
    if (status == GPTOSS_OK)
        status = check_logits(logits, vocab_size, error);
    if (status != GPTOSS_OK)
        return status;
    struct candidates candidates = {0};
    float *values = gptoss_allocate(vocab_size, sizeof *values);
    if (values == NULL)
        return gptoss_error_memory(error, vocab_size * sizeof *values, "logits");
    memcpy(values, logits, vocab_size * sizeof *values);
    for (size_t i = 0; i < sampling->num_biases; ++i)
        values[sampling->bias_tokens[i]] += sampling->bias_values[i];
    status = apply_penalties(sampling, history, num_history, values, vocab_size, error);
    if (status == GPTOSS_OK)
        status = check_logits(values, vocab_size, error);
    if (status != GPTOSS_OK)
        goto cleanup;

    size_t best = gptoss_find_maximum(values, vocab_size);
    int32_t token = (int32_t)best;
    if (sampling->temperature > 0) {
        status = create_candidates(values, vocab_size, &candidates, error);
        if (status != GPTOSS_OK)
            goto cleanup;
        filter(sampling, values[best], &candidates);
        token = draw(&candidates, gptoss_sampler_random(sampling->seed, num_history));
    }
    if (logprob_out != NULL) {
        float maximum = logits[gptoss_find_maximum(logits, vocab_size)];
        *logprob_out = (float)(gptoss_softmax_distance(logits[token], maximum) -
                               gptoss_log_partition(logits, vocab_size, maximum));
    }
    *token_out = token;
cleanup:
    gptoss_free(values);
    gptoss_free(candidates.keys);
    return status;
}

static int compare_descending(const void *a, const void *b) {
    uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;
    return (first < second) - (first > second);
}

__attribute__((noinline)) static enum gptoss_status
top_logprobs(const float *logits, size_t vocab_size, size_t k, int32_t *tokens_out,
             float *logprobs_out, struct gptoss_error *error) {
    enum gptoss_status status = check_vocab_size(vocab_size, error);
    if (status == GPTOSS_OK && (k < 1 || k > vocab_size)) {
        status = refuse(error, "k", "between 1 and the number of tokens", (double)k);
    }
    if (status == GPTOSS_OK)
        status = check_logits(logits, vocab_size, error);
    if (status != GPTOSS_OK)
        return status;
    struct candidates candidates = {0};
    status = create_candidates(logits, vocab_size, &candidates, error);
    if (status != GPTOSS_OK)
        return status;
    keep_from(&candidates, find_cutoff(&candidates, NULL, k));
    qsort(candidates.keys, k, sizeof *candidates.keys, compare_descending);

    float maximum = value_of(candidates.keys[0]);
    double partition = gptoss_log_partition(logits, vocab_size, maximum);
    for (size_t i = 0; i < k; ++i) {
        tokens_out[i] = token_of(candidates.keys[i]);
        logprobs_out[i] =
            (float)(gptoss_softmax_distance(value_of(candidates.keys[i]), maximum) - partition);
    }
    gptoss_free(candidates.keys);
    return GPTOSS_OK;
}

/* ---- the public functions, in the floating-point environment that the numbers are defined in ----
 */

enum gptoss_status gptoss_sample(const float *logits, size_t vocab_size,
                                 const struct gptoss_sampling *sampling, const int32_t *history,
                                 size_t num_history, int32_t *token_out, float *logprob_out,
                                 struct gptoss_error *error) {
    uint64_t saved = gptoss_fp_environment_set_default();
    enum gptoss_status status =
        sample(logits, vocab_size, sampling, history, num_history, token_out, logprob_out, error);
    gptoss_fp_environment_restore(saved);
    return status;
}

enum gptoss_status gptoss_top_logprobs(const float *logits, size_t vocab_size, size_t k,
                                       int32_t *tokens_out, float *logprobs_out,
                                       struct gptoss_error *error) {
    uint64_t saved = gptoss_fp_environment_set_default();
    enum gptoss_status status =
        top_logprobs(logits, vocab_size, k, tokens_out, logprobs_out, error);
    gptoss_fp_environment_restore(saved);
    return status;
}
