/* Rotary positions, the cache's new rows, and attention. */
#include "status.h"
#include "vulkan/vulkan_backend.h"

#define WORKGROUP 256
#define MAX_HEAD_DIM 1024
#define MAX_HEADS 8 /* of a workgroup */
/* On cooperative matrices: matrices of lines of a subgroup, keys of a tile, matrices of keys whose
 * scores are held, for heads up to LARGE_HEAD_DIM; others take the smallest. */
#define PANEL_WORKGROUP 256
#define PANEL_LINE_PARTS 1
#define PANEL_KEYS 64
#define PANEL_CHUNK 2
#define LARGE_HEAD_DIM 64
/* The same where matrices are filled in registers. */
#define TILE_WORKGROUP 256
#define TILE_LINE_PARTS 2
#define MIN_PANEL_WORKGROUP 128
#define MIN_PANEL_KEYS 32
#define MAX_PANEL_HEAD_DIM 128
#define MAX_PANEL_GROUP (MIN_PANEL_WORKGROUP / 2) /* 16 lines of a subgroup of 32 */
/* Rows up to which the parts of a context go to workgroups of their own. */
#define MAX_SPLIT_ROWS 32

static enum gptoss_status check_head_dim(struct gptoss_vulkan_backend *backend, int32_t head_dim) {
    if (head_dim % 2 == 0 && head_dim <= MAX_HEAD_DIM)
        return GPTOSS_OK;
    return gptoss_error_set(&backend->error, GPTOSS_ERROR_UNSUPPORTED,
                            "heads of %d elements are not available on Vulkan devices, which take "
                            "even numbers up to %d; use device='cpu'",
                            head_dim, MAX_HEAD_DIM);
}

enum gptoss_status gptoss_vulkan_rope_append(struct gptoss_backend *base,
                                             const struct gptoss_row_table *table,
                                             const struct gptoss_rope_append *operation) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->timer = GPTOSS_TIMER_rope_append;
    if (backend->is_loading)
        return check_head_dim(backend, operation->head_dim);
    backend->norm_of = NULL;
    /* As many as give each thread four elements. */
    uint32_t head_dim = (uint32_t)operation->head_dim;
    uint32_t heads = head_dim < 4 * WORKGROUP ? 4 * WORKGROUP / head_dim : 1;
    const struct gptoss_rope_push push = {
        .rows = gptoss_vulkan_table(backend)->rows,
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
            .key = {GPTOSS_SHADER_rope_append, {WORKGROUP, head_dim, heads}},
            .push = &push,
            .push_bytes = sizeof push,
            .groups = {table->num_rows,
                       gptoss_ceil_div(operation->num_heads + 2 * operation->num_kv_heads, heads),
                       1},
        });
}

/* What attention.comp makes of a shape: keys of a tile, heads of a workgroup, and the outputs of
 * these in memory. */
struct row_shape {
    uint32_t tile, heads, outputs;
};

static struct row_shape shape_rows(uint32_t head_dim, uint32_t group, uint32_t subgroup) {
    uint32_t pieces = gptoss_ceil_div(head_dim, 8), lines = WORKGROUP / pieces;
    uint32_t span = pieces & (~pieces + 1), heads = group < MAX_HEADS ? group : MAX_HEADS;
    span = span < subgroup ? span : subgroup;
    uint32_t groups = subgroup % pieces == 0 ? WORKGROUP / subgroup : lines;
    uint32_t tile = GPTOSS_ATTENTION_STEPS * lines, scores = tile * (pieces / span);
    while (heads > 1 && (groups * heads * 8 * pieces > GPTOSS_ATTENTION_POOL ||
                         scores * (heads | 1) > GPTOSS_ATTENTION_POOL))
        --heads;
    heads = gptoss_ceil_div(group, gptoss_ceil_div(group, heads)); /* as even as can be */
    return (struct row_shape){tile, heads, heads * 8 * pieces};
}

/* Parts that a row can have, at most: a power of two, so that recordings last. */
static int64_t count_parts(const struct gptoss_vulkan_backend *backend, int32_t window,
                           uint32_t tile) {
    int64_t keys = backend->end_position, count = 1;
    keys = window > 0 && window < keys ? window : keys;
    int64_t tiles = gptoss_ceil_div(keys, tile);
    while (count < tiles)
        count *= 2;
    return count < GPTOSS_ATTENTION_PARTS ? count : GPTOSS_ATTENTION_PARTS;
}

static enum gptoss_status attend_panel(struct gptoss_vulkan_backend *backend,
                                       struct gptoss_attention_push *push, int64_t num_rows,
                                       uint32_t head_dim, uint32_t group) {
    bool is_large = head_dim > LARGE_HEAD_DIM;
    bool tiles = backend->weights.has_tiles && head_dim % 32 == 0;
    uint32_t workgroup = is_large ? MIN_PANEL_WORKGROUP : tiles ? TILE_WORKGROUP : PANEL_WORKGROUP;
    uint32_t line_parts = is_large ? 1 : tiles ? TILE_LINE_PARTS : PANEL_LINE_PARTS;
    uint32_t keys = is_large ? MIN_PANEL_KEYS : PANEL_KEYS;
    uint32_t lines = workgroup / 2 * line_parts;
    push->num_rows = (uint32_t)num_rows;
    return gptoss_vulkan_dispatch(
        backend,
        &(struct gptoss_dispatch){
            .key = {tiles ? GPTOSS_SHADER_tile_attention : GPTOSS_SHADER_attention_panel,
                    {workgroup, head_dim, group, line_parts, keys, tiles ? 0 : PANEL_CHUNK}},
            .push = push,
            .push_bytes = sizeof *push,
            .groups = {gptoss_ceil_div(num_rows, lines / group), push->num_kv_heads, 1},
        });
}

static enum gptoss_status attend_rows(struct gptoss_vulkan_backend *backend,
                                      struct gptoss_attention_push *push, int64_t num_rows,
                                      uint32_t head_dim, uint32_t group) {
    const struct row_shape shape = shape_rows(head_dim, group, backend->device.subgroup_size);
    int64_t blocks = push->num_kv_heads * gptoss_ceil_div(group, shape.heads), num_parts = 1;
    if (num_rows <= MAX_SPLIT_ROWS)
        num_parts = count_parts(backend, (int32_t)push->window, shape.tile);
    if (num_parts > 1) {
        /* What a part leaves: outputs, maxima and totals, in whole vectors. */
        uint64_t entry_bytes = gptoss_ceil_div(shape.outputs + 2 * shape.heads, 4) * 16;
        GPTOSS_TRY(gptoss_vulkan_scratch(backend, GPTOSS_SCRATCH_ATTENTION,
                                         (uint64_t)(num_rows * blocks * num_parts) * entry_bytes,
                                         &push->partial));
        GPTOSS_TRY(gptoss_vulkan_scratch(backend, GPTOSS_SCRATCH_COUNTERS,
                                         (uint64_t)(num_rows * blocks) * sizeof(uint32_t),
                                         &push->counters));
        push->num_parts = (uint32_t)num_parts;
    }
    return gptoss_vulkan_dispatch(
        backend, &(struct gptoss_dispatch){
                     .key = {GPTOSS_SHADER_attention,
                             {WORKGROUP, head_dim, shape.heads, num_parts > 1, backend->has_f32}},
                     .push = push,
                     .push_bytes = sizeof *push,
                     .groups = {num_rows, blocks, num_parts},
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
    struct gptoss_attention_push push = {
        .rows = gptoss_vulkan_table(backend)->rows,
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
    if (backend->is_f16 && backend->is_one_run && !backend->has_f32 &&
        table->num_rows > MAX_SPLIT_ROWS && head_dim % 16 == 0 && head_dim <= MAX_PANEL_HEAD_DIM &&
        group <= MAX_PANEL_GROUP)
        return attend_panel(backend, &push, table->num_rows, head_dim, group);
    return attend_rows(backend, &push, table->num_rows, head_dim, group);
}
