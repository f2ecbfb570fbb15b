/* The forward pass of gpt-oss. Semantics: openai/gpt-oss torch/model.py; order of sums:
 * docs/numerics.md. */
#include "engine/gpt_oss.h"

#include <string.h>

#include "engine/model.h"
#include "engine/rope.h"
#include "platform/allocator.h"
#include "status.h"

/* ---- workspace ---- */

void gptoss_workspace_clear(struct gptoss_backend *backend, struct gptoss_workspace *workspace) {
    struct gptoss_buffer *buffers[] = {
        workspace->residual,       workspace->normed,         workspace->queries,
        workspace->keys,           workspace->values,         workspace->attention,
        workspace->sink_mass,      workspace->router_logits,  workspace->experts,
        workspace->activated,      workspace->expert_outputs, workspace->mlp_sum,
        workspace->expert_weights,
    };
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; ++i)
        backend->operations->buffer_release(backend, buffers[i]);
    gptoss_free(workspace->cosine);
    gptoss_free(workspace->sine);
    *workspace = (struct gptoss_workspace){0};
}

static enum gptoss_status workspace_reserve(struct gptoss_model *model, int64_t num_rows,
                                            struct gptoss_error *error) {
    struct gptoss_workspace *workspace = &model->workspace;
    if (num_rows <= workspace->max_rows)
        return GPTOSS_OK;
    struct gptoss_backend *backend = model->backend;
    const struct gptoss_config *config = model->config;
    gptoss_workspace_clear(backend, workspace);
    int64_t hidden = config->hidden_size, chosen = config->experts_per_token;
    int64_t query_size = (int64_t)config->num_heads * config->head_dim;
    int64_t key_size = (int64_t)config->num_kv_heads * config->head_dim;
    const struct {
        struct gptoss_buffer **buffer;
        int64_t row_size;
    } buffers[] = {
        {&workspace->residual, hidden},
        {&workspace->normed, hidden},
        {&workspace->queries, query_size},
        {&workspace->keys, key_size},
        {&workspace->values, key_size},
        {&workspace->attention, query_size},
        {&workspace->sink_mass, config->num_heads},
        {&workspace->router_logits, config->num_experts},
        {&workspace->experts, chosen},
        {&workspace->expert_weights, chosen},
        {&workspace->activated, chosen * config->intermediate_size},
        {&workspace->expert_outputs, chosen * hidden},
        {&workspace->mlp_sum, hidden},
    };
    enum gptoss_status status = GPTOSS_OK;
    uint64_t num_bytes = 0;
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0] && status == GPTOSS_OK; ++i) {
        uint64_t buffer_bytes = (uint64_t)(num_rows * buffers[i].row_size) * sizeof(float);
        status =
            backend->operations->buffer_create(backend, buffer_bytes, buffers[i].buffer, error);
        num_bytes += buffer_bytes;
    }
    size_t num_angles = (size_t)(num_rows * (config->head_dim / 2));
    workspace->cosine = gptoss_allocate(num_angles, sizeof(float));
    workspace->sine = gptoss_allocate(num_angles, sizeof(float));
    if (status == GPTOSS_OK && (workspace->cosine == NULL || workspace->sine == NULL))
        status = gptoss_error_memory(error, num_angles * sizeof(float), "rotary positions");
    if (status != GPTOSS_OK) {
        gptoss_workspace_clear(backend, workspace);
        return status;
    }
    workspace->max_rows = num_rows;
    workspace->num_bytes = num_bytes + 2 * num_angles * sizeof(float);
    return GPTOSS_OK;
}

/* ---- taps ---- */

/* Whether any slot's generator keeps a tap. */
static bool is_wanted(const struct gptoss_pass *pass, size_t index) {
    for (int32_t slot = 0; pass->captures != NULL && slot < pass->num_slots; ++slot)
        if (gptoss_capture_wants(pass->captures[slot], index))
            return true;
    return false;
}

static void keep_index(struct gptoss_model *model, const struct gptoss_pass *pass, size_t index,
                       struct gptoss_buffer *buffer) {
    if (!is_wanted(pass, index))
        return;
    struct gptoss_tap tap;
    gptoss_tap_describe(model->config, index, &tap);
    uint64_t row_bytes = gptoss_tap_row_bytes(&tap);
    const uint8_t *from = model->backend->operations->buffer_read(model->backend, buffer);
    for (int64_t row = 0, end; row < pass->num_rows; row = end) {
        int32_t slot = pass->rows[row].slot;
        for (end = row + 1; end < pass->num_rows && pass->rows[end].slot == slot;)
            ++end;
        void *to = gptoss_capture_rows(pass->captures[slot], model->config, index);
        if (to != NULL)
            memcpy(to, from + (uint64_t)row * row_bytes, (uint64_t)(end - row) * row_bytes);
    }
}

static void keep(struct gptoss_model *model, const struct gptoss_pass *pass, int32_t layer,
                 enum gptoss_layer_tap tap, struct gptoss_buffer *buffer) {
    keep_index(model, pass, gptoss_layer_tap_index(layer, tap), buffer);
}

/* ---- sub-layers ---- */

/* Queries, keys and values of the rows, rotated; the cache holds the new keys and values. */
static enum gptoss_status project(struct gptoss_model *model, const struct gptoss_pass *pass,
                                  const struct gptoss_row_table *table, int32_t index) {
    const struct gptoss_config *config = model->config;
    const struct gptoss_gpt_oss_layer *layer = &model->weights.layers[index];
    struct gptoss_workspace *work = &model->workspace;
    struct gptoss_backend *backend = model->backend;
    const struct gptoss_backend_operations *run = backend->operations;

    GPTOSS_TRY(
        run->norm_linear(backend, table,
                         &(struct gptoss_norm_linear){
                             .x = work->residual,
                             .normed = work->normed,
                             .gain = &layer->attention_norm,
                             .epsilon = config->rms_norm_eps,
                             .num_outs = 3,
                             .weights = {&layer->query, &layer->key, &layer->value},
                             .biases = {&layer->query_bias, &layer->key_bias, &layer->value_bias},
                             .outs = {work->queries, work->keys, work->values},
                         }));
    keep(model, pass, index, GPTOSS_TAP_ATTN_NORM, work->normed);

    GPTOSS_TRY(run->rope_append(backend, table,
                                &(struct gptoss_rope_append){
                                    .layer = index,
                                    .num_heads = config->num_heads,
                                    .num_kv_heads = config->num_kv_heads,
                                    .head_dim = config->head_dim,
                                    .queries = work->queries,
                                    .keys = work->keys,
                                    .values = work->values,
                                }));
    keep(model, pass, index, GPTOSS_TAP_Q, work->queries);
    keep(model, pass, index, GPTOSS_TAP_K, work->keys);
    keep(model, pass, index, GPTOSS_TAP_V, work->values);
    return GPTOSS_OK;
}

/* Attention over the cache, output projection, residual. */
static enum gptoss_status attend(struct gptoss_model *model, const struct gptoss_pass *pass,
                                 const struct gptoss_row_table *table, int32_t index) {
    const struct gptoss_config *config = model->config;
    const struct gptoss_gpt_oss_layer *layer = &model->weights.layers[index];
    struct gptoss_workspace *work = &model->workspace;
    struct gptoss_backend *backend = model->backend;
    const struct gptoss_backend_operations *run = backend->operations;

    bool sink_mass = is_wanted(pass, gptoss_layer_tap_index(index, GPTOSS_TAP_SINK_MASS));
    GPTOSS_TRY(
        run->attention(backend, table,
                       &(struct gptoss_attention){
                           .layer = index,
                           .num_heads = config->num_heads,
                           .num_kv_heads = config->num_kv_heads,
                           .head_dim = config->head_dim,
                           .window = config->layer_is_sliding[index] ? config->sliding_window : 0,
                           .scale = model->attention_scale,
                           .sinks = &layer->sinks,
                           .queries = work->queries,
                           .out = work->attention,
                           .sink_mass = sink_mass ? work->sink_mass : NULL,
                       }));
    keep(model, pass, index, GPTOSS_TAP_ATTN_OUTPUT, work->attention);
    keep(model, pass, index, GPTOSS_TAP_SINK_MASS, work->sink_mass);

    GPTOSS_TRY(run->linear_residual(backend, table,
                                    &(struct gptoss_linear_residual){
                                        .x = work->attention,
                                        .residual = work->residual,
                                        .weight = &layer->output,
                                        .bias = &layer->output_bias,
                                    }));
    keep(model, pass, index, GPTOSS_TAP_ATTN_RESIDUAL, work->residual);
    return GPTOSS_OK;
}

/* Router, experts, residual. */
static enum gptoss_status mix_experts(struct gptoss_model *model, const struct gptoss_pass *pass,
                                      const struct gptoss_row_table *table, int32_t index) {
    const struct gptoss_config *config = model->config;
    const struct gptoss_gpt_oss_layer *layer = &model->weights.layers[index];
    struct gptoss_workspace *work = &model->workspace;
    struct gptoss_backend *backend = model->backend;
    const struct gptoss_backend_operations *run = backend->operations;

    GPTOSS_TRY(run->route(backend, table,
                          &(struct gptoss_route){
                              .x = work->residual,
                              .normed = work->normed,
                              .gain = &layer->mlp_norm,
                              .epsilon = config->rms_norm_eps,
                              .weight = &layer->router,
                              .bias = &layer->router_bias,
                              .num_chosen = config->experts_per_token,
                              .logits = work->router_logits,
                              .experts = work->experts,
                              .weights = work->expert_weights,
                          }));
    keep(model, pass, index, GPTOSS_TAP_MLP_NORM, work->normed);
    keep(model, pass, index, GPTOSS_TAP_ROUTER_LOGITS, work->router_logits);
    keep(model, pass, index, GPTOSS_TAP_ROUTER_EXPERTS, work->experts);
    keep(model, pass, index, GPTOSS_TAP_ROUTER_WEIGHTS, work->expert_weights);

    GPTOSS_TRY(run->expert_gate_up(backend, table,
                                   &(struct gptoss_expert_gate_up){
                                       .x = work->normed,
                                       .experts = work->experts,
                                       .num_chosen = config->experts_per_token,
                                       .weight = &layer->gate_up,
                                       .up = layer->up.data != NULL ? &layer->up : NULL,
                                       .bias = &layer->gate_up_bias,
                                       .up_bias = &layer->up_bias,
                                       .limit = config->swiglu_limit,
                                       .alpha = config->swiglu_alpha,
                                       .out = work->activated,
                                   }));
    GPTOSS_TRY(run->expert_down(backend, table,
                                &(struct gptoss_expert_down){
                                    .x = work->activated,
                                    .experts = work->experts,
                                    .weights = work->expert_weights,
                                    .num_chosen = config->experts_per_token,
                                    .weight = &layer->down,
                                    .bias = &layer->down_bias,
                                    .outputs = work->expert_outputs,
                                    .sum = work->mlp_sum,
                                    .residual = work->residual,
                                }));
    keep(model, pass, index, GPTOSS_TAP_EXPERT_OUTPUTS, work->expert_outputs);
    keep(model, pass, index, GPTOSS_TAP_MLP_OUTPUT, work->mlp_sum);
    keep(model, pass, index, GPTOSS_TAP_RESIDUAL, work->residual);
    return GPTOSS_OK;
}

/* The final norm of rows and, with logits_out, their logits. rows, first_row: as in the operation.
 */
static enum gptoss_status unembed(struct gptoss_model *model, const struct gptoss_row_table *table,
                                  const int64_t *rows, int64_t first_row, int64_t num_rows,
                                  float *logits_out) {
    struct gptoss_workspace *work = &model->workspace;
    return model->backend->operations->unembed(
        model->backend, table,
        &(struct gptoss_unembed){
            .x = work->residual,
            .normed = work->normed,
            .rows = rows,
            .first_row = first_row,
            .num_rows = num_rows,
            .gain = &model->weights.final_norm,
            .epsilon = model->config->rms_norm_eps,
            .weight = logits_out != NULL ? &model->weights.unembedding : NULL,
            .logits = logits_out,
        });
}

static enum gptoss_status end_rows(struct gptoss_model *model, const struct gptoss_pass *pass,
                                   const struct gptoss_row_table *table) {
    size_t tap = gptoss_final_norm_tap(model->config);
    if (is_wanted(pass, tap)) {
        GPTOSS_TRY(unembed(model, table, NULL, 0, pass->num_rows, NULL));
        keep_index(model, pass, tap, model->workspace.normed);
    }
    if (pass->num_logits_rows == 0)
        return GPTOSS_OK;
    return unembed(model, table, pass->logits_rows, pass->first_logits_row, pass->num_logits_rows,
                   pass->logits_out);
}

static enum gptoss_status run_layers(struct gptoss_model *model, const struct gptoss_pass *pass,
                                     const struct gptoss_row_table *table) {
    struct gptoss_backend *backend = model->backend;
    int32_t num_layers = model->config->num_layers;
    GPTOSS_TRY(
        backend->operations->embed(backend, table,
                                   &(struct gptoss_embed){.embedding = &model->weights.embedding,
                                                          .out = model->workspace.residual}));
    keep_index(model, pass, gptoss_embedding_tap(), model->workspace.residual);
    for (int32_t layer = 0; layer < num_layers; ++layer) {
        uint64_t done = pass->progress_done + (uint64_t)(pass->num_rows * layer / num_layers);
        backend->operations->progress(backend, done, pass->progress_total);
        GPTOSS_TRY(project(model, pass, table, layer));
        GPTOSS_TRY(attend(model, pass, table, layer));
        GPTOSS_TRY(mix_experts(model, pass, table, layer));
    }
    return end_rows(model, pass, table);
}

/* The sentence for a status of an operation over num_rows rows. */
static enum gptoss_status explain(enum gptoss_status status, int64_t num_rows,
                                  struct gptoss_error *error) {
    if (status == GPTOSS_ERROR_INTERRUPTED)
        return gptoss_error_set(error, status, "interrupted");
    if (status == GPTOSS_ERROR_MEMORY)
        return gptoss_error_set(error, status,
                                "cannot allocate the scratch memory of a pass over %lld rows",
                                (long long)num_rows);
    return status;
}

enum gptoss_status gptoss_gpt_oss_forward(struct gptoss_model *model,
                                          const struct gptoss_pass *pass,
                                          struct gptoss_error *error) {
    GPTOSS_TRY(workspace_reserve(model, pass->num_rows, error));
    struct gptoss_workspace *work = &model->workspace;
    for (int64_t row = 0; row < pass->num_rows; ++row)
        gptoss_rope_fill(&model->rope, pass->rows[row].position,
                         work->cosine + row * model->rope.half,
                         work->sine + row * model->rope.half);
    struct gptoss_row_table table = {pass->rows, pass->num_rows, pass->caches, work->cosine,
                                     work->sine};
    return explain(run_layers(model, pass, &table), pass->num_rows, error);
}

enum gptoss_status gptoss_gpt_oss_unembed(struct gptoss_model *model, const int64_t *rows,
                                          int64_t first_row, int64_t num_rows, float *logits_out,
                                          struct gptoss_error *error) {
    const struct gptoss_row_table none = {0};
    return explain(unembed(model, &none, rows, first_row, num_rows, logits_out), num_rows, error);
}
