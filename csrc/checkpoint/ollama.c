#include "checkpoint/ollama.h"

#include <stdio.h>
#include <string.h>

#include "checkpoint/json.h"
#include "numeric/dtype.h"
#include "platform/allocator.h"
#include "status.h"

enum {
    BLOCK_BYTES = 17,
    MAX_PIECES = 3,      /* tensors that one becomes */
    MAX_LONGER = 24,     /* bytes that a name may grow by */
    COPY_ALIGNMENT = 64, /* of the copies */
    POLL_BYTES = 1 << 20
};

/* Part of a name -> what llama.cpp calls it. A fused tensor becomes several. */
static const struct {
    const char *from;
    const char *to[MAX_PIECES];
} names[] = {
    {".attn_out.", {".attn_output."}},
    {".ffn_norm.", {".post_attention_norm."}},
    {".attn_qkv.", {".attn_q.", ".attn_k.", ".attn_v."}},
    {".ffn_gate_up_exps.", {".ffn_gate_exps.", ".ffn_up_exps."}},
};
enum { QKV = 2, GATE_UP = 3, NUM_NAMES = 4 };

struct conversion {
    int64_t num_heads, num_kv_heads;
    struct gptoss_tensor_table table; /* the new one */
    char *next_name;
    struct gptoss_address_space copies;
    uint64_t num_copied; /* bytes of copies in use */
    struct gptoss_progress *progress;
    struct gptoss_error *error;
};

static bool is_early(const struct gptoss_tensor *tensor) {
    return tensor->format == gptoss_gguf_early_mxfp4;
}

/* Of a block's 16 bytes of codes, byte k holds elements 2 k and 2 k + 1; byte j shall hold j and
 * j + 16. */
static void repack_block(const uint8_t *from, uint8_t *to) {
    to[0] = from[0];
    for (int k = 0; k < 8; ++k) {
        uint8_t first = from[1 + k], second = from[9 + k];
        to[1 + 2 * k] = (uint8_t)((first & 15) | second << 4);
        to[2 + 2 * k] = (uint8_t)(first >> 4 | (second & 0xF0));
    }
}

/* Copies every step-th of the tensor's lines of line_bytes, from the first on, and points it at
 * them. */
static enum gptoss_status copy_lines(struct conversion *conversion, struct gptoss_tensor *tensor,
                                     uint64_t line_bytes, uint64_t first, uint64_t step) {
    uint8_t *copy = conversion->copies.base + conversion->num_copied, *to = copy;
    uint64_t unpolled = 0, num_lines = tensor->num_bytes / line_bytes;
    bool repacks = is_early(tensor);
    for (uint64_t line = first; line < num_lines; line += step, to += line_bytes) {
        const uint8_t *from = (const uint8_t *)tensor->data + line * line_bytes;
        for (uint64_t at = 0; repacks && at < line_bytes; at += BLOCK_BYTES)
            repack_block(from + at, to + at);
        if (!repacks)
            memcpy(to, from, line_bytes);
        unpolled += line_bytes;
        if (unpolled < POLL_BYTES && line + step < num_lines)
            continue;
        GPTOSS_TRY(gptoss_progress_add(conversion->progress, unpolled, conversion->error));
        unpolled = 0;
    }
    tensor->data = copy;
    tensor->num_bytes /= step;
    tensor->format = "MXFP4";
    conversion->num_copied +=
        (tensor->num_bytes + COPY_ALIGNMENT - 1) / COPY_ALIGNMENT * COPY_ALIGNMENT;
    return GPTOSS_OK;
}

/* The rows (of a bias: elements) that query, key or value has in the fused tensor, in place. */
static void slice_qkv(const struct conversion *conversion, struct gptoss_tensor *tensor, int part) {
    int64_t num_heads = conversion->num_heads, num_kv_heads = conversion->num_kv_heads;
    int64_t head_rows = tensor->shape[0] / (num_heads + 2 * num_kv_heads);
    uint64_t row_bytes = tensor->num_bytes / (uint64_t)tensor->shape[0];
    int64_t first = part == 0 ? 0 : num_heads + (part - 1) * num_kv_heads;
    tensor->shape[0] = head_rows * (part == 0 ? num_heads : num_kv_heads);
    tensor->data = (const uint8_t *)tensor->data + (uint64_t)(first * head_rows) * row_bytes;
    tensor->file_offset += (uint64_t)(first * head_rows) * row_bytes;
    tensor->num_bytes = (uint64_t)tensor->shape[0] * row_bytes;
}

/* Whether the dimensions after the first num_dims, one at least in block formats, are whole lines
 * of bytes. */
static bool has_lines(const struct gptoss_tensor *tensor, int32_t num_dims) {
    bool is_blocks = gptoss_dtype_bytes(tensor->dtype) == 0;
    return tensor->num_bytes > 0 && tensor->num_dims >= num_dims + is_blocks;
}

/* Which line of names applies, NUM_NAMES for none. A fused tensor of a shape that cannot be is left
 * alone, so that its parts are missing. */
static int find_name(const struct conversion *conversion, const struct gptoss_tensor *tensor) {
    int i = 0;
    while (i < NUM_NAMES && strstr(tensor->name, names[i].from) == NULL)
        ++i;
    int64_t num_heads = conversion->num_heads + 2 * conversion->num_kv_heads;
    if (i == QKV && !(has_lines(tensor, 1) && !is_early(tensor) && num_heads > 0 &&
                      tensor->shape[0] % num_heads == 0))
        return NUM_NAMES;
    if (i == GATE_UP && !(has_lines(tensor, 2) && tensor->shape[1] % 2 == 0))
        return NUM_NAMES;
    return i;
}

/* Appends a tensor under a name in which `to` replaces `from`, both NULL to keep it. */
static struct gptoss_tensor *append(struct conversion *conversion,
                                    const struct gptoss_tensor *tensor, const char *from,
                                    const char *to) {
    struct gptoss_tensor *added = &conversion->table.tensors[conversion->table.num_tensors++];
    const char *place = from == NULL ? NULL : strstr(tensor->name, from);
    size_t length = strlen(tensor->name);
    char *name = conversion->next_name;
    *added = *tensor;
    added->name = name;
    if (place != NULL)
        name += sprintf(name, "%.*s%s%s", (int)(place - tensor->name), tensor->name, to,
                        place + strlen(from));
    else
        name += sprintf(name, "%s", tensor->name);
    static const char sinks[] = ".attn_sinks";
    if (length >= sizeof sinks && strcmp(tensor->name + length - sizeof sinks + 1, sinks) == 0)
        name += sprintf(name, ".weight");
    conversion->next_name = name + 1;
    return added;
}

static enum gptoss_status convert_tensor(struct conversion *conversion,
                                         const struct gptoss_tensor *tensor) {
    int line = find_name(conversion, tensor);
    if (line == NUM_NAMES) {
        struct gptoss_tensor *added = append(conversion, tensor, NULL, NULL);
        return is_early(tensor) && tensor->num_bytes > 0
                   ? copy_lines(conversion, added, BLOCK_BYTES, 0, 1)
                   : GPTOSS_OK;
    }
    for (int part = 0; part < MAX_PIECES && names[line].to[part] != NULL; ++part) {
        struct gptoss_tensor *added =
            append(conversion, tensor, names[line].from, names[line].to[part]);
        if (line == QKV) {
            slice_qkv(conversion, added, part);
        } else if (line == GATE_UP) {
            uint64_t line_bytes =
                tensor->num_bytes / (uint64_t)tensor->shape[0] / (uint64_t)tensor->shape[1];
            added->shape[1] /= 2;
            GPTOSS_TRY(copy_lines(conversion, added, line_bytes, (uint64_t)part, 2));
        } else if (is_early(tensor) && tensor->num_bytes > 0) {
            GPTOSS_TRY(copy_lines(conversion, added, BLOCK_BYTES, 0, 1));
        }
    }
    return GPTOSS_OK;
}

static enum gptoss_status read_heads(const struct gptoss_gguf *gguf,
                                     struct conversion *conversion) {
    cJSON *keys = NULL;
    GPTOSS_TRY(gptoss_gguf_json(gguf, "gptoss.attention.", &keys, conversion->error));
    const cJSON *heads = cJSON_GetObjectItemCaseSensitive(keys, "head_count");
    const cJSON *kv_heads = cJSON_GetObjectItemCaseSensitive(keys, "head_count_kv");
    int64_t num_heads, num_kv_heads;
    if (gptoss_json_integer(heads, 1, 4096, &num_heads) &&
        gptoss_json_integer(kv_heads, 1, 4096, &num_kv_heads)) {
        conversion->num_heads = num_heads;
        conversion->num_kv_heads = num_kv_heads;
    }
    cJSON_Delete(keys);
    return GPTOSS_OK;
}

static enum gptoss_status convert(struct conversion *conversion, const struct gptoss_gguf *gguf,
                                  const struct gptoss_tensor_table *table) {
    GPTOSS_TRY(read_heads(gguf, conversion));
    size_t max_tensors = MAX_PIECES * table->num_tensors;
    GPTOSS_TRY(gptoss_tensor_table_allocate(
        &conversion->table, max_tensors, MAX_PIECES * table->names_bytes + MAX_LONGER * max_tensors,
        conversion->error));
    conversion->next_name = conversion->table.names;
    uint64_t copied = 0, room = 0; /* at most the bytes of the file: tensors do not overlap */
    for (size_t i = 0; i < table->num_tensors; ++i) {
        const struct gptoss_tensor *tensor = &table->tensors[i];
        if (!is_early(tensor) && find_name(conversion, tensor) != GATE_UP)
            continue;
        copied += tensor->num_bytes;
        room += tensor->num_bytes + 2 * COPY_ALIGNMENT;
    }
    if (room > 0 && !gptoss_address_space_reserve(room, &conversion->copies))
        return gptoss_error_memory(conversion->error, room, "rearranged tensors");
    conversion->progress->total += copied;
    for (size_t i = 0; i < table->num_tensors; ++i)
        GPTOSS_TRY(convert_tensor(conversion, &table->tensors[i]));
    return GPTOSS_OK;
}

enum gptoss_status gptoss_ollama_convert(const struct gptoss_gguf *gguf,
                                         struct gptoss_tensor_table *table,
                                         struct gptoss_progress *progress,
                                         struct gptoss_address_space *copies_out,
                                         struct gptoss_error *error) {
    *copies_out = (struct gptoss_address_space){0};
    if (!gguf->is_ollama)
        return GPTOSS_OK;
    struct conversion conversion = {.progress = progress, .error = error};
    enum gptoss_status status = convert(&conversion, gguf, table);
    if (status == GPTOSS_OK) {
        gptoss_tensor_table_free(table);
        *table = conversion.table;
        *copies_out = conversion.copies;
    } else {
        gptoss_tensor_table_free(&conversion.table);
        gptoss_address_space_release(&conversion.copies);
    }
    return status;
}
