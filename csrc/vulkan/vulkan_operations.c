/* Embedding, norms and matrix products. */
#include <string.h>

#include "platform/allocator.h"
#include "status.h"
#include "vulkan/vulkan_backend.h"

/* Lines up to which each is multiplied by itself, straight from the packed weights. */
#define MAX_SINGLE_LINES 8
/* Weight rows that subgroups multiply together, and how many share them; measured on an H200. Few
 * rows are few instructions, which have a cache that the shaders of a pass share. */
#define ROWS 4
#define SPLIT 4
#define LARGE_ROWS 8
#define PAIR_ROWS 1
#define PAIR_SPLIT 1
#define LARGE_MATRIX_ROWS 16384
/* Subgroups that share a tile of 16 rows. */
#define TILE_SPLIT 8
#define PAIR_TILE_SPLIT 2
#define WORKGROUP 256
/* Rows whose logits are on the device at a time. */
#define MAX_LOGITS_ROWS 64

/* ---- the table of rows ---- */

static int64_t largest(int64_t a, int64_t b) {
    return a > b ? a : b;
}

enum gptoss_status gptoss_vulkan_reserve_table(struct gptoss_vulkan_backend *backend,
                                               int64_t num_rows, int64_t num_angles) {
    struct gptoss_vulkan_table *table = &backend->tables[backend->num_guesses];
    if (num_rows <= table->max_rows && num_angles <= table->max_angles)
        return GPTOSS_OK;
    num_rows = largest(num_rows, table->max_rows);
    num_angles = largest(num_angles, table->max_angles);
    uint64_t row_bytes = (uint64_t)num_rows * sizeof(struct gptoss_device_row);
    uint64_t angle_bytes = ((uint64_t)num_angles * sizeof(float) + 15) / 16 * 16;
    uint64_t list_bytes = (uint64_t)num_rows * sizeof(uint32_t);
    GPTOSS_TRY(gptoss_vulkan_flush(backend));
    gptoss_vulkan_forget(&backend->queue);
    gptoss_vulkan_memory_release(&backend->device, &table->memory);
    *table = (struct gptoss_vulkan_table){0};
    GPTOSS_TRY(
        gptoss_vulkan_memory_create(&backend->device, GPTOSS_VULKAN_INPUT,
                                    row_bytes + 2 * angle_bytes + list_bytes + sizeof(uint32_t),
                                    "the table of rows", &table->memory, &backend->error));
    table->max_rows = num_rows;
    table->max_angles = num_angles;
    table->rows = table->memory.address;
    table->cosine = table->rows + row_bytes;
    table->sine = table->cosine + angle_bytes;
    table->list = table->sine + angle_bytes;
    table->random = table->list + list_bytes;
    return GPTOSS_OK;
}

/* Room in the caches, and the table where the device finds it. num_angles: of a row. */
static enum gptoss_status write_table(struct gptoss_vulkan_backend *backend,
                                      const struct gptoss_row_table *table) {
    backend->end_position = 0;
    for (int64_t row = 0; row < table->num_rows; ++row) {
        const struct gptoss_row *entry = &table->rows[row];
        backend->end_position = largest(backend->end_position, entry->position + 1);
        if (row + 1 == table->num_rows || table->rows[row + 1].slot != entry->slot)
            GPTOSS_TRY(gptoss_vulkan_cache_reserve(backend, table->caches[entry->slot],
                                                   entry->position + 1));
    }
    int64_t num_angles = table->num_rows * table->num_angles;
    GPTOSS_TRY(gptoss_vulkan_reserve_table(backend, table->num_rows, num_angles));
    const struct gptoss_vulkan_table *to = gptoss_vulkan_table(backend);
    backend->num_rows = table->num_rows;
    backend->is_one_run = true;
    backend->has_f32 = false;
    struct gptoss_device_row *rows = gptoss_vulkan_at(&to->memory, to->rows);
    for (int64_t row = 0; row < table->num_rows; ++row) {
        const struct gptoss_row *entry = &table->rows[row];
        struct gptoss_cache *cache = table->caches[entry->slot];
        gptoss_vulkan_cache_locate(cache, &rows[row]);
        rows[row].position = (int32_t)entry->position;
        rows[row].append = entry->position >= gptoss_vulkan_cache_end(cache);
        if (entry->token != GPTOSS_TOKEN_GUESSED) /* which the device may be writing now */
            rows[row].token = entry->token;
        backend->has_f32 = backend->has_f32 || rows[row].is_f32 != 0;
        backend->is_one_run = backend->is_one_run && entry->slot == table->rows[0].slot &&
                              entry->position == table->rows[0].position + row;
    }
    if (num_angles > 0) {
        size_t num_bytes = (size_t)num_angles * sizeof(float);
        memcpy(gptoss_vulkan_at(&to->memory, to->cosine), table->cosine, num_bytes);
        memcpy(gptoss_vulkan_at(&to->memory, to->sine), table->sine, num_bytes);
    }
    return GPTOSS_OK;
}

enum gptoss_status gptoss_vulkan_take_rows(struct gptoss_backend *base,
                                           const struct gptoss_row_table *table) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    if (backend->is_loading)
        return GPTOSS_OK;
    /* What the last pass left to run still reads the table, if it is the same. */
    if (backend->num_guesses == 0)
        GPTOSS_TRY(gptoss_vulkan_flush(backend));
    return write_table(backend, table);
}

enum gptoss_status gptoss_vulkan_embed(struct gptoss_backend *base,
                                       const struct gptoss_row_table *table,
                                       const struct gptoss_embed *operation) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->rounded.x = 0;
    backend->timer = GPTOSS_TIMER_embed;
    struct gptoss_device_weight weight, positions;
    GPTOSS_TRY(
        gptoss_vulkan_weight(&backend->weights, operation->embedding, GPTOSS_FORM_ROWS, &weight));
    GPTOSS_TRY(gptoss_vulkan_weight(&backend->weights, operation->positions, GPTOSS_FORM_FLOAT32,
                                    &positions));
    if (backend->is_loading)
        return GPTOSS_OK;
    const struct gptoss_embed_push push = {
        .rows = gptoss_vulkan_table(backend)->rows,
        .weight = weight.data,
        .scales = weight.scales,
        .positions = positions.data,
        .result = gptoss_address_of(operation->out),
    };
    return gptoss_vulkan_dispatch(
        backend, &(struct gptoss_dispatch){
                     .key = {GPTOSS_SHADER_embed, {WORKGROUP, weight.layout, weight.num_columns}},
                     .push = &push,
                     .push_bytes = sizeof push,
                     .groups = {table->num_rows, 1, 1},
                 });
}

/* ---- norms ---- */

static enum gptoss_status norm_push(struct gptoss_vulkan_backend *backend,
                                    const struct gptoss_norm *norm, const struct gptoss_buffer *x,
                                    const struct gptoss_buffer *out,
                                    struct gptoss_norm_push *push) {
    *push = (struct gptoss_norm_push){
        .x = gptoss_address_of(x),
        .result = gptoss_address_of(out),
        .num_columns = (uint32_t)norm->gain->num_elements,
        .epsilon = norm->epsilon,
    };
    GPTOSS_TRY(gptoss_vulkan_vector(&backend->weights, norm->gain, &push->gain));
    return gptoss_vulkan_vector(&backend->weights, norm->bias, &push->bias);
}

static enum gptoss_status dispatch_norm(struct gptoss_vulkan_backend *backend,
                                        const struct gptoss_norm_push *push, int64_t num_rows) {
    uint32_t width = push->num_columns % 4 == 0 ? 4 : 1;
    return gptoss_vulkan_dispatch(backend, &(struct gptoss_dispatch){
                                               .key = {GPTOSS_SHADER_norm, {WORKGROUP, width}},
                                               .push = push,
                                               .push_bytes = sizeof *push,
                                               .groups = {num_rows, 1, 1},
                                           });
}

enum gptoss_status gptoss_vulkan_settle_norm(struct gptoss_vulkan_backend *backend,
                                             const struct gptoss_buffer *buffer) {
    if (backend->norm_of == NULL || backend->norm_of != buffer)
        return GPTOSS_OK;
    backend->norm_of = NULL;
    return dispatch_norm(backend, &backend->pending_norm, backend->num_rows);
}

/* Before products with norm(x): normalises the rows into `normed`, or leaves that to the products,
 * which then get *push filled, and remembers it for whoever reads `normed` directly after. */
static enum gptoss_status begin_norm(struct gptoss_vulkan_backend *backend,
                                     const struct gptoss_norm *norm, const struct gptoss_buffer *x,
                                     const struct gptoss_buffer *normed, int64_t num_rows,
                                     struct gptoss_product_push *push) {
    struct gptoss_norm_push norm_parameters;
    GPTOSS_TRY(norm_push(backend, norm, x, normed, &norm_parameters));
    push->x = gptoss_address_of(normed);
    if (backend->is_loading)
        return GPTOSS_OK;
    backend->norm_of = NULL;
    if (norm_parameters.bias != 0 || num_rows > MAX_SINGLE_LINES)
        return dispatch_norm(backend, &norm_parameters, num_rows);
    backend->norm_of = normed;
    backend->pending_norm = norm_parameters;
    push->x = norm_parameters.x;
    push->gain = norm_parameters.gain;
    push->epsilon = norm_parameters.epsilon;
    return GPTOSS_OK;
}

/* ---- products ---- */

/* Lines of x in float16, unless the operation has them already. */
static enum gptoss_status round_lines(struct gptoss_vulkan_backend *backend,
                                      struct gptoss_panel *panel) {
    bool interleaves =
        panel->weight.layout == GPTOSS_DEVICE_MXFP4 || gptoss_is_in_tiles(&panel->weight);
    uint32_t num_columns = panel->weight.num_columns;
    uint64_t line_bytes = (uint64_t)(num_columns + 63) / 64 * 128;
    uint64_t first = panel->push.first_token, lines = (uint64_t)panel->num_lines;
    struct gptoss_round_push push = {.x = panel->push.x + first * num_columns * sizeof(float)};
    GPTOSS_TRY(gptoss_vulkan_scratch(backend, GPTOSS_SCRATCH_ROUNDED,
                                     lines * line_bytes + lines * sizeof(float), &push.result));
    push.scales = push.result + lines * line_bytes;
    panel->push.x = push.result;
    panel->push.gain = push.scales;
    panel->push.first_token = 0;
    if (backend->rounded.x == push.x && backend->rounded.num_lines == panel->num_lines &&
        backend->rounded.num_columns == num_columns && backend->rounded.interleaves == interleaves)
        return GPTOSS_OK;
    backend->rounded.x = push.x;
    backend->rounded.num_lines = panel->num_lines;
    backend->rounded.num_columns = num_columns;
    backend->rounded.interleaves = interleaves;
    panel->joins_previous = false;
    return gptoss_vulkan_dispatch(
        backend, &(struct gptoss_dispatch){
                     .key = {GPTOSS_SHADER_round_rows, {WORKGROUP, num_columns, interleaves}},
                     .push = &push,
                     .push_bytes = sizeof push,
                     .groups = {panel->num_lines, 1, 1},
                 });
}

/* Whether scales may be multiplied into halves, and the shift that this takes. */
static bool scales_halves(const struct gptoss_panel *panel, uint32_t *shift_out) {
    struct gptoss_scale_range range = panel->weight.scale_range, up = panel->up.scale_range;
    if (panel->up.data != 0) {
        range.least = up.least < range.least ? up.least : range.least;
        range.most = up.most > range.most ? up.most : range.most;
    }
    return panel->weight.layout == GPTOSS_DEVICE_MXFP4_TILES &&
           gptoss_tile_find_shift(range, shift_out);
}

static enum gptoss_status tile_panel(struct gptoss_vulkan_backend *backend,
                                     struct gptoss_panel *panel) {
    bool in_halves = scales_halves(panel, &panel->push.scale_shift);
    uint32_t workgroup = in_halves ? GPTOSS_SCALED_WORKGROUP : WORKGROUP;
    uint32_t rows = panel->is_pair ? workgroup / 2 : workgroup;
    return gptoss_vulkan_dispatch(
        backend, &(struct gptoss_dispatch){
                     .key = {GPTOSS_SHADER_tile_panel,
                             {workgroup, panel->weight.layout, panel->weight.num_columns,
                              panel->mode, panel->has_experts, in_halves}},
                     .push = &panel->push,
                     .push_bytes = sizeof panel->push,
                     .groups = {gptoss_ceil_div(panel->push.num_outs, rows), panel->num_tiles, 1},
                     .joins_previous = panel->joins_previous,
                 });
}

enum gptoss_status gptoss_vulkan_panel(struct gptoss_vulkan_backend *backend,
                                       struct gptoss_panel *panel) {
    bool tiles = gptoss_is_in_tiles(&panel->weight);
    bool matrices = tiles || (backend->is_f16 && panel->weight.fits_f16 &&
                              (panel->up.data == 0 || panel->up.fits_f16));
    if (matrices)
        GPTOSS_TRY(round_lines(backend, panel));
    if (tiles)
        return tile_panel(backend, panel);
    int64_t rows = matrices ? GPTOSS_MATRIX_ROWS : GPTOSS_TILE_ROWS;
    return gptoss_vulkan_dispatch(
        backend,
        &(struct gptoss_dispatch){
            .key = {matrices ? GPTOSS_SHADER_matrix_panel : GPTOSS_SHADER_product_panel,
                    {matrices ? GPTOSS_MATRIX_WORKGROUP : WORKGROUP, panel->weight.layout,
                     panel->weight.num_columns, panel->mode, panel->has_experts}},
            .push = &panel->push,
            .push_bytes = sizeof panel->push,
            .groups = {gptoss_ceil_div(panel->push.num_outs, panel->is_pair ? rows / 2 : rows),
                       panel->num_tiles, 1},
            .joins_previous = panel->joins_previous,
        });
}

static enum gptoss_status tile_rows(struct gptoss_vulkan_backend *backend,
                                    const struct gptoss_rows_product *product, bool is_pair) {
    uint32_t tiles = is_pair ? 2 : 1, split = is_pair ? PAIR_TILE_SPLIT : TILE_SPLIT;
    return gptoss_vulkan_dispatch(
        backend,
        &(struct gptoss_dispatch){
            .key = {GPTOSS_SHADER_tile_rows,
                    {32 * tiles * split, product->weight.layout, product->weight.num_columns,
                     product->mode, split, product->push.gain != 0}},
            .push = &product->push,
            .push_bytes = sizeof product->push,
            .groups = {gptoss_ceil_div(product->push.num_outs, 16), product->num_lines, 1},
            .joins_previous = product->joins_previous,
        });
}

enum gptoss_status gptoss_vulkan_rows(struct gptoss_vulkan_backend *backend,
                                      const struct gptoss_rows_product *product) {
    bool is_pair = product->mode == GPTOSS_PRODUCT_SWIGLU || product->mode == GPTOSS_PRODUCT_SILU;
    if (gptoss_is_in_tiles(&product->weight))
        return tile_rows(backend, product, is_pair);
    uint32_t subgroups = WORKGROUP / backend->device.subgroup_size;
    /* Few rows leave the device idle unless more subgroups share them. The rows of an adapter's
     * second matrix are too short to be shared. */
    bool is_small =
        product->push.num_outs < LARGE_MATRIX_ROWS && product->mode != GPTOSS_PRODUCT_ADD;
    uint32_t rows = is_pair ? PAIR_ROWS : is_small ? ROWS : LARGE_ROWS;
    if (rows > backend->device.subgroup_size) /* each is finished by an invocation */
        rows = backend->device.subgroup_size;
    uint32_t split = is_pair ? PAIR_SPLIT : is_small ? SPLIT : 1;
    split = split < subgroups ? split : subgroups;
    return gptoss_vulkan_dispatch(
        backend, &(struct gptoss_dispatch){
                     .key = {GPTOSS_SHADER_product_rows,
                             {WORKGROUP, product->weight.layout, product->weight.num_columns,
                              product->mode, rows, product->push.gain != 0, split}},
                     .push = &product->push,
                     .push_bytes = sizeof product->push,
                     .groups = {gptoss_ceil_div(product->push.num_outs, subgroups / split * rows),
                                product->num_lines, 1},
                     .joins_previous = product->joins_previous,
                 });
}

enum gptoss_status gptoss_vulkan_product(struct gptoss_vulkan_backend *backend,
                                         const struct gptoss_dense_product *product,
                                         int64_t num_tokens) {
    struct gptoss_product_push push = product->push;
    struct gptoss_device_weight weight, up;
    enum gptoss_device_form form = product->in_rows ? GPTOSS_FORM_ROWS : GPTOSS_FORM_TILES;
    if (product->up != NULL && product->up->dtype != product->weight->dtype)
        form = GPTOSS_FORM_FLOAT32;
    GPTOSS_TRY(gptoss_vulkan_weight(&backend->weights, product->weight, form, &weight));
    GPTOSS_TRY(gptoss_vulkan_weight(&backend->weights, product->up, form, &up));
    GPTOSS_TRY(gptoss_vulkan_vector(&backend->weights, product->bias, &push.bias));
    GPTOSS_TRY(gptoss_vulkan_vector(&backend->weights, product->up_bias, &push.up_bias));
    if (backend->is_loading)
        return GPTOSS_OK;
    push.weight = weight.data;
    push.scales = weight.scales;
    push.up = up.data;
    push.up_scales = up.scales;
    push.num_outs = (uint32_t)product->weight->num_rows;
    push.num_tokens = (uint32_t)num_tokens;
    if (num_tokens > MAX_SINGLE_LINES) {
        struct gptoss_panel panel = {
            .weight = weight,
            .up = up,
            .push = push,
            .num_lines = num_tokens,
            .num_tiles = gptoss_ceil_div(num_tokens, GPTOSS_TILE_TOKENS),
            .mode = product->mode,
            .is_pair = product->mode == GPTOSS_PRODUCT_SILU,
            .joins_previous = product->joins_previous,
        };
        return gptoss_vulkan_panel(backend, &panel);
    }
    return gptoss_vulkan_rows(backend, &(struct gptoss_rows_product){
                                           .weight = weight,
                                           .push = push,
                                           .mode = product->mode,
                                           .num_lines = num_tokens,
                                           .joins_previous = product->joins_previous,
                                       });
}

enum gptoss_status gptoss_vulkan_norm_linear(struct gptoss_backend *base,
                                             const struct gptoss_row_table *table,
                                             const struct gptoss_norm_linear *operation) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->rounded.x = 0;
    backend->timer = GPTOSS_TIMER_norm_linear;
    struct gptoss_product_push push = {0};
    GPTOSS_TRY(begin_norm(backend, &operation->norm, operation->x, operation->normed,
                          table->num_rows, &push));
    struct gptoss_dense_product products[3];
    for (int32_t i = 0; i < operation->num_outs; ++i) {
        push.result = gptoss_address_of(operation->outs[i]);
        products[i] = (struct gptoss_dense_product){
            .weight = operation->weights[i],
            .bias = operation->biases[i],
            .mode = GPTOSS_PRODUCT_STORE,
            .joins_previous = i > 0,
            .push = push,
        };
    }
    return gptoss_vulkan_multiply_dense(backend, products, operation->num_outs, table->num_rows);
}

enum gptoss_status gptoss_vulkan_linear_residual(struct gptoss_backend *base,
                                                 const struct gptoss_row_table *table,
                                                 const struct gptoss_linear_residual *operation) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->rounded.x = 0;
    backend->timer = GPTOSS_TIMER_linear_residual;
    backend->norm_of = NULL;
    const struct gptoss_dense_product product = {
        .weight = operation->weight,
        .bias = operation->bias,
        .mode = GPTOSS_PRODUCT_RESIDUAL,
        .push =
            {
                .x = gptoss_address_of(operation->x),
                .result = gptoss_address_of(operation->out),
                .extra = gptoss_address_of(operation->residual),
            },
    };
    return gptoss_vulkan_multiply_dense(backend, &product, 1, table->num_rows);
}

/* The terms of adapters come before the activation: gate and up are multiplied apart, then joined.
 */
static enum gptoss_status mlp_up_with_terms(struct gptoss_vulkan_backend *backend,
                                            const struct gptoss_mlp_up *operation, int64_t num_rows,
                                            struct gptoss_product_push push) {
    int64_t num_outs = operation->weight->num_rows;
    struct gptoss_activate_push activate = {.gate = push.result, .num_columns = (uint32_t)num_outs};
    if (operation->up != NULL && !backend->is_loading)
        GPTOSS_TRY(gptoss_vulkan_scratch(backend, GPTOSS_SCRATCH_UP,
                                         (uint64_t)(num_rows * num_outs) * sizeof(float),
                                         &activate.up));
    struct gptoss_dense_product products[2] = {
        {.weight = operation->weight, .bias = operation->bias},
        {.weight = operation->up, .bias = operation->up_bias, .joins_previous = true},
    };
    for (int i = 0; i < 2; ++i) {
        products[i].mode = GPTOSS_PRODUCT_STORE;
        products[i].push = push;
    }
    products[1].push.result = activate.up;
    GPTOSS_TRY(
        gptoss_vulkan_multiply_dense(backend, products, operation->up != NULL ? 2 : 1, num_rows));
    if (backend->is_loading)
        return GPTOSS_OK;
    return gptoss_vulkan_dispatch(backend,
                                  &(struct gptoss_dispatch){
                                      .key = {GPTOSS_SHADER_activate, {WORKGROUP}},
                                      .push = &activate,
                                      .push_bytes = sizeof activate,
                                      .groups = {num_rows, gptoss_ceil_div(num_outs, WORKGROUP), 1},
                                  });
}

enum gptoss_status gptoss_vulkan_mlp_up(struct gptoss_backend *base,
                                        const struct gptoss_row_table *table,
                                        const struct gptoss_mlp_up *operation) {
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->rounded.x = 0;
    backend->timer = GPTOSS_TIMER_mlp_up;
    struct gptoss_product_push push = {0};
    GPTOSS_TRY(begin_norm(backend, &operation->norm, operation->x, operation->normed,
                          table->num_rows, &push));
    push.result = gptoss_address_of(operation->out);
    if (operation->weight->low_rank != NULL ||
        (operation->up != NULL && operation->up->low_rank != NULL))
        return mlp_up_with_terms(backend, operation, table->num_rows, push);
    const struct gptoss_dense_product product = {
        .weight = operation->weight,
        .up = operation->up,
        .bias = operation->bias,
        .up_bias = operation->up_bias,
        .mode = operation->up != NULL ? GPTOSS_PRODUCT_SILU : GPTOSS_PRODUCT_GELU,
        .push = push,
    };
    return gptoss_vulkan_product(backend, &product, table->num_rows);
}

/* ---- logits ---- */

/* Logits of rows of `normed`, and their way to the host. */
static enum gptoss_status read_logits(struct gptoss_vulkan_backend *backend,
                                      const struct gptoss_unembed *operation, int64_t first,
                                      int64_t num_rows, struct gptoss_product_push push) {
    uint64_t row_bytes = (uint64_t)operation->weight->num_rows * sizeof(float);
    uint64_t num_bytes = (uint64_t)num_rows * row_bytes;
    GPTOSS_TRY(gptoss_vulkan_scratch(backend, GPTOSS_SCRATCH_LOGITS, num_bytes, &push.result));
    if (!operation->is_deferred)
        GPTOSS_TRY(gptoss_vulkan_reserve_readback(backend, num_bytes));
    push.first_token += (uint32_t)first;
    const struct gptoss_dense_product product = {
        .weight = operation->weight,
        .mode = GPTOSS_PRODUCT_STORE,
        .in_rows = true, /* as the embedding, which may be the same */
        .push = push,
    };
    GPTOSS_TRY(gptoss_vulkan_multiply_dense(backend, &product, 1, num_rows));
    if (operation->is_deferred)
        return gptoss_vulkan_defer_logits(backend, operation);
    GPTOSS_TRY(gptoss_vulkan_list_copy(&backend->queue, &backend->scratch[GPTOSS_SCRATCH_LOGITS], 0,
                                       &backend->readback, 0, num_bytes, false));
    GPTOSS_TRY(gptoss_vulkan_flush(backend));
    memcpy(operation->logits + first * operation->weight->num_rows, backend->readback.host,
           num_bytes);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_vulkan_unembed(struct gptoss_backend *base,
                                         const struct gptoss_row_table *table,
                                         const struct gptoss_unembed *operation) {
    (void)table;
    struct gptoss_vulkan_backend *backend = gptoss_vulkan_of(base);
    backend->rounded.x = 0;
    backend->timer = GPTOSS_TIMER_unembed;
    struct gptoss_norm_push norm;
    GPTOSS_TRY(norm_push(backend, &operation->norm, operation->x, operation->normed, &norm));
    if (backend->is_loading) {
        const struct gptoss_dense_product product = {.weight = operation->weight, .in_rows = true};
        return gptoss_vulkan_multiply_dense(backend, &product, 1, operation->num_rows);
    }
    backend->norm_of = NULL;
    struct gptoss_product_push push = {.x = norm.result};
    if (operation->num_rows == 1 && norm.bias == 0 && operation->weight != NULL) {
        push.x = norm.x;
        push.gain = norm.gain;
        push.epsilon = norm.epsilon;
        push.first_token =
            (uint32_t)(operation->rows != NULL ? operation->rows[0] : operation->first_row);
        return read_logits(backend, operation, 0, 1, push);
    }
    norm.first = (uint32_t)operation->first_row;
    if (operation->rows != NULL) {
        GPTOSS_TRY(gptoss_vulkan_flush(backend)); /* an earlier list may be in use */
        const struct gptoss_vulkan_table *to = gptoss_vulkan_table(backend);
        uint32_t *list = gptoss_vulkan_at(&to->memory, to->list);
        for (int64_t i = 0; i < operation->num_rows; ++i)
            list[i] = (uint32_t)operation->rows[i];
        norm.list = to->list;
    }
    GPTOSS_TRY(dispatch_norm(backend, &norm, operation->num_rows));
    if (operation->weight == NULL)
        return GPTOSS_OK;
    for (int64_t first = 0; first < operation->num_rows; first += MAX_LOGITS_ROWS) {
        int64_t left = operation->num_rows - first;
        GPTOSS_TRY(read_logits(backend, operation, first,
                               left < MAX_LOGITS_ROWS ? left : MAX_LOGITS_ROWS, push));
    }
    return GPTOSS_OK;
}
