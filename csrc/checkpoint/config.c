#include "checkpoint/config.h"

#include <stdio.h>
#include <string.h>

#include "checkpoint/config_reader.h"
#include "checkpoint/json.h"
#include "numeric/double_math.h"
#include "status.h"

/* What the sizes are called. */
struct size_keys {
    const char *num_layers, *hidden_size, *intermediate_size, *vocab_size;
    const char *num_heads, *num_kv_heads, *head_dim, *num_experts, *experts_per_token;
};

static void read_sizes(const struct gptoss_config_reader *reader, const struct size_keys *keys,
                       struct gptoss_config *config) {
    gptoss_config_integer(reader, keys->num_layers, GPTOSS_CONFIG_REQUIRED, 1, GPTOSS_MAX_LAYERS,
                          &config->num_layers);
    gptoss_config_integer(reader, keys->hidden_size, GPTOSS_CONFIG_REQUIRED, 1, 1 << 20,
                          &config->hidden_size);
    gptoss_config_integer(reader, keys->intermediate_size, GPTOSS_CONFIG_REQUIRED, 1, 1 << 20,
                          &config->intermediate_size);
    gptoss_config_integer(reader, keys->vocab_size, GPTOSS_CONFIG_REQUIRED, 1, 1 << 24,
                          &config->vocab_size);
    gptoss_config_integer(reader, keys->num_heads, GPTOSS_CONFIG_REQUIRED, 1, 4096,
                          &config->num_heads);
    gptoss_config_integer(reader, keys->num_kv_heads, GPTOSS_CONFIG_REQUIRED, 1, 4096,
                          &config->num_kv_heads);
    gptoss_config_integer(reader, keys->head_dim, GPTOSS_CONFIG_REQUIRED, 2, 1024,
                          &config->head_dim);
    gptoss_config_integer(reader, keys->num_experts, GPTOSS_CONFIG_REQUIRED, 1, 4096,
                          &config->num_experts);
    gptoss_config_integer(reader, keys->experts_per_token, GPTOSS_CONFIG_REQUIRED, 1,
                          config->num_experts, &config->experts_per_token);
    if (*reader->status != GPTOSS_OK)
        return;
    if (config->num_heads % config->num_kv_heads != 0) {
        char expected[96];
        snprintf(expected, sizeof expected, "a divisor of %s", keys->num_heads);
        gptoss_config_fail(reader, keys->num_kv_heads, expected,
                           gptoss_config_find(reader, keys->num_kv_heads));
    }
    if (config->head_dim % 2 != 0)
        gptoss_config_fail(reader, keys->head_dim, "an even number",
                           gptoss_config_find(reader, keys->head_dim));
}

static void read_json_sizes(const struct gptoss_config_reader *reader,
                            struct gptoss_config *config) {
    read_sizes(reader,
               &(struct size_keys){
                   .num_layers = "num_hidden_layers",
                   .hidden_size = "hidden_size",
                   .intermediate_size = "intermediate_size",
                   .vocab_size = "vocab_size",
                   .num_heads = "num_attention_heads",
                   .num_kv_heads = "num_key_value_heads",
                   .head_dim = "head_dim",
                   .num_experts = gptoss_config_either(reader, "num_local_experts", "num_experts"),
                   .experts_per_token =
                       gptoss_config_either(reader, "num_experts_per_tok", "experts_per_token"),
               },
               config);
}

static void read_options(const struct gptoss_config_reader *reader, struct gptoss_config *config) {
    gptoss_config_bool(reader, "attention_bias", &config->attention_bias);
    gptoss_config_bool(reader, "tie_word_embeddings", &config->tied_embeddings);
    gptoss_config_float(reader, "rms_norm_eps", 1e-30, 1.0, &config->rms_norm_eps);
    gptoss_config_float(reader, "swiglu_limit", 0.0, 1e30, &config->swiglu_limit);
    gptoss_config_float(reader, "swiglu_alpha", 0.0, 1e30, &config->swiglu_alpha);
    gptoss_config_demand_text(reader, "hidden_act", "silu");
}

/* Even layers slide unless layer_types says otherwise; none does without a window. */
static void read_layers(const struct gptoss_config_reader *reader, struct gptoss_config *config) {
    const cJSON *types = gptoss_config_find(reader, "layer_types");
    const cJSON *window = cJSON_GetObjectItemCaseSensitive(reader->object, "sliding_window");
    if (window == NULL)
        config->sliding_window = 128;
    gptoss_config_integer(reader, "sliding_window", GPTOSS_CONFIG_OPTIONAL, 1, GPTOSS_MAX_POSITIONS,
                          &config->sliding_window);
    if (types != NULL &&
        (!cJSON_IsArray(types) || cJSON_GetArraySize(types) != config->num_layers)) {
        gptoss_config_fail(reader, "layer_types", "an array with one entry a layer", types);
        return;
    }
    const cJSON *type = types == NULL ? NULL : types->child;
    for (int32_t layer = 0; layer < config->num_layers; ++layer) {
        bool slides = layer % 2 == 0 && config->sliding_window > 0;
        if (type != NULL) {
            slides = cJSON_IsString(type) && strcmp(type->valuestring, "sliding_attention") == 0;
            if (!slides &&
                !(cJSON_IsString(type) && strcmp(type->valuestring, "full_attention") == 0)) {
                gptoss_config_fail(reader, "layer_types",
                                   "\"sliding_attention\" or \"full_attention\"", type);
            }
            if (slides && config->sliding_window == 0) {
                gptoss_config_fail(reader, "sliding_window",
                                   "an integer, since layer_types has sliding layers", window);
            }
            type = type->next;
        }
        config->layer_is_sliding[layer] = slides;
    }
}

/* ---- YaRN ---- */

static double yarn_scale(double factor, double mscale) {
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * gptoss_log(factor) + 1.0;
}

static void check_betas(const struct gptoss_config_reader *reader,
                        const struct gptoss_config *config, const char *fast, const char *slow) {
    if (config->rope_beta_fast > config->rope_beta_slow)
        return;
    char expected[96];
    snprintf(expected, sizeof expected, "a number above %s", slow);
    gptoss_config_fail(reader, fast, expected, gptoss_config_find(reader, fast));
}

void gptoss_config_yarn(const struct gptoss_config_reader *rope, struct gptoss_config *config) {
    double mscale = 0.0, mscale_all_dim = 0.0, attention_factor = 0.0;
    config->rope_scaling = GPTOSS_ROPE_YARN;
    gptoss_config_integer(rope, "original_max_position_embeddings", GPTOSS_CONFIG_OPTIONAL, 1,
                          GPTOSS_MAX_POSITIONS, &config->rope_original_positions);
    config->rope_factor = (double)config->max_positions / config->rope_original_positions;
    gptoss_config_number(rope, "factor", 0.0, 1e6, &config->rope_factor);
    gptoss_config_number(rope, "beta_fast", 0.0, 1e6, &config->rope_beta_fast);
    gptoss_config_number(rope, "beta_slow", 0.0, 1e6, &config->rope_beta_slow);
    gptoss_config_bool(rope, "truncate", &config->rope_truncate);
    gptoss_config_number(rope, "attention_factor", 0.0, 1e3, &attention_factor);
    gptoss_config_number(rope, "mscale", 0.0, 1e3, &mscale);
    gptoss_config_number(rope, "mscale_all_dim", 0.0, 1e3, &mscale_all_dim);
    if (attention_factor == 0.0) {
        attention_factor = yarn_scale(config->rope_factor, 1.0);
        if (mscale != 0.0 && mscale_all_dim != 0.0) {
            attention_factor = yarn_scale(config->rope_factor, mscale) /
                               yarn_scale(config->rope_factor, mscale_all_dim);
        }
    }
    config->rope_attention_factor = attention_factor;
    check_betas(rope, config, "beta_fast", "beta_slow");
}

void gptoss_config_gguf_yarn(const struct gptoss_config_reader *reader,
                             struct gptoss_config *config) {
    config->rope_scaling = GPTOSS_ROPE_YARN;
    gptoss_config_integer(reader, "rope.scaling.original_context_length", GPTOSS_CONFIG_OPTIONAL, 1,
                          GPTOSS_MAX_POSITIONS, &config->rope_original_positions);
    config->rope_factor = (double)config->max_positions / config->rope_original_positions;
    gptoss_config_number(reader, "rope.scaling.factor", 0.0, 1e6, &config->rope_factor);
    gptoss_config_number(reader, "rope.scaling.yarn_beta_fast", 0.0, 1e6, &config->rope_beta_fast);
    gptoss_config_number(reader, "rope.scaling.yarn_beta_slow", 0.0, 1e6, &config->rope_beta_slow);
    gptoss_config_demand_number(reader, "rope.scaling.attn_factor", 1.0);
    gptoss_config_demand_number(reader, "rope.scaling.yarn_attn_factor", 1.0);
    gptoss_config_demand_number(reader, "rope.scaling.yarn_ext_factor", 1.0);
    config->rope_attention_factor = yarn_scale(config->rope_factor, 1.0);
    check_betas(reader, config, "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow");
}

/* ---- rotary positions ---- */

static void read_huggingface_rope(const struct gptoss_config_reader *reader,
                                  struct gptoss_config *config) {
    struct gptoss_config_reader rope;
    bool is_stated = cJSON_GetObjectItemCaseSensitive(reader->object, "rope_scaling") != NULL ||
                     cJSON_GetObjectItemCaseSensitive(reader->object, "rope_parameters") != NULL;

    gptoss_config_integer(reader, "max_position_embeddings", GPTOSS_CONFIG_REQUIRED, 1,
                          GPTOSS_MAX_POSITIONS, &config->max_positions);
    gptoss_config_number(reader, "rope_theta", 1.0, 1e15, &config->rope_theta);
    config->rope_original_positions = config->max_positions;
    gptoss_config_integer(reader, "initial_context_length", GPTOSS_CONFIG_OPTIONAL, 1,
                          GPTOSS_MAX_POSITIONS, &config->rope_original_positions);
    if (!gptoss_config_rope(reader, &rope)) {
        /* null turns scaling off; without the key the family's default holds: transformers. */
        if (is_stated || *reader->status != GPTOSS_OK)
            return;
        config->rope_scaling = GPTOSS_ROPE_YARN;
        config->rope_original_positions = 4096;
        config->rope_factor = 32.0;
        config->rope_attention_factor = yarn_scale(config->rope_factor, 1.0);
        return;
    }
    gptoss_config_number(&rope, "rope_theta", 1.0, 1e15, &config->rope_theta);
    const char *type_key = gptoss_config_either(&rope, "rope_type", "type");
    const cJSON *type = gptoss_config_find(&rope, type_key);
    if (*reader->status != GPTOSS_OK)
        return;
    if (cJSON_IsString(type) && strcmp(type->valuestring, "yarn") == 0) {
        gptoss_config_yarn(&rope, config);
    } else if (type == NULL ? gptoss_config_find(&rope, "factor") != NULL
                            : !cJSON_IsString(type) || strcmp(type->valuestring, "default") != 0) {
        gptoss_config_fail(&rope, type_key, "\"yarn\" or \"default\"", type);
    }
}

/* rope_ntk_alpha is what YaRN calls beta_slow, rope_ntk_beta is beta_fast. */
static void read_original_rope(const struct gptoss_config_reader *reader,
                               struct gptoss_config *config) {
    double factor = 32.0;
    config->rope_original_positions = 4096;
    gptoss_config_number(reader, "rope_theta", 1.0, 1e15, &config->rope_theta);
    gptoss_config_integer(reader, "initial_context_length", GPTOSS_CONFIG_OPTIONAL, 1,
                          GPTOSS_MAX_POSITIONS, &config->rope_original_positions);
    gptoss_config_number(reader, "rope_scaling_factor", 0.0, 1e6, &factor);
    gptoss_config_number(reader, "rope_ntk_alpha", 0.0, 1e6, &config->rope_beta_slow);
    gptoss_config_number(reader, "rope_ntk_beta", 0.0, 1e6, &config->rope_beta_fast);
    config->max_positions = config->rope_original_positions;
    if (factor <= 1.0)
        return;
    double positions = config->rope_original_positions * factor;
    if (positions > GPTOSS_MAX_POSITIONS) {
        gptoss_config_fail(reader, "rope_scaling_factor", "at most 2^30 positions in all",
                           gptoss_config_find(reader, "rope_scaling_factor"));
        return;
    }
    config->max_positions = (int32_t)positions;
    config->rope_scaling = GPTOSS_ROPE_YARN;
    config->rope_factor = factor;
    config->rope_attention_factor = yarn_scale(factor, 1.0);
    check_betas(reader, config, "rope_ntk_beta", "rope_ntk_alpha");
}

/* ---- GGUF ---- */

/* llama.cpp knows no more of the rotation than this; what it multiplies beyond must be neutral. */
static void read_gguf_rope(const struct gptoss_config_reader *reader,
                           struct gptoss_config *config) {
    gptoss_config_integer(reader, "context_length", GPTOSS_CONFIG_REQUIRED, 1, GPTOSS_MAX_POSITIONS,
                          &config->max_positions);
    gptoss_config_number(reader, "rope.freq_base", 1.0, 1e15, &config->rope_theta);
    gptoss_config_demand_number(reader, "rope.dimension_count", config->head_dim);
    gptoss_config_demand_number(reader, "rope.freq_base_swa", config->rope_theta);
    gptoss_config_demand_number(reader, "rope.scaling.attn_factor", 1.0);
    gptoss_config_demand_number(reader, "rope.scaling.yarn_attn_factor", 1.0);
    gptoss_config_demand_number(reader, "rope.scaling.yarn_ext_factor", 1.0);
    gptoss_config_demand_number(reader, "rope.scale_linear", 1.0);
    config->rope_original_positions = config->max_positions;
    const cJSON *type = gptoss_config_find(reader, "rope.scaling.type");
    /* Ollama's converter knows one kind of scaling and does not name it. */
    bool is_implied = type == NULL && strcmp(reader->section, "gptoss.") == 0 &&
                      gptoss_config_find(reader, "rope.scaling.factor") != NULL;
    if (type == NULL && !is_implied)
        gptoss_config_demand_number(reader, "rope.scaling.factor", 1.0);
    if (*reader->status != GPTOSS_OK || (type == NULL && !is_implied) ||
        (cJSON_IsString(type) && strcmp(type->valuestring, "none") == 0))
        return;
    if (!is_implied && (!cJSON_IsString(type) || strcmp(type->valuestring, "yarn") != 0)) {
        gptoss_config_fail(reader, "rope.scaling.type", "\"yarn\" or \"none\"", type);
        return;
    }
    gptoss_config_gguf_yarn(reader, config);
}

static void read_gguf(const struct gptoss_config_reader *reader, struct gptoss_config *config) {
    const struct size_keys keys = {
        .num_layers = "block_count",
        .hidden_size = "embedding_length",
        .intermediate_size =
            strcmp(reader->section, "gptoss.") == 0
                ? gptoss_config_either(reader, "expert_feed_forward_length", "feed_forward_length")
                : "expert_feed_forward_length",
        .vocab_size = "vocab_size",
        .num_heads = "attention.head_count",
        .num_kv_heads = "attention.head_count_kv",
        .head_dim = "attention.key_length",
        .num_experts = "expert_count",
        .experts_per_token = "expert_used_count",
    };
    read_sizes(reader, &keys, config);
    gptoss_config_demand_number(reader, "attention.value_length", config->head_dim);
    gptoss_config_float(reader, "attention.layer_norm_rms_epsilon", 1e-30, 1.0,
                        &config->rms_norm_eps);
    config->sliding_window = 128;
    gptoss_config_integer(reader, "attention.sliding_window", GPTOSS_CONFIG_OPTIONAL, 1,
                          GPTOSS_MAX_POSITIONS, &config->sliding_window);
    gptoss_config_demand_number(reader, "attention.sliding_window_pattern", 2.0);
    for (int32_t layer = 0; layer < config->num_layers; layer += 2)
        config->layer_is_sliding[layer] = true;
    read_gguf_rope(reader, config);
}

/* ---- entry points ---- */

static const struct gptoss_config defaults = {.architecture = "gpt_oss",
                                              .attention_bias = true,
                                              .rms_norm_eps = 1e-5f,
                                              .swiglu_limit = 7.0f,
                                              .swiglu_alpha = 1.702f,
                                              .rope_theta = 150000.0,
                                              .rope_factor = 1.0,
                                              .rope_beta_fast = 32.0,
                                              .rope_beta_slow = 1.0,
                                              .rope_attention_factor = 1.0};

static void read_gpt_oss(const struct gptoss_config_reader *reader, struct gptoss_config *config) {
    *config = defaults;
    read_json_sizes(reader, config);
    if (*reader->status == GPTOSS_OK)
        read_options(reader, config);
    if (*reader->status == GPTOSS_OK)
        read_layers(reader, config);
    if (*reader->status == GPTOSS_OK)
        (gptoss_config_find(reader, "model_type") != NULL ? read_huggingface_rope
                                                          : read_original_rope)(reader, config);
}

static void read_gguf_gpt_oss(const struct gptoss_config_reader *reader,
                              struct gptoss_config *config) {
    *config = defaults;
    read_gguf(reader, config);
}

static const struct family {
    const char *model_type, *gguf, *gguf_prefix; /* gguf: general.architecture */
    void (*read)(const struct gptoss_config_reader *reader, struct gptoss_config *config);
    void (*read_gguf)(const struct gptoss_config_reader *reader, struct gptoss_config *config);
} families[] = {
    {"gpt_oss", "gpt-oss", "gpt-oss.", read_gpt_oss, read_gguf_gpt_oss},
    {"gpt_oss", "gptoss", "gptoss.", read_gpt_oss, read_gguf_gpt_oss}, /* of Ollama's converter */
    {"llama", "llama", "llama.", gptoss_config_llama, gptoss_config_gguf_llama},
    {"gpt2", "gpt2", "gpt2.", gptoss_config_gpt2, gptoss_config_gguf_gpt2},
};
#define NUM_FAMILIES (sizeof families / sizeof families[0])

enum gptoss_status gptoss_config_unsupported(const char *file, const cJSON *architecture,
                                             struct gptoss_error *error) {
    static const char supported[] = "gpt-oss, llama, gpt2";
    char text[128];
    gptoss_json_describe(architecture, text, sizeof text);
    gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                     "%s: unsupported architecture %s; supported: %s", file, text, supported);
    gptoss_error_where(error, file, NULL, -1);
    gptoss_error_expected(error, "%s", supported);
    gptoss_error_found(error, "%s", text);
    return GPTOSS_ERROR_UNSUPPORTED;
}

/* model_type says what the file describes; openai's original release has none, but counts experts
 * in its own way. NULL: refused. */
static const struct family *find_family(const struct gptoss_config_reader *reader) {
    const cJSON *type = gptoss_config_find(reader, "model_type");
    if (type == NULL && gptoss_config_find(reader, "num_experts") != NULL)
        return &families[0];
    if (!cJSON_IsString(type)) {
        gptoss_config_fail(reader, "model_type", "\"gpt_oss\", \"llama\" or \"gpt2\"", type);
        return NULL;
    }
    for (size_t i = 0; i < NUM_FAMILIES; ++i)
        if (strcmp(type->valuestring, families[i].model_type) == 0)
            return &families[i];
    *reader->status = gptoss_config_unsupported(reader->file, type, reader->error);
    return NULL;
}

enum gptoss_status gptoss_config_read(const char *path, struct gptoss_config *config_out,
                                      struct gptoss_quantization *quantization_out,
                                      struct gptoss_error *error) {
    struct gptoss_config config;
    cJSON *object = NULL;
    enum gptoss_status status = gptoss_json_read(path, &object, error);
    if (status != GPTOSS_OK)
        return status;
    struct gptoss_config_reader reader = {
        .file = path, .section = "", .object = object, .status = &status, .error = error};
    const struct family *family = find_family(&reader);
    if (family != NULL)
        family->read(&reader, &config);
    if (status == GPTOSS_OK)
        gptoss_quantization_read(&reader, quantization_out);
    cJSON_Delete(object);
    if (status == GPTOSS_OK)
        *config_out = config;
    return status;
}

const char *gptoss_config_gguf_prefix(const char *architecture) {
    for (size_t i = 0; i < NUM_FAMILIES; ++i)
        if (strcmp(architecture, families[i].gguf) == 0)
            return families[i].gguf_prefix;
    return NULL;
}

enum gptoss_status gptoss_config_from_gguf(const char *path, const char *prefix, const cJSON *keys,
                                           struct gptoss_config *config_out,
                                           struct gptoss_error *error) {
    struct gptoss_config config;
    enum gptoss_status status = GPTOSS_OK;
    struct gptoss_config_reader reader = {
        .file = path, .section = prefix, .object = keys, .status = &status, .error = error};
    const struct family *family = families;
    while (strcmp(family->gguf_prefix, prefix) != 0)
        ++family;
    family->read_gguf(&reader, &config);
    if (status == GPTOSS_OK)
        *config_out = config;
    return status;
}
