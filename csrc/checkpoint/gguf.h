/* The GGUF format, versions 2 and 3, little-endian: "GGUF", version, the numbers of tensors and of
 * metadata values, the values, the tensors' names, dimensions, types and offsets, the data. Read in
 * place: nothing but names is copied. */
#ifndef GPTOSS_CHECKPOINT_GGUF_H
#define GPTOSS_CHECKPOINT_GGUF_H

#include <cjson/cJSON.h>

#include "checkpoint/tensor_table.h"
#include "platform/mapped_file.h"

struct gptoss_gguf {
    struct gptoss_gguf_value *values; /* sorted by key */
    size_t num_values;
    char *keys;
    uint64_t keys_bytes;
    uint32_t version;
    uint64_t alignment;
    uint64_t num_tensors, tensors_offset; /* as the header says; where their table begins */
    bool is_ollama; /* architecture "gptoss"; of a later part to be taken from the first */
};

/* Reads the metadata of a mapped or read file. Counts and lengths are checked against the bytes
 * that are there before anything is allocated; a key may occur once; arrays of arrays are refused.
 * On failure nothing is held. */
enum gptoss_status gptoss_gguf_parse(const struct gptoss_file *file, struct gptoss_gguf *gguf_out,
                                     struct gptoss_error *error);
void gptoss_gguf_free(struct gptoss_gguf *gguf);

/* The format of MXFP4 tensors in early files of Ollama: blocks of 17 bytes as in other files, but
 * byte j of the codes holds elements 2 j and 2 j + 1. */
extern const char gptoss_gguf_early_mxfp4[];

/* Reads the table of tensors: inside the file, aligned as general.alignment says, without overlap.
 * Types that enum gptoss_dtype lacks: GPTOSS_ERROR_UNSUPPORTED that names the type, or with
 * lists_all opaque tensors. Early MXFP4 has the dtype MXFP4_GGUF, which is not true before its
 * blocks are repacked. Names may still repeat. On failure nothing is held. */
enum gptoss_status gptoss_gguf_parse_tensors(const struct gptoss_file *file,
                                             const struct gptoss_gguf *gguf, bool lists_all,
                                             struct gptoss_tensor_table *table_out,
                                             struct gptoss_error *error);

/* NULL if there is none of that key. */
const struct gptoss_gguf_value *gptoss_gguf_find(const struct gptoss_gguf *gguf, const char *key);

/* Whether there is a text of that key, and this one. */
bool gptoss_gguf_is_text(const struct gptoss_gguf *gguf, const char *key, const char *text);

/* The values whose keys begin with prefix as one JSON object, keys without it; arrays become raw
 * items, "an array of 24". Freed with cJSON_Delete. */
enum gptoss_status gptoss_gguf_json(const struct gptoss_gguf *gguf, const char *prefix,
                                    cJSON **object_out, struct gptoss_error *error);

#endif
