/* Passes that follow each other on the device: it guesses the token of the next from the logits of
 * the last, whose results wait where the host can read them until they are taken. */
#include <stddef.h>
#include <string.h>

#include "status.h"
#include "vulkan/vulkan_backend.h"

#define WORKGROUP 256

/* Room for a turn's results. Only between turns may they move. */
static enum gptoss_status reserve_results(struct gptoss_vulkan_backend *backend,
                                          uint64_t row_bytes) {
    uint64_t num_bytes = GPTOSS_MAX_DEFERRED * (row_bytes + sizeof(int32_t));
    backend->deferred_bytes = row_bytes;
    if (num_bytes <= backend->deferred_results.num_bytes)
        return GPTOSS_OK;
    GPTOSS_TRY(gptoss_vulkan_flush(backend));
    gptoss_vulkan_forget(&backend->queue);
    gptoss_vulkan_memory_release(&backend->device, &backend->deferred_results);
    return gptoss_vulkan_memory_create(&backend->device, GPTOSS_VULKAN_READBACK, num_bytes,
                                       "logits ahead", &backend->deferred_results, &backend->error);
}

static uint64_t token_offset(const struct gptoss_vulkan_backend *backend, int32_t index) {
    return GPTOSS_MAX_DEFERRED * backend->deferred_bytes + (uint64_t)index * sizeof(int32_t);
}

enum gptoss_status gptoss_vulkan_defer_logits(struct gptoss_vulkan_backend *backend,
                                              const struct gptoss_unembed *operation) {
    int32_t index = backend->num_deferred;
    uint64_t row_bytes = (uint64_t)operation->weight->num_rows * sizeof(float);
    if (index == 0)
        GPTOSS_TRY(reserve_results(backend, row_bytes));
    backend->deferred[index].logits = operation->logits;
    backend->deferred[index].token = NULL;
    ++backend->num_deferred;
    return gptoss_vulkan_list_copy(&backend->queue, &backend->scratch[GPTOSS_SCRATCH_LOGITS], 0,
                                   &backend->deferred_results, (uint64_t)index * row_bytes,
                                   row_bytes, false);
}

static enum gptoss_status dispatch_stage(struct gptoss_vulkan_backend *backend, uint32_t stage,
                                         const struct gptoss_guess_push *push) {
    return gptoss_vulkan_dispatch(
        backend, &(struct gptoss_dispatch){
                     .key = {GPTOSS_SHADER_guess, {WORKGROUP, stage}},
                     .push = push,
                     .push_bytes = sizeof *push,
                     .groups = {stage == GPTOSS_GUESS_TOKEN ? 1 : GPTOSS_GUESS_PARTS, 1, 1},
                 });
}

enum gptoss_status gptoss_vulkan_guess(struct gptoss_backend *base,
                                       const struct gptoss_guess *operation) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->timer = GPTOSS_TIMER_unembed;
    int32_t index = backend->num_deferred - 1;
    const struct gptoss_vulkan_table table = *gptoss_vulkan_table(backend);
    uint32_t random = (uint32_t)(operation->random >> 32);
    memcpy(gptoss_vulkan_at(&table.memory, table.random), &random, sizeof random);
    struct gptoss_guess_push push = {
        .logits = backend->scratch[GPTOSS_SCRATCH_LOGITS].address,
        .random = table.random,
        .copy = backend->deferred_results.address + token_offset(backend, index),
        .vocab_size = (uint32_t)(backend->deferred_bytes / sizeof(float)),
        .temperature = operation->temperature,
        .min_p = operation->min_p,
    };
    GPTOSS_TRY(gptoss_vulkan_scratch(backend, GPTOSS_SCRATCH_GUESS,
                                     3 * GPTOSS_GUESS_PARTS * sizeof(uint32_t), &push.parts));
    ++backend->num_guesses; /* the next pass's table */
    GPTOSS_TRY(gptoss_vulkan_reserve_table(backend, 1, table.max_angles));
    push.token = gptoss_vulkan_table(backend)->rows + offsetof(struct gptoss_device_row, token);
    backend->deferred[index].token = operation->token;
    GPTOSS_TRY(dispatch_stage(backend, GPTOSS_GUESS_MAXIMA, &push));
    if (operation->temperature > 0)
        GPTOSS_TRY(dispatch_stage(backend, GPTOSS_GUESS_SUMS, &push));
    GPTOSS_TRY(dispatch_stage(backend, GPTOSS_GUESS_TOKEN, &push));
    return gptoss_vulkan_start_behind(&backend->queue, &backend->error);
}

static void take(const struct gptoss_vulkan_backend *backend, int32_t index) {
    const uint8_t *results = backend->deferred_results.host;
    memcpy(backend->deferred[index].logits, results + (uint64_t)index * backend->deferred_bytes,
           backend->deferred_bytes);
    if (backend->deferred[index].token != NULL)
        memcpy(backend->deferred[index].token, results + token_offset(backend, index),
               sizeof(int32_t));
}

enum gptoss_status gptoss_vulkan_take_deferred(struct gptoss_backend *base, int32_t index) {
    _Static_assert(GPTOSS_MAX_BEHIND >= GPTOSS_MAX_DEFERRED, "each pass has a fence");
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    if (backend->queue.count > 0) /* the last pass, behind which nothing was guessed */
        GPTOSS_TRY(gptoss_vulkan_start_behind(&backend->queue, &backend->error));
    GPTOSS_TRY(gptoss_vulkan_wait_as_asked(backend, (uint32_t)index));
    take(backend, index);
    backend->num_taken = index + 1;
    return GPTOSS_OK;
}

void gptoss_vulkan_collect(struct gptoss_vulkan_backend *backend) {
    for (int32_t i = backend->num_taken; i < backend->num_deferred; ++i)
        take(backend, i);
}
