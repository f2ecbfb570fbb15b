/* Rotary positions, the cache's new rows, and attention. */
#include "status.h"
#include "vulkan/vulkan_backend.h"

#define ROPE_WORKGROUP 64
#define WORKGROUP 256
/* Elements of queries, and of keys, in shared memory. */
#define MAX_QUERY_ELEMENTS 2048
#define MAX_KEY_ELEMENTS 4096
#define MAX_KEYS 64
/* On cooperative matrices: lines of queries of a workgroup, and the largest head. */
#define PANEL_WORKGROUP 128
#define PANEL_LINES 64
#define MAX_PANEL_HEAD_DIM 128
/* Rows up to which the parts of a context go to workgroups of their own. */
#define MAX_SPLIT_ROWS 32

static enum gptoss_status check_head_dim(struct gptoss_vulkan_backend *backend, int32_t head_dim) {
    if (head_dim % 2 == 0 && head_dim <= MAX_KEY_ELEMENTS)
        return GPTOSS_OK;
    return gptoss_error_set(&backend->error, GPTOSS_ERROR_UNSUPPORTED,
                            "heads of %d elements are not available on Vulkan devices, which take "
                            "even numbers up to %d; use device='cpu'",
                            head_dim, MAX_KEY_ELEMENTS);
}

enum gptoss_status gptoss_vulkan_rope_append(struct gptoss_backend *base,
                                             const struct gptoss_row_table *table,
                                             const struct gptoss_rope_append *operation) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->timer = GPTOSS_TIMER_rope_append;
    if (backend->is_loading)
        return check_head_dim(backend, operation->head_dim);
    backend->norm_of = NULL;
    const struct gptoss_rope_push push = {
        .rows = gptoss_vulkan_table(backend)->rows,
        .slots = gptoss_vulkan_table(backend)->slots,
        .queries = gptoss_address_of(operation->queries),
        .keys = gptoss_address_of(operation->keys),
        .values = gptoss_address_of(operation->values),
        .cosine = gptoss_vulkan_table(backend)->cosine,
        .sine = gptoss_vulkan_table(backend)->sine,
        .layer = (uint32_t)operation->layer,
        .num_heads = (uint32_t)operation->num_heads,
        .num_kv_heads = (uint32_t)operation->num_kv_heads,
        .rotation = (uint32_t)operation->rotation,
    };
    return gptoss_vulkan_dispatch(
        backend,
        &(struct gptoss_dispatch){
            .key = {GPTOSS_SHADER_rope_append, {ROPE_WORKGROUP, (uint32_t)operation->head_dim}},
            .push = &push,
            .push_bytes = sizeof push,
            .groups = {table->num_rows, operation->num_heads + 2 * operation->num_kv_heads, 1},
        });
}

/* Parts that a row can see, at most: a power of two, so that recordings last. */
static int64_t count_parts(const struct gptoss_vulkan_backend *backend, int32_t window) {
    int64_t keys = backend->end_position;
    int64_t parts = gptoss_ceil_div(keys, GPTOSS_ATTENTION_PART), count = 1;
    if (window > 0) {
        int64_t of_window = gptoss_ceil_div(window - 1, GPTOSS_ATTENTION_PART) + 1;
        parts = parts < of_window ? parts : of_window;
    }
    while (count < parts)
        count *= 2;
    return count;
}

static enum gptoss_status attend_panel(struct gptoss_vulkan_backend *backend,
                                       struct gptoss_attention_push *push, int64_t num_rows,
                                       uint32_t head_dim, uint32_t group) {
    push->num_rows = (uint32_t)num_rows;
    return gptoss_vulkan_dispatch(
        backend,
        &(struct gptoss_dispatch){
            .key = {GPTOSS_SHADER_attention_panel, {PANEL_WORKGROUP, head_dim, group}},
            .push = push,
            .push_bytes = sizeof *push,
            .groups = {gptoss_ceil_div(num_rows, PANEL_LINES / group), push->num_kv_heads, 1},
        });
}

enum gptoss_status gptoss_vulkan_attention(struct gptoss_backend *base,
                                           const struct gptoss_row_table *table,
                                           const struct gptoss_attention *operation) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->timer = GPTOSS_TIMER_attention;
    uint64_t sinks;
    GPTOSS_TRY(gptoss_vulkan_vector(&backend->weights, operation->sinks, &sinks));
    if (backend->is_loading)
        return GPTOSS_OK;
    uint32_t head_dim = (uint32_t)operation->head_dim;
    uint32_t group = (uint32_t)(operation->num_heads / operation->num_kv_heads);
    uint32_t heads = MAX_QUERY_ELEMENTS / head_dim, keys = MAX_KEY_ELEMENTS / head_dim;
    heads = heads < group ? heads : group;
    heads = heads < 16 ? heads : 16;
    while ((keys & (keys - 1)) != 0) /* tiles divide a part */
        keys &= keys - 1;
    keys = keys < MAX_KEYS ? keys : MAX_KEYS;
    int64_t pieces = operation->num_kv_heads * gptoss_ceil_div(group, heads);
    struct gptoss_attention_push push = {
        .rows = gptoss_vulkan_table(backend)->rows,
        .slots = gptoss_vulkan_table(backend)->slots,
        .queries = gptoss_address_of(operation->queries),
        .sinks = sinks,
        .result = gptoss_address_of(operation->out),
        .sink_mass = gptoss_address_of(operation->sink_mass),
        .layer = (uint32_t)operation->layer,
        .num_heads = (uint32_t)operation->num_heads,
        .num_kv_heads = (uint32_t)operation->num_kv_heads,
        .window = (uint32_t)operation->window,
        .scale = operation->scale,
    };
    if (backend->is_f16 && backend->is_one_run && table->num_rows > MAX_SPLIT_ROWS &&
        head_dim % 16 == 0 && head_dim <= MAX_PANEL_HEAD_DIM && group <= PANEL_LINES)
        return attend_panel(backend, &push, table->num_rows, head_dim, group);
    bool split = table->num_rows <= MAX_SPLIT_ROWS;
    int64_t num_parts = split ? count_parts(backend, operation->window) : 1;
    split = split && num_parts > 1;
    if (split) {
        uint64_t num_bytes = (uint64_t)(table->num_rows * operation->num_heads * num_parts) *
                             (head_dim + 2) * sizeof(float);
        GPTOSS_TRY(
            gptoss_vulkan_scratch(backend, GPTOSS_SCRATCH_ATTENTION, num_bytes, &push.partial));
        GPTOSS_TRY(gptoss_vulkan_scratch(backend, GPTOSS_SCRATCH_COUNTERS,
                                         (uint64_t)(table->num_rows * pieces) * sizeof(uint32_t),
                                         &push.counters));
        push.num_parts = (uint32_t)num_parts;
    }
    return gptoss_vulkan_dispatch(
        backend, &(struct gptoss_dispatch){
                     .key = {GPTOSS_SHADER_attention, {WORKGROUP, head_dim, heads, keys, split}},
                     .push = &push,
                     .push_bytes = sizeof push,
                     .groups = {table->num_rows, pieces, num_parts},
                 });
}
