/* Routing and the experts. */
#include "status.h"
#include "vulkan/vulkan_backend.h"

/* Tokens up to which each chosen expert is multiplied for each by itself. */
#define MAX_SINGLE_TOKENS 8
#define DOWN_ROWS 2  /* of a subgroup */
#define TILE_SPLIT 4 /* subgroups that share a tile of 16 rows */
#define WORKGROUP 256
/* Rows up to which each expert of each has a workgroup, and experts that are few enough for several
 * rows in one. */
#define MAX_SINGLE_ROUTES 64
#define MAX_PANEL_EXPERTS 256
#define MAX_DEVICE_EXPERTS 1024 /* what shared memory of route and group holds */

enum gptoss_status gptoss_vulkan_route(struct gptoss_backend *base,
                                       const struct gptoss_row_table *table,
                                       const struct gptoss_route *operation) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->rounded.x = 0;
    backend->timer = GPTOSS_TIMER_route;
    struct gptoss_device_weight weight;
    struct gptoss_route_push push = {
        .x = gptoss_address_of(operation->x),
        .normed = gptoss_address_of(operation->normed),
        .logits = gptoss_address_of(operation->logits),
        .experts = gptoss_address_of(operation->experts),
        .weights = gptoss_address_of(operation->weights),
        .num_rows = (uint32_t)table->num_rows,
        .num_experts = (uint32_t)operation->weight->num_rows,
        .num_chosen = (uint32_t)operation->num_chosen,
        .epsilon = operation->norm.epsilon,
    };
    GPTOSS_TRY(
        gptoss_vulkan_weight(&backend->weights, operation->weight, GPTOSS_FORM_ROWS, &weight));
    GPTOSS_TRY(gptoss_vulkan_vector(&backend->weights, operation->norm.gain, &push.gain));
    GPTOSS_TRY(gptoss_vulkan_vector(&backend->weights, operation->bias, &push.bias));
    if (push.num_experts > MAX_DEVICE_EXPERTS)
        return gptoss_error_set(&backend->error, GPTOSS_ERROR_UNSUPPORTED,
                                "a layer of %u experts is more than the %d that Vulkan devices "
                                "route to; use device='cpu'",
                                push.num_experts, MAX_DEVICE_EXPERTS);
    if (backend->is_loading)
        return GPTOSS_OK;
    backend->norm_of = NULL;
    push.weight = weight.data;
    push.scales = weight.scales;
    bool is_panel = table->num_rows > MAX_SINGLE_ROUTES && push.num_experts <= MAX_PANEL_EXPERTS;
    struct gptoss_dispatch dispatch = {
        .key = {is_panel ? GPTOSS_SHADER_route_panel : GPTOSS_SHADER_route,
                {WORKGROUP, weight.layout, weight.num_columns, push.num_experts}},
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {table->num_rows, push.num_experts, 1},
    };
    if (is_panel) {
        dispatch.groups[0] = gptoss_ceil_div(table->num_rows, GPTOSS_ROUTE_ROWS);
        dispatch.groups[1] = 1;
    } else {
        GPTOSS_TRY(gptoss_vulkan_scratch(backend, GPTOSS_SCRATCH_COUNTERS,
                                         (uint64_t)table->num_rows * sizeof(uint32_t),
                                         &push.counters));
    }
    return gptoss_vulkan_dispatch(backend, &dispatch);
}

/* Tiles of routes there can be at most. */
static int64_t max_tiles(int64_t num_routes, int64_t num_experts) {
    return num_routes / GPTOSS_TILE_TOKENS + (num_experts < num_routes ? num_experts : num_routes);
}

/* Where the routes, sorted by expert, and the list of tiles are. */
static enum gptoss_status find_groups(struct gptoss_vulkan_backend *backend, int64_t num_routes,
                                      int64_t num_experts, uint64_t *routes_out,
                                      uint64_t *tiles_out) {
    uint64_t route_bytes = (uint64_t)(num_routes + 3) / 4 * 16;
    uint64_t tile_bytes = (uint64_t)(1 + 3 * max_tiles(num_routes, num_experts)) * 4;
    GPTOSS_TRY(gptoss_vulkan_scratch(backend, GPTOSS_SCRATCH_GROUPS, route_bytes + tile_bytes,
                                     routes_out));
    *tiles_out = *routes_out + route_bytes;
    return GPTOSS_OK;
}

static enum gptoss_status group(struct gptoss_vulkan_backend *backend,
                                const struct gptoss_buffer *experts, int64_t num_routes,
                                int64_t num_experts) {
    struct gptoss_group_push push = {
        .experts = gptoss_address_of(experts),
        .num_routes = (uint32_t)num_routes,
        .num_experts = (uint32_t)num_experts,
    };
    GPTOSS_TRY(find_groups(backend, num_routes, num_experts, &push.routes, &push.tiles));
    /* As large as 32 subgroups, of which every device takes that many. */
    uint32_t workgroup = 32 * backend->device.subgroup_size;
    workgroup = workgroup <= backend->device.max_workgroup ? workgroup : WORKGROUP;
    return gptoss_vulkan_dispatch(backend,
                                  &(struct gptoss_dispatch){
                                      .key = {GPTOSS_SHADER_group, {workgroup, push.num_experts}},
                                      .push = &push,
                                      .push_bytes = sizeof push,
                                      .groups = {1, 1, 1},
                                  });
}

enum gptoss_status gptoss_vulkan_expert_gate_up(struct gptoss_backend *base,
                                                const struct gptoss_row_table *table,
                                                const struct gptoss_expert_gate_up *operation) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->rounded.x = 0;
    backend->timer = GPTOSS_TIMER_expert_gate_up;
    struct gptoss_device_weight weight, up;
    enum gptoss_device_form form =
        operation->up == NULL ? GPTOSS_FORM_PAIR_TILES : GPTOSS_FORM_TILES;
    if (operation->up != NULL && operation->up->dtype != operation->weight->dtype)
        form = GPTOSS_FORM_FLOAT32;
    int64_t num_outs = operation->weight->num_rows / (operation->up != NULL ? 1 : 2);
    struct gptoss_product_push push = {
        .x = gptoss_address_of(operation->x),
        .result = gptoss_address_of(operation->out),
        .num_outs = (uint32_t)num_outs,
        .num_chosen = (uint32_t)operation->num_chosen,
        .limit = operation->limit,
        .alpha = operation->alpha,
    };
    GPTOSS_TRY(gptoss_vulkan_weight(&backend->weights, operation->weight, form, &weight));
    GPTOSS_TRY(gptoss_vulkan_weight(&backend->weights, operation->up, form, &up));
    GPTOSS_TRY(gptoss_vulkan_vector(&backend->weights, operation->bias, &push.bias));
    GPTOSS_TRY(gptoss_vulkan_vector(&backend->weights, operation->up_bias, &push.up_bias));
    if (backend->is_loading)
        return GPTOSS_OK;
    push.weight = weight.data;
    push.scales = weight.scales;
    push.up = up.data;
    push.up_scales = up.scales;
    int64_t num_routes = table->num_rows * operation->num_chosen;
    int64_t num_experts = operation->weight->num_matrices;
    push.num_tokens = (uint32_t)num_routes;
    if (table->num_rows > MAX_SINGLE_TOKENS) {
        GPTOSS_TRY(group(backend, operation->experts, num_routes, (uint32_t)num_experts));
        GPTOSS_TRY(find_groups(backend, num_routes, num_experts, &push.routes, &push.experts));
        struct gptoss_panel panel = {
            .weight = weight,
            .up = up,
            .push = push,
            .num_lines = table->num_rows,
            .num_tiles = max_tiles(num_routes, num_experts),
            .mode = GPTOSS_PRODUCT_SWIGLU,
            .is_pair = true,
            .has_experts = true,
        };
        return gptoss_vulkan_panel(backend, &panel);
    }
    push.experts = gptoss_address_of(operation->experts);
    return gptoss_vulkan_rows(backend, &(struct gptoss_rows_product){
                                           .weight = weight,
                                           .push = push,
                                           .mode = GPTOSS_PRODUCT_SWIGLU,
                                           .num_lines = num_routes,
                                       });
}

static enum gptoss_status down_rows(struct gptoss_vulkan_backend *backend,
                                    const struct gptoss_expert_down *operation,
                                    const struct gptoss_device_weight *weight, uint64_t bias,
                                    int64_t num_tokens) {
    uint32_t chosen = (uint32_t)operation->num_chosen;
    struct gptoss_down_push push = {
        .x = gptoss_address_of(operation->x),
        .weight = weight->data,
        .scales = weight->scales,
        .bias = bias,
        .experts = gptoss_address_of(operation->experts),
        .weights = gptoss_address_of(operation->weights),
        .outputs = gptoss_address_of(operation->outputs),
        .sum = gptoss_address_of(operation->sum),
        .residual = gptoss_address_of(operation->residual),
        .num_outs = (uint32_t)operation->weight->num_rows,
        .num_chosen = chosen,
    };
    bool tiles = gptoss_is_in_tiles(weight);
    int64_t together = tiles ? 16 : WORKGROUP / backend->device.subgroup_size * DOWN_ROWS;
    int64_t groups = gptoss_ceil_div(push.num_outs, together);
    GPTOSS_TRY(gptoss_vulkan_scratch(backend, GPTOSS_SCRATCH_COUNTERS,
                                     (uint64_t)(num_tokens * groups) * sizeof(uint32_t),
                                     &push.counters));
    struct gptoss_dispatch dispatch = {
        .key = {GPTOSS_SHADER_expert_down_rows,
                {WORKGROUP, weight->layout, weight->num_columns, DOWN_ROWS, chosen}},
        .push = &push,
        .push_bytes = sizeof push,
        .groups = {groups * chosen, num_tokens, 1},
    };
    if (tiles)
        dispatch.key = (struct gptoss_pipeline_key){
            GPTOSS_SHADER_tile_down_rows,
            {32 * TILE_SPLIT, weight->layout, weight->num_columns, TILE_SPLIT, chosen}};
    return gptoss_vulkan_dispatch(backend, &dispatch);
}

static enum gptoss_status down_panel(struct gptoss_vulkan_backend *backend,
                                     const struct gptoss_expert_down *operation,
                                     const struct gptoss_device_weight *weight, uint64_t bias,
                                     int64_t num_tokens) {
    int64_t num_routes = num_tokens * operation->num_chosen;
    int64_t num_outs = operation->weight->num_rows;
    int64_t num_experts = operation->weight->num_matrices;
    struct gptoss_panel panel = {
        .weight = *weight,
        .push =
            {
                .x = gptoss_address_of(operation->x),
                .weight = weight->data,
                .scales = weight->scales,
                .bias = bias,
                .result = gptoss_address_of(operation->outputs),
                .num_outs = (uint32_t)num_outs,
                .num_tokens = (uint32_t)num_routes,
                .num_chosen = 1, /* each route has a line of its own */
            },
        .num_lines = num_routes,
        .num_tiles = max_tiles(num_routes, num_experts),
        .mode = GPTOSS_PRODUCT_STORE,
        .has_experts = true,
    };
    GPTOSS_TRY(
        find_groups(backend, num_routes, num_experts, &panel.push.routes, &panel.push.experts));
    GPTOSS_TRY(gptoss_vulkan_panel(backend, &panel));
    uint32_t width = num_outs % 4 == 0 ? 4 : 1;
    const struct gptoss_sum_push sum = {
        .outputs = gptoss_address_of(operation->outputs),
        .weights = gptoss_address_of(operation->weights),
        .sum = gptoss_address_of(operation->sum),
        .residual = gptoss_address_of(operation->residual),
        .num_columns = (uint32_t)num_outs,
        .num_chosen = (uint32_t)operation->num_chosen,
    };
    return gptoss_vulkan_dispatch(
        backend, &(struct gptoss_dispatch){
                     .key = {GPTOSS_SHADER_expert_sum, {WORKGROUP, width}},
                     .push = &sum,
                     .push_bytes = sizeof sum,
                     .groups = {num_tokens, gptoss_ceil_div(num_outs, width * WORKGROUP), 1},
                 });
}

enum gptoss_status gptoss_vulkan_expert_down(struct gptoss_backend *base,
                                             const struct gptoss_row_table *table,
                                             const struct gptoss_expert_down *operation) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->rounded.x = 0;
    backend->timer = GPTOSS_TIMER_expert_down;
    struct gptoss_device_weight weight;
    uint64_t bias;
    GPTOSS_TRY(
        gptoss_vulkan_weight(&backend->weights, operation->weight, GPTOSS_FORM_TILES, &weight));
    GPTOSS_TRY(gptoss_vulkan_vector(&backend->weights, operation->bias, &bias));
    if (backend->is_loading)
        return GPTOSS_OK;
    backend->norm_of = NULL;
    return table->num_rows <= MAX_SINGLE_TOKENS
               ? down_rows(backend, operation, &weight, bias, table->num_rows)
               : down_panel(backend, operation, &weight, bias, table->num_rows);
}
