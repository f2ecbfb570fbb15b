#include "vulkan/vulkan_backend.h"

#include <string.h>
#include <unistd.h>

#include "platform/allocator.h"
#include "platform/clock.h"
#include "platform/turn.h"
#include "status.h"
#include "vulkan/vulkan_tiles.h"

/* Ctrl-C is to work within 100 ms. */
#define POLL_NANOSECONDS 20000000u
/* Rows up to which a pass is one list. */
#define MAX_UNDIVIDED_ROWS 64

bool gptoss_vulkan_is_ours(const struct gptoss_vulkan_backend *backend) {
    return backend->owner == (int)getpid();
}

/* ---- memory ---- */

enum gptoss_status gptoss_vulkan_scratch(struct gptoss_vulkan_backend *backend,
                                         enum gptoss_scratch_use use, uint64_t num_bytes,
                                         uint64_t *address_out) {
    struct gptoss_vulkan_memory *memory = &backend->scratch[use];
    if (num_bytes > memory->num_bytes) {
        /* What is listed may name the old memory. */
        GPTOSS_TRY(gptoss_vulkan_flush(backend));
        gptoss_vulkan_forget(&backend->queue);
        gptoss_vulkan_memory_release(&backend->device, memory);
        GPTOSS_TRY(gptoss_vulkan_memory_create(&backend->device, GPTOSS_VULKAN_DEVICE, num_bytes,
                                               "scratch memory", memory, &backend->error));
        enum gptoss_status status = gptoss_vulkan_list_zeros(&backend->queue, memory);
        if (status == GPTOSS_OK)
            status = gptoss_vulkan_start(&backend->queue, false, &backend->error);
        if (status != GPTOSS_OK) { /* not zero: to be made again */
            gptoss_vulkan_memory_release(&backend->device, memory);
            return status;
        }
    }
    *address_out = memory->address;
    return GPTOSS_OK;
}

enum gptoss_status gptoss_vulkan_reserve_readback(struct gptoss_vulkan_backend *backend,
                                                  uint64_t num_bytes) {
    if (num_bytes <= backend->readback.num_bytes)
        return GPTOSS_OK;
    GPTOSS_TRY(gptoss_vulkan_flush(backend));
    gptoss_vulkan_forget(&backend->queue);
    gptoss_vulkan_memory_release(&backend->device, &backend->readback);
    return gptoss_vulkan_memory_create(&backend->device, GPTOSS_VULKAN_READBACK, num_bytes,
                                       "memory to read results", &backend->readback,
                                       &backend->error);
}

static enum gptoss_status vulkan_buffer_create(struct gptoss_backend *base, int64_t max_rows,
                                               uint64_t row_bytes,
                                               struct gptoss_buffer **buffer_out,
                                               struct gptoss_error *error) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    uint64_t num_bytes = (uint64_t)max_rows * row_bytes;
    *buffer_out = NULL;
    struct gptoss_buffer *buffer = gptoss_allocate(1, sizeof *buffer);
    if (buffer == NULL)
        return gptoss_error_memory(error, sizeof *buffer, "activations");
    enum gptoss_status status = gptoss_vulkan_memory_create(&backend->device, GPTOSS_VULKAN_DEVICE,
                                                            num_bytes > 0 ? num_bytes : 4,
                                                            "activations", &buffer->memory, error);
    if (status != GPTOSS_OK) {
        gptoss_free(buffer);
        return status;
    }
    buffer->row_bytes = row_bytes;
    *buffer_out = buffer;
    return GPTOSS_OK;
}

static void vulkan_buffer_release(struct gptoss_backend *base, struct gptoss_buffer *buffer) {
    if (buffer == NULL)
        return;
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    if (gptoss_vulkan_is_ours(backend)) {
        gptoss_vulkan_flush(backend); /* not of a pass that failed */
        gptoss_vulkan_wait(&backend->queue, NULL, NULL, NULL);
        gptoss_vulkan_forget(&backend->queue);
        backend->norm_of = NULL;
        gptoss_vulkan_memory_release(&backend->device, &buffer->memory);
    }
    gptoss_free(buffer);
}

static enum gptoss_status read_back(struct gptoss_vulkan_backend *backend,
                                    struct gptoss_buffer *const *buffers, int num_buffers,
                                    int64_t num_rows, const void **contents_out) {
    uint64_t total = 0, offset = 0;
    for (int i = 0; i < num_buffers; ++i) {
        GPTOSS_TRY(gptoss_vulkan_settle_norm(backend, buffers[i]));
        total += (uint64_t)num_rows * buffers[i]->row_bytes;
    }
    GPTOSS_TRY(gptoss_vulkan_reserve_readback(backend, total));
    for (int i = 0; i < num_buffers; ++i) {
        uint64_t num_bytes = (uint64_t)num_rows * buffers[i]->row_bytes;
        contents_out[i] = (const uint8_t *)backend->readback.host + offset;
        GPTOSS_TRY(gptoss_vulkan_list_copy(&backend->queue, &buffers[i]->memory, 0,
                                           &backend->readback, offset, num_bytes, i > 0));
        offset += num_bytes;
    }
    return gptoss_vulkan_flush(backend);
}

static enum gptoss_status vulkan_buffer_read(struct gptoss_backend *base,
                                             struct gptoss_buffer *const *buffers, int num_buffers,
                                             int64_t num_rows, const void **contents_out) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->failed = read_back(backend, buffers, num_buffers, num_rows, contents_out);
    return backend->failed;
}

/* Room for num_bytes behind what is in the upload memory; that is free again once the list has
 * run. */
static enum gptoss_status reserve_upload(struct gptoss_vulkan_backend *backend,
                                         uint64_t num_bytes) {
    if (backend->queue.count == 0)
        backend->upload_used = 0;
    if (backend->upload_used + num_bytes <= backend->upload.num_bytes)
        return GPTOSS_OK;
    GPTOSS_TRY(gptoss_vulkan_flush(backend));
    backend->upload_used = 0;
    if (num_bytes <= backend->upload.num_bytes)
        return GPTOSS_OK;
    gptoss_vulkan_forget(&backend->queue);
    gptoss_vulkan_memory_release(&backend->device, &backend->upload);
    return gptoss_vulkan_memory_create(&backend->device, GPTOSS_VULKAN_READBACK, num_bytes,
                                       "memory to write activations", &backend->upload,
                                       &backend->error);
}

static enum gptoss_status vulkan_buffer_write(struct gptoss_backend *base,
                                              struct gptoss_buffer *buffer, int64_t num_rows,
                                              const void *contents) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    uint64_t num_bytes = (uint64_t)num_rows * buffer->row_bytes;
    if (backend->failed != GPTOSS_OK)
        return backend->failed;
    GPTOSS_TRY(reserve_upload(backend, num_bytes));
    backend->norm_of = NULL;
    memcpy((uint8_t *)backend->upload.host + backend->upload_used, contents, num_bytes);
    enum gptoss_status status =
        gptoss_vulkan_list_copy(&backend->queue, &backend->upload, backend->upload_used,
                                &buffer->memory, 0, num_bytes, false);
    backend->upload_used += num_bytes;
    return status;
}

/* ---- commands ---- */

enum gptoss_status gptoss_vulkan_dispatch(struct gptoss_vulkan_backend *backend,
                                          const struct gptoss_dispatch *dispatch) {
    if (backend->failed != GPTOSS_OK)
        return backend->failed;
    struct gptoss_vulkan_command command;
    memset(&command, 0, sizeof command); /* padding, too: commands are compared whole */
    command.timer = backend->timer;
    command.joins_previous = dispatch->joins_previous;
    for (int i = 0; i < 3; ++i)
        command.groups[i] = dispatch->groups[i] > 0 ? (uint32_t)dispatch->groups[i] : 1;
    command.push_bytes = dispatch->push_bytes;
    memcpy(command.push, dispatch->push, dispatch->push_bytes);
    struct gptoss_pipeline_key key = dispatch->key;
    key.constants[GPTOSS_MAX_CONSTANTS - 2] = backend->device.keeps_subnormal_halves;
    key.constants[GPTOSS_MAX_CONSTANTS - 1] = backend->device.subgroup_size;
    GPTOSS_TRY(gptoss_vulkan_pipeline(&backend->device, &backend->pipelines, &key,
                                      &command.pipeline, &backend->error));
    return gptoss_vulkan_list(&backend->queue, &command);
}

/* The callback may not be asked again and again: it is the host's code. */
static bool poll_in_time(void *user) {
    struct gptoss_vulkan_backend *backend = user;
    if (gptoss_clock_nanoseconds() - backend->last_poll < POLL_NANOSECONDS)
        return false;
    backend->last_poll = gptoss_clock_nanoseconds();
    return backend->poll(backend->poll_user, backend->done, backend->total) != 0;
}

enum gptoss_status gptoss_vulkan_wait_as_asked(struct gptoss_vulkan_backend *backend,
                                               uint32_t index) {
    return gptoss_vulkan_wait_behind(&backend->queue, index,
                                     backend->poll != NULL ? poll_in_time : NULL, backend,
                                     &backend->error);
}

enum gptoss_status gptoss_vulkan_flush(struct gptoss_vulkan_backend *backend) {
    if (backend->failed != GPTOSS_OK)
        return backend->failed;
    GPTOSS_TRY(gptoss_vulkan_start(&backend->queue, true, &backend->error));
    return gptoss_vulkan_wait(&backend->queue, backend->poll != NULL ? poll_in_time : NULL, backend,
                              &backend->error);
}

/* ---- passes ---- */

static enum gptoss_status vulkan_begin(struct gptoss_backend *base, gptoss_poll_fn poll, void *user,
                                       struct gptoss_error *error) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    if (!gptoss_vulkan_is_ours(backend))
        return gptoss_error_set(error, GPTOSS_ERROR_STATE,
                                "a model on a Vulkan device does not work after fork(): open it in "
                                "the child, or start that with the method 'spawn'");
    GPTOSS_TRY(gptoss_turn_take(&backend->turn, poll, user, error));
    enum gptoss_status status = gptoss_vulkan_check_lost(&backend->queue, error);
    if (status != GPTOSS_OK) {
        pthread_mutex_unlock(&backend->turn);
        return status;
    }
    backend->poll = poll;
    backend->poll_user = user;
    backend->done = backend->total = 0;
    backend->last_poll = gptoss_clock_nanoseconds();
    backend->failed = GPTOSS_OK;
    backend->error.status = GPTOSS_OK;
    backend->num_guesses = backend->num_deferred = backend->num_taken = 0;
    return GPTOSS_OK;
}

/* Runs what is listed of a long pass, so that a layer is the longest that Ctrl-C waits for. */
static void vulkan_progress(struct gptoss_backend *base, uint64_t done, uint64_t total) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->done = done;
    backend->total = total;
    if (backend->queue.count > 0 && backend->num_rows > MAX_UNDIVIDED_ROWS)
        backend->failed = gptoss_vulkan_flush(backend);
}

static bool vulkan_poll(struct gptoss_backend *base, uint64_t done, uint64_t total) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->done = done;
    backend->total = total;
    backend->last_poll = gptoss_clock_nanoseconds();
    return backend->poll != NULL && backend->poll(backend->poll_user, done, total) != 0;
}

static enum gptoss_status vulkan_end(struct gptoss_backend *base, struct gptoss_error *error) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    /* With an error, what is listed belongs to a pass that failed. */
    enum gptoss_status status = backend->failed;
    if (status == GPTOSS_OK && error != NULL)
        status = gptoss_vulkan_start(&backend->queue, true, &backend->error);
    backend->queue.count = 0;
    enum gptoss_status waited = gptoss_vulkan_wait(&backend->queue, NULL, NULL, &backend->error);
    backend->norm_of = NULL;
    status = status != GPTOSS_OK ? status : waited;
    if (status == GPTOSS_OK && error != NULL)
        gptoss_vulkan_collect(backend);
    if (status != GPTOSS_OK && error != NULL)
        *error = backend->error;
    backend->poll = NULL;
    pthread_mutex_unlock(&backend->turn);
    return status;
}

static bool vulkan_explain(struct gptoss_backend *base, enum gptoss_status status,
                           struct gptoss_error *error) {
    const struct gptoss_error *known = &gptoss_vulkan_of(base)->error;
    if (known->status != status)
        return false;
    if (error != NULL)
        *error = *known;
    return true;
}

static uint64_t vulkan_operation_nanoseconds(const struct gptoss_backend *base, const char *name) {
    static const char *const names[] = {
#define NAME(name) #name,
        GPTOSS_FOR_TIMERS(NAME)
#undef NAME
    };
    const struct gptoss_vulkan_backend *backend = (const struct gptoss_vulkan_backend *)base;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i)
        if (strcmp(name, names[i]) == 0)
            return backend->queue.nanoseconds[i];
    return 0;
}

static enum gptoss_status vulkan_run_tasks(struct gptoss_backend *base,
                                           gptoss_host_task_fn *function, void *context,
                                           int64_t num_tasks) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    GPTOSS_TRY(gptoss_vulkan_flush(backend));
    bool all = gptoss_thread_pool_run(backend->pool, function, context, num_tasks,
                                      backend->poll != NULL ? poll_in_time : NULL, backend);
    return all ? GPTOSS_OK : GPTOSS_ERROR_INTERRUPTED;
}

/* ---- weights ---- */

static void vulkan_load_begin(struct gptoss_backend *base) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    gptoss_vulkan_weights_release(&backend->weights, &backend->device);
    backend->is_loading = true;
}

static uint64_t vulkan_load_bytes(const struct gptoss_backend *base) {
    return ((const struct gptoss_vulkan_backend *)base)->weights.num_bytes;
}

static enum gptoss_status vulkan_load_end(struct gptoss_backend *base, gptoss_poll_fn poll,
                                          void *user, struct gptoss_error *error) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->is_loading = false;
    return gptoss_vulkan_weights_load(&backend->weights, &backend->queue, backend->pool, poll, user,
                                      error);
}

/* ---- life ---- */

static void vulkan_release(struct gptoss_backend *base) {
    if (base == NULL)
        return;
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    if (!gptoss_vulkan_is_ours(backend)) {
        gptoss_thread_pool_abandon(backend->pool);
        gptoss_free(backend);
        return;
    }
    if (backend->device.handle != VK_NULL_HANDLE) {
        gptoss_vulkan_queue_close(&backend->queue);
        gptoss_vulkan_weights_release(&backend->weights, &backend->device);
        for (size_t i = 0; i < GPTOSS_MAX_DEFERRED; ++i)
            gptoss_vulkan_memory_release(&backend->device, &backend->tables[i].memory);
        gptoss_vulkan_memory_release(&backend->device, &backend->deferred_results);
        gptoss_vulkan_memory_release(&backend->device, &backend->readback);
        gptoss_vulkan_memory_release(&backend->device, &backend->upload);
        for (size_t i = 0; i < GPTOSS_NUM_SCRATCHES; ++i)
            gptoss_vulkan_memory_release(&backend->device, &backend->scratch[i]);
        gptoss_vulkan_pipelines_close(&backend->device, &backend->pipelines);
    }
    gptoss_vulkan_device_close(&backend->device);
    gptoss_thread_pool_release(backend->pool);
    pthread_mutex_destroy(&backend->turn);
    gptoss_free(backend);
}

static uint64_t vulkan_memory(const struct gptoss_backend *base) {
    const struct gptoss_vulkan_backend *backend = (const struct gptoss_vulkan_backend *)base;
    return sizeof *backend + backend->readback.num_bytes + backend->upload.num_bytes +
           backend->deferred_results.num_bytes;
}

static uint64_t vulkan_device_memory(const struct gptoss_backend *base) {
    return ((const struct gptoss_vulkan_backend *)base)->device.held_bytes;
}

static const struct gptoss_backend_operations vulkan_operations = {
    .release = vulkan_release,
    .memory = vulkan_memory,
    .device_memory = vulkan_device_memory,
    .load_begin = vulkan_load_begin,
    .load_bytes = vulkan_load_bytes,
    .load_end = vulkan_load_end,
    .buffer_create = vulkan_buffer_create,
    .buffer_release = vulkan_buffer_release,
    .buffer_read = vulkan_buffer_read,
    .buffer_write = vulkan_buffer_write,
    .cache_create = gptoss_vulkan_cache_create,
    .cache_release = gptoss_vulkan_cache_release,
    .cache_view = gptoss_vulkan_cache_view,
    .cache_fetch = gptoss_vulkan_cache_fetch,
    .cache_hold = gptoss_vulkan_cache_hold,
    .cache_copy = gptoss_vulkan_cache_copy,
    .begin = vulkan_begin,
    .take_rows = gptoss_vulkan_take_rows,
    .progress = vulkan_progress,
    .poll = vulkan_poll,
    .end = vulkan_end,
    .explain = vulkan_explain,
    .embed = gptoss_vulkan_embed,
    .norm_linear = gptoss_vulkan_norm_linear,
    .rope_append = gptoss_vulkan_rope_append,
    .attention = gptoss_vulkan_attention,
    .linear_residual = gptoss_vulkan_linear_residual,
    .mlp_up = gptoss_vulkan_mlp_up,
    .route = gptoss_vulkan_route,
    .expert_gate_up = gptoss_vulkan_expert_gate_up,
    .expert_down = gptoss_vulkan_expert_down,
    .unembed = gptoss_vulkan_unembed,
    .guess = gptoss_vulkan_guess,
    .take_deferred = gptoss_vulkan_take_deferred,
    .operation_nanoseconds = vulkan_operation_nanoseconds,
    .run_tasks = vulkan_run_tasks,
};

static enum gptoss_status open_parts(struct gptoss_vulkan_backend *backend, const char *which,
                                     bool profile, struct gptoss_error *error) {
    GPTOSS_TRY(gptoss_thread_pool_create(backend->num_threads, &backend->pool, error));
    GPTOSS_TRY(gptoss_vulkan_device_open(which, &backend->device, error));
    GPTOSS_TRY(gptoss_vulkan_pipelines_open(&backend->device, &backend->pipelines, error));
    return gptoss_vulkan_queue_open(&backend->device, backend->pipelines.layout, profile,
                                    &backend->queue, error);
}

static enum gptoss_status choose_precision(struct gptoss_vulkan_backend *backend,
                                           const char *precision, struct gptoss_error *error) {
    bool has_matrices = backend->device.has_matrices;
    backend->is_f16 = has_matrices && (precision == NULL || strcmp(precision, "fp16") == 0);
    if (backend->is_f16 && backend->device.has_narrow_matrices)
        return gptoss_vulkan_find_tiles(&backend->device, &backend->pipelines, &backend->queue,
                                        &backend->weights.has_tiles, error);
    if (precision == NULL || strcmp(precision, "fp32") == 0 || backend->is_f16)
        return GPTOSS_OK;
    gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                     "precision '%s' is not available on '%s'%s; use %s", precision,
                     backend->device.name,
                     has_matrices ? "" : ", which has no cooperative matrices of float16",
                     has_matrices ? "fp16 or fp32" : "fp32");
    gptoss_error_expected(error, "%s", has_matrices ? "fp16, fp32" : "fp32");
    gptoss_error_found(error, "%s", precision);
    return GPTOSS_ERROR_UNSUPPORTED;
}

enum gptoss_status gptoss_vulkan_backend_create(const char *which, const char *precision,
                                                int num_threads, uint64_t memory_limit,
                                                bool profile, struct gptoss_backend **backend_out,
                                                struct gptoss_error *error) {
    *backend_out = NULL;
    struct gptoss_vulkan_backend *backend = gptoss_allocate(1, sizeof *backend);
    if (backend == NULL)
        return gptoss_error_memory(error, sizeof *backend, "the Vulkan back end");
    backend->base.operations = &vulkan_operations;
    backend->num_threads = num_threads;
    backend->owner = (int)getpid();
    pthread_mutex_init(&backend->turn, NULL);
    enum gptoss_status status = open_parts(backend, which, profile, error);
    backend->device.memory_limit = memory_limit;
    if (status == GPTOSS_OK)
        status = choose_precision(backend, precision, error);
    if (status != GPTOSS_OK) {
        vulkan_release(&backend->base);
        return status;
    }
    *backend_out = &backend->base;
    return GPTOSS_OK;
}

const char *gptoss_vulkan_backend_precision(const struct gptoss_backend *base) {
    return ((const struct gptoss_vulkan_backend *)base)->is_f16 ? "fp16" : "fp32";
}

const char *gptoss_vulkan_backend_device(const struct gptoss_backend *base) {
    return ((const struct gptoss_vulkan_backend *)base)->device.name;
}

uint64_t gptoss_vulkan_backend_device_bytes(const struct gptoss_backend *base) {
    return gptoss_vulkan_device_memory(&((const struct gptoss_vulkan_backend *)base)->device);
}
