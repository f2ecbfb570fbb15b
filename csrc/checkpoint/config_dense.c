/* The configurations of the families whose every weight works on every token, llama and gpt2: in
 * config.json as transformers spells them, and in GGUF files of llama.cpp. Settings that change the
 * computation and that nothing acts on are refused. */
#include <stdio.h>
#include <string.h>

#include "checkpoint/config_reader.h"

#define OPTIONAL GPTOSS_CONFIG_OPTIONAL
#define REQUIRED GPTOSS_CONFIG_REQUIRED

/* What the sizes are called, NULL for those that have no key. */
enum naming { LLAMA, GGUF_LLAMA, GPT2, GGUF_GPT2 };
static const struct size_keys {
    const char *num_layers, *hidden_size, *num_heads, *num_kv_heads, *head_dim, *max_positions;
} size_keys[] = {
    [LLAMA] = {"num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
               "head_dim", "max_position_embeddings"},
    [GGUF_LLAMA] = {"block_count", "embedding_length", "attention.head_count",
                    "attention.head_count_kv", "attention.key_length", "context_length"},
    [GPT2] = {"n_layer", "n_embd", "n_head", NULL, NULL, "n_positions"},
    [GGUF_GPT2] = {"block_count", "embedding_length", "attention.head_count", NULL, NULL,
                   "context_length"},
};

/* All but the intermediate size. Keys and values have as many heads as queries and a head its share
 * of the hidden size, unless there are keys that say otherwise. */
static void read_sizes(const struct gptoss_config_reader *reader, enum naming naming,
                       struct gptoss_config *config) {
    const struct size_keys *keys = &size_keys[naming];
    gptoss_config_integer(reader, keys->num_layers, REQUIRED, 1, GPTOSS_MAX_LAYERS,
                          &config->num_layers);
    gptoss_config_integer(reader, keys->hidden_size, REQUIRED, 1, 1 << 18, &config->hidden_size);
    gptoss_config_integer(reader, "vocab_size", REQUIRED, 1, 1 << 24, &config->vocab_size);
    gptoss_config_integer(reader, keys->num_heads, REQUIRED, 1, 4096, &config->num_heads);
    gptoss_config_integer(reader, keys->max_positions, REQUIRED, 1, GPTOSS_MAX_POSITIONS,
                          &config->max_positions);
    config->num_kv_heads = config->num_heads;
    if (keys->num_kv_heads != NULL)
        gptoss_config_integer(reader, keys->num_kv_heads, OPTIONAL, 1, 4096, &config->num_kv_heads);
    if (keys->head_dim != NULL)
        gptoss_config_integer(reader, keys->head_dim, OPTIONAL, 2, 1024, &config->head_dim);
    if (*reader->status != GPTOSS_OK)
        return;
    char expected[96];
    if (config->num_heads % config->num_kv_heads != 0) {
        snprintf(expected, sizeof expected, "a divisor of %s", keys->num_heads);
        gptoss_config_fail(reader, keys->num_kv_heads, expected,
                           gptoss_config_find(reader, keys->num_kv_heads));
    }
    if (config->head_dim != 0)
        return;
    config->head_dim = config->hidden_size / config->num_heads;
    if (config->hidden_size % config->num_heads != 0 || config->head_dim > 1024) {
        snprintf(expected, sizeof expected, "a divisor of %s that leaves heads of at most 1024",
                 keys->hidden_size);
        gptoss_config_fail(reader, keys->num_heads, expected,
                           gptoss_config_find(reader, keys->num_heads));
    }
}

/* ---- llama ---- */

static const struct gptoss_config llama = {.architecture = "llama",
                                           .rms_norm_eps = 1e-6f,
                                           .rope_theta = 10000.0,
                                           .rope_factor = 1.0,
                                           .rope_beta_fast = 32.0,
                                           .rope_beta_slow = 1.0,
                                           .rope_truncate = true,
                                           .rope_attention_factor = 1.0};

static void demand_even_heads(const struct gptoss_config_reader *reader, enum naming naming,
                              const struct gptoss_config *config) {
    const char *key =
        gptoss_config_either(reader, size_keys[naming].head_dim, size_keys[naming].num_heads);
    if (config->head_dim % 2 != 0)
        gptoss_config_fail(reader, key, "heads of an even size, as the rotation needs",
                           gptoss_config_find(reader, key));
}

static void require_number(const struct gptoss_config_reader *reader, const char *key,
                           double maximum, double *value) {
    if (gptoss_config_find(reader, key) == NULL)
        gptoss_config_fail(reader, key, "a number", NULL);
    gptoss_config_number(reader, key, 0.0, maximum, value);
}

static void read_llama3(const struct gptoss_config_reader *rope, struct gptoss_config *config) {
    config->rope_scaling = GPTOSS_ROPE_LLAMA3;
    require_number(rope, "factor", 1e6, &config->rope_factor);
    require_number(rope, "low_freq_factor", 1e6, &config->rope_low_frequency_factor);
    require_number(rope, "high_freq_factor", 1e6, &config->rope_high_frequency_factor);
    gptoss_config_integer(rope, "original_max_position_embeddings", REQUIRED, 1,
                          GPTOSS_MAX_POSITIONS, &config->rope_original_positions);
    if (*rope->status == GPTOSS_OK &&
        config->rope_high_frequency_factor <= config->rope_low_frequency_factor)
        gptoss_config_fail(rope, "high_freq_factor", "a number above low_freq_factor",
                           gptoss_config_find(rope, "high_freq_factor"));
}

static void read_rope(const struct gptoss_config_reader *reader, struct gptoss_config *config) {
    struct gptoss_config_reader rope;
    gptoss_config_number(reader, "rope_theta", 1.0, 1e15, &config->rope_theta);
    gptoss_config_demand_number(reader, "partial_rotary_factor", 1.0);
    if (!gptoss_config_rope(reader, &rope))
        return;
    gptoss_config_number(&rope, "rope_theta", 1.0, 1e15, &config->rope_theta);
    const char *key = gptoss_config_either(&rope, "rope_type", "type");
    const cJSON *type = gptoss_config_find(&rope, key);
    const char *name = cJSON_IsString(type) ? type->valuestring : "";
    if (strcmp(name, "linear") == 0) {
        config->rope_scaling = GPTOSS_ROPE_LINEAR;
        require_number(&rope, "factor", 1e6, &config->rope_factor);
    } else if (strcmp(name, "llama3") == 0) {
        read_llama3(&rope, config);
    } else if (strcmp(name, "yarn") == 0) {
        config->rope_original_positions = config->max_positions;
        gptoss_config_yarn(&rope, config);
    } else if (strcmp(name, "default") != 0 &&
               (type != NULL || gptoss_config_find(&rope, "factor") != NULL)) {
        gptoss_config_fail(&rope, key, "\"default\", \"linear\", \"llama3\" or \"yarn\"", type);
    }
}

void gptoss_config_llama(const struct gptoss_config_reader *reader, struct gptoss_config *config) {
    *config = llama;
    read_sizes(reader, LLAMA, config);
    gptoss_config_integer(reader, "intermediate_size", REQUIRED, 1, 1 << 20,
                          &config->intermediate_size);
    demand_even_heads(reader, LLAMA, config);
    gptoss_config_bool(reader, "attention_bias", &config->attention_bias);
    gptoss_config_bool(reader, "mlp_bias", &config->mlp_bias);
    gptoss_config_bool(reader, "tie_word_embeddings", &config->tied_embeddings);
    gptoss_config_float(reader, "rms_norm_eps", 1e-30, 1.0, &config->rms_norm_eps);
    gptoss_config_demand_text(reader, "hidden_act", "silu");
    read_rope(reader, config);
}

/* Without a type a factor divides all frequencies, as in llama.cpp; old files call it by another
 * name. */
static void read_gguf_rope(const struct gptoss_config_reader *reader,
                           struct gptoss_config *config) {
    const cJSON *type = gptoss_config_find(reader, "rope.scaling.type");
    const char *name = cJSON_IsString(type) ? type->valuestring : "";
    config->rope_neighbours = true;
    gptoss_config_number(reader, "rope.freq_base", 1.0, 1e15, &config->rope_theta);
    gptoss_config_demand_number(reader, "rope.dimension_count", config->head_dim);
    gptoss_config_demand_number(reader, "rope.scaling.attn_factor", 1.0);
    if (*reader->status != GPTOSS_OK || strcmp(name, "none") == 0)
        return;
    if (strcmp(name, "yarn") == 0) {
        config->rope_original_positions = config->max_positions;
        gptoss_config_gguf_yarn(reader, config);
        return;
    }
    if (type != NULL && strcmp(name, "linear") != 0)
        gptoss_config_fail(reader, "rope.scaling.type", "\"linear\", \"yarn\" or \"none\"", type);
    gptoss_config_number(reader,
                         gptoss_config_either(reader, "rope.scaling.factor", "rope.scale_linear"),
                         0.0, 1e6, &config->rope_factor);
    if (config->rope_factor != 1.0)
        config->rope_scaling = GPTOSS_ROPE_LINEAR;
}

void gptoss_config_gguf_llama(const struct gptoss_config_reader *reader,
                              struct gptoss_config *config) {
    *config = llama;
    read_sizes(reader, GGUF_LLAMA, config);
    gptoss_config_integer(reader, "feed_forward_length", REQUIRED, 1, 1 << 20,
                          &config->intermediate_size);
    demand_even_heads(reader, GGUF_LLAMA, config);
    gptoss_config_demand_number(reader, "attention.value_length", config->head_dim);
    gptoss_config_demand_number(reader, "expert_count", 0.0);
    gptoss_config_float(reader, "attention.layer_norm_rms_epsilon", 1e-30, 1.0,
                        &config->rms_norm_eps);
    read_gguf_rope(reader, config);
}

/* ---- gpt2 ---- */

static const struct gptoss_config gpt2 = {.architecture = "gpt2",
                                          .attention_bias = true,
                                          .mlp_bias = true,
                                          .tied_embeddings = true,
                                          .layer_norm_eps = 1e-5f,
                                          .rope_scaling = GPTOSS_ROPE_NONE};

static void demand_tanh_gelu(const struct gptoss_config_reader *reader) {
    const cJSON *item = gptoss_config_find(reader, "activation_function");
    const char *name = cJSON_IsString(item) ? item->valuestring : "";
    if (item != NULL && strcmp(name, "gelu_new") != 0 && strcmp(name, "gelu_pytorch_tanh") != 0)
        gptoss_config_fail(reader, "activation_function", "\"gelu_new\" or \"gelu_pytorch_tanh\"",
                           item);
}

void gptoss_config_gpt2(const struct gptoss_config_reader *reader, struct gptoss_config *config) {
    *config = gpt2;
    read_sizes(reader, GPT2, config);
    config->intermediate_size = 4 * config->hidden_size;
    gptoss_config_integer(reader, "n_inner", OPTIONAL, 1, 1 << 20, &config->intermediate_size);
    gptoss_config_bool(reader, "tie_word_embeddings", &config->tied_embeddings);
    gptoss_config_float(reader, "layer_norm_epsilon", 1e-30, 1.0, &config->layer_norm_eps);
    demand_tanh_gelu(reader);
    gptoss_config_demand_bool(reader, "scale_attn_weights", true);
    gptoss_config_demand_bool(reader, "scale_attn_by_inverse_layer_idx", false);
    gptoss_config_demand_bool(reader, "add_cross_attention", false);
}

void gptoss_config_gguf_gpt2(const struct gptoss_config_reader *reader,
                             struct gptoss_config *config) {
    *config = gpt2;
    read_sizes(reader, GGUF_GPT2, config);
    gptoss_config_integer(reader, "feed_forward_length", REQUIRED, 1, 1 << 20,
                          &config->intermediate_size);
    gptoss_config_demand_number(reader, "attention.head_count_kv", config->num_heads);
    gptoss_config_float(reader, "attention.layer_norm_epsilon", 1e-30, 1.0,
                        &config->layer_norm_eps);
}
