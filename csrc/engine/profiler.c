#include "engine/profiler.h"

#include <stdatomic.h>
#include <string.h>

#include "numeric/dtype.h"
#include "platform/allocator.h"
#include "platform/clock.h"
#include "status.h"

/* As GPTOSS_FOR_OPERATIONS lists them. */
enum entry {
    EMBED,
    NORM_LINEAR,
    ROPE_APPEND,
    ATTENTION,
    LINEAR_RESIDUAL,
    MLP_UP,
    ROUTE,
    EXPERT_GATE_UP,
    EXPERT_DOWN,
    UNEMBED,
    PASS, /* from begin to end: the operations and all between them */
    NUM_ENTRIES
};

static const char *const names[NUM_ENTRIES] = {
#define NAME(name) #name,
    GPTOSS_FOR_OPERATIONS(NAME)
#undef NAME
        "pass",
};

/* What one call does. */
struct work {
    uint64_t num_rows, weight_bytes, kv_bytes, num_flops;
};

struct totals {
    _Atomic uint64_t num_calls, nanoseconds, num_rows, weight_bytes, kv_bytes, num_flops;
};

struct gptoss_profiler {
    struct gptoss_backend base;
    struct gptoss_backend_operations operations;
    struct gptoss_backend *inner;
    int32_t num_experts;
    /* Of the pass that has the inner back end's turn. */
    uint64_t pass_start;
    bool *is_chosen; /* [num_experts] */
    struct totals totals[NUM_ENTRIES];
    _Atomic uint64_t device_start[NUM_ENTRIES]; /* of a device that times its own work: at reset */
};

static struct gptoss_profiler *profiler_of(struct gptoss_backend *backend) {
    return (struct gptoss_profiler *)backend;
}

/* ---- totals ---- */

static void add(_Atomic uint64_t *total, uint64_t amount) {
    atomic_fetch_add_explicit(total, amount, memory_order_relaxed);
}

static void add_call(struct gptoss_profiler *profiler, enum entry entry, uint64_t start,
                     const struct work *work) {
    struct totals *totals = &profiler->totals[entry];
    add(&totals->nanoseconds, gptoss_clock_nanoseconds() - start);
    add(&totals->num_calls, 1);
    add(&totals->num_rows, work->num_rows);
    add(&totals->weight_bytes, work->weight_bytes);
    add(&totals->kv_bytes, work->kv_bytes);
    add(&totals->num_flops, work->num_flops);
}

/* Whether models of the family have such an operation. */
static bool has_entry(const struct gptoss_profiler *profiler, size_t entry) {
    switch (entry) {
    case MLP_UP: return profiler->num_experts == 0;
    case ROUTE:
    case EXPERT_GATE_UP:
    case EXPERT_DOWN: return profiler->num_experts > 0;
    default: return true;
    }
}

size_t gptoss_profiler_num_entries(const struct gptoss_profiler *profiler) {
    size_t count = 0;
    for (size_t entry = 0; entry < NUM_ENTRIES; ++entry)
        count += has_entry(profiler, entry);
    return count;
}

/* The time of an operation since the last reset. */
static uint64_t time_of(const struct gptoss_profiler *profiler, size_t entry) {
    const struct gptoss_backend_operations *inner = profiler->inner->operations;
    if (inner->operation_nanoseconds == NULL || entry == PASS)
        return atomic_load_explicit(&profiler->totals[entry].nanoseconds, memory_order_relaxed);
    return inner->operation_nanoseconds(profiler->inner, names[entry]) -
           atomic_load_explicit(&profiler->device_start[entry], memory_order_relaxed);
}

void gptoss_profiler_entry(const struct gptoss_profiler *profiler, size_t index,
                           struct gptoss_profile_entry *entry_out) {
    size_t entry = 0;
    for (;; ++entry)
        if (has_entry(profiler, entry) && index-- == 0)
            break;
    const struct totals *totals = &profiler->totals[entry];
    *entry_out = (struct gptoss_profile_entry){
        .name = names[entry],
        .num_calls = atomic_load_explicit(&totals->num_calls, memory_order_relaxed),
        .nanoseconds = time_of(profiler, entry),
        .num_rows = atomic_load_explicit(&totals->num_rows, memory_order_relaxed),
        .weight_bytes = atomic_load_explicit(&totals->weight_bytes, memory_order_relaxed),
        .kv_bytes = atomic_load_explicit(&totals->kv_bytes, memory_order_relaxed),
        .num_flops = atomic_load_explicit(&totals->num_flops, memory_order_relaxed),
    };
}

void gptoss_profiler_reset(struct gptoss_profiler *profiler) {
    for (size_t i = 0; i < NUM_ENTRIES; ++i) {
        _Atomic uint64_t *counters[] = {
            &profiler->totals[i].num_calls, &profiler->totals[i].nanoseconds,
            &profiler->totals[i].num_rows,  &profiler->totals[i].weight_bytes,
            &profiler->totals[i].kv_bytes,  &profiler->totals[i].num_flops,
        };
        for (size_t k = 0; k < sizeof counters / sizeof *counters; ++k)
            atomic_store_explicit(counters[k], 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&profiler->device_start[i], time_of(profiler, i),
                                  memory_order_relaxed);
    }
}

/* ---- what operations read and compute ---- */

static uint64_t matrix_bytes(const struct gptoss_weight *weight) {
    uint64_t rows = (uint64_t)weight->num_rows, columns = (uint64_t)weight->num_columns;
    uint64_t num_bytes = rows * gptoss_dtype_row_bytes(weight->dtype, columns);
    return gptoss_dtype_has_planes(weight->dtype) ? num_bytes + rows * columns / 32 : num_bytes;
}

static uint64_t vector_bytes(const struct gptoss_vector *vector) {
    if (vector == NULL || vector->data == NULL)
        return 0;
    return (uint64_t)vector->num_elements * gptoss_dtype_bytes(vector->dtype);
}

static uint64_t norm_bytes(const struct gptoss_norm *norm) {
    return vector_bytes(norm->gain) + vector_bytes(norm->bias);
}

/* Adds num_products products of a weight and a vector, reading num_matrices matrices and biases. */
static void add_products(struct work *work, const struct gptoss_weight *weight,
                         const struct gptoss_vector *bias, uint64_t num_matrices,
                         uint64_t num_products) {
    work->weight_bytes += num_matrices * (matrix_bytes(weight) + vector_bytes(bias));
    work->num_flops +=
        2 * num_products * (uint64_t)weight->num_rows * (uint64_t)weight->num_columns;
    for (const struct gptoss_low_rank *term = weight->low_rank; term != NULL; term = term->next) {
        add_products(work, &term->a, NULL, num_matrices, num_products);
        add_products(work, &term->b, NULL, num_matrices, num_products);
    }
}

/* Different experts among those of all rows and ranks. */
static uint64_t count_experts(struct gptoss_profiler *profiler,
                              const struct gptoss_row_table *table, struct gptoss_buffer *buffer,
                              int32_t num_chosen) {
    const void *contents;
    uint64_t count = 0;
    if (profiler->inner->operations->buffer_read(profiler->inner, &buffer, 1, table->num_rows,
                                                 &contents) != GPTOSS_OK)
        return 0;
    const int32_t *experts = contents;
    memset(profiler->is_chosen, 0, (size_t)profiler->num_experts * sizeof(bool));
    for (int64_t i = 0; i < table->num_rows * num_chosen; ++i) {
        if (experts[i] < 0 || experts[i] >= profiler->num_experts)
            continue;
        count += !profiler->is_chosen[experts[i]];
        profiler->is_chosen[experts[i]] = true;
    }
    return count;
}

/* Keys and values of a slot that any of its rows sees count once; each row multiplies with those
 * that it sees, keys and values alike. */
static void add_attention(const struct gptoss_profiler *profiler, struct work *work,
                          const struct gptoss_row_table *table,
                          const struct gptoss_attention *operation) {
    int64_t first = 0, heads_dim = (int64_t)operation->num_heads * operation->head_dim;
    for (int64_t row = 0; row < table->num_rows; ++row) {
        const struct gptoss_row *here = &table->rows[row];
        int64_t window = operation->window;
        int64_t begin = window > 0 && here->position >= window ? here->position - window + 1 : 0;
        work->num_flops += 4 * (uint64_t)(heads_dim * (here->position + 1 - begin));
        if (row == 0 || table->rows[row - 1].slot != here->slot)
            first = begin;
        if (row + 1 < table->num_rows && table->rows[row + 1].slot == here->slot)
            continue;
        struct gptoss_kv_view view;
        profiler->inner->operations->cache_view(table->caches[here->slot], operation->layer, &view);
        work->kv_bytes += 2 * (uint64_t)operation->num_kv_heads * view.row_bytes *
                          (uint64_t)(here->position + 1 - first);
    }
}

/* Keys and values of the rows that a cache does not hold yet. */
static void add_append(const struct gptoss_profiler *profiler, struct work *work,
                       const struct gptoss_row_table *table,
                       const struct gptoss_rope_append *operation) {
    for (int64_t row = 0; row < table->num_rows; ++row) {
        const struct gptoss_row *here = &table->rows[row];
        struct gptoss_kv_view view;
        profiler->inner->operations->cache_view(table->caches[here->slot], operation->layer, &view);
        if (here->position < view.first_position || here->position >= view.end_position)
            work->kv_bytes += 2 * (uint64_t)operation->num_kv_heads * view.row_bytes;
    }
}

/* ---- operations ---- */

/* Forwards an operation and adds it to the totals unless it failed. */
#define FORWARD(entry, function)                                                                   \
    do {                                                                                           \
        uint64_t start = gptoss_clock_nanoseconds();                                               \
        GPTOSS_TRY(profiler->inner->operations->function(profiler->inner, table, operation));      \
        add_call(profiler, entry, start, &work);                                                   \
        return GPTOSS_OK;                                                                          \
    } while (0)

static enum gptoss_status profile_embed(struct gptoss_backend *base,
                                        const struct gptoss_row_table *table,
                                        const struct gptoss_embed *operation) {
    struct gptoss_profiler *profiler = profiler_of(base);
    const struct gptoss_weight *weight = operation->embedding;
    struct work work = {.num_rows = (uint64_t)table->num_rows};
    work.weight_bytes =
        work.num_rows * gptoss_dtype_row_bytes(weight->dtype, (uint64_t)weight->num_columns);
    weight = operation->positions;
    if (weight != NULL)
        work.weight_bytes +=
            work.num_rows * gptoss_dtype_row_bytes(weight->dtype, (uint64_t)weight->num_columns);
    FORWARD(EMBED, embed);
}

static enum gptoss_status profile_norm_linear(struct gptoss_backend *base,
                                              const struct gptoss_row_table *table,
                                              const struct gptoss_norm_linear *operation) {
    struct gptoss_profiler *profiler = profiler_of(base);
    struct work work = {.num_rows = (uint64_t)table->num_rows,
                        .weight_bytes = norm_bytes(&operation->norm)};
    for (int32_t i = 0; i < operation->num_outs; ++i)
        add_products(&work, operation->weights[i], operation->biases[i], 1, work.num_rows);
    FORWARD(NORM_LINEAR, norm_linear);
}

static enum gptoss_status profile_rope_append(struct gptoss_backend *base,
                                              const struct gptoss_row_table *table,
                                              const struct gptoss_rope_append *operation) {
    struct gptoss_profiler *profiler = profiler_of(base);
    struct work work = {.num_rows = (uint64_t)table->num_rows};
    add_append(profiler, &work, table, operation);
    FORWARD(ROPE_APPEND, rope_append);
}

static enum gptoss_status profile_attention(struct gptoss_backend *base,
                                            const struct gptoss_row_table *table,
                                            const struct gptoss_attention *operation) {
    struct gptoss_profiler *profiler = profiler_of(base);
    struct work work = {.num_rows = (uint64_t)table->num_rows,
                        .weight_bytes = vector_bytes(operation->sinks)};
    add_attention(profiler, &work, table, operation);
    FORWARD(ATTENTION, attention);
}

static enum gptoss_status profile_linear_residual(struct gptoss_backend *base,
                                                  const struct gptoss_row_table *table,
                                                  const struct gptoss_linear_residual *operation) {
    struct gptoss_profiler *profiler = profiler_of(base);
    struct work work = {.num_rows = (uint64_t)table->num_rows};
    add_products(&work, operation->weight, operation->bias, 1, work.num_rows);
    FORWARD(LINEAR_RESIDUAL, linear_residual);
}

static enum gptoss_status profile_mlp_up(struct gptoss_backend *base,
                                         const struct gptoss_row_table *table,
                                         const struct gptoss_mlp_up *operation) {
    struct gptoss_profiler *profiler = profiler_of(base);
    struct work work = {.num_rows = (uint64_t)table->num_rows,
                        .weight_bytes = norm_bytes(&operation->norm)};
    add_products(&work, operation->weight, operation->bias, 1, work.num_rows);
    if (operation->up != NULL)
        add_products(&work, operation->up, operation->up_bias, 1, work.num_rows);
    FORWARD(MLP_UP, mlp_up);
}

static enum gptoss_status profile_route(struct gptoss_backend *base,
                                        const struct gptoss_row_table *table,
                                        const struct gptoss_route *operation) {
    struct gptoss_profiler *profiler = profiler_of(base);
    struct work work = {.num_rows = (uint64_t)table->num_rows,
                        .weight_bytes = norm_bytes(&operation->norm)};
    add_products(&work, operation->weight, operation->bias, 1, work.num_rows);
    FORWARD(ROUTE, route);
}

static enum gptoss_status profile_expert_gate_up(struct gptoss_backend *base,
                                                 const struct gptoss_row_table *table,
                                                 const struct gptoss_expert_gate_up *operation) {
    struct gptoss_profiler *profiler = profiler_of(base);
    struct work work = {.num_rows = (uint64_t)table->num_rows};
    uint64_t num_products = work.num_rows * (uint64_t)operation->num_chosen;
    uint64_t num_experts =
        count_experts(profiler, table, operation->experts, operation->num_chosen);
    add_products(&work, operation->weight, operation->bias, num_experts, num_products);
    if (operation->up != NULL)
        add_products(&work, operation->up, operation->up_bias, num_experts, num_products);
    FORWARD(EXPERT_GATE_UP, expert_gate_up);
}

static enum gptoss_status profile_expert_down(struct gptoss_backend *base,
                                              const struct gptoss_row_table *table,
                                              const struct gptoss_expert_down *operation) {
    struct gptoss_profiler *profiler = profiler_of(base);
    struct work work = {.num_rows = (uint64_t)table->num_rows};
    add_products(&work, operation->weight, operation->bias,
                 count_experts(profiler, table, operation->experts, operation->num_chosen),
                 work.num_rows * (uint64_t)operation->num_chosen);
    FORWARD(EXPERT_DOWN, expert_down);
}

static enum gptoss_status profile_unembed(struct gptoss_backend *base,
                                          const struct gptoss_row_table *table,
                                          const struct gptoss_unembed *operation) {
    struct gptoss_profiler *profiler = profiler_of(base);
    struct work work = {.num_rows = (uint64_t)operation->num_rows,
                        .weight_bytes = norm_bytes(&operation->norm)};
    if (operation->weight != NULL)
        add_products(&work, operation->weight, NULL, 1, work.num_rows);
    FORWARD(UNEMBED, unembed);
}

/* ---- passes ---- */

static enum gptoss_status profile_begin(struct gptoss_backend *base, gptoss_poll_fn poll,
                                        void *user, struct gptoss_error *error) {
    struct gptoss_profiler *profiler = profiler_of(base);
    GPTOSS_TRY(profiler->inner->operations->begin(profiler->inner, poll, user, error));
    profiler->pass_start = gptoss_clock_nanoseconds();
    return GPTOSS_OK;
}

static enum gptoss_status profile_end(struct gptoss_backend *base, struct gptoss_error *error) {
    struct gptoss_profiler *profiler = profiler_of(base);
    add_call(profiler, PASS, profiler->pass_start, &(struct work){0});
    return profiler->inner->operations->end(profiler->inner, error);
}

static enum gptoss_status forward_take_rows(struct gptoss_backend *base,
                                            const struct gptoss_row_table *table) {
    struct gptoss_backend *inner = profiler_of(base)->inner;
    return inner->operations->take_rows(inner, table);
}

static void forward_progress(struct gptoss_backend *base, uint64_t done, uint64_t total) {
    struct gptoss_backend *inner = profiler_of(base)->inner;
    inner->operations->progress(inner, done, total);
}

static bool forward_poll(struct gptoss_backend *base, uint64_t done, uint64_t total) {
    struct gptoss_backend *inner = profiler_of(base)->inner;
    return inner->operations->poll(inner, done, total);
}

/* Time of the pass, not of an operation. */
static enum gptoss_status forward_run_tasks(struct gptoss_backend *base,
                                            gptoss_host_task_fn *function, void *context,
                                            int64_t num_tasks) {
    struct gptoss_backend *inner = profiler_of(base)->inner;
    return inner->operations->run_tasks(inner, function, context, num_tasks);
}

/* ---- memory ---- */

static enum gptoss_status forward_buffer_create(struct gptoss_backend *base, int64_t max_rows,
                                                uint64_t row_bytes,
                                                struct gptoss_buffer **buffer_out,
                                                struct gptoss_error *error) {
    struct gptoss_backend *inner = profiler_of(base)->inner;
    return inner->operations->buffer_create(inner, max_rows, row_bytes, buffer_out, error);
}

static void forward_buffer_release(struct gptoss_backend *base, struct gptoss_buffer *buffer) {
    struct gptoss_backend *inner = profiler_of(base)->inner;
    inner->operations->buffer_release(inner, buffer);
}

static enum gptoss_status forward_buffer_read(struct gptoss_backend *base,
                                              struct gptoss_buffer *const *buffers, int num_buffers,
                                              int64_t num_rows, const void **contents_out) {
    struct gptoss_backend *inner = profiler_of(base)->inner;
    return inner->operations->buffer_read(inner, buffers, num_buffers, num_rows, contents_out);
}

static bool forward_explain(struct gptoss_backend *base, enum gptoss_status status,
                            struct gptoss_error *error) {
    struct gptoss_backend *inner = profiler_of(base)->inner;
    return inner->operations->explain(inner, status, error);
}

static enum gptoss_status forward_cache_fetch(struct gptoss_backend *base,
                                              struct gptoss_cache *cache, int32_t layer,
                                              struct gptoss_error *error) {
    struct gptoss_backend *inner = profiler_of(base)->inner;
    return inner->operations->cache_fetch(inner, cache, layer, error);
}

static enum gptoss_status forward_cache_create(struct gptoss_backend *base,
                                               const struct gptoss_cache_shape *shape,
                                               struct gptoss_cache **cache_out,
                                               struct gptoss_error *error) {
    struct gptoss_backend *inner = profiler_of(base)->inner;
    return inner->operations->cache_create(inner, shape, cache_out, error);
}

static void forward_cache_release(struct gptoss_backend *base, struct gptoss_cache *cache) {
    struct gptoss_backend *inner = profiler_of(base)->inner;
    inner->operations->cache_release(inner, cache);
}

/* ---- life ---- */

static void profiler_release(struct gptoss_backend *base) {
    struct gptoss_profiler *profiler = profiler_of(base);
    profiler->inner->operations->release(profiler->inner);
    gptoss_free(profiler->is_chosen);
    gptoss_free(profiler);
}

static uint64_t profiler_memory(const struct gptoss_backend *base) {
    const struct gptoss_profiler *profiler = (const struct gptoss_profiler *)base;
    uint64_t num_bytes = sizeof *profiler + (uint64_t)profiler->num_experts * sizeof(bool);
    return num_bytes + profiler->inner->operations->memory(profiler->inner);
}

static uint64_t profiler_device_memory(const struct gptoss_backend *base) {
    const struct gptoss_backend *inner = ((const struct gptoss_profiler *)base)->inner;
    return inner->operations->device_memory(inner);
}

static uint64_t forward_load_bytes(const struct gptoss_backend *base) {
    const struct gptoss_backend *inner = ((const struct gptoss_profiler *)base)->inner;
    return inner->operations->load_bytes(inner);
}

static const struct gptoss_backend_operations profiler_operations = {
    .release = profiler_release,
    .memory = profiler_memory,
    .buffer_create = forward_buffer_create,
    .buffer_release = forward_buffer_release,
    .buffer_read = forward_buffer_read,
    .cache_create = forward_cache_create,
    .cache_release = forward_cache_release,
    .begin = profile_begin,
    .progress = forward_progress,
    .poll = forward_poll,
    .end = profile_end,
    .embed = profile_embed,
    .norm_linear = profile_norm_linear,
    .rope_append = profile_rope_append,
    .attention = profile_attention,
    .linear_residual = profile_linear_residual,
    .mlp_up = profile_mlp_up,
    .route = profile_route,
    .expert_gate_up = profile_expert_gate_up,
    .expert_down = profile_expert_down,
    .unembed = profile_unembed,
    .run_tasks = forward_run_tasks,
};

enum gptoss_status gptoss_profiler_create(int32_t num_experts, struct gptoss_backend **backend,
                                          struct gptoss_profiler **profiler_out,
                                          struct gptoss_error *error) {
    struct gptoss_profiler *profiler = gptoss_allocate(1, sizeof *profiler);
    bool *is_chosen = gptoss_allocate((size_t)num_experts, sizeof *is_chosen);
    if (profiler == NULL || is_chosen == NULL) {
        gptoss_free(profiler);
        gptoss_free(is_chosen);
        return gptoss_error_memory(error, sizeof *profiler, "the profiler");
    }
    /* Operations on a cache have no back end among their arguments: the inner one's serve as they
     * are. */
    profiler->operations = profiler_operations;
    profiler->operations.cache_view = (*backend)->operations->cache_view;
    profiler->operations.cache_hold = (*backend)->operations->cache_hold;
    profiler->operations.cache_copy = (*backend)->operations->cache_copy;
    if ((*backend)->operations->explain != NULL)
        profiler->operations.explain = forward_explain;
    if ((*backend)->operations->load_bytes != NULL)
        profiler->operations.load_bytes = forward_load_bytes;
    if ((*backend)->operations->device_memory != NULL)
        profiler->operations.device_memory = profiler_device_memory;
    if ((*backend)->operations->take_rows != NULL)
        profiler->operations.take_rows = forward_take_rows;
    if ((*backend)->operations->cache_fetch != NULL)
        profiler->operations.cache_fetch = forward_cache_fetch;
    profiler->base.operations = &profiler->operations;
    profiler->inner = *backend;
    profiler->num_experts = num_experts;
    profiler->is_chosen = is_chosen;
    *backend = &profiler->base;
    *profiler_out = profiler;
    return GPTOSS_OK;
}
