/* Feeding many sequences as one table of rows. The rows of all generators, one generator after the
 * other, are cut into blocks; a block counts for all its generators or for none. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "engine/generator.h"
#include "platform/allocator.h"
#include "status.h"

#define MAX_BLOCK_ROWS 512
/* Sequences that end in one block: their logits are kept apart until the block is complete. */
#define MAX_BLOCK_LOGITS 64

/* Consecutive tokens of one generator in a block. */
struct part {
    struct gptoss_generator *generator;
    const int32_t *tokens;
    int64_t num_tokens;
    bool is_last; /* of the generator's tokens: leaves logits */
};

struct batch {
    struct gptoss_generator *const *generators;
    const size_t *num_tokens;
    size_t num_generators;
    uint64_t num_done, num_rows_total;

    /* What comes next: a generator, how many of its tokens were fed, and the rest. */
    size_t next;
    size_t num_fed;
    const int32_t *tokens;

    int32_t num_parts;
    int64_t num_rows, num_logits;
    size_t first; /* the generator of part 0 */
    struct part parts[MAX_BLOCK_LOGITS];
    struct gptoss_cache *caches[MAX_BLOCK_LOGITS];
    struct gptoss_capture *captures[MAX_BLOCK_LOGITS];
    struct gptoss_row rows[MAX_BLOCK_ROWS];
    int64_t logits_rows[MAX_BLOCK_LOGITS];
};

/* Begins the sentence with the generator at fault. */
static enum gptoss_status name_generator(enum gptoss_status status, size_t index,
                                         struct gptoss_error *error) {
    if (error == NULL || status == GPTOSS_OK)
        return status;
    char sentence[sizeof error->message - 32];
    snprintf(sentence, sizeof sentence, "%.*s", (int)sizeof sentence - 1, error->message);
    snprintf(error->message, sizeof error->message, "generator %zu: %s", index, sentence);
    return status;
}

/* ---- admission ---- */

static enum gptoss_status check_generator(struct gptoss_generator *const *generators, size_t index,
                                          struct gptoss_error *error) {
    if (generators[index]->model != generators[0]->model)
        return gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                                "its model is not that of generator 0: a batch runs on one model");
    for (size_t other = 0; other < index; ++other)
        if (generators[other] == generators[index])
            return gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                                    "it is generator %zu, too; each may be given once", other);
    return GPTOSS_OK;
}

/* Checks everything before anything changes. */
static enum gptoss_status check_batch(const struct batch *batch, struct gptoss_error *error) {
    if (batch->num_generators == 0)
        return gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT, "there are no generators to feed");
    const int32_t *tokens = batch->tokens;
    for (size_t i = 0; i < batch->num_generators; ++i) {
        enum gptoss_status status = check_generator(batch->generators, i, error);
        if (status == GPTOSS_OK)
            status = gptoss_generator_check_tokens(batch->generators[i], tokens,
                                                   batch->num_tokens[i], error);
        if (status != GPTOSS_OK)
            return name_generator(status, i, error);
        tokens += batch->num_tokens[i];
    }
    return GPTOSS_OK;
}

static enum gptoss_status admit(struct batch *batch, struct gptoss_error *error) {
    GPTOSS_TRY(check_batch(batch, error));
    for (size_t i = 0; i < batch->num_generators; ++i) {
        struct gptoss_generator *generator = batch->generators[i];
        int64_t num_tokens = (int64_t)batch->num_tokens[i];
        gptoss_generator_drop_ahead(generator);
        enum gptoss_status status =
            gptoss_generator_reserve_tokens(generator, generator->position + num_tokens, error);
        if (status == GPTOSS_OK)
            status = gptoss_capture_begin(&generator->capture, generator->model->config, num_tokens,
                                          error);
        if (status != GPTOSS_OK)
            return name_generator(status, i, error);
        batch->num_rows_total += batch->num_tokens[i];
    }
    return GPTOSS_OK;
}

/* ---- blocks ---- */

/* Puts tokens of the next generator, as many as there is room for, into the block. */
static void add_part(struct batch *batch) {
    struct gptoss_generator *generator = batch->generators[batch->next];
    int64_t room = MAX_BLOCK_ROWS - batch->num_rows;
    int64_t rest = (int64_t)(batch->num_tokens[batch->next] - batch->num_fed);
    int64_t num_tokens = rest < room ? rest : room;
    int32_t slot = batch->num_parts++;
    batch->parts[slot] = (struct part){generator, batch->tokens, num_tokens, num_tokens == rest};
    batch->caches[slot] = generator->cache;
    batch->captures[slot] = &generator->capture;
    gptoss_fill_rows(batch->rows + batch->num_rows, slot, batch->tokens, generator->position,
                     num_tokens);
    batch->num_rows += num_tokens;
    batch->tokens += num_tokens;
    batch->num_fed += (size_t)num_tokens;
    if (num_tokens == rest) {
        batch->logits_rows[batch->num_logits++] = batch->num_rows - 1;
        batch->num_fed = 0;
        ++batch->next;
    }
}

static void cut_block(struct batch *batch) {
    batch->num_parts = 0;
    batch->num_rows = batch->num_logits = 0;
    batch->first = batch->next;
    while (batch->next < batch->num_generators && batch->num_rows < MAX_BLOCK_ROWS &&
           batch->num_logits < MAX_BLOCK_LOGITS)
        add_part(batch);
}

static enum gptoss_status check_logits(const struct batch *batch, const float *logits,
                                       int64_t vocab_size, struct gptoss_error *error) {
    for (int32_t i = 0; i < batch->num_parts && batch->parts[i].is_last; ++i) {
        enum gptoss_status status = gptoss_check_logits(logits + i * vocab_size, vocab_size, error);
        if (status != GPTOSS_OK)
            return name_generator(status, batch->first + (size_t)i, error);
    }
    return GPTOSS_OK;
}

/* All but the last part of a block end their generators' tokens, so row i of the logits is part
 * i's. */
static enum gptoss_status feed_block(struct gptoss_model *model, struct batch *batch,
                                     struct gptoss_error *error) {
    int64_t vocab_size = model->config->vocab_size;
    float *logits;
    GPTOSS_TRY(gptoss_model_batch_logits(model, batch->num_logits, &logits, error));
    const struct gptoss_pass pass = {
        .rows = batch->rows,
        .num_rows = batch->num_rows,
        .caches = batch->caches,
        .captures = batch->captures,
        .num_slots = batch->num_parts,
        .logits_rows = batch->num_logits < batch->num_rows ? batch->logits_rows : NULL,
        .num_logits_rows = batch->num_logits,
        .logits_out = logits,
        .progress_done = batch->num_done,
        .progress_total = batch->num_rows_total,
    };
    GPTOSS_TRY(gptoss_pass_run(model, &pass, error));
    GPTOSS_TRY(check_logits(batch, logits, vocab_size, error));
    for (int32_t i = 0; i < batch->num_parts; ++i) {
        const struct part *part = &batch->parts[i];
        gptoss_generator_commit_tokens(part->generator, part->tokens, part->num_tokens);
        part->generator->has_logits = part->is_last;
        if (part->is_last)
            memcpy(part->generator->logits, logits + i * vocab_size,
                   (size_t)vocab_size * sizeof *logits);
    }
    batch->num_done += (uint64_t)batch->num_rows;
    return GPTOSS_OK;
}

static enum gptoss_status run_blocks(struct gptoss_model *model, struct batch *batch,
                                     struct gptoss_error *error) {
    struct gptoss_backend *backend = model->backend;
    while (batch->next < batch->num_generators) {
        cut_block(batch);
        GPTOSS_TRY(feed_block(model, batch, error));
        if (backend->operations->poll(backend, batch->num_done, batch->num_rows_total))
            return gptoss_error_set(error, GPTOSS_ERROR_INTERRUPTED,
                                    "interrupted after %" PRIu64 " of %" PRIu64 " tokens",
                                    batch->num_done, batch->num_rows_total);
    }
    return GPTOSS_OK;
}

enum gptoss_status gptoss_forward(struct gptoss_generator *const *generators, size_t num_generators,
                                  const int32_t *tokens, const size_t *num_tokens_each,
                                  gptoss_poll_fn poll, void *user, struct gptoss_error *error) {
    struct batch *batch = gptoss_allocate(1, sizeof *batch);
    if (batch == NULL)
        return gptoss_error_memory(error, sizeof *batch, "a batch");
    batch->generators = generators;
    batch->num_generators = num_generators;
    batch->num_tokens = num_tokens_each;
    batch->tokens = tokens;
    enum gptoss_status status = admit(batch, error);
    if (status != GPTOSS_OK)
        goto cleanup;
    struct gptoss_model *model = generators[0]->model;
    struct gptoss_backend *backend = model->backend;
    status = backend->operations->begin(backend, poll, user, error);
    if (status != GPTOSS_OK)
        goto cleanup;
    status = run_blocks(model, batch, error);
    enum gptoss_status end_status =
        backend->operations->end(backend, status == GPTOSS_OK ? error : NULL);
    status = status != GPTOSS_OK ? status : end_status;
cleanup:
    gptoss_free(batch);
    return status;
}
