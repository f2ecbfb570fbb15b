/* Where the weights of gpt-oss are in a checkpoint: in the Hugging Face layout, in openai's
 * original one, and in a GGUF file of llama.cpp. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/gpt_oss.h"
#include "numeric/block_formats.h"
#include "platform/allocator.h"
#include "status.h"

#define FLOAT_DTYPES (1u << GPTOSS_DTYPE_F32 | 1u << GPTOSS_DTYPE_F16 | 1u << GPTOSS_DTYPE_BF16)
#define OR_DTYPE(name, NAME, block_bytes) | 1u << GPTOSS_DTYPE_##NAME
#define BLOCK_DTYPES                                                                               \
    (1u << GPTOSS_DTYPE_Q8_0 | 1u << GPTOSS_DTYPE_MXFP4_GGUF GPTOSS_FOR_BLOCK_FORMATS(OR_DTYPE))

enum naming { HUGGING_FACE, ORIGINAL, GGUF };

struct binder {
    const struct gptoss_checkpoint *checkpoint;
    const struct gptoss_config *config;
    enum naming naming;
    int32_t layer;
    struct gptoss_error *error;
    char name[128]; /* of the tensor last spoken of */
};

/* All spellings of a name; "%d" stands for the layer. */
static const char *spell(struct binder *binder, const char *hugging_face, const char *original,
                         const char *gguf) {
    const char *format = binder->naming == HUGGING_FACE ? hugging_face
                         : binder->naming == ORIGINAL   ? original
                                                        : gguf;
    const char *number = strstr(format, "%d");
    if (number == NULL)
        snprintf(binder->name, sizeof binder->name, "%s", format);
    else
        snprintf(binder->name, sizeof binder->name, "%.*s%" PRId32 "%s", (int)(number - format),
                 format, binder->layer, number + 2);
    return binder->name;
}

static enum gptoss_status find(struct binder *binder, uint32_t dtypes, int32_t num_dims,
                               const int64_t *shape, const struct gptoss_tensor **tensor_out) {
    return gptoss_checkpoint_require(binder->checkpoint, binder->name, dtypes, num_dims, shape,
                                     tensor_out, binder->error);
}

/* num_vectors 0: one vector, stored without that axis. */
static enum gptoss_status bind_vector(struct binder *binder, int64_t num_vectors,
                                      int64_t num_elements, struct gptoss_vector *out) {
    const struct gptoss_tensor *tensor;
    int64_t shape[2] = {num_vectors, num_elements};
    bool single = num_vectors == 0;
    GPTOSS_TRY(find(binder, FLOAT_DTYPES, single ? 1 : 2, single ? shape + 1 : shape, &tensor));
    *out =
        (struct gptoss_vector){tensor->dtype, single ? 1 : num_vectors, num_elements, tensor->data};
    return GPTOSS_OK;
}

static enum gptoss_status bind_matrix(struct binder *binder, int64_t num_rows, int64_t num_columns,
                                      struct gptoss_weight *out) {
    const struct gptoss_tensor *tensor;
    uint32_t dtypes = binder->naming == GGUF ? FLOAT_DTYPES | BLOCK_DTYPES : FLOAT_DTYPES;
    GPTOSS_TRY(find(binder, dtypes, 2, (int64_t[]){num_rows, num_columns}, &tensor));
    *out = (struct gptoss_weight){.dtype = tensor->dtype,
                                  .num_matrices = 1,
                                  .num_rows = num_rows,
                                  .num_columns = num_columns,
                                  .data = tensor->data};
    return GPTOSS_OK;
}

/* ---- experts ---- */

static enum gptoss_status bind_mxfp4(struct binder *binder, const char *blocks,
                                     const char *blocks_original, const char *scales,
                                     const char *scales_original, int64_t num_rows,
                                     int64_t num_columns, struct gptoss_weight *out) {
    int64_t num_experts = binder->config->num_experts;
    spell(binder, blocks, blocks_original, "");
    if (num_columns % 32 != 0) {
        gptoss_error_set(
            binder->error, GPTOSS_ERROR_FORMAT,
            "%s: MXFP4 needs an input size in whole blocks of 32, the configuration says %" PRId64,
            binder->name, num_columns);
        gptoss_error_where(binder->error, gptoss_checkpoint_config_file(binder->checkpoint),
                           binder->name, -1);
        gptoss_error_expected(binder->error, "a multiple of 32");
        gptoss_error_found(binder->error, "%" PRId64, num_columns);
        return GPTOSS_ERROR_FORMAT;
    }
    const struct gptoss_tensor *codes, *exponents;
    const int64_t shape[4] = {num_experts, num_rows, num_columns / 32, 16};
    GPTOSS_TRY(find(binder, 1u << GPTOSS_DTYPE_U8, 4, shape, &codes));
    spell(binder, scales, scales_original, "");
    GPTOSS_TRY(find(binder, 1u << GPTOSS_DTYPE_U8, 3, shape, &exponents));
    *out = (struct gptoss_weight){
        .dtype = GPTOSS_DTYPE_MXFP4,
        .num_matrices = num_experts,
        .num_rows = num_rows,
        .num_columns = num_columns,
        .data = codes->data,
        .scales = exponents->data,
        .matrix_bytes = (uint64_t)num_rows * (uint64_t)num_columns / 2,
        .scale_matrix_bytes = (uint64_t)num_rows * (uint64_t)num_columns / 32,
    };
    return GPTOSS_OK;
}

/* One tensor for all experts. Hugging Face stores [experts][inputs][outputs], the others
 * [experts][outputs][inputs]. */
static enum gptoss_status bind_whole_experts(struct binder *binder, uint32_t dtypes,
                                             int64_t num_rows, int64_t num_columns,
                                             struct gptoss_weight *out) {
    int64_t num_experts = binder->config->num_experts;
    bool transposed = binder->naming == HUGGING_FACE;
    const int64_t shape[3] = {num_experts, transposed ? num_columns : num_rows,
                              transposed ? num_rows : num_columns};
    const struct gptoss_tensor *tensor;
    GPTOSS_TRY(find(binder, dtypes, 3, shape, &tensor));
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

/* Gate and up apart, each in a format of its own. */
static enum gptoss_status bind_gguf_experts(struct binder *binder,
                                            struct gptoss_gpt_oss_layer *layer) {
    const struct gptoss_config *config = binder->config;
    int64_t hidden = config->hidden_size, intermediate = config->intermediate_size;
    uint32_t dtypes = FLOAT_DTYPES | BLOCK_DTYPES;
    spell(binder, "", "", "blk.%d.ffn_gate_exps.weight");
    GPTOSS_TRY(bind_whole_experts(binder, dtypes, intermediate, hidden, &layer->gate_up));
    spell(binder, "", "", "blk.%d.ffn_up_exps.weight");
    GPTOSS_TRY(bind_whole_experts(binder, dtypes, intermediate, hidden, &layer->up));
    spell(binder, "", "", "blk.%d.ffn_down_exps.weight");
    GPTOSS_TRY(bind_whole_experts(binder, dtypes, hidden, intermediate, &layer->down));
    spell(binder, "", "", "blk.%d.ffn_gate_exps.bias");
    GPTOSS_TRY(bind_vector(binder, config->num_experts, intermediate, &layer->gate_up_bias));
    spell(binder, "", "", "blk.%d.ffn_up_exps.bias");
    GPTOSS_TRY(bind_vector(binder, config->num_experts, intermediate, &layer->up_bias));
    spell(binder, "", "", "blk.%d.ffn_down_exps.bias");
    return bind_vector(binder, config->num_experts, hidden, &layer->down_bias);
}

static enum gptoss_status bind_experts(struct binder *binder, struct gptoss_gpt_oss_layer *layer) {
    const struct gptoss_config *config = binder->config;
    int64_t hidden = config->hidden_size, intermediate = config->intermediate_size;
    if (binder->naming == GGUF)
        return bind_gguf_experts(binder, layer);
    spell(binder, "model.layers.%d.mlp.experts.gate_up_proj", "block.%d.mlp.mlp1_weight", "");
    if (gptoss_checkpoint_find(binder->checkpoint, binder->name) != NULL) {
        GPTOSS_TRY(
            bind_whole_experts(binder, FLOAT_DTYPES, 2 * intermediate, hidden, &layer->gate_up));
        spell(binder, "model.layers.%d.mlp.experts.down_proj", "block.%d.mlp.mlp2_weight", "");
        GPTOSS_TRY(bind_whole_experts(binder, FLOAT_DTYPES, hidden, intermediate, &layer->down));
    } else {
        GPTOSS_TRY(bind_mxfp4(
            binder, "model.layers.%d.mlp.experts.gate_up_proj_blocks",
            "block.%d.mlp.mlp1_weight.blocks", "model.layers.%d.mlp.experts.gate_up_proj_scales",
            "block.%d.mlp.mlp1_weight.scales", 2 * intermediate, hidden, &layer->gate_up));
        GPTOSS_TRY(bind_mxfp4(
            binder, "model.layers.%d.mlp.experts.down_proj_blocks",
            "block.%d.mlp.mlp2_weight.blocks", "model.layers.%d.mlp.experts.down_proj_scales",
            "block.%d.mlp.mlp2_weight.scales", hidden, intermediate, &layer->down));
    }
    spell(binder, "model.layers.%d.mlp.experts.gate_up_proj_bias", "block.%d.mlp.mlp1_bias", "");
    GPTOSS_TRY(bind_vector(binder, config->num_experts, 2 * intermediate, &layer->gate_up_bias));
    spell(binder, "model.layers.%d.mlp.experts.down_proj_bias", "block.%d.mlp.mlp2_bias", "");
    return bind_vector(binder, config->num_experts, hidden, &layer->down_bias);
}

/* ---- attention ---- */

/* num_rows rows from first_row of a matrix and its bias. */
static void slice_rows(const struct gptoss_weight *weight, const struct gptoss_vector *bias,
                       int64_t first_row, int64_t num_rows, struct gptoss_weight *weight_out,
                       struct gptoss_vector *bias_out) {
    *weight_out = *weight;
    weight_out->num_rows = num_rows;
    weight_out->data +=
        (uint64_t)(first_row * weight->num_columns) * gptoss_dtype_bytes(weight->dtype);
    *bias_out = (struct gptoss_vector){bias->dtype, 1, num_rows, bias->data};
    if (bias->data != NULL)
        bias_out->data += (uint64_t)first_row * gptoss_dtype_bytes(bias->dtype);
}

static enum gptoss_status bind_projection(struct binder *binder, const char *which,
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
        spell(binder, spellings[0], spellings[1], spellings[2]);
        GPTOSS_TRY(i == 0 ? bind_matrix(binder, num_rows, num_columns, weight)
                          : bind_vector(binder, 0, num_rows, bias));
    }
    return GPTOSS_OK;
}

static enum gptoss_status bind_attention(struct binder *binder,
                                         struct gptoss_gpt_oss_layer *layer) {
    const struct gptoss_config *config = binder->config;
    int64_t hidden = config->hidden_size;
    int64_t query_size = (int64_t)config->num_heads * config->head_dim;
    int64_t key_size = (int64_t)config->num_kv_heads * config->head_dim;
    spell(binder, "model.layers.%d.input_layernorm.weight", "block.%d.attn.norm.scale",
          "blk.%d.attn_norm.weight");
    GPTOSS_TRY(bind_vector(binder, 0, hidden, &layer->attention_norm));
    if (binder->naming == ORIGINAL) {
        struct gptoss_weight fused;
        struct gptoss_vector bias;
        GPTOSS_TRY(bind_projection(binder, "", "qkv", "", query_size + 2 * key_size, hidden, &fused,
                                   &bias));
        slice_rows(&fused, &bias, 0, query_size, &layer->query, &layer->query_bias);
        slice_rows(&fused, &bias, query_size, key_size, &layer->key, &layer->key_bias);
        slice_rows(&fused, &bias, query_size + key_size, key_size, &layer->value,
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
    spell(binder, "model.layers.%d.self_attn.sinks", "block.%d.attn.sinks",
          "blk.%d.attn_sinks.weight");
    return bind_vector(binder, 0, config->num_heads, &layer->sinks);
}

static enum gptoss_status bind_layer(struct binder *binder, struct gptoss_gpt_oss_layer *layer) {
    const struct gptoss_config *config = binder->config;
    GPTOSS_TRY(bind_attention(binder, layer));
    spell(binder, "model.layers.%d.post_attention_layernorm.weight", "block.%d.mlp.norm.scale",
          "blk.%d.post_attention_norm.weight");
    GPTOSS_TRY(bind_vector(binder, 0, config->hidden_size, &layer->mlp_norm));
    spell(binder, "model.layers.%d.mlp.router.weight", "block.%d.mlp.gate.weight",
          "blk.%d.ffn_gate_inp.weight");
    GPTOSS_TRY(bind_matrix(binder, config->num_experts, config->hidden_size, &layer->router));
    spell(binder, "model.layers.%d.mlp.router.bias", "block.%d.mlp.gate.bias",
          "blk.%d.ffn_gate_inp.bias");
    GPTOSS_TRY(bind_vector(binder, 0, config->num_experts, &layer->router_bias));
    return bind_experts(binder, layer);
}

static enum gptoss_status bind_all(struct binder *binder, struct gptoss_gpt_oss *weights) {
    const struct gptoss_config *config = binder->config;
    spell(binder, "model.embed_tokens.weight", "embedding.weight", "token_embd.weight");
    GPTOSS_TRY(bind_matrix(binder, config->vocab_size, config->hidden_size, &weights->embedding));
    spell(binder, "model.norm.weight", "norm.scale", "output_norm.weight");
    GPTOSS_TRY(bind_vector(binder, 0, config->hidden_size, &weights->final_norm));
    spell(binder, "lm_head.weight", "unembedding.weight", "output.weight");
    if (config->tied_embeddings && gptoss_checkpoint_find(binder->checkpoint, binder->name) == NULL)
        weights->unembedding = weights->embedding;
    else
        GPTOSS_TRY(
            bind_matrix(binder, config->vocab_size, config->hidden_size, &weights->unembedding));
    for (binder->layer = 0; binder->layer < config->num_layers; ++binder->layer)
        GPTOSS_TRY(bind_layer(binder, &weights->layers[binder->layer]));
    return GPTOSS_OK;
}

enum gptoss_status gptoss_gpt_oss_bind(const struct gptoss_checkpoint *checkpoint,
                                       struct gptoss_gpt_oss *weights_out,
                                       struct gptoss_error *error) {
    struct binder binder = {
        .checkpoint = checkpoint,
        .config = gptoss_checkpoint_config(checkpoint),
        .naming = gptoss_checkpoint_is_gguf(checkpoint)                            ? GGUF
                  : gptoss_checkpoint_find(checkpoint, "embedding.weight") != NULL ? ORIGINAL
                                                                                   : HUGGING_FACE,
        .error = error,
    };
    *weights_out = (struct gptoss_gpt_oss){0};
    size_t num_layers = (size_t)binder.config->num_layers;
    weights_out->layers = gptoss_allocate(num_layers, sizeof *weights_out->layers);
    if (weights_out->layers == NULL)
        return gptoss_error_memory(error, num_layers * sizeof *weights_out->layers,
                                   "the table of weights");
    enum gptoss_status status = bind_all(&binder, weights_out);
    if (status != GPTOSS_OK)
        gptoss_gpt_oss_clear(weights_out);
    return status;
}

void gptoss_gpt_oss_clear(struct gptoss_gpt_oss *weights) {
    gptoss_free(weights->layers);
    *weights = (struct gptoss_gpt_oss){0};
}
