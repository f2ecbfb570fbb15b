/* The forward pass of gpt-oss. Semantics: openai/gpt-oss torch/model.py; order of sums:
 * docs/numerics.md. */
#include "engine/gpt_oss.h"

#include "engine/model.h"
#include "status.h"

/* Router, experts, residual. */
static enum gptoss_status mix_experts(struct gptoss_model *model, const struct gptoss_pass *pass,
                                      const struct gptoss_row_table *table, int32_t index) {
    const struct gptoss_config *config = model->config;
    const struct gptoss_gpt_oss_layer *layer = &model->weights.gpt_oss.layers[index];
    struct gptoss_workspace *work = &model->workspace;
    struct gptoss_backend *backend = model->backend;
    const struct gptoss_backend_operations *run = backend->operations;

    GPTOSS_TRY(run->route(backend, table,
                          &(struct gptoss_route){
                              .layer = index,
                              .x = work->residual,
                              .normed = work->normed,
                              .norm = {.gain = &layer->mlp_norm, .epsilon = config->rms_norm_eps},
                              .weight = &layer->router,
                              .bias = &layer->router_bias,
                              .num_chosen = config->experts_per_token,
                              .logits = work->router_logits,
                              .experts = work->experts,
                              .weights = work->expert_weights,
                          }));
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_MLP_NORM, work->normed);
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_ROUTER_LOGITS, work->router_logits);
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_ROUTER_EXPERTS, work->experts);
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_ROUTER_WEIGHTS, work->expert_weights);

    GPTOSS_TRY(run->expert_gate_up(backend, table,
                                   &(struct gptoss_expert_gate_up){
                                       .layer = index,
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
                                    .layer = index,
                                    .x = work->activated,
                                    .experts = work->experts,
                                    .weights = work->expert_weights,
                                    .num_chosen = config->experts_per_token,
                                    .weight = &layer->down,
                                    .bias = &layer->down_bias,
                                    .outputs = work->expert_outputs,
                                    .sum = work->mlp_output,
                                    .residual = work->residual,
                                }));
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_EXPERT_OUTPUTS, work->expert_outputs);
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_MLP_OUTPUT, work->mlp_output);
    gptoss_pass_keep(model, pass, index, GPTOSS_TAP_RESIDUAL, work->residual);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_gpt_oss_forward(struct gptoss_model *model,
                                          const struct gptoss_pass *pass,
                                          const struct gptoss_row_table *table) {
    const struct gptoss_gpt_oss *weights = &model->weights.gpt_oss;
    GPTOSS_TRY(gptoss_pass_embed(model, pass, table, &weights->embedding, NULL));
    for (int32_t layer = 0; layer < model->config->num_layers; ++layer) {
        gptoss_pass_progress(model, pass, layer);
        GPTOSS_TRY(gptoss_attend(model, pass, table, layer, &weights->layers[layer].attention,
                                 GPTOSS_ROTATE_HALVES));
        GPTOSS_TRY(mix_experts(model, pass, table, layer));
    }
    struct gptoss_norm norm = {.gain = &weights->final_norm,
                               .epsilon = model->config->rms_norm_eps};
    return gptoss_pass_unembed(model, pass, table, norm, &weights->unembedding);
}
