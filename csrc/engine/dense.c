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

enum gptoss_status gptoss_dense_mlp(struct gptoss_model *model, const struct gptoss_pass *pass,
                                    const struct gptoss_row_table *table, int32_t index) {
    const struct gptoss_dense_layer *layer = &model->weights.dense.layers[index];
    struct gptoss_workspace *work = &model->workspace;
    struct gptoss_backend *backend = model->backend;
    const struct gptoss_backend_operations *run = backend->operations;
    bool has_gate = layer->gate.data != NULL;

    GPTOSS_TRY(run->mlp_up(
        backend, table,
        &(struct gptoss_mlp_up){
            .layer = index,
            .x = work->residual,
            .normed = work->normed,
            .norm = gptoss_pass_norm(model->config, &layer->mlp_norm, &layer->mlp_norm_bias),
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
                                        .layer = index,
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
        model, pass, table,
        gptoss_pass_norm(model->config, &weights->final_norm, &weights->final_norm_bias),
        &weights->unembedding);
}
