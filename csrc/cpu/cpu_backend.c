#include "cpu/cpu_backend.h"

#include <string.h>
#include <unistd.h>

#include "numeric/block_formats.h"
#include "platform/allocator.h"
#include "platform/clock.h"
#include "platform/turn.h"
#include "status.h"

/* Ctrl-C is to work within 100 ms; tasks last a few milliseconds at most. */
#define POLL_NANOSECONDS 20000000u
/* Rows from which a loop over rows is worth the threads' waking. */
#define MIN_SHARED_ROWS 8

enum gptoss_status gptoss_scratch_reserve(struct gptoss_scratch *scratch, uint64_t num_bytes) {
    if (num_bytes <= scratch->num_bytes)
        return GPTOSS_OK;
    void *memory = gptoss_allocate(num_bytes, 1);
    if (memory == NULL)
        return GPTOSS_ERROR_MEMORY;
    gptoss_free(scratch->memory);
    *scratch = (struct gptoss_scratch){.memory = memory, .num_bytes = num_bytes};
    return GPTOSS_OK;
}

enum gptoss_status gptoss_thread_scratch_reserve(struct gptoss_cpu_backend *backend,
                                                 uint64_t num_bytes) {
    for (int i = 0; i < backend->num_threads; ++i) {
        enum gptoss_status status = gptoss_scratch_reserve(&backend->thread_scratch[i], num_bytes);
        if (status != GPTOSS_OK)
            return status;
    }
    return GPTOSS_OK;
}

const uint8_t *gptoss_vector_at(const struct gptoss_vector *vector, int64_t index) {
    if (vector->data == NULL)
        return NULL;
    return vector->data +
           (uint64_t)(index * vector->num_elements) * gptoss_dtype_bytes(vector->dtype);
}

struct gptoss_matrix gptoss_matrix_at(const struct gptoss_weight *weight, int64_t index) {
    struct gptoss_matrix matrix = {
        .num_rows = weight->num_rows,
        .num_columns = weight->num_columns,
        .data = weight->data + (uint64_t)index * weight->matrix_bytes,
    };
    if (gptoss_dtype_has_planes(weight->dtype)) {
        matrix.scales = weight->scales + (uint64_t)index * weight->scale_matrix_bytes;
        matrix.scale_row_bytes = weight->num_columns / 32;
    }
    switch (weight->dtype) {
#define LAYOUT(name, NAME, ...)                                                                    \
    case GPTOSS_DTYPE_##NAME: matrix.layout = GPTOSS_LAYOUT_##NAME; break;
        LAYOUT(mxfp4, MXFP4, 16)
        LAYOUT(mxfp4_gguf, MXFP4_GGUF, 17)
        LAYOUT(q8_0, Q8_0, 34)
        GPTOSS_FOR_BLOCK_FORMATS(LAYOUT)
        GPTOSS_FOR_PLANE_FORMATS(LAYOUT)
    case GPTOSS_DTYPE_F16: matrix.layout = GPTOSS_LAYOUT_F16; break;
    case GPTOSS_DTYPE_BF16: matrix.layout = GPTOSS_LAYOUT_BF16; break;
    default: matrix.layout = GPTOSS_LAYOUT_F32;
    }
    int64_t line = !weight->transposed      ? weight->num_columns
                   : weight->num_stored > 0 ? weight->num_stored
                                            : weight->num_rows;
    matrix.row_bytes = (int64_t)gptoss_dtype_row_bytes(weight->dtype, (uint64_t)line);
    if (weight->transposed)
        matrix.layout += GPTOSS_LAYOUT_F32_TRANSPOSED - GPTOSS_LAYOUT_F32;
    return matrix;
}

/* ---- passes ---- */

/* The callback is the host's code: it runs in the host's floating-point environment. */
static bool poll_now(struct gptoss_cpu_backend *backend) {
    backend->last_poll = gptoss_clock_nanoseconds();
    gptoss_fp_environment_restore(backend->caller_environment);
    bool stop = backend->poll(backend->poll_user, backend->done, backend->total) != 0;
    gptoss_fp_environment_set_default();
    return stop;
}

static bool poll_in_time(void *user) {
    struct gptoss_cpu_backend *backend = user;
    bool due = gptoss_clock_nanoseconds() - backend->last_poll >= POLL_NANOSECONDS;
    return due && poll_now(backend);
}

enum gptoss_status gptoss_cpu_run(struct gptoss_cpu_backend *backend, gptoss_task_fn *function,
                                  void *context, int64_t num_tasks) {
    bool all = gptoss_thread_pool_run(backend->pool, function, context, num_tasks,
                                      backend->poll != NULL ? poll_in_time : NULL, backend);
    return all ? GPTOSS_OK : GPTOSS_ERROR_INTERRUPTED;
}

enum gptoss_status gptoss_cpu_run_rows(struct gptoss_cpu_backend *backend, gptoss_task_fn *function,
                                       void *context, int64_t num_tasks, int64_t num_rows) {
    if (num_rows >= MIN_SHARED_ROWS)
        return gptoss_cpu_run(backend, function, context, num_tasks);
    for (int64_t task = 0; task < num_tasks; ++task)
        function(context, task, 0);
    return GPTOSS_OK;
}

/* After fork() the child's memory holds the parent's pool without its threads, and the turn as some
 * thread left it. */
static void adopt_after_fork(struct gptoss_cpu_backend *backend) {
    int self = (int)getpid(), owner = atomic_load(&backend->owner);
    if (owner == self)
        return;
    if (owner != -self && atomic_compare_exchange_strong(&backend->owner, &owner, -self)) {
        pthread_mutex_init(&backend->turn, NULL);
        gptoss_thread_pool_abandon(backend->pool);
        backend->pool = NULL;
        atomic_store(&backend->owner, self);
        return;
    }
    while (atomic_load(&backend->owner) != self)
        usleep(100);
}

static enum gptoss_status cpu_begin(struct gptoss_backend *base, gptoss_poll_fn poll, void *user,
                                    struct gptoss_error *error) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    adopt_after_fork(backend);
    GPTOSS_TRY(gptoss_turn_take(&backend->turn, poll, user, error));
    if (backend->pool == NULL) {
        enum gptoss_status status =
            gptoss_thread_pool_create(backend->num_threads, &backend->pool, error);
        if (status != GPTOSS_OK) {
            pthread_mutex_unlock(&backend->turn);
            return status;
        }
    }
    backend->poll = poll;
    backend->poll_user = user;
    backend->done = backend->total = 0;
    backend->last_poll = gptoss_clock_nanoseconds();
    backend->caller_environment = gptoss_fp_environment_set_default();
    return GPTOSS_OK;
}

static void cpu_progress(struct gptoss_backend *base, uint64_t done, uint64_t total) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    backend->done = done;
    backend->total = total;
}

static bool cpu_poll(struct gptoss_backend *base, uint64_t done, uint64_t total) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    cpu_progress(base, done, total);
    return backend->poll != NULL && poll_now(backend);
}

static enum gptoss_status cpu_end(struct gptoss_backend *base, struct gptoss_error *error) {
    (void)error;
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    gptoss_fp_environment_restore(backend->caller_environment);
    pthread_mutex_unlock(&backend->turn);
    return GPTOSS_OK;
}

static enum gptoss_status cpu_run_tasks(struct gptoss_backend *base, gptoss_host_task_fn *function,
                                        void *context, int64_t num_tasks) {
    return gptoss_cpu_run((struct gptoss_cpu_backend *)base, function, context, num_tasks);
}

/* ---- buffers ---- */

static enum gptoss_status cpu_buffer_create(struct gptoss_backend *base, int64_t max_rows,
                                            uint64_t row_bytes, struct gptoss_buffer **buffer_out,
                                            struct gptoss_error *error) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    uint64_t num_bytes = (uint64_t)max_rows * row_bytes;
    *buffer_out = NULL;
    struct gptoss_buffer *buffer = gptoss_allocate(1, sizeof *buffer);
    void *memory = gptoss_allocate(num_bytes, 1);
    if (buffer == NULL || memory == NULL) {
        gptoss_free(buffer);
        gptoss_free(memory);
        return gptoss_error_memory(error, num_bytes, "activations");
    }
    *buffer = (struct gptoss_buffer){memory, num_bytes, row_bytes};
    backend->buffer_bytes += num_bytes;
    *buffer_out = buffer;
    return GPTOSS_OK;
}

static void cpu_buffer_release(struct gptoss_backend *base, struct gptoss_buffer *buffer) {
    if (buffer == NULL)
        return;
    ((struct gptoss_cpu_backend *)base)->buffer_bytes -= buffer->num_bytes;
    gptoss_free(buffer->memory);
    gptoss_free(buffer);
}

static enum gptoss_status cpu_buffer_read(struct gptoss_backend *base,
                                          struct gptoss_buffer *const *buffers, int num_buffers,
                                          int64_t num_rows, const void **contents_out) {
    (void)base;
    (void)num_rows;
    for (int i = 0; i < num_buffers; ++i)
        contents_out[i] = buffers[i]->memory;
    return GPTOSS_OK;
}

static enum gptoss_status cpu_buffer_write(struct gptoss_backend *base,
                                           struct gptoss_buffer *buffer, int64_t num_rows,
                                           const void *contents) {
    (void)base;
    memcpy(buffer->memory, contents, (uint64_t)num_rows * buffer->row_bytes);
    return GPTOSS_OK;
}

/* ---- life ---- */

static void cpu_release(struct gptoss_backend *base) {
    if (base == NULL)
        return;
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    if (atomic_load(&backend->owner) == (int)getpid()) {
        gptoss_thread_pool_release(backend->pool);
        pthread_mutex_destroy(&backend->turn);
    } else {
        gptoss_thread_pool_abandon(backend->pool);
    }
    for (int i = 0; backend->thread_scratch != NULL && i < backend->num_threads; ++i)
        gptoss_free(backend->thread_scratch[i].memory);
    gptoss_free(backend->thread_scratch);
    gptoss_free(backend->packed.memory);
    gptoss_free(backend->decoded.memory);
    gptoss_free(backend->grouping.memory);
    gptoss_free(backend->low_rank.memory);
    gptoss_free(backend);
}

static uint64_t cpu_memory(const struct gptoss_backend *base) {
    const struct gptoss_cpu_backend *backend = (const struct gptoss_cpu_backend *)base;
    uint64_t num_bytes = sizeof *backend + backend->packed.num_bytes + backend->decoded.num_bytes;
    num_bytes += backend->grouping.num_bytes + backend->low_rank.num_bytes + backend->buffer_bytes;
    for (int i = 0; i < backend->num_threads; ++i)
        num_bytes += backend->thread_scratch[i].num_bytes;
    return num_bytes;
}

static const struct gptoss_backend_operations cpu_operations = {
    .release = cpu_release,
    .memory = cpu_memory,
    .buffer_create = cpu_buffer_create,
    .buffer_release = cpu_buffer_release,
    .buffer_read = cpu_buffer_read,
    .buffer_write = cpu_buffer_write,
    .cache_create = gptoss_cpu_cache_create,
    .cache_release = gptoss_cpu_cache_release,
    .cache_view = gptoss_cpu_cache_view,
    .cache_hold = gptoss_cpu_cache_hold,
    .cache_copy = gptoss_cpu_cache_copy,
    .begin = cpu_begin,
    .progress = cpu_progress,
    .poll = cpu_poll,
    .end = cpu_end,
    .embed = gptoss_cpu_embed,
    .norm_linear = gptoss_cpu_norm_linear,
    .rope_append = gptoss_cpu_rope_append,
    .attention = gptoss_cpu_attention,
    .linear_residual = gptoss_cpu_linear_residual,
    .mlp_up = gptoss_cpu_mlp_up,
    .route = gptoss_cpu_route,
    .expert_gate_up = gptoss_cpu_expert_gate_up,
    .expert_down = gptoss_cpu_expert_down,
    .unembed = gptoss_cpu_unembed,
    .run_tasks = cpu_run_tasks,
};

enum gptoss_status gptoss_cpu_backend_create(const struct gptoss_kernels *kernels,
                                             const struct gptoss_bf16_unit *bf16_unit,
                                             int num_threads, struct gptoss_backend **backend_out,
                                             struct gptoss_error *error) {
    *backend_out = NULL;
    struct gptoss_cpu_backend *backend = gptoss_allocate(1, sizeof *backend);
    if (backend == NULL)
        return gptoss_error_memory(error, sizeof *backend, "the CPU back end");
    backend->base.operations = &cpu_operations;
    backend->kernels = kernels;
    backend->bf16_unit = bf16_unit;
    backend->num_threads = num_threads;
    pthread_mutex_init(&backend->turn, NULL);
    atomic_store(&backend->owner, (int)getpid());
    backend->thread_scratch = gptoss_allocate((size_t)num_threads, sizeof *backend->thread_scratch);
    if (backend->thread_scratch == NULL) {
        cpu_release(&backend->base);
        return gptoss_error_memory(error, (uint64_t)num_threads * sizeof(struct gptoss_scratch),
                                   "the CPU back end");
    }
    *backend_out = &backend->base;
    return GPTOSS_OK;
}
