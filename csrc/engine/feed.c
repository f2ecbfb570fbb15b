/* Feeding tokens to one sequence. A call works in blocks of rows; a block counts only once it is
 * complete, so an interruption or an error leaves the generator after its last complete block. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cpu/kernels.h"
#include "engine/generator.h"
#include "numeric/softmax.h"
#include "platform/allocator.h"
#include "status.h"

/* Rows a sliding layer keeps beyond its window, so that short rewinds cost nothing. */
#define KEPT_BEHIND_WINDOW 512
/* Rows by which the kept part may lag, so that pages are not given back at every step. */
#define DISCARD_STEP 64

/* ---- admission ---- */

enum gptoss_status gptoss_generator_check_tokens(const struct gptoss_generator *generator,
                                                 const int32_t *tokens, size_t num_tokens,
                                                 struct gptoss_error *error) {
    int32_t vocab_size = generator->model->config->vocab_size;
    if (num_tokens == 0)
        return gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT, "there are no tokens to feed");
    uint64_t room = (uint64_t)(generator->max_context - generator->position);
    if (num_tokens > room) {
        gptoss_error_set(error, GPTOSS_ERROR_CONTEXT,
                         "the context is full: %" PRId64
                         " tokens and %zu more do not fit in max_context=%" PRId64,
                         generator->position, num_tokens, generator->max_context);
        if (error != NULL) {
            error->limit = generator->max_context;
            error->requested =
                num_tokens > INT64_MAX / 2 ? INT64_MAX : generator->position + (int64_t)num_tokens;
        }
        return GPTOSS_ERROR_CONTEXT;
    }
    for (size_t i = 0; i < num_tokens; ++i) {
        if (tokens[i] >= 0 && tokens[i] < vocab_size)
            continue;
        gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                         "token %" PRId32 " (number %zu) is outside the vocabulary of %" PRId32,
                         tokens[i], i, vocab_size);
        gptoss_error_expected(error, "0 .. %" PRId32, vocab_size - 1);
        gptoss_error_found(error, "%" PRId32, tokens[i]);
        return GPTOSS_ERROR_ARGUMENT;
    }
    return GPTOSS_OK;
}

enum gptoss_status gptoss_generator_reserve_tokens(struct gptoss_generator *generator,
                                                   int64_t num_tokens, struct gptoss_error *error) {
    if (num_tokens <= generator->token_capacity)
        return GPTOSS_OK;
    int64_t capacity = generator->token_capacity * 2;
    if (capacity < num_tokens)
        capacity = num_tokens;
    if (capacity < 256)
        capacity = 256;
    int32_t *tokens = gptoss_allocate((size_t)capacity, sizeof *tokens);
    if (tokens == NULL)
        return gptoss_error_memory(error, (uint64_t)capacity * sizeof *tokens, "tokens");
    if (generator->position > 0)
        memcpy(tokens, generator->tokens, (size_t)generator->position * sizeof *tokens);
    gptoss_free(generator->tokens);
    generator->tokens = tokens;
    generator->token_capacity = capacity;
    return GPTOSS_OK;
}

/* ---- blocks ---- */

void gptoss_fill_rows(struct gptoss_row *rows, int32_t slot, const int32_t *tokens,
                      int64_t first_position, int64_t num_rows) {
    for (int64_t i = 0; i < num_rows; ++i)
        rows[i] = (struct gptoss_row){slot, tokens[i], first_position + i};
}

enum gptoss_status gptoss_check_logits(const float *logits, int64_t vocab_size,
                                       struct gptoss_error *error) {
    const struct gptoss_kernels *kernels = gptoss_kernels_select(NULL);
    int64_t block = 0;
    float maximum = 0; /* of the block before: NaN if one of its logits is */
    for (; block < vocab_size && !isnan(maximum); block += GPTOSS_SOFTMAX_BLOCK) {
        int64_t left = vocab_size - block;
        kernels->block_maxima(logits + block,
                              left < GPTOSS_SOFTMAX_BLOCK ? left : GPTOSS_SOFTMAX_BLOCK, &maximum);
    }
    if (!isnan(maximum))
        return GPTOSS_OK;
    int64_t token = block - GPTOSS_SOFTMAX_BLOCK;
    while (!isnan(logits[token]))
        ++token;
    return gptoss_error_set(
        error, GPTOSS_ERROR_NUMERIC,
        "the logits are NaN (token %" PRId64 " of the vocabulary); a weight is damaged or the "
        "activations left the range of float32: open the model with verify=True to check it",
        token);
}

/* Rows before this one are not kept in a sliding layer. */
static int64_t first_kept(const struct gptoss_generator *generator, int32_t layer,
                          int64_t position) {
    const struct gptoss_config *config = generator->model->config;
    struct gptoss_kv_view view;
    generator->model->backend->operations->cache_view(generator->cache, layer, &view);
    if (!config->layer_is_sliding[layer])
        return view.first_position;
    int64_t bound = position - config->sliding_window - KEPT_BEHIND_WINDOW;
    return bound - view.first_position >= DISCARD_STEP ? bound : view.first_position;
}

void gptoss_generator_commit(struct gptoss_generator *generator, int64_t position) {
    const struct gptoss_backend_operations *operations = generator->model->backend->operations;
    for (int32_t layer = 0; layer < generator->model->config->num_layers; ++layer)
        operations->cache_hold(generator->cache, layer, first_kept(generator, layer, position),
                               position);
    generator->position = position;
}

void gptoss_generator_commit_tokens(struct gptoss_generator *generator, const int32_t *tokens,
                                    int64_t num_tokens) {
    memcpy(generator->tokens + generator->position, tokens, (size_t)num_tokens * sizeof *tokens);
    generator->capture.num_rows += num_tokens;
    gptoss_generator_commit(generator, generator->position + num_tokens);
}

enum gptoss_status gptoss_generator_run_block(struct gptoss_generator *generator,
                                              const int32_t *tokens, int64_t num_rows, bool last,
                                              float *all_logits, const struct gptoss_pass *progress,
                                              struct gptoss_error *error) {
    int64_t vocab_size = generator->model->config->vocab_size;
    gptoss_fill_rows(generator->rows, 0, tokens, generator->position, num_rows);
    struct gptoss_capture *capture = &generator->capture;
    struct gptoss_pass pass = *progress;
    pass.rows = generator->rows;
    pass.num_rows = num_rows;
    pass.caches = &generator->cache;
    pass.captures = &capture;
    pass.num_slots = 1;
    if (all_logits != NULL) {
        pass.num_logits_rows = num_rows;
        pass.logits_out = all_logits;
    } else if (last) {
        generator->has_logits = false;
        pass.first_logits_row = num_rows - 1;
        pass.num_logits_rows = 1;
        pass.logits_out = generator->logits;
    }
    enum gptoss_status status = gptoss_pass_run(generator->model, &pass, error);
    for (int64_t row = 0; row < pass.num_logits_rows && status == GPTOSS_OK; ++row)
        status = gptoss_check_logits(pass.logits_out + row * vocab_size, vocab_size, error);
    return status;
}

/* One block of a prefill. */
static enum gptoss_status feed_block(struct gptoss_generator *generator, const int32_t *tokens,
                                     int64_t num_rows, bool last, float *all_logits,
                                     const struct gptoss_pass *progress,
                                     struct gptoss_error *error) {
    int64_t vocab_size = generator->model->config->vocab_size;
    GPTOSS_TRY(
        gptoss_generator_run_block(generator, tokens, num_rows, last, all_logits, progress, error));
    gptoss_generator_commit_tokens(generator, tokens, num_rows);
    generator->has_logits = last;
    if (all_logits != NULL && last)
        memcpy(generator->logits, all_logits + (num_rows - 1) * vocab_size,
               (size_t)vocab_size * sizeof *all_logits);
    return GPTOSS_OK;
}

/* A row that was computed ahead, told to the callback like any other. */
static enum gptoss_status take_ahead(struct gptoss_generator *generator, gptoss_poll_fn poll,
                                     void *user, struct gptoss_error *error) {
    GPTOSS_TRY(gptoss_generator_take_ahead(generator, error));
    if (poll == NULL || poll(user, 1, 1) == 0)
        return GPTOSS_OK;
    return gptoss_error_set(error, GPTOSS_ERROR_INTERRUPTED, "interrupted after 1 of 1 tokens");
}

enum gptoss_status gptoss_generator_prefill(struct gptoss_generator *generator,
                                            const int32_t *tokens, size_t num_tokens,
                                            float *all_logits_out, gptoss_poll_fn poll, void *user,
                                            struct gptoss_error *error) {
    struct gptoss_backend *backend = generator->model->backend;
    enum gptoss_status status = gptoss_generator_check_tokens(generator, tokens, num_tokens, error);
    if (status != GPTOSS_OK)
        return status;
    if (num_tokens == 1 && all_logits_out == NULL && gptoss_generator_is_ahead(generator, *tokens))
        return take_ahead(generator, poll, user, error);
    gptoss_generator_drop_ahead(generator);
    status = gptoss_generator_reserve_tokens(generator, generator->position + (int64_t)num_tokens,
                                             error);
    if (status == GPTOSS_OK)
        status = gptoss_capture_begin(&generator->capture, generator->model->config,
                                      (int64_t)num_tokens, error);
    if (status != GPTOSS_OK)
        return status;
    status = backend->operations->begin(backend, poll, user, error);
    if (status != GPTOSS_OK)
        return status;
    int64_t total = (int64_t)num_tokens, vocab_size = generator->model->config->vocab_size;
    for (int64_t done = 0; done < total && status == GPTOSS_OK;) {
        int64_t num_rows =
            total - done < generator->block_size ? total - done : generator->block_size;
        struct gptoss_pass progress = {.progress_done = (uint64_t)done,
                                       .progress_total = (uint64_t)total};
        status = feed_block(generator, tokens + done, num_rows, done + num_rows == total,
                            all_logits_out != NULL ? all_logits_out + done * vocab_size : NULL,
                            &progress, error);
        done += num_rows;
        if (status == GPTOSS_OK &&
            backend->operations->poll(backend, (uint64_t)done, (uint64_t)total))
            status = gptoss_error_set(error, GPTOSS_ERROR_INTERRUPTED,
                                      "interrupted after %" PRId64 " of %" PRId64 " tokens", done,
                                      total);
    }
    enum gptoss_status end_status =
        backend->operations->end(backend, status == GPTOSS_OK ? error : NULL);
    return status != GPTOSS_OK ? status : end_status;
}
