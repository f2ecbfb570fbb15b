#include "engine/adapters.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/format_error.h"
#include "checkpoint/safetensors.h"
#include "engine/model.h"
#include "numeric/dtype.h"
#include "platform/allocator.h"
#include "status.h"

#define MAX_PARTS 3
#define PREFIX "base_model.model."

/* ---- which weights a module is ---- */

/* A module of a layer by its name in transformers, and the weights that its rows are, in order. */
struct target {
    const char *name;
    int num_parts;
    size_t parts[MAX_PARTS]; /* offsets in the family's layer */
};

#define OF_GPT_OSS(field) {offsetof(struct gptoss_gpt_oss_layer, field)}
#define OF_DENSE(field) {offsetof(struct gptoss_dense_layer, field)}

static const struct target gpt_oss_targets[] = {
    {"self_attn.q_proj", 1, OF_GPT_OSS(attention.query)},
    {"self_attn.k_proj", 1, OF_GPT_OSS(attention.key)},
    {"self_attn.v_proj", 1, OF_GPT_OSS(attention.value)},
    {"self_attn.o_proj", 1, OF_GPT_OSS(attention.output)},
    {NULL, 0, {0}},
};
static const struct target llama_targets[] = {
    {"self_attn.q_proj", 1, OF_DENSE(attention.query)},
    {"self_attn.k_proj", 1, OF_DENSE(attention.key)},
    {"self_attn.v_proj", 1, OF_DENSE(attention.value)},
    {"self_attn.o_proj", 1, OF_DENSE(attention.output)},
    {"mlp.gate_proj", 1, OF_DENSE(gate)},
    {"mlp.up_proj", 1, OF_DENSE(up)},
    {"mlp.down_proj", 1, OF_DENSE(down)},
    {NULL, 0, {0}},
};
static const struct target gpt2_targets[] = {
    {"attn.c_attn",
     3,
     {offsetof(struct gptoss_dense_layer, attention.query),
      offsetof(struct gptoss_dense_layer, attention.key),
      offsetof(struct gptoss_dense_layer, attention.value)}},
    {"attn.c_proj", 1, OF_DENSE(attention.output)},
    {"mlp.c_fc", 1, OF_DENSE(up)},
    {"mlp.c_proj", 1, OF_DENSE(down)},
    {NULL, 0, {0}},
};

/* What the families' weights look like from here. */
struct family_weights {
    const char *layer_prefix, *names; /* names: of the targets, for messages */
    const struct target *targets;
    uint8_t *layers;
    size_t layer_bytes;
    struct gptoss_weight *unembedding;
};

static struct family_weights weights_of(struct gptoss_model *model) {
    struct gptoss_gpt_oss *gpt_oss = &model->weights.gpt_oss;
    struct gptoss_dense *dense = &model->weights.dense;
    if (strcmp(model->config->architecture, "gpt_oss") == 0)
        return (struct family_weights){
            "model.layers.",         "q_proj, k_proj, v_proj, o_proj, lm_head",
            gpt_oss_targets,         (uint8_t *)gpt_oss->layers,
            sizeof *gpt_oss->layers, &gpt_oss->unembedding};
    bool is_llama = strcmp(model->config->architecture, "llama") == 0;
    return (struct family_weights){
        is_llama ? "model.layers." : "transformer.h.",
        is_llama ? "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head"
                 : "c_attn, c_proj, c_fc, lm_head",
        is_llama ? llama_targets : gpt2_targets,
        (uint8_t *)dense->layers,
        sizeof *dense->layers,
        &dense->unembedding};
}

/* The weights of a module, 0 if it has none that take terms. */
static int find_parts(struct gptoss_model *model, const char *module,
                      struct gptoss_weight *parts[MAX_PARTS]) {
    struct family_weights weights = weights_of(model);
    if (strcmp(module, "lm_head") == 0) {
        parts[0] = weights.unembedding;
        return 1;
    }
    size_t length = strlen(weights.layer_prefix);
    if (strncmp(module, weights.layer_prefix, length) != 0 || module[length] < '0' ||
        module[length] > '9')
        return 0;
    char *rest;
    long layer = strtol(module + length, &rest, 10);
    if (layer < 0 || layer >= model->config->num_layers || *rest != '.')
        return 0;
    for (const struct target *target = weights.targets; target->name != NULL; ++target) {
        if (strcmp(rest + 1, target->name) != 0)
            continue;
        for (int i = 0; i < target->num_parts; ++i)
            parts[i] =
                (struct gptoss_weight *)(weights.layers + (size_t)layer * weights.layer_bytes +
                                         target->parts[i]);
        return target->num_parts;
    }
    return 0;
}

static enum gptoss_status refuse_module(struct gptoss_model *model, const char *path,
                                        const char *module, struct gptoss_error *error) {
    struct family_weights weights = weights_of(model);
    gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                     "%s: the adapter changes module '%s', which the model lacks or which takes "
                     "no adapter; of the %s family these do, in layers 0 to %" PRId32 ": %s",
                     path, module, model->config->architecture, model->config->num_layers - 1,
                     weights.names);
    gptoss_error_where(error, path, module, -1);
    gptoss_error_expected(error, "%s", weights.names);
    gptoss_error_found(error, "%s", module);
    return GPTOSS_ERROR_UNSUPPORTED;
}

/* ---- its tensors ---- */

static int compare_names(const void *left, const void *right) {
    return strcmp(((const struct gptoss_tensor *)left)->name,
                  ((const struct gptoss_tensor *)right)->name);
}

/* Sorts the tensors by their names, each of which may occur once. */
static enum gptoss_status sort_names(struct gptoss_open_adapter *adapter,
                                     struct gptoss_error *error) {
    struct gptoss_tensor *tensors = adapter->contents.tensors;
    size_t count = adapter->contents.num_tensors;
    if (count > 0)
        qsort(tensors, count, sizeof *tensors, compare_names);
    for (size_t i = 1; i < count; ++i) {
        if (compare_names(&tensors[i - 1], &tensors[i]) != 0)
            continue;
        struct gptoss_place place = {.file = adapter->file.path,
                                     .tensor = tensors[i].name,
                                     .offset = (int64_t)tensors[i].file_offset};
        return gptoss_format_error(error, &place, "one tensor of this name",
                                   "another at byte %" PRIu64, tensors[i - 1].file_offset);
    }
    return GPTOSS_OK;
}

/* One of the two matrices of a module. num_rows, num_columns: as it should be, 0 for any. */
static enum gptoss_status find_matrix(const struct gptoss_open_adapter *adapter, const char *module,
                                      const char *which, int64_t num_rows, int64_t num_columns,
                                      struct gptoss_weight *out, struct gptoss_error *error) {
    char name[256], expected[96], found[160] = "nothing";
    snprintf(name, sizeof name, PREFIX "%s.%s.weight", module, which);
    struct gptoss_tensor key = {.name = name};
    const struct gptoss_tensor *tensor = bsearch(
        &key, adapter->contents.tensors, adapter->contents.num_tensors, sizeof key, compare_names);
    bool is_float = tensor != NULL && (1u << tensor->dtype & GPTOSS_FLOAT_DTYPES) != 0;
    if (is_float && tensor->num_dims == 2 && tensor->shape[0] > 0 && tensor->shape[1] > 0 &&
        (num_rows == 0 || tensor->shape[0] == num_rows) && tensor->shape[1] == num_columns) {
        *out = (struct gptoss_weight){.dtype = tensor->dtype,
                                      .num_matrices = 1,
                                      .num_rows = tensor->shape[0],
                                      .num_columns = num_columns,
                                      .data = tensor->data};
        return GPTOSS_OK;
    }
    if (num_rows == 0)
        snprintf(expected, sizeof expected, "F32, F16 or BF16 of [rank, %" PRId64 "]", num_columns);
    else
        snprintf(expected, sizeof expected, "F32, F16 or BF16 of [%" PRId64 ", %" PRId64 "]",
                 num_rows, num_columns);
    if (tensor != NULL) {
        char shape[96];
        gptoss_shape_describe(tensor->shape, tensor->num_dims, shape, sizeof shape);
        snprintf(found, sizeof found, "%s of %s", gptoss_dtype_name(tensor->dtype), shape);
    }
    struct gptoss_place place = {.file = adapter->file.path,
                                 .tensor = name,
                                 .offset = tensor != NULL ? (int64_t)tensor->file_offset : -1};
    return gptoss_format_error(error, &place, expected, "%s", found);
}

/* ---- its terms ---- */

static void append(struct gptoss_weight *weight, struct gptoss_low_rank *term) {
    const struct gptoss_low_rank **end = &weight->low_rank;
    while (*end != NULL)
        end = (const struct gptoss_low_rank **)&(*end)->next;
    *end = term;
}

/* How many heads the rows of a weight are whose order in GGUF files of llama is not that of Hugging
 * Face, and so of adapters; 0 for others. */
static int32_t num_turned_heads(const struct gptoss_model *model,
                                const struct gptoss_weight *weight) {
    const struct gptoss_config *config = model->config;
    for (int32_t i = 0; config->rope_neighbours && i < config->num_layers; ++i) {
        const struct gptoss_dense_layer *layer = &model->weights.dense.layers[i];
        if (weight == &layer->attention.query)
            return config->num_heads;
        if (weight == &layer->attention.key)
            return config->num_kv_heads;
    }
    return 0;
}

/* Points b to a copy whose rows follow the model's: of a head i and i + half become 2 i and
 * 2 i + 1. */
static enum gptoss_status reorder_rows(struct gptoss_open_adapter *adapter, int32_t num_heads,
                                       struct gptoss_weight *b, struct gptoss_error *error) {
    uint64_t row_bytes = (uint64_t)b->num_columns * gptoss_dtype_bytes(b->dtype);
    int64_t head_rows = b->num_rows / num_heads, half = head_rows / 2;
    uint8_t *copy = gptoss_allocate((size_t)b->num_rows, (size_t)row_bytes);
    if (copy == NULL)
        return gptoss_error_memory(error, (uint64_t)b->num_rows * row_bytes, "rows of an adapter");
    adapter->copies[adapter->num_copies++] = copy;
    adapter->copied_bytes += (uint64_t)b->num_rows * row_bytes;
    for (int64_t row = 0; row < b->num_rows; ++row) {
        int64_t head = row / head_rows, i = row % head_rows;
        int64_t from = head * head_rows + i / 2 + (i % 2) * half;
        memcpy(copy + (uint64_t)row * row_bytes, b->data + (uint64_t)from * row_bytes,
               (size_t)row_bytes);
    }
    b->data = copy;
    return GPTOSS_OK;
}

static enum gptoss_status add_module(struct gptoss_model *model,
                                     struct gptoss_open_adapter *adapter, const char *module,
                                     float factor, struct gptoss_error *error) {
    struct gptoss_weight *parts[MAX_PARTS] = {NULL}, a, b;
    int num_parts = find_parts(model, module, parts);
    if (num_parts == 0)
        return refuse_module(model, adapter->file.path, module, error);
    int64_t num_rows = 0, first_row = 0;
    for (int i = 0; i < num_parts; ++i)
        num_rows += parts[i]->num_rows;
    GPTOSS_TRY(find_matrix(adapter, module, "lora_A", 0, parts[0]->num_columns, &a, error));
    GPTOSS_TRY(find_matrix(adapter, module, "lora_B", num_rows, a.num_rows, &b, error));
    for (int i = 0; i < num_parts; ++i) {
        struct gptoss_low_rank *term = &adapter->terms[adapter->num_terms++];
        *term = (struct gptoss_low_rank){.a = a, .b = b, .factor = factor};
        term->b.num_rows = parts[i]->num_rows;
        term->b.data += (uint64_t)(first_row * a.num_rows) * gptoss_dtype_bytes(b.dtype);
        first_row += parts[i]->num_rows;
        int32_t num_heads = num_turned_heads(model, parts[i]);
        if (num_heads > 0)
            GPTOSS_TRY(reorder_rows(adapter, num_heads, &term->b, error));
        append(parts[i], term);
    }
    return GPTOSS_OK;
}

static enum gptoss_status open_adapter(struct gptoss_model *model,
                                       const struct gptoss_model_options *options,
                                       const struct gptoss_adapter *wanted,
                                       struct gptoss_open_adapter *adapter,
                                       struct gptoss_error *error) {
    struct gptoss_progress progress = {.poll = options->poll, .user = options->poll_user};
    GPTOSS_TRY(gptoss_file_open(wanted->path, &adapter->file, error));
    progress.total = adapter->file.num_bytes;
    GPTOSS_TRY(options->read_files ? gptoss_file_read(&adapter->file, &progress, error)
                                   : gptoss_file_map(&adapter->file, error));
    GPTOSS_TRY(gptoss_safetensors_parse(&adapter->file, &adapter->contents, error));
    GPTOSS_TRY(sort_names(adapter, error));
    if (wanted->num_modules > SIZE_MAX / MAX_PARTS)
        return gptoss_error_memory(error, UINT64_MAX, "an adapter");
    size_t max_terms = MAX_PARTS * wanted->num_modules;
    adapter->terms = gptoss_allocate(max_terms, sizeof *adapter->terms);
    adapter->copies = gptoss_allocate(max_terms, sizeof *adapter->copies);
    if (adapter->terms == NULL || adapter->copies == NULL)
        return gptoss_error_memory(error, max_terms * sizeof *adapter->terms, "an adapter");
    for (size_t i = 0; i < wanted->num_modules; ++i)
        GPTOSS_TRY(add_module(model, adapter, wanted->modules[i], wanted->factors[i], error));
    return GPTOSS_OK;
}

/* ---- all of them ---- */

enum gptoss_status gptoss_adapters_open(struct gptoss_model *model,
                                        const struct gptoss_model_options *options,
                                        struct gptoss_error *error) {
    if (options->num_adapters == 0)
        return GPTOSS_OK;
    model->adapters = gptoss_allocate(options->num_adapters, sizeof *model->adapters);
    if (model->adapters == NULL)
        return gptoss_error_memory(error, options->num_adapters * sizeof *model->adapters,
                                   "a table of adapters");
    while (model->num_adapters < options->num_adapters) {
        size_t i = model->num_adapters++;
        GPTOSS_TRY(open_adapter(model, options, &options->adapters[i], &model->adapters[i], error));
    }
    return GPTOSS_OK;
}

void gptoss_adapters_clear(struct gptoss_model *model) {
    for (size_t i = 0; i < model->num_adapters; ++i) {
        struct gptoss_open_adapter *adapter = &model->adapters[i];
        for (size_t copy = 0; copy < adapter->num_copies; ++copy)
            gptoss_free(adapter->copies[copy]);
        gptoss_free(adapter->copies);
        gptoss_free(adapter->terms);
        gptoss_tensor_table_free(&adapter->contents);
        gptoss_file_close(&adapter->file);
    }
    gptoss_free(model->adapters);
}

void gptoss_adapters_memory(const struct gptoss_model *model, struct gptoss_model_memory *memory) {
    for (size_t i = 0; i < model->num_adapters; ++i) {
        const struct gptoss_open_adapter *adapter = &model->adapters[i];
        *(adapter->file.is_mapped ? &memory->mapped_bytes : &memory->read_bytes) +=
            adapter->file.num_bytes;
        memory->heap_bytes +=
            sizeof *adapter + adapter->num_terms * sizeof *adapter->terms + adapter->copied_bytes;
    }
}
