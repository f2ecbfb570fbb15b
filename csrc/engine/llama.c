/* The llama family: RMSNorm, rotary positions, heads that share keys and values, a gated MLP.
 * Semantics: transformers models/llama/modeling_llama.py; order of sums: docs/numerics.md. */
#include <float.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint/format_error.h"
#include "engine/dense.h"
#include "engine/model.h"
#include "status.h"

/* ---- weights ---- */

/* A matrix of a layer and, where the configuration has it, its bias. */
static enum gptoss_status bind_linear(struct gptoss_binder *binder, const char *hugging_face,
                                      const char *gguf, bool has_bias, int64_t num_rows,
                                      int64_t num_columns, struct gptoss_weight *weight,
                                      struct gptoss_vector *bias) {
    char spellings[2][64];
    snprintf(spellings[0], 64, "model.layers.%%d.%s.weight", hugging_face);
    snprintf(spellings[1], 64, "blk.%%d.%s.weight", gguf);
    gptoss_binder_spell(binder, spellings[0], "", spellings[1]);
    GPTOSS_TRY(gptoss_bind_matrix(binder, num_rows, num_columns, weight));
    *bias = (struct gptoss_vector){.num_vectors = 1, .num_elements = num_rows};
    if (!has_bias)
        return GPTOSS_OK;
    snprintf(spellings[0], 64, "model.layers.%%d.%s.bias", hugging_face);
    snprintf(spellings[1], 64, "blk.%%d.%s.bias", gguf);
    gptoss_binder_spell(binder, spellings[0], "", spellings[1]);
    return gptoss_bind_vector(binder, 0, num_rows, bias);
}

static enum gptoss_status bind_attention(struct gptoss_binder *binder,
                                         struct gptoss_attention_weights *attention) {
    const struct gptoss_config *config = binder->config;
    int64_t hidden = config->hidden_size;
    int64_t query_size = (int64_t)config->num_heads * config->head_dim;
    int64_t key_size = (int64_t)config->num_kv_heads * config->head_dim;
    bool bias = config->attention_bias;
    gptoss_binder_spell(binder, "model.layers.%d.input_layernorm.weight", "",
                        "blk.%d.attn_norm.weight");
    GPTOSS_TRY(gptoss_bind_vector(binder, 0, hidden, &attention->norm));
    GPTOSS_TRY(bind_linear(binder, "self_attn.q_proj", "attn_q", bias, query_size, hidden,
                           &attention->query, &attention->query_bias));
    GPTOSS_TRY(bind_linear(binder, "self_attn.k_proj", "attn_k", bias, key_size, hidden,
                           &attention->key, &attention->key_bias));
    GPTOSS_TRY(bind_linear(binder, "self_attn.v_proj", "attn_v", bias, key_size, hidden,
                           &attention->value, &attention->value_bias));
    return bind_linear(binder, "self_attn.o_proj", "attn_output", bias, hidden, query_size,
                       &attention->output, &attention->output_bias);
}

static enum gptoss_status bind_mlp(struct gptoss_binder *binder, struct gptoss_dense_layer *layer) {
    const struct gptoss_config *config = binder->config;
    int64_t hidden = config->hidden_size, intermediate = config->intermediate_size;
    bool bias = config->mlp_bias;
    gptoss_binder_spell(binder, "model.layers.%d.post_attention_layernorm.weight", "",
                        "blk.%d.ffn_norm.weight");
    GPTOSS_TRY(gptoss_bind_vector(binder, 0, hidden, &layer->mlp_norm));
    GPTOSS_TRY(bind_linear(binder, "mlp.gate_proj", "ffn_gate", bias, intermediate, hidden,
                           &layer->gate, &layer->gate_bias));
    GPTOSS_TRY(bind_linear(binder, "mlp.up_proj", "ffn_up", bias, intermediate, hidden, &layer->up,
                           &layer->up_bias));
    return bind_linear(binder, "mlp.down_proj", "ffn_down", bias, hidden, intermediate,
                       &layer->down, &layer->down_bias);
}

/* Numbers that the frequencies of the rotation are divided by. */
static enum gptoss_status bind_divisors(struct gptoss_binder *binder, struct gptoss_vector *out) {
    const struct gptoss_tensor *tensor;
    int64_t half = binder->config->head_dim / 2;
    gptoss_binder_spell(binder, "", "", "rope_freqs.weight");
    GPTOSS_TRY(gptoss_binder_find(binder, 1u << GPTOSS_DTYPE_F32, 1, &half, &tensor));
    *out = (struct gptoss_vector){tensor->dtype, 1, half, tensor->data};
    for (int64_t i = 0; i < half; ++i) {
        float divisor;
        memcpy(&divisor, out->data + i * (int64_t)sizeof divisor, sizeof divisor);
        if (divisor > 0.0f && divisor <= FLT_MAX)
            continue;
        struct gptoss_place place = {
            .file = tensor->file,
            .tensor = tensor->name,
            .offset = (int64_t)tensor->file_offset + i * (int64_t)sizeof divisor,
        };
        return gptoss_format_error(binder->error, &place, "a finite number above 0", "%g",
                                   (double)divisor);
    }
    return GPTOSS_OK;
}

/* YaRN has frequencies of its own. */
static enum gptoss_status refuse_divisors(struct gptoss_binder *binder) {
    const struct gptoss_tensor *tensor =
        gptoss_checkpoint_find(binder->checkpoint, "rope_freqs.weight");
    if (tensor == NULL || binder->naming != GPTOSS_NAMING_GGUF)
        return GPTOSS_OK;
    struct gptoss_place place = {
        .file = tensor->file, .tensor = tensor->name, .offset = (int64_t)tensor->file_offset};
    return gptoss_format_error(binder->error, &place, "no such tensor beside YaRN scaling",
                               "divisors of the frequencies");
}

static enum gptoss_status bind_all(struct gptoss_binder *binder, struct gptoss_model *model) {
    const struct gptoss_config *config = binder->config;
    struct gptoss_dense *weights = &model->weights.dense;
    int64_t vocab_size = config->vocab_size, hidden = config->hidden_size;
    gptoss_binder_spell(binder, "model.embed_tokens.weight", "", "token_embd.weight");
    GPTOSS_TRY(gptoss_bind_matrix(binder, vocab_size, hidden, &weights->embedding));
    gptoss_binder_spell(binder, "model.norm.weight", "", "output_norm.weight");
    GPTOSS_TRY(gptoss_bind_vector(binder, 0, hidden, &weights->final_norm));
    gptoss_binder_spell(binder, "lm_head.weight", "", "output.weight");
    GPTOSS_TRY(gptoss_bind_unembedding(binder, &weights->embedding, &weights->unembedding));
    if (config->rope_scaling == GPTOSS_ROPE_DIVISORS)
        GPTOSS_TRY(bind_divisors(binder, &model->rope_divisors));
    if (config->rope_scaling == GPTOSS_ROPE_YARN)
        GPTOSS_TRY(refuse_divisors(binder));
    GPTOSS_TRY(gptoss_dense_allocate(model, binder->error));
    for (binder->layer = 0; binder->layer < config->num_layers; ++binder->layer) {
        struct gptoss_dense_layer *layer = &weights->layers[binder->layer];
        GPTOSS_TRY(bind_attention(binder, &layer->attention));
        GPTOSS_TRY(bind_mlp(binder, layer));
    }
    return GPTOSS_OK;
}

enum gptoss_status gptoss_llama_bind(struct gptoss_model *model, struct gptoss_error *error) {
    bool is_gguf = gptoss_checkpoint_is_gguf(model->checkpoint);
    struct gptoss_binder binder = {
        .checkpoint = model->checkpoint,
        .config = model->config,
        .naming = is_gguf ? GPTOSS_NAMING_GGUF : GPTOSS_NAMING_HUGGING_FACE,
        .error = error,
    };
    return bind_all(&binder, model);
}

/* ---- forward pass ---- */

enum gptoss_status gptoss_llama_forward(struct gptoss_model *model, const struct gptoss_pass *pass,
                                        const struct gptoss_row_table *table) {
    enum gptoss_rotation rotation =
        model->config->rope_neighbours ? GPTOSS_ROTATE_NEIGHBOURS : GPTOSS_ROTATE_HALVES;
    const struct gptoss_dense_layer *layers = model->weights.dense.layers;
    GPTOSS_TRY(gptoss_pass_embed(model, pass, table, &model->weights.dense.embedding, NULL));
    for (int32_t layer = 0; layer < model->config->num_layers; ++layer) {
        gptoss_pass_progress(model, pass, layer);
        GPTOSS_TRY(gptoss_attend(model, pass, table, layer, &layers[layer].attention, rotation));
        GPTOSS_TRY(gptoss_dense_mlp(model, pass, table, layer));
    }
    return gptoss_dense_unembed(model, pass, table);
}
