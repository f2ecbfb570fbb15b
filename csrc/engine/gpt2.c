/* The gpt2 family: LayerNorm, learned positions, an MLP with GELU. Semantics: transformers
 * models/gpt2/modeling_gpt2.py; order of sums: docs/numerics.md. */
#include <stdio.h>

#include "engine/dense.h"
#include "engine/model.h"
#include "status.h"

/* ---- weights ---- */

/* "h.%d.ln_1.weight" is spelled with and without "transformer." in front. */
static void spell(struct gptoss_binder *binder, const char *hugging_face, const char *gguf,
                  const char *ending) {
    char spellings[3][64];
    snprintf(spellings[0], 64, "transformer.%s.%s", hugging_face, ending);
    snprintf(spellings[1], 64, "%s.%s", hugging_face, ending);
    snprintf(spellings[2], 64, "%s.%s", gguf, ending);
    gptoss_binder_spell(binder, spellings[0], spellings[1], spellings[2]);
}

static enum gptoss_status bind_norm(struct gptoss_binder *binder, const char *hugging_face,
                                    const char *gguf, struct gptoss_vector *gain,
                                    struct gptoss_vector *bias) {
    int64_t hidden = binder->config->hidden_size;
    spell(binder, hugging_face, gguf, "weight");
    GPTOSS_TRY(gptoss_bind_vector(binder, 0, hidden, gain));
    spell(binder, hugging_face, gguf, "bias");
    return gptoss_bind_vector(binder, 0, hidden, bias);
}

/* A Conv1D and its bias: stored [inputs][outputs], in GGUF files [outputs][inputs]. */
static enum gptoss_status bind_linear(struct gptoss_binder *binder, const char *hugging_face,
                                      const char *gguf, int64_t num_rows, int64_t num_columns,
                                      struct gptoss_weight *weight, struct gptoss_vector *bias) {
    spell(binder, hugging_face, gguf, "weight");
    GPTOSS_TRY((binder->naming == GPTOSS_NAMING_GGUF ? gptoss_bind_matrix : gptoss_bind_transposed)(
        binder, num_rows, num_columns, weight));
    spell(binder, hugging_face, gguf, "bias");
    return gptoss_bind_vector(binder, 0, num_rows, bias);
}

static enum gptoss_status bind_layer(struct gptoss_binder *binder,
                                     struct gptoss_dense_layer *layer) {
    int64_t hidden = binder->config->hidden_size, intermediate = binder->config->intermediate_size;
    struct gptoss_weight fused;
    struct gptoss_vector bias;
    GPTOSS_TRY(bind_norm(binder, "h.%d.ln_1", "blk.%d.attn_norm", &layer->attention_norm,
                         &layer->attention_norm_bias));
    GPTOSS_TRY(bind_linear(binder, "h.%d.attn.c_attn", "blk.%d.attn_qkv", 3 * hidden, hidden,
                           &fused, &bias));
    gptoss_slice_rows(&fused, &bias, 0, hidden, &layer->query, &layer->query_bias);
    gptoss_slice_rows(&fused, &bias, hidden, hidden, &layer->key, &layer->key_bias);
    gptoss_slice_rows(&fused, &bias, 2 * hidden, hidden, &layer->value, &layer->value_bias);
    GPTOSS_TRY(bind_linear(binder, "h.%d.attn.c_proj", "blk.%d.attn_output", hidden, hidden,
                           &layer->output, &layer->output_bias));
    GPTOSS_TRY(
        bind_norm(binder, "h.%d.ln_2", "blk.%d.ffn_norm", &layer->mlp_norm, &layer->mlp_norm_bias));
    GPTOSS_TRY(bind_linear(binder, "h.%d.mlp.c_fc", "blk.%d.ffn_up", intermediate, hidden,
                           &layer->up, &layer->up_bias));
    return bind_linear(binder, "h.%d.mlp.c_proj", "blk.%d.ffn_down", hidden, intermediate,
                       &layer->down, &layer->down_bias);
}

static enum gptoss_status bind_all(struct gptoss_binder *binder, struct gptoss_model *model) {
    const struct gptoss_config *config = binder->config;
    struct gptoss_dense *weights = &model->weights.dense;
    int64_t hidden = config->hidden_size;
    spell(binder, "wte", "token_embd", "weight");
    GPTOSS_TRY(gptoss_bind_matrix(binder, config->vocab_size, hidden, &weights->embedding));
    spell(binder, "wpe", "position_embd", "weight");
    GPTOSS_TRY(gptoss_bind_matrix(binder, config->max_positions, hidden, &weights->positions));
    GPTOSS_TRY(
        bind_norm(binder, "ln_f", "output_norm", &weights->final_norm, &weights->final_norm_bias));
    gptoss_binder_spell(binder, "lm_head.weight", "lm_head.weight", "output.weight");
    GPTOSS_TRY(gptoss_bind_unembedding(binder, &weights->embedding, &weights->unembedding));
    GPTOSS_TRY(gptoss_dense_allocate(model, binder->error));
    for (binder->layer = 0; binder->layer < config->num_layers; ++binder->layer)
        GPTOSS_TRY(bind_layer(binder, &weights->layers[binder->layer]));
    return GPTOSS_OK;
}

enum gptoss_status gptoss_gpt2_bind(struct gptoss_model *model, struct gptoss_error *error) {
    const struct gptoss_checkpoint *checkpoint = model->checkpoint;
    struct gptoss_binder binder = {
        .checkpoint = checkpoint,
        .config = model->config,
        .naming = gptoss_checkpoint_is_gguf(checkpoint) ? GPTOSS_NAMING_GGUF
                  : gptoss_checkpoint_find(checkpoint, "wte.weight") != NULL ||
                          gptoss_checkpoint_find(checkpoint, "wte.weight_blocks") != NULL
                      ? GPTOSS_NAMING_ORIGINAL
                      : GPTOSS_NAMING_HUGGING_FACE,
        .error = error,
    };
    return bind_all(&binder, model);
}

/* ---- forward pass ---- */

enum gptoss_status gptoss_gpt2_forward(struct gptoss_model *model, const struct gptoss_pass *pass,
                                       const struct gptoss_row_table *table) {
    const struct gptoss_dense *weights = &model->weights.dense;
    GPTOSS_TRY(gptoss_pass_embed(model, pass, table, &weights->embedding, &weights->positions));
    for (int32_t layer = 0; layer < model->config->num_layers; ++layer) {
        gptoss_pass_progress(model, pass, layer);
        GPTOSS_TRY(gptoss_dense_attend(model, pass, table, layer, GPTOSS_ROTATE_NOTHING));
        GPTOSS_TRY(gptoss_dense_mlp(model, pass, table, layer));
    }
    return gptoss_dense_unembed(model, pass, table);
}
