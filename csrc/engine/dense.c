#include "engine/dense.h"

#include "engine/model.h"
#include "platform/allocator.h"
#include "status.h"

enum gptoss_status gptoss_dense_allocate(struct gptoss_model *model, struct gptoss_error *error) {
    struct gptoss_dense *weights = &model->weights.dense;
    size_t num_layers = (size_t)model->config->num_layers;
    weights->layers = gptoss_allocate(num_layers, sizeof *weights->layers);
    if (weights->layers == NULL)
        return gptoss_error_memory(error, num_layers * sizeof *weights->layers,
                                   "the table of weights");
    return GPTOSS_OK;
}

void gptoss_dense_clear(struct gptoss_model *model) {
    gptoss_free(model->weights.dense.layers);
}

/* LayerNorm where there is a bias. */
static struct gptoss_norm norm_of(const struct gptoss_config *config,
                                  const struct gptoss_vector *gain,
                                  const struct gptoss_vector *bias) {
    if (bias->data == NULL)
        return (struct gptoss_norm){.gain = gain, .epsilon = config->rms_norm_eps};
    return (struct gptoss_norm){.gain = gain, .bias = bias, .epsilon = config->layer_norm_eps};
}

/* Queries, keys and values of the rows, rotated; the cache holds the new keys and values. */
static enum gptoss_status project(struct gptoss_model *model, const struct gptoss_pass *pass,
                                  const struct gptoss_row_table *table, int32_t index,
                                  enum gptoss_rotation rotation) {
    const struct gptoss_config *config = model->config;
    const struct gptoss_dense_layer *layer = &model->weights.dense.layers[index];
    struct gptoss_workspace *work = &model->workspace;
    struct gptoss_backend *backend = model->backend;
    const struct gptoss_backend_operations *run = backend->operations;

    GPTOSS_TRY(run->norm_linear(
        backend, table,
        &(struct gptoss_norm_linear){
            .x = work->residual,
            .normed = work->normed,
            .norm = norm_of(config, &layer->attention_norm, &layer->attention_norm_bias),
            .num_outs = 3,
            .weights = {&layer->query, &layer->key, &layer->value},
            .biases = {&layer->query_bias, &layer->key_bias, &layer->value_bias},
            .outs = {work->queries, work->keys, work->values},
        }));
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_ATTN_NORM, work->normed);

    GPTOSS_TRY(run->rope_append(backend, table,
                                &(struct gptoss_rope_append){
                                    .layer = index,
                                    .num_heads = config->num_heads,
                                    .num_kv_heads = config->num_kv_heads,
                                    .head_dim = config->head_dim,
                                    .rotation = rotation,
                                    .queries = work->queries,
                                    .keys = work->keys,
                                    .values = work->values,
                                }));
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_Q, work->queries);
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_K, work->keys);
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_V, work->values);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_dense_attend(struct gptoss_model *model, const struct gptoss_pass *pass,
                                       const struct gptoss_row_table *table, int32_t index,
                                       enum gptoss_rotation rotation) {
    const struct gptoss_config *config = model->config;
    const struct gptoss_dense_layer *layer = &model->weights.dense.layers[index];
    struct gptoss_workspace *work = &model->workspace;
    struct gptoss_backend *backend = model->backend;
    const struct gptoss_backend_operations *run = backend->operations;

    GPTOSS_TRY(project(model, pass, table, index, rotation));
    GPTOSS_TRY(run->attention(backend, table,
                              &(struct gptoss_attention){
                                  .layer = index,
                                  .num_heads = config->num_heads,
                                  .num_kv_heads = config->num_kv_heads,
                                  .head_dim = config->head_dim,
                                  .scale = model->attention_scale,
                                  .queries = work->queries,
                                  .out = work->attention,
                              }));
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_ATTN_OUTPUT, work->attention);

    GPTOSS_TRY(run->linear_residual(backend, table,
                                    &(struct gptoss_linear_residual){
                                        .x = work->attention,
                                        .residual = work->residual,
                                        .weight = &layer->output,
                                        .bias = &layer->output_bias,
                                    }));
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_ATTN_RESIDUAL, work->residual);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_dense_mlp(struct gptoss_model *model, const struct gptoss_pass *pass,
                                    const struct gptoss_row_table *table, int32_t index) {
    const struct gptoss_dense_layer *layer = &model->weights.dense.layers[index];
    struct gptoss_workspace *work = &model->workspace;
    struct gptoss_backend *backend = model->backend;
    const struct gptoss_backend_operations *run = backend->operations;
    bool has_gate = layer->gate.data != NULL;

    GPTOSS_TRY(
        run->mlp_up(backend, table,
                    &(struct gptoss_mlp_up){
                        .x = work->residual,
                        .normed = work->normed,
                        .norm = norm_of(model->config, &layer->mlp_norm, &layer->mlp_norm_bias),
                        .weight = has_gate ? &layer->gate : &layer->up,
                        .up = has_gate ? &layer->up : NULL,
                        .bias = has_gate ? &layer->gate_bias : &layer->up_bias,
                        .up_bias = has_gate ? &layer->up_bias : NULL,
                        .out = work->activated,
                    }));
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_MLP_NORM, work->normed);

    bool output = gptoss_pass_wants(model, pass, index, GPTOSS_TAP_MLP_OUTPUT);
    GPTOSS_TRY(run->linear_residual(backend, table,
                                    &(struct gptoss_linear_residual){
                                        .x = work->activated,
                                        .residual = work->residual,
                                        .weight = &layer->down,
                                        .bias = &layer->down_bias,
                                        .out = output ? work->mlp_output : NULL,
                                    }));
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_MLP_OUTPUT, work->mlp_output);
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_RESIDUAL, work->residual);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_dense_unembed(struct gptoss_model *model, const struct gptoss_pass *pass,
                                        const struct gptoss_row_table *table) {
    const struct gptoss_dense *weights = &model->weights.dense;
    return gptoss_pass_unembed(
        model, pass, table, norm_of(model->config, &weights->final_norm, &weights->final_norm_bias),
        &weights->unembedding);
}
