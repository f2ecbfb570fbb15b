/* The GGUF format, versions 2 and 3, little-endian: "GGUF", version, the numbers of tensors and of
 * metadata values, the values, the tensors' names, dimensions, types and offsets, the data. Read in
 * place: nothing but names is copied. */
#ifndef GPTOSS_CHECKPOINT_GGUF_H
#define GPTOSS_CHECKPOINT_GGUF_H

#include <cjson/cJSON.h>

#include "checkpoint/tensor_table.h"
#include "platform/mapped_file.h"

/* Numbers of the format. */
enum gptoss_gguf_type {
    GPTOSS_GGUF_UINT8 = 0,
    GPTOSS_GGUF_INT8 = 1,
    GPTOSS_GGUF_UINT16 = 2,
    GPTOSS_GGUF_INT16 = 3,
    GPTOSS_GGUF_UINT32 = 4,
    GPTOSS_GGUF_INT32 = 5,
    GPTOSS_GGUF_FLOAT32 = 6,
    GPTOSS_GGUF_BOOL = 7,
    GPTOSS_GGUF_STRING = 8,
    GPTOSS_GGUF_ARRAY = 9,
    GPTOSS_GGUF_UINT64 = 10,
    GPTOSS_GGUF_INT64 = 11,
    GPTOSS_GGUF_FLOAT64 = 12
};

/* One metadata value in its file. */
struct gptoss_gguf_value {
    const char *key;
    enum gptoss_gguf_type type; /* of an array: of its elements, never ARRAY */
    bool is_array;
    uint64_t num_elements; /* 1 unless an array */
    const uint8_t *data;   /* elements one after another, unaligned; a string is a u64 length and
                              that many bytes */
    uint64_t file_offset;
};

struct gptoss_gguf {
    struct gptoss_gguf_value *values; /* sorted by key */
    size_t num_values;
    char *keys;
    uint64_t keys_bytes;
    uint64_t alignment;
    uint64_t num_tensors, tensors_offset; /* as the header says; where their table begins */
};

/* Reads the metadata of a mapped or read file. Counts and lengths are checked against the bytes
 * that are there before anything is allocated; a key may occur once; arrays of arrays are refused.
 * On failure nothing is held. */
enum gptoss_status gptoss_gguf_parse(const struct gptoss_file *file, struct gptoss_gguf *gguf_out,
                                     struct gptoss_error *error);
void gptoss_gguf_free(struct gptoss_gguf *gguf);

/* Reads the table of tensors: inside the file, aligned as general.alignment says, without overlap.
 * Types that enum gptoss_dtype lacks: GPTOSS_ERROR_UNSUPPORTED that names the type. Names may still
 * repeat. On failure nothing is held. */
enum gptoss_status gptoss_gguf_parse_tensors(const struct gptoss_file *file,
                                             const struct gptoss_gguf *gguf,
                                             struct gptoss_tensor_table *table_out,
                                             struct gptoss_error *error);

/* NULL if there is none of that key. */
const struct gptoss_gguf_value *gptoss_gguf_find(const struct gptoss_gguf *gguf, const char *key);

/* The values whose keys begin with prefix as one JSON object, keys without it; arrays become raw
 * items, "an array of 24". Freed with cJSON_Delete. */
enum gptoss_status gptoss_gguf_json(const struct gptoss_gguf *gguf, const char *prefix,
                                    cJSON **object_out, struct gptoss_error *error);

#endif
