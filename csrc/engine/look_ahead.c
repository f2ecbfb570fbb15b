/* Looking ahead: rows of tokens that may come next, computed in one pass, or, where the device
 * guesses them, in passes that do not wait for the host. Feeding one that was guessed right costs
 * nothing then; a wrong guess is forgotten. */
#include <math.h>
#include <string.h>

#include "engine/generator.h"
#include "engine/sampler.h"
#include "platform/allocator.h"
#include "status.h"

/* The capture of the rows ahead: what is wanted is the generator's to say. */
static enum gptoss_status begin_capture(struct gptoss_generator *generator, int64_t num_rows,
                                        struct gptoss_error *error) {
    struct gptoss_capture *capture = &generator->ahead.capture;
    capture->num_taps = generator->capture.num_taps;
    capture->mask = generator->capture.mask;
    if (capture->data == NULL)
        capture->data = gptoss_allocate(capture->num_taps, sizeof *capture->data);
    if (capture->data == NULL)
        return gptoss_error_memory(error, capture->num_taps * sizeof *capture->data, "taps");
    return gptoss_capture_begin(capture, generator->model->config, num_rows, error);
}

static enum gptoss_status reserve(struct gptoss_generator *generator, int64_t num_rows,
                                  struct gptoss_error *error) {
    struct gptoss_ahead *ahead = &generator->ahead;
    if (num_rows > ahead->max_rows) {
        uint64_t vocab_size = (uint64_t)generator->model->config->vocab_size;
        gptoss_generator_free_ahead(generator);
        ahead->tokens = gptoss_allocate((size_t)num_rows, sizeof *ahead->tokens);
        ahead->rows = gptoss_allocate((size_t)num_rows, sizeof *ahead->rows);
        ahead->drawn = gptoss_allocate((size_t)num_rows, sizeof *ahead->drawn);
        ahead->logprobs = gptoss_allocate((size_t)num_rows, sizeof *ahead->logprobs);
        ahead->logits = gptoss_allocate((size_t)num_rows, vocab_size * sizeof *ahead->logits);
        if (ahead->tokens == NULL || ahead->rows == NULL || ahead->drawn == NULL ||
            ahead->logprobs == NULL || ahead->logits == NULL) {
            gptoss_generator_free_ahead(generator);
            return gptoss_error_memory(error, (uint64_t)num_rows * vocab_size * sizeof(float),
                                       "logits ahead");
        }
        ahead->max_rows = num_rows;
    }
    return begin_capture(generator, num_rows, error);
}

/* Ends the turn whose passes were to compute num_rows rows: those with numbers for logits are ahead
 * now. NaN is an error of the token that is fed, if it ever is: it is computed again then. */
static enum gptoss_status end_turn(struct gptoss_generator *generator, int64_t num_rows,
                                   enum gptoss_status status, struct gptoss_error *error) {
    struct gptoss_backend *backend = generator->model->backend;
    struct gptoss_ahead *ahead = &generator->ahead;
    int64_t vocab_size = generator->model->config->vocab_size;
    if (status == GPTOSS_OK &&
        backend->operations->poll(backend, (uint64_t)num_rows, (uint64_t)num_rows))
        status = gptoss_error_set(error, GPTOSS_ERROR_INTERRUPTED, "interrupted");
    enum gptoss_status end_status =
        backend->operations->end(backend, status == GPTOSS_OK ? error : NULL);
    if (status != GPTOSS_OK || end_status != GPTOSS_OK)
        return status != GPTOSS_OK ? status : end_status;
    ahead->num_rows = ahead->num_drawn; /* the logits of these are numbers */
    while (ahead->num_rows < num_rows &&
           gptoss_check_logits(ahead->logits + ahead->num_rows * vocab_size, vocab_size, NULL) ==
               GPTOSS_OK)
        ++ahead->num_rows;
    return GPTOSS_OK;
}

enum gptoss_status gptoss_generator_look_ahead(struct gptoss_generator *generator,
                                               const int32_t *tokens, size_t num_tokens,
                                               gptoss_poll_fn poll, void *user,
                                               struct gptoss_error *error) {
    struct gptoss_backend *backend = generator->model->backend;
    struct gptoss_ahead *ahead = &generator->ahead;
    int64_t num_rows = (int64_t)num_tokens;
    GPTOSS_TRY(gptoss_generator_check_tokens(generator, tokens, num_tokens, error));
    gptoss_generator_drop_ahead(generator);
    GPTOSS_TRY(reserve(generator, num_rows, error));
    memcpy(ahead->tokens, tokens, num_tokens * sizeof *tokens);
    gptoss_fill_rows(ahead->rows, 0, tokens, generator->position, num_rows);
    struct gptoss_capture *capture = &ahead->capture;
    const struct gptoss_pass pass = {
        .rows = ahead->rows,
        .num_rows = num_rows,
        .caches = &generator->cache,
        .captures = &capture,
        .num_slots = 1,
        .num_logits_rows = num_rows,
        .logits_out = ahead->logits,
        .progress_total = num_tokens,
    };
    GPTOSS_TRY(backend->operations->begin(backend, poll, user, error));
    enum gptoss_status status = gptoss_pass_run(generator->model, &pass, error);
    return end_turn(generator, num_rows, status, error);
}

bool gptoss_generator_runs_ahead(const struct gptoss_generator *generator) {
    return generator->model->backend->operations->guess != NULL;
}

/* The pass of row i, and the guess at the token of the next, if there is one. */
static enum gptoss_status run_guessed(struct gptoss_generator *generator, int64_t i,
                                      int64_t num_rows, const struct gptoss_sampling *sampling,
                                      struct gptoss_error *error) {
    struct gptoss_ahead *ahead = &generator->ahead;
    struct gptoss_capture *capture = &ahead->capture;
    int64_t position = generator->position + i;
    ahead->rows[i] = (struct gptoss_row){0, ahead->tokens[i], position};
    const struct gptoss_pass pass = {
        .rows = ahead->rows + i,
        .num_rows = 1,
        .caches = &generator->cache,
        .captures = &capture,
        .num_slots = 1,
        .num_logits_rows = 1,
        .logits_out = ahead->logits + i * generator->model->config->vocab_size,
        .is_deferred = true,
        .progress_done = (uint64_t)i,
        .progress_total = (uint64_t)num_rows,
    };
    GPTOSS_TRY(gptoss_pass_run(generator->model, &pass, error));
    ++capture->num_rows;
    if (i + 1 == num_rows)
        return GPTOSS_OK;
    ahead->tokens[i + 1] = GPTOSS_TOKEN_GUESSED;
    const struct gptoss_guess guess = {
        .temperature = sampling->temperature,
        .min_p = sampling->min_p,
        .random = gptoss_sampler_random(sampling->seed, (uint64_t)position + 1),
        .token = ahead->tokens + i + 1,
    };
    return gptoss_pass_guess(generator->model, &guess, error);
}

/* Draws from row i. Whether what follows is worth drawing from: the row of the token drawn. */
static bool draw(struct gptoss_generator *generator, int64_t i, int64_t num_rows,
                 const struct gptoss_sampling *sampling) {
    struct gptoss_ahead *ahead = &generator->ahead;
    size_t vocab_size = (size_t)generator->model->config->vocab_size;
    if (gptoss_sample(ahead->logits + (size_t)i * vocab_size, vocab_size, sampling, NULL,
                      (size_t)(generator->position + i + 1), &ahead->drawn[i], &ahead->logprobs[i],
                      NULL) != GPTOSS_OK)
        return false;
    ++ahead->num_drawn;
    return i + 1 < num_rows && ahead->tokens[i + 1] == ahead->drawn[i];
}

enum gptoss_status gptoss_generator_run_ahead(struct gptoss_generator *generator, int32_t token,
                                              int32_t num_tokens,
                                              const struct gptoss_sampling *sampling,
                                              gptoss_poll_fn poll, void *user,
                                              struct gptoss_error *error) {
    struct gptoss_backend *backend = generator->model->backend;
    if (backend->operations->guess == NULL)
        return gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                                "this device does not guess tokens");
    GPTOSS_TRY(gptoss_generator_check_tokens(generator, &token, 1, error));
    int64_t room = generator->max_context - generator->position;
    int64_t num_rows = num_tokens < 1 ? 1 : num_tokens < room ? num_tokens : room;
    num_rows = num_rows < GPTOSS_MAX_DEFERRED ? num_rows : GPTOSS_MAX_DEFERRED;
    gptoss_generator_drop_ahead(generator);
    GPTOSS_TRY(reserve(generator, num_rows, error));
    generator->ahead.tokens[0] = token;
    GPTOSS_TRY(backend->operations->begin(backend, poll, user, error));
    enum gptoss_status status = GPTOSS_OK;
    for (int64_t i = 0; i < num_rows && status == GPTOSS_OK; ++i)
        status = run_guessed(generator, i, num_rows, sampling, error);
    bool is_right = true;
    for (int64_t i = 0; i + 1 < num_rows && is_right && status == GPTOSS_OK; ++i) {
        status = gptoss_pass_take(generator->model, (int32_t)i, error);
        is_right = status == GPTOSS_OK && draw(generator, i, num_rows, sampling);
    }
    status = end_turn(generator, num_rows, status, error);
    if (status == GPTOSS_OK && is_right)
        draw(generator, num_rows - 1, num_rows, sampling);
    return status;
}

size_t gptoss_generator_drawn_ahead(const struct gptoss_generator *generator,
                                    const int32_t **tokens_out, const float **logprobs_out) {
    *tokens_out = generator->ahead.drawn;
    *logprobs_out = generator->ahead.logprobs;
    return (size_t)generator->ahead.num_drawn;
}

size_t gptoss_generator_ahead(const struct gptoss_generator *generator,
                              const int32_t **tokens_out) {
    const struct gptoss_ahead *ahead = &generator->ahead;
    *tokens_out = ahead->tokens + ahead->next;
    return (size_t)(ahead->num_rows - ahead->next);
}

bool gptoss_generator_is_ahead(const struct gptoss_generator *generator, int32_t token) {
    const struct gptoss_ahead *ahead = &generator->ahead;
    return ahead->next < ahead->num_rows && ahead->tokens[ahead->next] == token;
}

/* What the row ahead captured becomes what the last call captured. */
static void take_taps(struct gptoss_generator *generator) {
    const struct gptoss_ahead *ahead = &generator->ahead;
    const struct gptoss_config *config = generator->model->config;
    for (size_t index = 0; index < generator->capture.num_taps; ++index) {
        if (!gptoss_capture_wants(&generator->capture, index))
            continue;
        struct gptoss_tap tap;
        gptoss_tap_describe(config, index, &tap);
        uint64_t row_bytes = gptoss_tap_row_bytes(&tap);
        memcpy(generator->capture.data[index],
               (const uint8_t *)ahead->capture.data[index] + (uint64_t)ahead->next * row_bytes,
               row_bytes);
    }
}

enum gptoss_status gptoss_generator_take_ahead(struct gptoss_generator *generator,
                                               struct gptoss_error *error) {
    struct gptoss_ahead *ahead = &generator->ahead;
    int64_t vocab_size = generator->model->config->vocab_size;
    GPTOSS_TRY(gptoss_generator_reserve_tokens(generator, generator->position + 1, error));
    GPTOSS_TRY(gptoss_capture_begin(&generator->capture, generator->model->config, 1, error));
    take_taps(generator);
    memcpy(generator->logits, ahead->logits + ahead->next * vocab_size,
           (size_t)vocab_size * sizeof *generator->logits);
    generator->has_logits = true;
    gptoss_generator_commit_tokens(generator, ahead->tokens + ahead->next, 1);
    ++ahead->next;
    return GPTOSS_OK;
}

void gptoss_generator_drop_ahead(struct gptoss_generator *generator) {
    generator->ahead.num_rows = generator->ahead.next = generator->ahead.num_drawn = 0;
    gptoss_capture_drop(&generator->ahead.capture);
}

void gptoss_generator_free_ahead(struct gptoss_generator *generator) {
    struct gptoss_ahead *ahead = &generator->ahead;
    gptoss_generator_drop_ahead(generator);
    gptoss_free(ahead->tokens);
    gptoss_free(ahead->rows);
    gptoss_free(ahead->drawn);
    gptoss_free(ahead->logprobs);
    gptoss_free(ahead->logits);
    gptoss_free(ahead->capture.data);
    *ahead = (struct gptoss_ahead){0};
}
