/* Scoring a text: log-probabilities and what else there is to tell of logits, reduced a few rows at
 * a time, so that no array of all tokens and the vocabulary ever exists. */
#include <inttypes.h>
#include <math.h>

#include "engine/generator.h"
#include "engine/softmax.h"
#include "numeric/double_math.h"
#include "status.h"

/* Rows whose logits are in memory at a time. */
#define MAX_SCORED_ROWS 64

struct side {
    struct gptoss_generator *generator;
    float *logits; /* [MAX_SCORED_ROWS][vocab_size]; the model's */
    bool has_turn;
};

struct score {
    struct side sides[2]; /* the generator, the reference */
    int num_sides;
    const int32_t *tokens, *targets;
    int64_t num_tokens, vocab_size, block_size;
    const struct gptoss_scores *out;
    gptoss_poll_fn poll;
    void *user;
    int64_t first_token;           /* of the block */
    int64_t rows[MAX_SCORED_ROWS]; /* of the block, those whose logits are in memory */
    bool is_bad[MAX_SCORED_ROWS];  /* logits without a distribution */
};

/* The token that a row is to predict, or -1. */
static int32_t target_of(const struct score *score, int64_t index) {
    if (score->targets != NULL)
        return score->targets[index];
    return index + 1 < score->num_tokens ? score->tokens[index + 1] : -1;
}

/* ---- one row ---- */

/* A distribution e^(logit - maximum) / sum. */
struct softmax {
    const float *logits;
    size_t top;
    float maximum;
    double sum, log_sum;
};

/* Sums over a distribution p, in ascending order of tokens. sum: e^(logit - maximum). The result:
 * the same, each times (logit - maximum) less that of other, if there is one. What has no mass
 * counts nothing, infinite distances included. */
static double sum_powers(struct softmax *p, const struct softmax *other, size_t vocab_size) {
    double powers[GPTOSS_SOFTMAX_BLOCK], terms[GPTOSS_SOFTMAX_BLOCK], weighted = 0;
    p->sum = 0;
    for (size_t start = 0; start < vocab_size; start += GPTOSS_SOFTMAX_BLOCK) {
        size_t left = vocab_size - start;
        size_t count = left < GPTOSS_SOFTMAX_BLOCK ? left : GPTOSS_SOFTMAX_BLOCK;
        const float *logits = p->logits + start;
        for (size_t i = 0; i < count; ++i)
            terms[i] = gptoss_softmax_distance(logits[i], p->maximum);
        for (size_t i = 0; i < count; ++i)
            powers[i] = gptoss_exp(terms[i]);
        for (size_t i = 0; other != NULL && i < count; ++i)
            terms[i] -= gptoss_softmax_distance(other->logits[start + i], other->maximum);
        for (size_t i = 0; i < count; ++i)
            terms[i] = powers[i] > 0 ? powers[i] * terms[i] : 0;
        for (size_t i = 0; i < count; ++i) {
            p->sum += powers[i];
            weighted += terms[i];
        }
    }
    p->log_sum = gptoss_log(p->sum);
    return weighted;
}

static double logprob_of(const struct softmax *p, int32_t token) {
    return gptoss_softmax_distance(p->logits[token], p->maximum) - p->log_sum;
}

static int32_t rank_of(const float *logits, size_t vocab_size, int32_t token) {
    int32_t rank = 0;
    float value = logits[token];
    for (size_t i = 0; i < (size_t)token; ++i)
        rank += logits[i] >= value;
    for (size_t i = (size_t)token + 1; i < vocab_size; ++i)
        rank += logits[i] > value;
    return rank;
}

/* False if the logits are none: one is NaN, or all are -infinity. */
static bool begin_softmax(struct softmax *p, const float *logits, size_t vocab_size) {
    int has_nan = 0;
    for (size_t i = 0; i < vocab_size; ++i)
        has_nan |= isnan(logits[i]);
    if (has_nan)
        return false;
    p->logits = logits;
    p->top = gptoss_find_maximum(logits, vocab_size);
    p->maximum = logits[p->top];
    return p->maximum > -INFINITY;
}

static void compare(const struct score *score, const struct softmax *model, int64_t index,
                    struct softmax *reference) {
    const struct gptoss_scores *out = score->out;
    double weighted = sum_powers(reference, model, (size_t)score->vocab_size);
    if (out->reference_logprobs != NULL)
        out->reference_logprobs[index] = logprob_of(reference, target_of(score, index));
    if (out->divergences != NULL) {
        double divergence = weighted / reference->sum - reference->log_sum + model->log_sum;
        out->divergences[index] = divergence > 0 ? divergence : 0;
    }
    if (out->same_top != NULL)
        out->same_top[index] = model->top == reference->top;
}

static void score_row(void *context, int64_t row, int thread) {
    (void)thread;
    struct score *score = context;
    const struct gptoss_scores *out = score->out;
    size_t vocab_size = (size_t)score->vocab_size;
    int64_t index = score->first_token + score->rows[row], start = row * score->vocab_size;
    int32_t target = target_of(score, index);
    struct softmax model, reference;
    score->is_bad[row] = !begin_softmax(&model, score->sides[0].logits + start, vocab_size);
    if (!score->is_bad[row] && score->num_sides == 2)
        score->is_bad[row] = !begin_softmax(&reference, score->sides[1].logits + start, vocab_size);
    if (score->is_bad[row])
        return;
    double weighted = sum_powers(&model, NULL, vocab_size);
    if (out->logprobs != NULL)
        out->logprobs[index] = logprob_of(&model, target);
    if (out->ranks != NULL)
        out->ranks[index] = rank_of(model.logits, vocab_size, target);
    if (out->entropies != NULL)
        out->entropies[index] = model.log_sum - weighted / model.sum;
    if (score->num_sides == 2)
        compare(score, &model, index, &reference);
}

/* ---- blocks ---- */

/* The sentence for a row of logits that is no distribution. */
static enum gptoss_status refuse_row(const struct score *score, int64_t row,
                                     struct gptoss_error *error) {
    for (int i = 0; i < score->num_sides; ++i)
        GPTOSS_TRY(gptoss_check_logits(score->sides[i].logits + row * score->vocab_size,
                                       score->vocab_size, error));
    return gptoss_error_set(error, GPTOSS_ERROR_NUMERIC,
                            "every logit of token number %" PRId64
                            " is -infinity: open the model with verify=True to check its weights",
                            score->first_token + score->rows[row]);
}

static enum gptoss_status score_rows(struct score *score, int64_t num_rows,
                                     struct gptoss_error *error) {
    struct gptoss_backend *backend = score->sides[0].generator->model->backend;
    if (num_rows == 0)
        return GPTOSS_OK;
    /* A list that is a range is none, and its rows are normed together. */
    bool is_range = score->rows[num_rows - 1] - score->rows[0] == num_rows - 1;
    for (int i = 0; i < score->num_sides; ++i) {
        struct gptoss_model *model = score->sides[i].generator->model;
        GPTOSS_TRY(
            gptoss_model_batch_logits(model, MAX_SCORED_ROWS, &score->sides[i].logits, error));
        GPTOSS_TRY(gptoss_pass_logits(model, is_range ? NULL : score->rows, score->rows[0],
                                      num_rows, score->sides[i].logits, error));
    }
    if (backend->operations->run_tasks(backend, score_row, score, num_rows) != GPTOSS_OK)
        return gptoss_error_set(error, GPTOSS_ERROR_INTERRUPTED, "interrupted");
    for (int64_t row = 0; row < num_rows; ++row)
        if (score->is_bad[row])
            return refuse_row(score, row, error);
    return GPTOSS_OK;
}

static enum gptoss_status score_block(struct score *score, int64_t num_rows, bool last,
                                      struct gptoss_error *error) {
    const int32_t *tokens = score->tokens + score->first_token;
    struct gptoss_pass progress = {
        .progress_done = (uint64_t)(score->num_sides * score->first_token),
        .progress_total = (uint64_t)(score->num_sides * score->num_tokens),
    };
    for (int i = 0; i < score->num_sides; ++i) {
        GPTOSS_TRY(gptoss_generator_run_block(score->sides[i].generator, tokens, num_rows, last,
                                              NULL, &progress, error));
        progress.progress_done += (uint64_t)num_rows;
    }
    for (int i = 0; i < score->num_sides; ++i) {
        struct gptoss_backend *backend = score->sides[i].generator->model->backend;
        backend->operations->progress(backend, progress.progress_done - 1, progress.progress_total);
    }
    int64_t count = 0;
    for (int64_t row = 0; row < num_rows; ++row) {
        if (target_of(score, score->first_token + row) >= 0)
            score->rows[count++] = row;
        if (count < MAX_SCORED_ROWS && row + 1 < num_rows)
            continue;
        GPTOSS_TRY(score_rows(score, count, error));
        count = 0;
    }
    for (int i = 0; i < score->num_sides; ++i) {
        gptoss_generator_commit_tokens(score->sides[i].generator, tokens, num_rows);
        score->sides[i].generator->has_logits = last;
    }
    return GPTOSS_OK;
}

static enum gptoss_status score_blocks(struct score *score, struct gptoss_error *error) {
    struct gptoss_backend *backend = score->sides[0].generator->model->backend;
    while (score->first_token < score->num_tokens) {
        int64_t rest = score->num_tokens - score->first_token;
        int64_t num_rows = rest < score->block_size ? rest : score->block_size;
        GPTOSS_TRY(score_block(score, num_rows, num_rows == rest, error));
        score->first_token += num_rows;
        if (backend->operations->poll(backend, (uint64_t)(score->num_sides * score->first_token),
                                      (uint64_t)(score->num_sides * score->num_tokens)))
            return gptoss_error_set(error, GPTOSS_ERROR_INTERRUPTED,
                                    "interrupted after %" PRId64 " of %" PRId64 " tokens",
                                    score->first_token, score->num_tokens);
    }
    return GPTOSS_OK;
}

/* ---- admission ---- */

static enum gptoss_status check_targets(const struct score *score, struct gptoss_error *error) {
    for (int64_t i = 0; score->targets != NULL && i < score->num_tokens; ++i) {
        if (score->targets[i] >= -1 && score->targets[i] < score->vocab_size)
            continue;
        gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                         "target %" PRId32 " (number %" PRId64
                         ") is outside the vocabulary of %" PRId64,
                         score->targets[i], i, score->vocab_size);
        gptoss_error_expected(error, "-1 .. %" PRId64, score->vocab_size - 1);
        gptoss_error_found(error, "%" PRId32, score->targets[i]);
        return GPTOSS_ERROR_ARGUMENT;
    }
    return GPTOSS_OK;
}

static enum gptoss_status check_reference(const struct gptoss_model *model,
                                          const struct gptoss_model *reference,
                                          struct gptoss_error *error) {
    if (model == reference)
        return gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                                "the reference is the same model; open it a second time to compare "
                                "it with itself");
    int32_t expected = model->config->vocab_size, found = reference->config->vocab_size;
    if (expected == found)
        return GPTOSS_OK;
    gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                     "the reference has a vocabulary of %" PRId32 " tokens and the model one of "
                     "%" PRId32 ": only models of one vocabulary can be compared",
                     found, expected);
    gptoss_error_expected(error, "%" PRId32, expected);
    gptoss_error_found(error, "%" PRId32, found);
    return GPTOSS_ERROR_ARGUMENT;
}

static enum gptoss_status admit(struct score *score, struct gptoss_error *error) {
    const struct gptoss_model *model = score->sides[0].generator->model;
    if (score->num_sides == 2)
        GPTOSS_TRY(check_reference(model, score->sides[1].generator->model, error));
    for (int i = 0; i < score->num_sides; ++i)
        GPTOSS_TRY(gptoss_generator_check_tokens(score->sides[i].generator, score->tokens,
                                                 (size_t)score->num_tokens, error));
    GPTOSS_TRY(check_targets(score, error));
    for (int i = 0; i < score->num_sides; ++i) {
        struct gptoss_generator *generator = score->sides[i].generator;
        gptoss_generator_drop_ahead(generator);
        GPTOSS_TRY(gptoss_generator_reserve_tokens(generator,
                                                   generator->position + score->num_tokens, error));
        GPTOSS_TRY(gptoss_capture_begin(&generator->capture, generator->model->config,
                                        score->num_tokens, error));
    }
    return GPTOSS_OK;
}

/* ---- turns ---- */

/* While it waits for a second turn it has the first one, and the callback is told so. */
static int poll_holding(void *user, uint64_t done, uint64_t total) {
    const struct score *score = user;
    if (total > 0)
        return score->poll(score->user, done, total);
    return score->poll(score->user, 0, (uint64_t)(score->num_sides * score->num_tokens));
}

/* The turns of both models, in one order for all who take two, so that none waits for another. */
static enum gptoss_status take_turns(struct score *score, int first, struct gptoss_error *error) {
    for (int i = 0; i < score->num_sides; ++i) {
        struct side *side = &score->sides[i == 0 ? first : 1 - first];
        struct gptoss_backend *backend = side->generator->model->backend;
        gptoss_poll_fn poll = score->poll != NULL && i > 0 ? poll_holding : score->poll;
        GPTOSS_TRY(backend->operations->begin(backend, poll, i > 0 ? score : score->user, error));
        side->has_turn = true;
    }
    return GPTOSS_OK;
}

static enum gptoss_status end_turns(struct score *score, int first, enum gptoss_status status,
                                    struct gptoss_error *error) {
    for (int i = score->num_sides - 1; i >= 0; --i) {
        struct side *side = &score->sides[i == 0 ? first : 1 - first];
        struct gptoss_backend *backend = side->generator->model->backend;
        if (!side->has_turn)
            continue;
        enum gptoss_status end_status =
            backend->operations->end(backend, status == GPTOSS_OK ? error : NULL);
        status = status != GPTOSS_OK ? status : end_status;
    }
    return status;
}

enum gptoss_status gptoss_generator_score(struct gptoss_generator *generator,
                                          struct gptoss_generator *reference, const int32_t *tokens,
                                          size_t num_tokens, const int32_t *targets,
                                          const struct gptoss_scores *scores_out,
                                          gptoss_poll_fn poll, void *user,
                                          struct gptoss_error *error) {
    struct score score = {
        .sides = {{.generator = generator}, {.generator = reference}},
        .num_sides = reference != NULL ? 2 : 1,
        .tokens = tokens,
        .targets = targets,
        .num_tokens = (int64_t)num_tokens,
        .vocab_size = generator->model->config->vocab_size,
        .block_size = generator->block_size,
        .out = scores_out,
        .poll = poll,
        .user = user,
    };
    int first = 0;
    if (reference != NULL) {
        if (reference->block_size < score.block_size)
            score.block_size = reference->block_size;
        first = (uintptr_t)reference->model < (uintptr_t)generator->model;
    }
    GPTOSS_TRY(admit(&score, error));
    enum gptoss_status status = take_turns(&score, first, error);
    if (status == GPTOSS_OK)
        status = score_blocks(&score, error);
    return end_turns(&score, first, status, error);
}
