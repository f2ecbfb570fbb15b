#include "checkpoint/config.h"

#include <stdio.h>
#include <string.h>

#include "checkpoint/format_error.h"
#include "checkpoint/json.h"
#include "numeric/double_math.h"
#include "status.h"

#define MAX_POSITIONS (1 << 30)

/* Reads keys of one JSON object. The first failure is kept and later reads do nothing, so that
 * callers need not look after each. */
struct reader {
    const char *file;
    const char *section; /* "" or "rope_scaling.", before the key in messages */
    const cJSON *object;
    enum gptoss_status *status;
    struct gptoss_error *error;
};

enum necessity { OPTIONAL, REQUIRED };

static void fail(const struct reader *reader, const char *key, const char *expected,
                 const cJSON *found) {
    if (*reader->status != GPTOSS_OK)
        return;
    char subject[128], text[128];
    struct gptoss_place place = {.file = reader->file, .subject = subject, .offset = -1};
    snprintf(subject, sizeof subject, "%s%s", reader->section, key);
    gptoss_json_describe(found, text, sizeof text);
    *reader->status = gptoss_format_error(reader->error, &place, expected, "%s", text);
}

/* NULL for keys that are absent or null. */
static const cJSON *find(const struct reader *reader, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(reader->object, key);
    return cJSON_IsNull(item) ? NULL : item;
}

/* Leaves *value alone where the key is absent and optional. */
static void read_integer(const struct reader *reader, const char *key, enum necessity necessity,
                         int32_t minimum, int32_t maximum, int32_t *value) {
    const cJSON *item = find(reader, key);
    if (item == NULL && necessity == OPTIONAL)
        return;
    int64_t integer;
    if (gptoss_json_integer(item, minimum, maximum, &integer)) {
        *value = (int32_t)integer;
        return;
    }
    char expected[64];
    snprintf(expected, sizeof expected, "an integer from %d to %d", minimum, maximum);
    fail(reader, key, expected, item);
}

/* A number above minimum, at most maximum. */
static void read_number(const struct reader *reader, const char *key, double minimum,
                        double maximum, double *value) {
    const cJSON *item = find(reader, key);
    if (item == NULL)
        return;
    if (cJSON_IsNumber(item) && item->valuedouble > minimum && item->valuedouble <= maximum) {
        *value = item->valuedouble;
        return;
    }
    char expected[96];
    snprintf(expected, sizeof expected, "a number above %g and at most %g", minimum, maximum);
    fail(reader, key, expected, item);
}

static void read_float(const struct reader *reader, const char *key, double minimum, double maximum,
                       float *value) {
    double number = *value;
    read_number(reader, key, minimum, maximum, &number);
    *value = (float)number;
}

static void read_bool(const struct reader *reader, const char *key, bool *value) {
    const cJSON *item = find(reader, key);
    if (item == NULL)
        return;
    if (!cJSON_IsBool(item))
        fail(reader, key, "true or false", item);
    *value = cJSON_IsTrue(item);
}

/* Fails unless the key is absent or holds exactly this text. */
static void demand_text(const struct reader *reader, const char *key, const char *text) {
    const cJSON *item = find(reader, key);
    if (item == NULL || (cJSON_IsString(item) && strcmp(item->valuestring, text) == 0))
        return;
    char expected[64];
    snprintf(expected, sizeof expected, "\"%s\"", text);
    fail(reader, key, expected, item);
}

static const char *either(const struct reader *reader, const char *key, const char *other) {
    return find(reader, key) == NULL && find(reader, other) != NULL ? other : key;
}

/* What the sizes are called. */
struct size_keys {
    const char *num_layers, *hidden_size, *intermediate_size, *vocab_size;
    const char *num_heads, *num_kv_heads, *head_dim, *num_experts, *experts_per_token;
};

static void read_sizes(const struct reader *reader, const struct size_keys *keys,
                       struct gptoss_config *config) {
    read_integer(reader, keys->num_layers, REQUIRED, 1, GPTOSS_MAX_LAYERS, &config->num_layers);
    read_integer(reader, keys->hidden_size, REQUIRED, 1, 1 << 20, &config->hidden_size);
    read_integer(reader, keys->intermediate_size, REQUIRED, 1, 1 << 20, &config->intermediate_size);
    read_integer(reader, keys->vocab_size, REQUIRED, 1, 1 << 24, &config->vocab_size);
    read_integer(reader, keys->num_heads, REQUIRED, 1, 4096, &config->num_heads);
    read_integer(reader, keys->num_kv_heads, REQUIRED, 1, 4096, &config->num_kv_heads);
    read_integer(reader, keys->head_dim, REQUIRED, 2, 1024, &config->head_dim);
    read_integer(reader, keys->num_experts, REQUIRED, 1, 4096, &config->num_experts);
    read_integer(reader, keys->experts_per_token, REQUIRED, 1, config->num_experts,
                 &config->experts_per_token);
    if (*reader->status != GPTOSS_OK)
        return;
    if (config->num_heads % config->num_kv_heads != 0) {
        char expected[96];
        snprintf(expected, sizeof expected, "a divisor of %s", keys->num_heads);
        fail(reader, keys->num_kv_heads, expected, find(reader, keys->num_kv_heads));
    }
    if (config->head_dim % 2 != 0)
        fail(reader, keys->head_dim, "an even number", find(reader, keys->head_dim));
}

static void read_json_sizes(const struct reader *reader, struct gptoss_config *config) {
    read_sizes(reader,
               &(struct size_keys){
                   .num_layers = "num_hidden_layers",
                   .hidden_size = "hidden_size",
                   .intermediate_size = "intermediate_size",
                   .vocab_size = "vocab_size",
                   .num_heads = "num_attention_heads",
                   .num_kv_heads = "num_key_value_heads",
                   .head_dim = "head_dim",
                   .num_experts = either(reader, "num_local_experts", "num_experts"),
                   .experts_per_token = either(reader, "num_experts_per_tok", "experts_per_token"),
               },
               config);
}

static void read_options(const struct reader *reader, struct gptoss_config *config) {
    read_bool(reader, "attention_bias", &config->attention_bias);
    read_bool(reader, "tie_word_embeddings", &config->tied_embeddings);
    read_float(reader, "rms_norm_eps", 1e-30, 1.0, &config->rms_norm_eps);
    read_float(reader, "swiglu_limit", 0.0, 1e30, &config->swiglu_limit);
    read_float(reader, "swiglu_alpha", 0.0, 1e30, &config->swiglu_alpha);
    demand_text(reader, "hidden_act", "silu");

    const cJSON *quantization = find(reader, "quantization_config");
    if (quantization == NULL)
        return;
    struct reader inner = *reader;
    inner.section = "quantization_config.";
    inner.object = quantization;
    if (!cJSON_IsObject(quantization))
        fail(reader, "quantization_config", "an object", quantization);
    demand_text(&inner, "quant_method", "mxfp4");
}

/* Even layers slide unless layer_types says otherwise; none does without a window. */
static void read_layers(const struct reader *reader, struct gptoss_config *config) {
    const cJSON *types = find(reader, "layer_types");
    const cJSON *window = cJSON_GetObjectItemCaseSensitive(reader->object, "sliding_window");
    if (window == NULL)
        config->sliding_window = 128;
    read_integer(reader, "sliding_window", OPTIONAL, 1, MAX_POSITIONS, &config->sliding_window);
    if (types != NULL &&
        (!cJSON_IsArray(types) || cJSON_GetArraySize(types) != config->num_layers)) {
        fail(reader, "layer_types", "an array with one entry a layer", types);
        return;
    }
    const cJSON *type = types == NULL ? NULL : types->child;
    for (int32_t layer = 0; layer < config->num_layers; ++layer) {
        bool slides = layer % 2 == 0 && config->sliding_window > 0;
        if (type != NULL) {
            slides = cJSON_IsString(type) && strcmp(type->valuestring, "sliding_attention") == 0;
            if (!slides &&
                !(cJSON_IsString(type) && strcmp(type->valuestring, "full_attention") == 0)) {
                fail(reader, "layer_types", "\"sliding_attention\" or \"full_attention\"", type);
            }
            if (slides && config->sliding_window == 0) {
                fail(reader, "sliding_window", "an integer, since layer_types has sliding layers",
                     window);
            }
            type = type->next;
        }
        config->layer_is_sliding[layer] = slides;
    }
}

static double yarn_scale(double factor, double mscale) {
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * gptoss_log(factor) + 1.0;
}

static void check_betas(const struct reader *reader, const struct gptoss_config *config,
                        const char *fast, const char *slow) {
    if (config->rope_beta_fast > config->rope_beta_slow)
        return;
    char expected[96];
    snprintf(expected, sizeof expected, "a number above %s", slow);
    fail(reader, fast, expected, find(reader, fast));
}

static void read_yarn(const struct reader *rope, struct gptoss_config *config) {
    double mscale = 0.0, mscale_all_dim = 0.0, attention_factor = 0.0;
    config->rope_scaling = GPTOSS_ROPE_YARN;
    read_integer(rope, "original_max_position_embeddings", OPTIONAL, 1, MAX_POSITIONS,
                 &config->rope_original_positions);
    config->rope_factor = (double)config->max_positions / config->rope_original_positions;
    read_number(rope, "factor", 0.0, 1e6, &config->rope_factor);
    read_number(rope, "beta_fast", 0.0, 1e6, &config->rope_beta_fast);
    read_number(rope, "beta_slow", 0.0, 1e6, &config->rope_beta_slow);
    read_bool(rope, "truncate", &config->rope_truncate);
    read_number(rope, "attention_factor", 0.0, 1e3, &attention_factor);
    read_number(rope, "mscale", 0.0, 1e3, &mscale);
    read_number(rope, "mscale_all_dim", 0.0, 1e3, &mscale_all_dim);
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

/* Settings that change the rotation and that nothing here acts on must not pass in silence. */
static void refuse_unknown_rope(const struct reader *rope) {
    const cJSON *item;
    double rotated = 1.0;
    cJSON_ArrayForEach(item, rope->object) {
        if (cJSON_IsObject(item))
            fail(rope, item->string, "one setting for all layers", item);
    }
    read_number(rope, "partial_rotary_factor", 0.0, 1.0, &rotated);
    if (rotated != 1.0)
        fail(rope, "partial_rotary_factor", "1", find(rope, "partial_rotary_factor"));
}

static void read_huggingface_rope(const struct reader *reader, struct gptoss_config *config) {
    static const char *const names[2][2] = {{"rope_scaling", "rope_scaling."},
                                            {"rope_parameters", "rope_parameters."}};
    const char *const *name = names[find(reader, "rope_parameters") != NULL];
    const cJSON *settings = find(reader, name[0]);
    bool is_stated = cJSON_GetObjectItemCaseSensitive(reader->object, "rope_scaling") != NULL ||
                     cJSON_GetObjectItemCaseSensitive(reader->object, "rope_parameters") != NULL;

    read_integer(reader, "max_position_embeddings", REQUIRED, 1, MAX_POSITIONS,
                 &config->max_positions);
    read_number(reader, "rope_theta", 1.0, 1e15, &config->rope_theta);
    config->rope_original_positions = config->max_positions;
    read_integer(reader, "initial_context_length", OPTIONAL, 1, MAX_POSITIONS,
                 &config->rope_original_positions);
    if (settings == NULL) {
        /* null turns scaling off; without the key the family's default holds: transformers. */
        if (is_stated || *reader->status != GPTOSS_OK)
            return;
        config->rope_scaling = GPTOSS_ROPE_YARN;
        config->rope_original_positions = 4096;
        config->rope_factor = 32.0;
        config->rope_attention_factor = yarn_scale(config->rope_factor, 1.0);
        return;
    }
    if (!cJSON_IsObject(settings))
        fail(reader, name[0], "an object", settings);
    struct reader rope = *reader;
    rope.section = name[1];
    rope.object = settings;
    refuse_unknown_rope(&rope);
    read_number(&rope, "rope_theta", 1.0, 1e15, &config->rope_theta);
    const char *type_key = either(&rope, "rope_type", "type");
    const cJSON *type = find(&rope, type_key);
    if (*reader->status != GPTOSS_OK)
        return;
    if (cJSON_IsString(type) && strcmp(type->valuestring, "yarn") == 0) {
        read_yarn(&rope, config);
    } else if (type == NULL ? find(&rope, "factor") != NULL
                            : !cJSON_IsString(type) || strcmp(type->valuestring, "default") != 0) {
        fail(&rope, type_key, "\"yarn\" or \"default\"", type);
    }
}

/* rope_ntk_alpha is what YaRN calls beta_slow, rope_ntk_beta is beta_fast. */
static void read_original_rope(const struct reader *reader, struct gptoss_config *config) {
    double factor = 32.0;
    config->rope_original_positions = 4096;
    read_number(reader, "rope_theta", 1.0, 1e15, &config->rope_theta);
    read_integer(reader, "initial_context_length", OPTIONAL, 1, MAX_POSITIONS,
                 &config->rope_original_positions);
    read_number(reader, "rope_scaling_factor", 0.0, 1e6, &factor);
    read_number(reader, "rope_ntk_alpha", 0.0, 1e6, &config->rope_beta_slow);
    read_number(reader, "rope_ntk_beta", 0.0, 1e6, &config->rope_beta_fast);
    config->max_positions = config->rope_original_positions;
    if (factor <= 1.0)
        return;
    double positions = config->rope_original_positions * factor;
    if (positions > MAX_POSITIONS) {
        fail(reader, "rope_scaling_factor", "at most 2^30 positions in all",
             find(reader, "rope_scaling_factor"));
        return;
    }
    config->max_positions = (int32_t)positions;
    config->rope_scaling = GPTOSS_ROPE_YARN;
    config->rope_factor = factor;
    config->rope_attention_factor = yarn_scale(factor, 1.0);
    check_betas(reader, config, "rope_ntk_beta", "rope_ntk_alpha");
}

/* model_type says what the file describes; the original release has none, but counts experts in its
 * own way. */
static void check_model_type(const struct reader *reader, const cJSON *type) {
    if (type == NULL && find(reader, "num_experts") != NULL)
        return;
    if (!cJSON_IsString(type)) {
        fail(reader, "model_type", "\"gpt_oss\"", type);
    } else if (strcmp(type->valuestring, "gpt_oss") != 0) {
        gptoss_error_set(reader->error, GPTOSS_ERROR_FORMAT,
                         "%s: unsupported model type '%.64s'; supported: gpt_oss", reader->file,
                         type->valuestring);
        gptoss_error_where(reader->error, reader->file, NULL, -1);
        gptoss_error_expected(reader->error, "gpt_oss");
        gptoss_error_found(reader->error, "'%s'", type->valuestring);
        *reader->status = GPTOSS_ERROR_FORMAT;
    }
}

/* ---- GGUF ---- */

/* Fails unless the key is absent or holds this number. */
static void demand_number(const struct reader *reader, const char *key, double number) {
    const cJSON *item = find(reader, key);
    if (item == NULL || (cJSON_IsNumber(item) && item->valuedouble == number))
        return;
    char expected[64];
    snprintf(expected, sizeof expected, "%.12g", number);
    fail(reader, key, expected, item);
}

/* llama.cpp knows no more of the rotation than this; what it multiplies beyond must be neutral. */
static void read_gguf_rope(const struct reader *reader, struct gptoss_config *config) {
    read_integer(reader, "context_length", REQUIRED, 1, MAX_POSITIONS, &config->max_positions);
    read_number(reader, "rope.freq_base", 1.0, 1e15, &config->rope_theta);
    demand_number(reader, "rope.dimension_count", config->head_dim);
    demand_number(reader, "rope.freq_base_swa", config->rope_theta);
    demand_number(reader, "rope.scaling.attn_factor", 1.0);
    demand_number(reader, "rope.scaling.yarn_attn_factor", 1.0);
    demand_number(reader, "rope.scaling.yarn_ext_factor", 1.0);
    demand_number(reader, "rope.scale_linear", 1.0);
    config->rope_original_positions = config->max_positions;
    const cJSON *type = find(reader, "rope.scaling.type");
    /* Ollama's converter knows one kind of scaling and does not name it. */
    bool is_implied = type == NULL && strcmp(reader->section, "gptoss.") == 0 &&
                      find(reader, "rope.scaling.factor") != NULL;
    if (type == NULL && !is_implied)
        demand_number(reader, "rope.scaling.factor", 1.0);
    if (*reader->status != GPTOSS_OK || (type == NULL && !is_implied) ||
        (cJSON_IsString(type) && strcmp(type->valuestring, "none") == 0))
        return;
    if (!is_implied && (!cJSON_IsString(type) || strcmp(type->valuestring, "yarn") != 0)) {
        fail(reader, "rope.scaling.type", "\"yarn\" or \"none\"", type);
        return;
    }
    config->rope_scaling = GPTOSS_ROPE_YARN;
    read_integer(reader, "rope.scaling.original_context_length", OPTIONAL, 1, MAX_POSITIONS,
                 &config->rope_original_positions);
    config->rope_factor = (double)config->max_positions / config->rope_original_positions;
    read_number(reader, "rope.scaling.factor", 0.0, 1e6, &config->rope_factor);
    read_number(reader, "rope.scaling.yarn_beta_fast", 0.0, 1e6, &config->rope_beta_fast);
    read_number(reader, "rope.scaling.yarn_beta_slow", 0.0, 1e6, &config->rope_beta_slow);
    config->rope_attention_factor = yarn_scale(config->rope_factor, 1.0);
    check_betas(reader, config, "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow");
}

static void read_gguf(const struct reader *reader, struct gptoss_config *config) {
    const struct size_keys keys = {
        .num_layers = "block_count",
        .hidden_size = "embedding_length",
        .intermediate_size =
            strcmp(reader->section, "gptoss.") == 0
                ? either(reader, "expert_feed_forward_length", "feed_forward_length")
                : "expert_feed_forward_length",
        .vocab_size = "vocab_size",
        .num_heads = "attention.head_count",
        .num_kv_heads = "attention.head_count_kv",
        .head_dim = "attention.key_length",
        .num_experts = "expert_count",
        .experts_per_token = "expert_used_count",
    };
    read_sizes(reader, &keys, config);
    demand_number(reader, "attention.value_length", config->head_dim);
    read_float(reader, "attention.layer_norm_rms_epsilon", 1e-30, 1.0, &config->rms_norm_eps);
    config->sliding_window = 128;
    read_integer(reader, "attention.sliding_window", OPTIONAL, 1, MAX_POSITIONS,
                 &config->sliding_window);
    demand_number(reader, "attention.sliding_window_pattern", 2.0);
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

enum gptoss_status gptoss_config_read(const char *path, struct gptoss_config *config_out,
                                      struct gptoss_error *error) {
    struct gptoss_config config = defaults;
    cJSON *object = NULL;
    enum gptoss_status status = gptoss_json_read(path, &object, error);
    if (status != GPTOSS_OK)
        return status;

    struct reader reader = {
        .file = path, .section = "", .object = object, .status = &status, .error = error};
    const cJSON *type = find(&reader, "model_type");
    check_model_type(&reader, type);
    if (status == GPTOSS_OK)
        read_json_sizes(&reader, &config);
    if (status == GPTOSS_OK)
        read_options(&reader, &config);
    if (status == GPTOSS_OK)
        read_layers(&reader, &config);
    if (status == GPTOSS_OK && type != NULL)
        read_huggingface_rope(&reader, &config);
    if (status == GPTOSS_OK && type == NULL)
        read_original_rope(&reader, &config);
    cJSON_Delete(object);
    if (status == GPTOSS_OK)
        *config_out = config;
    return status;
}

enum gptoss_status gptoss_config_from_gguf(const char *path, const char *prefix, const cJSON *keys,
                                           struct gptoss_config *config_out,
                                           struct gptoss_error *error) {
    struct gptoss_config config = defaults;
    enum gptoss_status status = GPTOSS_OK;
    struct reader reader = {
        .file = path, .section = prefix, .object = keys, .status = &status, .error = error};
    read_gguf(&reader, &config);
    if (status == GPTOSS_OK)
        *config_out = config;
    return status;
}
