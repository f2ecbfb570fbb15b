#include "checkpoint/checkpoint.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/config.h"
#include "checkpoint/format_error.h"
#include "checkpoint/gguf.h"
#include "checkpoint/gguf_parts.h"
#include "checkpoint/json.h"
#include "checkpoint/layout.h"
#include "checkpoint/ollama.h"
#include "checkpoint/safetensors.h"
#include "platform/allocator.h"
#include "platform/mapped_file.h"
#include "status.h"

struct shard {
    struct gptoss_file file;
    struct gptoss_tensor_table
        contents; /* the tensors move to the checkpoint's table, the names stay */
    struct gptoss_address_space rearranged; /* tensors of an early file of Ollama */
};

struct gptoss_checkpoint {
    struct gptoss_config config;
    bool is_gguf;
    const char *key_prefix;      /* of a GGUF file: "llama." */
    struct gptoss_gguf metadata; /* of a GGUF file, of a split one of its first part */
    char *path;
    char *config_path;
    struct shard *shards;
    size_t num_shards;
    struct gptoss_tensor *tensors; /* sorted by name */
    size_t num_tensors;
    size_t num_stored; /* tensors in the files, of which early ones of Ollama become several */
};

/* All shards are opened before the first is read, so that progress knows the whole and nothing is
 * read in vain. */
static enum gptoss_status open_shards(struct gptoss_checkpoint *checkpoint,
                                      const struct gptoss_layout *layout, uint64_t *total_bytes,
                                      struct gptoss_error *error) {
    size_t count = layout->num_weight_paths;
    checkpoint->shards = gptoss_allocate(count, sizeof *checkpoint->shards);
    if (checkpoint->shards == NULL) {
        return gptoss_error_memory(error, count * sizeof *checkpoint->shards, "a table of files");
    }
    for (size_t i = 0; i < count; ++i) {
        struct gptoss_file *file = &checkpoint->shards[i].file;
        enum gptoss_status status = gptoss_file_open(layout->weight_paths[i], file, error);
        if (status != GPTOSS_OK)
            return status;
        ++checkpoint->num_shards;
        *total_bytes += file->num_bytes;
    }
    return GPTOSS_OK;
}

enum purpose { TO_MAP, TO_READ, TO_LIST };

static enum gptoss_status load_file(struct gptoss_file *file, enum purpose purpose,
                                    struct gptoss_progress *progress, struct gptoss_error *error) {
    return purpose == TO_READ ? gptoss_file_read(file, progress, error)
                              : gptoss_file_map(file, error);
}

static int compare_tensor_names(const void *left, const void *right) {
    const struct gptoss_tensor *a = left, *b = right;
    return strcmp(a->name, b->name);
}

/* One table of all shards' tensors; a name may occur once. */
static enum gptoss_status merge_shards(struct gptoss_checkpoint *checkpoint,
                                       struct gptoss_error *error) {
    size_t total = 0;
    for (size_t i = 0; i < checkpoint->num_shards; ++i)
        total += checkpoint->shards[i].contents.num_tensors;
    checkpoint->tensors = gptoss_allocate(total, sizeof *checkpoint->tensors);
    if (checkpoint->tensors == NULL) {
        return gptoss_error_memory(error, total * sizeof *checkpoint->tensors,
                                   "a table of tensors");
    }
    for (size_t i = 0; i < checkpoint->num_shards; ++i) {
        struct gptoss_tensor_table *contents = &checkpoint->shards[i].contents;
        memcpy(checkpoint->tensors + checkpoint->num_tensors, contents->tensors,
               contents->num_tensors * sizeof *contents->tensors);
        checkpoint->num_tensors += contents->num_tensors;
        gptoss_free(contents->tensors);
        contents->tensors = NULL;
    }
    for (size_t i = 0; i < total; ++i)
        checkpoint->tensors[i].weight_dtype = checkpoint->tensors[i].dtype;
    qsort(checkpoint->tensors, total, sizeof *checkpoint->tensors, compare_tensor_names);
    for (size_t i = 1; i < total; ++i) {
        const struct gptoss_tensor *a = &checkpoint->tensors[i - 1], *b = &checkpoint->tensors[i];
        if (strcmp(a->name, b->name) != 0)
            continue;
        struct gptoss_place place = {
            .file = b->file, .tensor = b->name, .offset = (int64_t)b->file_offset};
        return gptoss_format_error(error, &place, "one tensor of this name",
                                   "another at byte %" PRIu64 " of %s", a->file_offset, a->file);
    }
    return GPTOSS_OK;
}

/* Every tensor that the index names must lie in the file it names. Tensors that it leaves out are
 * kept all the same. */
static enum gptoss_status check_index(const struct gptoss_checkpoint *checkpoint,
                                      const struct gptoss_layout *layout,
                                      struct gptoss_error *error) {
    const cJSON *entry;
    cJSON_ArrayForEach(entry, layout->weight_map) {
        const struct gptoss_tensor *tensor = gptoss_checkpoint_find(checkpoint, entry->string);
        const char *slash = tensor == NULL ? NULL : strrchr(tensor->file, '/');
        const char *name = tensor == NULL ? "in no file" : slash == NULL ? tensor->file : slash + 1;
        if (strcmp(name, entry->valuestring) == 0)
            continue;
        struct gptoss_place place = {.file = layout->index_path,
                                     .tensor = entry->string,
                                     .subject = "weight_map",
                                     .offset = -1};
        char expected[160];
        snprintf(expected, sizeof expected, "in %s", entry->valuestring);
        return gptoss_format_error(error, &place, expected, "%s%s", tensor == NULL ? "" : "in ",
                                   name);
    }
    return GPTOSS_OK;
}

static enum gptoss_status load_shards(struct gptoss_checkpoint *checkpoint,
                                      const struct gptoss_layout *layout, enum purpose purpose,
                                      struct gptoss_progress *progress,
                                      struct gptoss_error *error) {
    GPTOSS_TRY(open_shards(checkpoint, layout, &progress->total, error));
    for (size_t i = 0; i < checkpoint->num_shards; ++i) {
        struct shard *shard = &checkpoint->shards[i];
        GPTOSS_TRY(load_file(&shard->file, purpose, progress, error));
        GPTOSS_TRY(gptoss_safetensors_parse(&shard->file, &shard->contents, error));
    }
    GPTOSS_TRY(merge_shards(checkpoint, error));
    return check_index(checkpoint, layout, error);
}

static enum gptoss_status load_safetensors(struct gptoss_checkpoint *checkpoint,
                                           const struct gptoss_layout *layout, enum purpose purpose,
                                           struct gptoss_progress *progress,
                                           struct gptoss_error *error) {
    if (purpose == TO_LIST)
        return load_shards(checkpoint, layout, purpose, progress, error);
    struct gptoss_quantization quantization = {0};
    enum gptoss_status status =
        gptoss_config_read(checkpoint->config_path, &checkpoint->config, &quantization, error);
    if (status == GPTOSS_OK)
        status = load_shards(checkpoint, layout, purpose, progress, error);
    if (status == GPTOSS_OK)
        status = gptoss_quantization_apply(&quantization, checkpoint->config_path,
                                           checkpoint->tensors, checkpoint->num_tensors, error);
    gptoss_quantization_free(&quantization);
    return status;
}

/* ---- GGUF ---- */

/* Before the tensors are looked at: a file of another family may be sound, and says so. */
static enum gptoss_status check_kind(struct gptoss_checkpoint *checkpoint,
                                     struct gptoss_error *error) {
    cJSON *general = NULL;
    GPTOSS_TRY(gptoss_gguf_json(&checkpoint->metadata, "general.", &general, error));
    const cJSON *architecture = cJSON_GetObjectItemCaseSensitive(general, "architecture");
    const char *name = cJSON_IsString(architecture) ? architecture->valuestring : "";
    enum gptoss_status status = GPTOSS_OK;
    checkpoint->key_prefix = gptoss_config_gguf_prefix(name);
    if (checkpoint->key_prefix == NULL)
        status = gptoss_config_unsupported(checkpoint->config_path, architecture, error);
    cJSON_Delete(general);
    return status;
}

/* What the metadata of llama and gpt2 leave to the tensors. */
static void look_at_tensors(const struct gptoss_checkpoint *checkpoint,
                            struct gptoss_config *config) {
    if (config->num_experts > 0)
        return;
    config->tied_embeddings = gptoss_checkpoint_find(checkpoint, "output.weight") == NULL;
    if (strcmp(config->architecture, "llama") != 0)
        return;
    config->attention_bias = gptoss_checkpoint_find(checkpoint, "blk.0.attn_q.bias") != NULL;
    config->mlp_bias = gptoss_checkpoint_find(checkpoint, "blk.0.ffn_gate.bias") != NULL;
    if (config->rope_scaling != GPTOSS_ROPE_YARN &&
        gptoss_checkpoint_find(checkpoint, "rope_freqs.weight") != NULL)
        config->rope_scaling = GPTOSS_ROPE_DIVISORS;
}

/* The number of tokens is a key in few files; the embedding has a row for each. */
static enum gptoss_status read_gguf_config(struct gptoss_checkpoint *checkpoint,
                                           struct gptoss_error *error) {
    static const char name[] = "token_embd.weight";
    const struct gptoss_tensor *embedding = gptoss_checkpoint_find(checkpoint, name);
    cJSON *keys = NULL;
    enum gptoss_status status =
        gptoss_gguf_json(&checkpoint->metadata, checkpoint->key_prefix, &keys, error);
    if (status != GPTOSS_OK)
        return status;
    bool is_stated = cJSON_GetObjectItemCaseSensitive(keys, "vocab_size") != NULL;
    if (!is_stated && (embedding == NULL || embedding->num_dims != 2)) {
        char found[96] = "none";
        struct gptoss_place place = {.file = checkpoint->path, .tensor = name, .offset = -1};
        if (embedding != NULL)
            gptoss_shape_describe(embedding->shape, embedding->num_dims, found, sizeof found);
        status =
            gptoss_format_error(error, &place, "a matrix with a row for each token", "%s", found);
    } else if (!is_stated &&
               cJSON_AddNumberToObject(keys, "vocab_size", (double)embedding->shape[0]) == NULL) {
        status = gptoss_error_memory(error, sizeof *keys, "metadata");
    }
    if (status == GPTOSS_OK)
        status = gptoss_config_from_gguf(checkpoint->config_path, checkpoint->key_prefix, keys,
                                         &checkpoint->config, error);
    if (status == GPTOSS_OK)
        look_at_tensors(checkpoint, &checkpoint->config);
    cJSON_Delete(keys);
    return status;
}

/* One part: its tables, and of the first the metadata. num_tensors: see gptoss_gguf_check_part. */
static enum gptoss_status load_part(struct gptoss_checkpoint *checkpoint, size_t index,
                                    enum purpose purpose, struct gptoss_progress *progress,
                                    int64_t *num_tensors, struct gptoss_error *error) {
    struct shard *shard = &checkpoint->shards[index];
    struct gptoss_gguf gguf = {0};
    GPTOSS_TRY(load_file(&shard->file, purpose, progress, error));
    GPTOSS_TRY(gptoss_gguf_parse(&shard->file, &gguf, error));
    if (index == 0)
        checkpoint->metadata = gguf;
    gguf.is_ollama = checkpoint->metadata.is_ollama;
    enum gptoss_status status =
        index == 0 && purpose != TO_LIST ? check_kind(checkpoint, error) : GPTOSS_OK;
    if (status == GPTOSS_OK)
        status = gptoss_gguf_check_part(&shard->file, &gguf, index, checkpoint->num_shards,
                                        num_tensors, error);
    if (status == GPTOSS_OK)
        status = gptoss_gguf_parse_tensors(&shard->file, &gguf, purpose == TO_LIST,
                                           &shard->contents, error);
    checkpoint->num_stored += shard->contents.num_tensors;
    if (status == GPTOSS_OK && purpose != TO_LIST)
        status = gptoss_ollama_convert(&checkpoint->metadata, &shard->contents, progress,
                                       &shard->rearranged, error);
    if (index > 0)
        gptoss_gguf_free(&gguf);
    return status;
}

static enum gptoss_status load_gguf(struct gptoss_checkpoint *checkpoint,
                                    const struct gptoss_layout *layout, enum purpose purpose,
                                    struct gptoss_progress *progress, struct gptoss_error *error) {
    int64_t num_tensors = -1;
    GPTOSS_TRY(open_shards(checkpoint, layout, &progress->total, error));
    if (purpose != TO_READ)
        progress->total = 0;
    for (size_t i = 0; i < checkpoint->num_shards; ++i)
        GPTOSS_TRY(load_part(checkpoint, i, purpose, progress, &num_tensors, error));
    GPTOSS_TRY(merge_shards(checkpoint, error));
    if (num_tensors >= 0 && (uint64_t)num_tensors != checkpoint->num_stored) {
        struct gptoss_place place = {
            .file = checkpoint->config_path, .subject = "key 'split.tensors.count'", .offset = -1};
        char expected[96];
        snprintf(expected, sizeof expected, "%zu, the tensors of all parts",
                 checkpoint->num_stored);
        return gptoss_format_error(error, &place, expected, "%" PRId64, num_tensors);
    }
    return purpose == TO_LIST ? GPTOSS_OK : read_gguf_config(checkpoint, error);
}

/* ---- entry points ---- */

static enum gptoss_status open_checkpoint(const char *path, enum purpose purpose,
                                          struct gptoss_progress progress,
                                          struct gptoss_checkpoint **checkpoint_out,
                                          struct gptoss_error *error) {
    struct gptoss_layout layout = {0};
    enum gptoss_status status = gptoss_layout_find(path, purpose != TO_LIST, &layout, error);
    *checkpoint_out = NULL;
    if (status != GPTOSS_OK)
        return status;

    struct gptoss_checkpoint *checkpoint = gptoss_allocate(1, sizeof *checkpoint);
    char *path_copy = gptoss_duplicate_string(path);
    if (checkpoint == NULL || path_copy == NULL) {
        gptoss_free(checkpoint);
        gptoss_free(path_copy);
        gptoss_layout_free(&layout);
        return gptoss_error_memory(error, sizeof *checkpoint, "a checkpoint");
    }
    checkpoint->path = path_copy;
    checkpoint->config_path = layout.config_path;
    layout.config_path = NULL;
    checkpoint->is_gguf = layout.is_gguf;
    status = (layout.is_gguf ? load_gguf : load_safetensors)(checkpoint, &layout, purpose,
                                                             &progress, error);
    gptoss_layout_free(&layout);
    if (status == GPTOSS_OK) {
        *checkpoint_out = checkpoint;
    } else {
        gptoss_checkpoint_release(checkpoint);
    }
    return status;
}

enum gptoss_status gptoss_checkpoint_open(const char *path, bool read_files, gptoss_poll_fn poll,
                                          void *poll_user,
                                          struct gptoss_checkpoint **checkpoint_out,
                                          struct gptoss_error *error) {
    struct gptoss_progress progress = {.poll = poll, .user = poll_user};
    return open_checkpoint(path, read_files ? TO_READ : TO_MAP, progress, checkpoint_out, error);
}

enum gptoss_status gptoss_checkpoint_list(const char *path,
                                          struct gptoss_checkpoint **checkpoint_out,
                                          struct gptoss_error *error) {
    struct gptoss_progress progress = {0};
    return open_checkpoint(path, TO_LIST, progress, checkpoint_out, error);
}

void gptoss_checkpoint_release(struct gptoss_checkpoint *checkpoint) {
    if (checkpoint == NULL)
        return;
    for (size_t i = 0; i < checkpoint->num_shards; ++i) {
        gptoss_tensor_table_free(&checkpoint->shards[i].contents);
        gptoss_address_space_release(&checkpoint->shards[i].rearranged);
        gptoss_file_close(&checkpoint->shards[i].file);
    }
    gptoss_gguf_free(&checkpoint->metadata);
    gptoss_free(checkpoint->shards);
    gptoss_free(checkpoint->tensors);
    gptoss_free(checkpoint->config_path);
    gptoss_free(checkpoint->path);
    gptoss_free(checkpoint);
}

bool gptoss_checkpoint_is_gguf(const struct gptoss_checkpoint *checkpoint) {
    return checkpoint->is_gguf;
}

uint32_t gptoss_checkpoint_gguf_version(const struct gptoss_checkpoint *checkpoint) {
    return checkpoint->metadata.version;
}

size_t gptoss_checkpoint_num_files(const struct gptoss_checkpoint *checkpoint) {
    return checkpoint->num_shards;
}

const char *gptoss_checkpoint_file(const struct gptoss_checkpoint *checkpoint, size_t index,
                                   uint64_t *num_bytes_out) {
    if (index >= checkpoint->num_shards)
        return NULL;
    *num_bytes_out = checkpoint->shards[index].file.num_bytes;
    return checkpoint->shards[index].file.path;
}

size_t gptoss_checkpoint_num_values(const struct gptoss_checkpoint *checkpoint) {
    return checkpoint->metadata.num_values;
}

const struct gptoss_gguf_value *gptoss_checkpoint_value(const struct gptoss_checkpoint *checkpoint,
                                                        size_t index) {
    return index < checkpoint->metadata.num_values ? &checkpoint->metadata.values[index] : NULL;
}

const struct gptoss_config *gptoss_checkpoint_config(const struct gptoss_checkpoint *checkpoint) {
    return &checkpoint->config;
}

const char *gptoss_checkpoint_config_file(const struct gptoss_checkpoint *checkpoint) {
    return checkpoint->config_path;
}

size_t gptoss_checkpoint_num_tensors(const struct gptoss_checkpoint *checkpoint) {
    return checkpoint->num_tensors;
}

const struct gptoss_tensor *gptoss_checkpoint_tensor(const struct gptoss_checkpoint *checkpoint,
                                                     size_t index) {
    return index < checkpoint->num_tensors ? &checkpoint->tensors[index] : NULL;
}

const struct gptoss_tensor *gptoss_checkpoint_find(const struct gptoss_checkpoint *checkpoint,
                                                   const char *name) {
    struct gptoss_tensor key = {.name = name};
    return bsearch(&key, checkpoint->tensors, checkpoint->num_tensors, sizeof key,
                   compare_tensor_names);
}

void gptoss_checkpoint_memory(const struct gptoss_checkpoint *checkpoint,
                              struct gptoss_model_memory *memory_out) {
    struct gptoss_model_memory memory = {
        .heap_bytes = sizeof *checkpoint + checkpoint->num_shards * sizeof *checkpoint->shards +
                      checkpoint->num_tensors * sizeof *checkpoint->tensors +
                      checkpoint->metadata.num_values * sizeof *checkpoint->metadata.values +
                      checkpoint->metadata.keys_bytes};
    for (size_t i = 0; i < checkpoint->num_shards; ++i) {
        const struct shard *shard = &checkpoint->shards[i];
        memory.heap_bytes += shard->contents.names_bytes;
        *(shard->file.is_mapped ? &memory.mapped_bytes : &memory.read_bytes) +=
            shard->file.num_bytes;
        memory.read_bytes += shard->rearranged.num_bytes;
    }
    *memory_out = memory;
}

/* "BF16 or F32" for the dtypes of a mask. */
static void describe_dtypes(uint32_t mask, char *text, size_t num_bytes) {
    size_t length = 0;
    text[0] = '\0';
    for (int dtype = 0; dtype < 32; ++dtype) {
        if ((mask >> dtype & 1) == 0 || length >= num_bytes)
            continue;
        const char *before = length == 0 ? "" : mask >> dtype == 1 ? " or " : ", ";
        length += (size_t)snprintf(text + length, num_bytes - length, "%s%s", before,
                                   gptoss_dtype_name((enum gptoss_dtype)dtype));
    }
}

enum gptoss_status gptoss_checkpoint_require(const struct gptoss_checkpoint *checkpoint,
                                             const char *name, uint32_t dtype_mask,
                                             int32_t num_dims, const int64_t *shape,
                                             const struct gptoss_tensor **tensor_out,
                                             struct gptoss_error *error) {
    const struct gptoss_tensor *tensor = gptoss_checkpoint_find(checkpoint, name);
    struct gptoss_place place = {.file = checkpoint->path, .tensor = name, .offset = -1};
    char expected[160], found[96];
    gptoss_shape_describe(shape, num_dims, expected, sizeof expected);
    if (tensor == NULL) {
        gptoss_error_set(error, GPTOSS_ERROR_FORMAT, "%s: tensor '%s' is missing", checkpoint->path,
                         name);
        gptoss_error_where(error, checkpoint->path, name, -1);
        gptoss_error_expected(error, "a tensor of shape %s", expected);
        gptoss_error_found(error, "none");
        return GPTOSS_ERROR_FORMAT;
    }
    place.file = tensor->file;
    place.offset = (int64_t)tensor->file_offset;
    if (tensor->num_dims != num_dims ||
        memcmp(tensor->shape, shape, (size_t)num_dims * sizeof *shape) != 0) {
        place.subject = "shape";
        gptoss_shape_describe(tensor->shape, tensor->num_dims, found, sizeof found);
        return gptoss_format_error(error, &place, expected, "%s", found);
    }
    if ((dtype_mask >> tensor->dtype & 1) == 0) {
        place.subject = "dtype";
        describe_dtypes(dtype_mask, expected, sizeof expected);
        return gptoss_format_error(error, &place, expected, "%s", gptoss_dtype_name(tensor->dtype));
    }
    *tensor_out = tensor;
    return GPTOSS_OK;
}
