#include "engine/attention.h"

#include "engine/model.h"
#include "status.h"

/* Queries, keys and values of the rows, rotated; the cache holds the new keys and values. */
static enum gptoss_status project(struct gptoss_model *model, const struct gptoss_pass *pass,
                                  const struct gptoss_row_table *table, int32_t layer,
                                  const struct gptoss_attention_weights *weights,
                                  enum gptoss_rotation rotation) {
    const struct gptoss_config *config = model->config;
    struct gptoss_workspace *work = &model->workspace;
    struct gptoss_backend *backend = model->backend;
    const struct gptoss_backend_operations *run = backend->operations;

    GPTOSS_TRY(run->norm_linear(
        backend, table,
        &(struct gptoss_norm_linear){
            .layer = layer,
            .x = work->residual,
            .normed = work->normed,
            .norm = gptoss_pass_norm(config, &weights->norm, &weights->norm_bias),
            .num_outs = 3,
            .weights = {&weights->query, &weights->key, &weights->value},
            .biases = {&weights->query_bias, &weights->key_bias, &weights->value_bias},
            .outs = {work->queries, work->keys, work->values},
        }));
    gptoss_pass_keep(model, pass, layer, GPTOSS_TAP_ATTN_NORM, work->normed);

    GPTOSS_TRY(run->rope_append(backend, table,
                                &(struct gptoss_rope_append){
                                    .layer = layer,
                                    .num_heads = config->num_heads,
                                    .num_kv_heads = config->num_kv_heads,
                                    .head_dim = config->head_dim,
                                    .rotation = rotation,
                                    .queries = work->queries,
                                    .keys = work->keys,
                                    .values = work->values,
                                }));
    gptoss_pass_keep(model, pass, layer, GPTOSS_TAP_Q, work->queries);
    gptoss_pass_keep(model, pass, layer, GPTOSS_TAP_K, work->keys);
    gptoss_pass_keep(model, pass, layer, GPTOSS_TAP_V, work->values);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_attend(struct gptoss_model *model, const struct gptoss_pass *pass,
                                 const struct gptoss_row_table *table, int32_t layer,
                                 const struct gptoss_attention_weights *weights,
                                 enum gptoss_rotation rotation) {
    const struct gptoss_config *config = model->config;
    struct gptoss_workspace *work = &model->workspace;
    struct gptoss_backend *backend = model->backend;
    const struct gptoss_backend_operations *run = backend->operations;

    GPTOSS_TRY(project(model, pass, table, layer, weights, rotation));
    bool has_sinks = weights->sinks.data != NULL;
    bool sink_mass = has_sinks && gptoss_pass_wants(model, pass, layer, GPTOSS_TAP_SINK_MASS);
    GPTOSS_TRY(
        run->attention(backend, table,
                       &(struct gptoss_attention){
                           .layer = layer,
                           .num_heads = config->num_heads,
                           .num_kv_heads = config->num_kv_heads,
                           .head_dim = config->head_dim,
                           .window = config->layer_is_sliding[layer] ? config->sliding_window : 0,
                           .scale = model->attention_scale,
                           .sinks = has_sinks ? &weights->sinks : NULL,
                           .queries = work->queries,
                           .out = work->attention,
                           .sink_mass = sink_mass ? work->sink_mass : NULL,
                       }));
    gptoss_pass_keep(model, pass, layer, GPTOSS_TAP_ATTN_OUTPUT, work->attention);
    if (sink_mass)
        gptoss_pass_keep(model, pass, layer, GPTOSS_TAP_SINK_MASS, work->sink_mass);

    GPTOSS_TRY(run->linear_residual(backend, table,
                                    &(struct gptoss_linear_residual){
                                        .layer = layer,
                                        .x = work->attention,
                                        .residual = work->residual,
                                        .weight = &weights->output,
                                        .bias = &weights->output_bias,
                                    }));
    gptoss_pass_keep(model, pass, layer, GPTOSS_TAP_ATTN_RESIDUAL, work->residual);
    return GPTOSS_OK;
}
