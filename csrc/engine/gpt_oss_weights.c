/* Where the weights of gpt-oss are in a checkpoint: in the Hugging Face layout, in openai's
 * original one, and in a GGUF file of llama.cpp. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "engine/model.h"
#include "engine/weights.h"
#include "numeric/dtype.h"
#include "platform/allocator.h"
#include "status.h"

/* ---- experts ---- */

/* One tensor for all experts. Hugging Face stores [experts][inputs][outputs], the others
 * [experts][outputs][inputs]. */
static enum gptoss_status bind_whole_experts(struct gptoss_binder *binder, uint32_t dtypes,
                                             int64_t num_rows, int64_t num_columns,
                                             struct gptoss_weight *out) {
    int64_t num_experts = binder->config->num_experts;
    bool transposed = binder->naming == GPTOSS_NAMING_HUGGING_FACE;
    const int64_t shape[3] = {num_experts, transposed ? num_columns : num_rows,
                              transposed ? num_rows : num_columns};
    const struct gptoss_tensor *tensor;
    GPTOSS_TRY(gptoss_binder_find(binder, dtypes, 3, shape, &tensor));
    *out = (struct gptoss_weight){
        .dtype = tensor->dtype,
        .transposed = transposed,
        .num_matrices = num_experts,
        .num_rows = num_rows,
        .num_columns = num_columns,
        .data = tensor->data,
        .matrix_bytes = tensor->num_bytes / (uint64_t)num_experts,
    };
    return GPTOSS_OK;
}

/* As one tensor, or in two planes. */
static enum gptoss_status bind_either(struct gptoss_binder *binder, int64_t num_rows,
                                      int64_t num_columns, struct gptoss_weight *out) {
    if (gptoss_checkpoint_find(binder->checkpoint, binder->name) != NULL)
        return bind_whole_experts(binder, GPTOSS_FLOAT_DTYPES, num_rows, num_columns, out);
    char separator = binder->naming == GPTOSS_NAMING_ORIGINAL ? '.' : '_';
    return gptoss_bind_planes(binder, separator, binder->config->num_experts, num_rows, num_columns,
                              out);
}

/* Gate and up apart, each in a format of its own. */
static enum gptoss_status bind_gguf_experts(struct gptoss_binder *binder,
                                            struct gptoss_gpt_oss_layer *layer) {
    const struct gptoss_config *config = binder->config;
    int64_t hidden = config->hidden_size, intermediate = config->intermediate_size;
    uint32_t dtypes = GPTOSS_FLOAT_DTYPES | GPTOSS_BLOCK_DTYPES;
    gptoss_binder_spell(binder, "", "", "blk.%d.ffn_gate_exps.weight");
    GPTOSS_TRY(bind_whole_experts(binder, dtypes, intermediate, hidden, &layer->gate_up));
    gptoss_binder_spell(binder, "", "", "blk.%d.ffn_up_exps.weight");
    GPTOSS_TRY(bind_whole_experts(binder, dtypes, intermediate, hidden, &layer->up));
    gptoss_binder_spell(binder, "", "", "blk.%d.ffn_down_exps.weight");
    GPTOSS_TRY(bind_whole_experts(binder, dtypes, hidden, intermediate, &layer->down));
    gptoss_binder_spell(binder, "", "", "blk.%d.ffn_gate_exps.bias");
    GPTOSS_TRY(gptoss_bind_vector(binder, config->num_experts, intermediate, &layer->gate_up_bias));
    gptoss_binder_spell(binder, "", "", "blk.%d.ffn_up_exps.bias");
    GPTOSS_TRY(gptoss_bind_vector(binder, config->num_experts, intermediate, &layer->up_bias));
    gptoss_binder_spell(binder, "", "", "blk.%d.ffn_down_exps.bias");
    return gptoss_bind_vector(binder, config->num_experts, hidden, &layer->down_bias);
}

static enum gptoss_status bind_experts(struct gptoss_binder *binder,
                                       struct gptoss_gpt_oss_layer *layer) {
    const struct gptoss_config *config = binder->config;
    int64_t hidden = config->hidden_size, intermediate = config->intermediate_size;
    if (binder->naming == GPTOSS_NAMING_GGUF)
        return bind_gguf_experts(binder, layer);
    gptoss_binder_spell(binder, "model.layers.%d.mlp.experts.gate_up_proj",
                        "block.%d.mlp.mlp1_weight", "");
    GPTOSS_TRY(bind_either(binder, 2 * intermediate, hidden, &layer->gate_up));
    gptoss_binder_spell(binder, "model.layers.%d.mlp.experts.down_proj", "block.%d.mlp.mlp2_weight",
                        "");
    GPTOSS_TRY(bind_either(binder, hidden, intermediate, &layer->down));
    gptoss_binder_spell(binder, "model.layers.%d.mlp.experts.gate_up_proj_bias",
                        "block.%d.mlp.mlp1_bias", "");
    GPTOSS_TRY(
        gptoss_bind_vector(binder, config->num_experts, 2 * intermediate, &layer->gate_up_bias));
    gptoss_binder_spell(binder, "model.layers.%d.mlp.experts.down_proj_bias",
                        "block.%d.mlp.mlp2_bias", "");
    return gptoss_bind_vector(binder, config->num_experts, hidden, &layer->down_bias);
}

/* ---- attention ---- */

static enum gptoss_status bind_projection(struct gptoss_binder *binder, const char *which,
                                          const char *original, const char *gguf, int64_t num_rows,
                                          int64_t num_columns, struct gptoss_weight *weight,
                                          struct gptoss_vector *bias) {
    static const char *const endings[2] = {"weight", "bias"};
    char spellings[3][64];
    for (int i = 0; i < 2; ++i) {
        if (i == 1 && !binder->config->attention_bias) {
            *bias = (struct gptoss_vector){.num_vectors = 1, .num_elements = num_rows};
            break;
        }
        snprintf(spellings[0], 64, "model.layers.%%d.self_attn.%s.%s", which, endings[i]);
        snprintf(spellings[1], 64, "block.%%d.attn.%s.%s", original, endings[i]);
        snprintf(spellings[2], 64, "blk.%%d.attn_%s.%s", gguf, endings[i]);
        gptoss_binder_spell(binder, spellings[0], spellings[1], spellings[2]);
        GPTOSS_TRY(i == 0 ? gptoss_bind_matrix(binder, num_rows, num_columns, weight)
                          : gptoss_bind_vector(binder, 0, num_rows, bias));
    }
    return GPTOSS_OK;
}

static enum gptoss_status bind_attention(struct gptoss_binder *binder,
                                         struct gptoss_gpt_oss_layer *layer) {
    const struct gptoss_config *config = binder->config;
    int64_t hidden = config->hidden_size;
    int64_t query_size = (int64_t)config->num_heads * config->head_dim;
    int64_t key_size = (int64_t)config->num_kv_heads * config->head_dim;
    gptoss_binder_spell(binder, "model.layers.%d.input_layernorm.weight",
                        "block.%d.attn.norm.scale", "blk.%d.attn_norm.weight");
    GPTOSS_TRY(gptoss_bind_vector(binder, 0, hidden, &layer->attention_norm));
    if (binder->naming == GPTOSS_NAMING_ORIGINAL) {
        struct gptoss_weight fused;
        struct gptoss_vector bias;
        GPTOSS_TRY(bind_projection(binder, "", "qkv", "", query_size + 2 * key_size, hidden, &fused,
                                   &bias));
        gptoss_slice_rows(&fused, &bias, 0, query_size, &layer->query, &layer->query_bias);
        gptoss_slice_rows(&fused, &bias, query_size, key_size, &layer->key, &layer->key_bias);
        gptoss_slice_rows(&fused, &bias, query_size + key_size, key_size, &layer->value,
                          &layer->value_bias);
    } else {
        GPTOSS_TRY(bind_projection(binder, "q_proj", "", "q", query_size, hidden, &layer->query,
                                   &layer->query_bias));
        GPTOSS_TRY(bind_projection(binder, "k_proj", "", "k", key_size, hidden, &layer->key,
                                   &layer->key_bias));
        GPTOSS_TRY(bind_projection(binder, "v_proj", "", "v", key_size, hidden, &layer->value,
                                   &layer->value_bias));
    }
    GPTOSS_TRY(bind_projection(binder, "o_proj", "out", "output", hidden, query_size,
                               &layer->output, &layer->output_bias));
    gptoss_binder_spell(binder, "model.layers.%d.self_attn.sinks", "block.%d.attn.sinks",
                        "blk.%d.attn_sinks.weight");
    return gptoss_bind_vector(binder, 0, config->num_heads, &layer->sinks);
}

static enum gptoss_status bind_layer(struct gptoss_binder *binder,
                                     struct gptoss_gpt_oss_layer *layer) {
    const struct gptoss_config *config = binder->config;
    GPTOSS_TRY(bind_attention(binder, layer));
    gptoss_binder_spell(binder, "model.layers.%d.post_attention_layernorm.weight",
                        "block.%d.mlp.norm.scale", "blk.%d.post_attention_norm.weight");
    GPTOSS_TRY(gptoss_bind_vector(binder, 0, config->hidden_size, &layer->mlp_norm));
    gptoss_binder_spell(binder, "model.layers.%d.mlp.router.weight", "block.%d.mlp.gate.weight",
                        "blk.%d.ffn_gate_inp.weight");
    GPTOSS_TRY(
        gptoss_bind_matrix(binder, config->num_experts, config->hidden_size, &layer->router));
    gptoss_binder_spell(binder, "model.layers.%d.mlp.router.bias", "block.%d.mlp.gate.bias",
                        "blk.%d.ffn_gate_inp.bias");
    GPTOSS_TRY(gptoss_bind_vector(binder, 0, config->num_experts, &layer->router_bias));
    return bind_experts(binder, layer);
}

static enum gptoss_status bind_all(struct gptoss_binder *binder, struct gptoss_gpt_oss *weights) {
    const struct gptoss_config *config = binder->config;
    gptoss_binder_spell(binder, "model.embed_tokens.weight", "embedding.weight",
                        "token_embd.weight");
    GPTOSS_TRY(
        gptoss_bind_matrix(binder, config->vocab_size, config->hidden_size, &weights->embedding));
    gptoss_binder_spell(binder, "model.norm.weight", "norm.scale", "output_norm.weight");
    GPTOSS_TRY(gptoss_bind_vector(binder, 0, config->hidden_size, &weights->final_norm));
    gptoss_binder_spell(binder, "lm_head.weight", "unembedding.weight", "output.weight");
    GPTOSS_TRY(gptoss_bind_unembedding(binder, &weights->embedding, &weights->unembedding));
    for (binder->layer = 0; binder->layer < config->num_layers; ++binder->layer)
        GPTOSS_TRY(bind_layer(binder, &weights->layers[binder->layer]));
    return GPTOSS_OK;
}

enum gptoss_status gptoss_gpt_oss_bind(struct gptoss_model *model, struct gptoss_error *error) {
    const struct gptoss_checkpoint *checkpoint = model->checkpoint;
    struct gptoss_gpt_oss *weights = &model->weights.gpt_oss;
    struct gptoss_binder binder = {
        .checkpoint = checkpoint,
        .config = model->config,
        .naming = gptoss_checkpoint_is_gguf(checkpoint) ? GPTOSS_NAMING_GGUF
                  : gptoss_checkpoint_find(checkpoint, "embedding.weight") != NULL
                      ? GPTOSS_NAMING_ORIGINAL
                      : GPTOSS_NAMING_HUGGING_FACE,
        .error = error,
    };
    size_t num_layers = (size_t)model->config->num_layers;
    weights->layers = gptoss_allocate(num_layers, sizeof *weights->layers);
    if (weights->layers == NULL)
        return gptoss_error_memory(error, num_layers * sizeof *weights->layers,
                                   "the table of weights");
    return bind_all(&binder, weights);
}

void gptoss_gpt_oss_clear(struct gptoss_model *model) {
    gptoss_free(model->weights.gpt_oss.layers);
}
