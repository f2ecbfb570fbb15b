/* One sequence: tokens, cache, logits, taps. Its life, what it holds, and going back. */
#include "engine/generator.h"

#include <inttypes.h>
#include <string.h>

#include "platform/allocator.h"
#include "status.h"

#define DEFAULT_BLOCK_SIZE 2048
#define MAX_BLOCK_SIZE 65536
#define MAX_CONTEXT INT32_MAX

/* ---- life ---- */

static enum gptoss_status check_options(const struct gptoss_config *config,
                                        const struct gptoss_generator_options *options,
                                        struct gptoss_error *error) {
    if (options->max_context < 0 || options->max_context > MAX_CONTEXT) {
        gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                         "max_context must be 1 to %" PRId32 ", or 0 for the model's %" PRId32
                         ", not %" PRId64,
                         MAX_CONTEXT, config->max_positions, options->max_context);
        gptoss_error_expected(error, "1 .. %" PRId32, MAX_CONTEXT);
        gptoss_error_found(error, "%" PRId64, options->max_context);
        return GPTOSS_ERROR_ARGUMENT;
    }
    if (config->rope_scaling == GPTOSS_ROPE_NONE && options->max_context > config->max_positions) {
        gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                         "max_context is %" PRId64 ", but the positions of this model are learned, "
                         "and there are %" PRId32 " of them",
                         options->max_context, config->max_positions);
        gptoss_error_expected(error, "1 .. %" PRId32, config->max_positions);
        gptoss_error_found(error, "%" PRId64, options->max_context);
        return GPTOSS_ERROR_ARGUMENT;
    }
    if (options->kv_dtype != GPTOSS_DTYPE_F16 && options->kv_dtype != GPTOSS_DTYPE_F32) {
        gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT, "the cache is kept in F16 or F32, not %s",
                         gptoss_dtype_name(options->kv_dtype));
        gptoss_error_expected(error, "F16 or F32");
        gptoss_error_found(error, "%s", gptoss_dtype_name(options->kv_dtype));
        return GPTOSS_ERROR_ARGUMENT;
    }
    if (options->block_size < 0 || options->block_size > MAX_BLOCK_SIZE) {
        gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                         "block_size must be 1 to %d, or 0 for %d, not %" PRId32, MAX_BLOCK_SIZE,
                         DEFAULT_BLOCK_SIZE, options->block_size);
        gptoss_error_expected(error, "1 .. %d", MAX_BLOCK_SIZE);
        gptoss_error_found(error, "%" PRId32, options->block_size);
        return GPTOSS_ERROR_ARGUMENT;
    }
    return GPTOSS_OK;
}

enum gptoss_status gptoss_generator_create(struct gptoss_model *model,
                                           const struct gptoss_generator_options *options,
                                           struct gptoss_generator **generator_out,
                                           struct gptoss_error *error) {
    static const struct gptoss_generator_options defaults = {.kv_dtype = GPTOSS_DTYPE_F16};
    if (options == NULL)
        options = &defaults;
    *generator_out = NULL;
    const struct gptoss_config *config = model->config;
    enum gptoss_status status = check_options(config, options, error);
    if (status != GPTOSS_OK)
        return status;
    struct gptoss_generator *generator = gptoss_allocate(1, sizeof *generator);
    if (generator == NULL)
        return gptoss_error_memory(error, sizeof *generator, "the generator");
    atomic_init(&generator->references, 1);
    generator->model = gptoss_model_retain(model);
    generator->max_context =
        options->max_context > 0 ? options->max_context : config->max_positions;
    generator->kv_dtype = options->kv_dtype;
    generator->block_size = options->block_size > 0 ? options->block_size : DEFAULT_BLOCK_SIZE;
    generator->capture.num_taps = gptoss_model_num_taps(model);
    generator->capture.mask = gptoss_allocate(generator->capture.num_taps, 1);
    generator->capture.data = gptoss_allocate(generator->capture.num_taps, sizeof(void *));
    generator->rows = gptoss_allocate((size_t)generator->block_size, sizeof *generator->rows);
    generator->logits = gptoss_allocate((size_t)config->vocab_size, sizeof *generator->logits);
    if (generator->capture.mask == NULL || generator->capture.data == NULL ||
        generator->rows == NULL || generator->logits == NULL) {
        status = gptoss_error_memory(error, (uint64_t)config->vocab_size * sizeof(float),
                                     "the generator");
        goto cleanup;
    }
    const struct gptoss_cache_shape shape = {
        .num_layers = config->num_layers,
        .num_kv_heads = config->num_kv_heads,
        .head_dim = config->head_dim,
        .dtype = generator->kv_dtype,
        .max_context = generator->max_context,
    };
    status =
        model->backend->operations->cache_create(model->backend, &shape, &generator->cache, error);
    if (status != GPTOSS_OK)
        goto cleanup;
    *generator_out = generator;
    return GPTOSS_OK;
cleanup:
    gptoss_generator_release(generator);
    return status;
}

struct gptoss_generator *gptoss_generator_retain(struct gptoss_generator *generator) {
    atomic_fetch_add_explicit(&generator->references, 1, memory_order_relaxed);
    return generator;
}

void gptoss_generator_release(struct gptoss_generator *generator) {
    if (generator == NULL ||
        atomic_fetch_sub_explicit(&generator->references, 1, memory_order_acq_rel) != 1)
        return;
    gptoss_generator_free_ahead(generator);
    gptoss_capture_drop(&generator->capture);
    gptoss_free(generator->capture.mask);
    gptoss_free(generator->capture.data);
    generator->model->backend->operations->cache_release(generator->model->backend,
                                                         generator->cache);
    gptoss_free(generator->tokens);
    gptoss_free(generator->rows);
    gptoss_free(generator->logits);
    gptoss_model_release(generator->model);
    gptoss_free(generator);
}

/* ---- what it holds ---- */

struct gptoss_model *gptoss_generator_model(const struct gptoss_generator *generator) {
    return generator->model;
}
const float *gptoss_generator_logits(const struct gptoss_generator *generator) {
    return generator->logits;
}
bool gptoss_generator_has_logits(const struct gptoss_generator *generator) {
    return generator->has_logits;
}
int64_t gptoss_generator_position(const struct gptoss_generator *generator) {
    return generator->position;
}
int64_t gptoss_generator_max_context(const struct gptoss_generator *generator) {
    return generator->max_context;
}
enum gptoss_dtype gptoss_generator_kv_dtype(const struct gptoss_generator *generator) {
    return generator->kv_dtype;
}
const int32_t *gptoss_generator_tokens(const struct gptoss_generator *generator) {
    return generator->tokens;
}

static struct gptoss_kv_view layer_view(const struct gptoss_generator *generator, int32_t layer) {
    struct gptoss_kv_view view;
    generator->model->backend->operations->cache_view(generator->cache, layer, &view);
    return view;
}

enum gptoss_status gptoss_generator_kv(const struct gptoss_generator *generator, int32_t layer,
                                       struct gptoss_kv_view *view_out,
                                       struct gptoss_error *error) {
    int32_t num_layers = generator->model->config->num_layers;
    if (layer < 0 || layer >= num_layers) {
        gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                         "there is no layer %" PRId32 "; the model has %" PRId32, layer,
                         num_layers);
        gptoss_error_expected(error, "0 .. %" PRId32, num_layers - 1);
        gptoss_error_found(error, "%" PRId32, layer);
        return GPTOSS_ERROR_ARGUMENT;
    }
    struct gptoss_backend *backend = generator->model->backend;
    if (backend->operations->cache_fetch != NULL)
        GPTOSS_TRY(backend->operations->cache_fetch(backend, generator->cache, layer, error));
    *view_out = layer_view(generator, layer);
    return GPTOSS_OK;
}

void gptoss_generator_memory(const struct gptoss_generator *generator, uint64_t *reserved_bytes_out,
                             uint64_t *held_bytes_out) {
    const struct gptoss_config *config = generator->model->config;
    uint64_t reserved = 0, held = 0;
    for (int32_t layer = 0; layer < config->num_layers; ++layer) {
        struct gptoss_kv_view view = layer_view(generator, layer);
        uint64_t num_heads = 2 * (uint64_t)config->num_kv_heads;
        reserved += num_heads * view.head_stride_bytes;
        held += num_heads * (uint64_t)(view.end_position - view.first_position) * view.row_bytes;
    }
    *reserved_bytes_out = reserved;
    *held_bytes_out = held;
}

/* ---- taps ---- */

enum gptoss_status gptoss_generator_capture(struct gptoss_generator *generator, const uint8_t *mask,
                                            struct gptoss_error *error) {
    (void)error;
    gptoss_generator_drop_ahead(generator);
    gptoss_capture_drop(&generator->capture);
    for (size_t tap = 0; tap < generator->capture.num_taps; ++tap)
        generator->capture.mask[tap] = mask != NULL && mask[tap] != 0;
    return GPTOSS_OK;
}

void *gptoss_generator_take_tap(struct gptoss_generator *generator, size_t tap, int64_t *rows_out) {
    *rows_out = 0;
    if (tap >= generator->capture.num_taps)
        return NULL;
    void *data = generator->capture.data[tap];
    generator->capture.data[tap] = NULL;
    if (data != NULL)
        *rows_out = generator->capture.num_rows;
    return data;
}

/* ---- going back ---- */

static bool rows_are_held(const struct gptoss_generator *generator, int64_t position) {
    const struct gptoss_config *config = generator->model->config;
    for (int32_t layer = 0; layer < config->num_layers; ++layer) {
        int64_t needed =
            config->layer_is_sliding[layer] ? position - config->sliding_window + 1 : 0;
        if (layer_view(generator, layer).first_position > (needed > 0 ? needed : 0))
            return false;
    }
    return true;
}

/* A row of the j-th sliding layer depends on window - 1 rows before it in the sliding layer below
 * (full layers hold all their rows), so a replay that starts at `start` knows rows of that layer
 * from start + j (window - 1) on. */
static int64_t first_known(const struct gptoss_generator *generator, int64_t start,
                           int32_t num_sliding_below) {
    return start == 0 ? 0
                      : start + num_sliding_below *
                                    (int64_t)(generator->model->config->sliding_window - 1);
}

static int32_t num_sliding_layers(const struct gptoss_config *config) {
    int32_t count = 0;
    for (int32_t layer = 0; layer < config->num_layers; ++layer)
        count += config->layer_is_sliding[layer] != 0;
    return count;
}

/* Computes rows [start, position) again. The cache keeps the rows it holds, so only those that are
 * gone are written. */
static enum gptoss_status replay(struct gptoss_generator *generator, int64_t start,
                                 int64_t position, gptoss_poll_fn poll, void *user,
                                 struct gptoss_error *error) {
    struct gptoss_backend *backend = generator->model->backend;
    enum gptoss_status status = backend->operations->begin(backend, poll, user, error);
    if (status != GPTOSS_OK)
        return status;
    for (int64_t at = start; at < position && status == GPTOSS_OK;) {
        int64_t num_rows =
            position - at < generator->block_size ? position - at : generator->block_size;
        gptoss_fill_rows(generator->rows, 0, generator->tokens + at, at, num_rows);
        struct gptoss_pass pass = {
            .rows = generator->rows,
            .num_rows = num_rows,
            .caches = &generator->cache,
            .num_slots = 1,
            .progress_done = (uint64_t)(at - start),
            .progress_total = (uint64_t)(position - start),
        };
        status = gptoss_pass_run(generator->model, &pass, error);
        at += num_rows;
        if (status == GPTOSS_OK &&
            backend->operations->poll(backend, (uint64_t)(at - start), pass.progress_total))
            status = gptoss_error_set(error, GPTOSS_ERROR_INTERRUPTED,
                                      "interrupted while computing rows again");
    }
    enum gptoss_status end_status =
        backend->operations->end(backend, status == GPTOSS_OK ? error : NULL);
    return status != GPTOSS_OK ? status : end_status;
}

enum gptoss_status gptoss_generator_rewind(struct gptoss_generator *generator, int64_t position,
                                           gptoss_poll_fn poll, void *user,
                                           struct gptoss_error *error) {
    if (position < 0 || position > generator->position) {
        gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                         "cannot rewind to position %" PRId64 "; the generator is at %" PRId64,
                         position, generator->position);
        gptoss_error_expected(error, "0 .. %" PRId64, generator->position);
        gptoss_error_found(error, "%" PRId64, position);
        return GPTOSS_ERROR_ARGUMENT;
    }
    if (position == generator->position)
        return GPTOSS_OK;
    gptoss_generator_drop_ahead(generator);
    const struct gptoss_config *config = generator->model->config;
    const struct gptoss_backend_operations *operations = generator->model->backend->operations;
    if (!rows_are_held(generator, position)) {
        int64_t start =
            position - num_sliding_layers(config) * (int64_t)(config->sliding_window - 1);
        if (start < 0)
            start = 0;
        enum gptoss_status status = replay(generator, start, position, poll, user, error);
        if (status != GPTOSS_OK)
            return status;
        int32_t num_sliding_below = 0;
        for (int32_t layer = 0; layer < config->num_layers; ++layer) {
            if (!config->layer_is_sliding[layer])
                continue;
            struct gptoss_kv_view view = layer_view(generator, layer);
            int64_t first = first_known(generator, start, num_sliding_below++);
            if (first < view.first_position)
                operations->cache_hold(generator->cache, layer, first, view.end_position);
        }
    }
    gptoss_generator_commit(generator, position);
    generator->has_logits = false;
    gptoss_capture_drop(&generator->capture);
    return GPTOSS_OK;
}

void gptoss_generator_reset(struct gptoss_generator *generator) {
    gptoss_generator_drop_ahead(generator);
    const struct gptoss_backend_operations *operations = generator->model->backend->operations;
    for (int32_t layer = 0; layer < generator->model->config->num_layers; ++layer)
        operations->cache_hold(generator->cache, layer, 0, 0);
    generator->position = 0;
    generator->has_logits = false;
    gptoss_capture_drop(&generator->capture);
}

enum gptoss_status gptoss_generator_fork(const struct gptoss_generator *generator,
                                         struct gptoss_generator **generator_out,
                                         struct gptoss_error *error) {
    const struct gptoss_generator_options options = {
        .max_context = generator->max_context,
        .kv_dtype = generator->kv_dtype,
        .block_size = generator->block_size,
    };
    *generator_out = NULL;
    struct gptoss_generator *fork;
    enum gptoss_status status = gptoss_generator_create(generator->model, &options, &fork, error);
    if (status != GPTOSS_OK)
        return status;
    status = gptoss_generator_reserve_tokens(fork, generator->position, error);
    if (status != GPTOSS_OK) {
        gptoss_generator_release(fork);
        return status;
    }
    if (generator->position > 0)
        memcpy(fork->tokens, generator->tokens, (size_t)generator->position * sizeof *fork->tokens);
    fork->position = generator->position;
    fork->has_logits = generator->has_logits;
    memcpy(fork->logits, generator->logits,
           (size_t)generator->model->config->vocab_size * sizeof *fork->logits);
    status =
        generator->model->backend->operations->cache_copy(fork->cache, generator->cache, error);
    if (status != GPTOSS_OK) {
        gptoss_generator_release(fork);
        return status;
    }
    *generator_out = fork;
    return GPTOSS_OK;
}
