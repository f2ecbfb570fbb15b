#include "checkpoint/gguf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/format_error.h"
#include "numeric/dtype.h"
#include "platform/allocator.h"
#include "status.h"

#define DEFAULT_ALIGNMENT 32
#define MAX_HEADER_BYTES ((uint64_t)1 << 28)
#define HEADER_BYTES 24 /* magic, version, two counts */

/* ---- reading forward ---- */

/* What is read next, and what it belongs to, for messages. */
struct cursor {
    const struct gptoss_file *file;
    uint64_t offset;
    bool in_tensor;
    bool lists_all, is_ollama; /* of tensors: see gguf.h */
    char name[160]; /* of the key or the tensor, cut if it is longer; "" before it is known */
    struct gptoss_error *error;
};

static enum gptoss_status refuse(const struct cursor *cursor, uint64_t offset, const char *subject,
                                 const char *expected, const char *found) {
    char text[sizeof cursor->name + 64];
    struct gptoss_place place = {
        .file = cursor->file->path, .subject = subject, .offset = (int64_t)offset};
    if (cursor->in_tensor && cursor->name[0] != '\0') {
        place.tensor = cursor->name;
    } else if (cursor->name[0] != '\0') {
        snprintf(text, sizeof text, "key '%s': %s", cursor->name, subject);
        place.subject = text;
    }
    return gptoss_format_error(cursor->error, &place, expected, "%s", found);
}

static enum gptoss_status take(struct cursor *cursor, uint64_t num_bytes, const char *subject,
                               const uint8_t **bytes_out) {
    uint64_t end =
        cursor->file->num_bytes < MAX_HEADER_BYTES ? cursor->file->num_bytes : MAX_HEADER_BYTES;
    if (num_bytes > end - cursor->offset) {
        char expected[96], found[96];
        bool is_limit = end < cursor->file->num_bytes;
        snprintf(expected, sizeof expected, "%" PRIu64 " bytes at byte %" PRIu64, num_bytes,
                 cursor->offset);
        snprintf(found, sizeof found, "%" PRIu64 " before %s", end - cursor->offset,
                 is_limit ? "the most a header may have, 2^28" : "the end of the file");
        refuse(cursor, cursor->offset, subject, expected, found);
        return GPTOSS_ERROR_FORMAT;
    }
    *bytes_out = cursor->file->data + cursor->offset;
    cursor->offset += num_bytes;
    return GPTOSS_OK;
}

static uint64_t load(const uint8_t *bytes, int num_bytes) {
    uint64_t value = 0;
    for (int i = num_bytes - 1; i >= 0; --i)
        value = value << 8 | bytes[i];
    return value;
}

static enum gptoss_status take_integer(struct cursor *cursor, int num_bytes, const char *subject,
                                       uint64_t *value_out) {
    const uint8_t *bytes;
    GPTOSS_TRY(take(cursor, (uint64_t)num_bytes, subject, &bytes));
    *value_out = load(bytes, num_bytes);
    return GPTOSS_OK;
}

static enum gptoss_status take_string(struct cursor *cursor, const char *subject,
                                      const uint8_t **text_out, uint64_t *length_out) {
    GPTOSS_TRY(take_integer(cursor, 8, subject, length_out));
    return take(cursor, *length_out, subject, text_out);
}

/* The name of what follows; subject: "key" or "name of a tensor". */
static enum gptoss_status take_name(struct cursor *cursor, const char *subject,
                                    const uint8_t **name_out, uint64_t *length_out) {
    cursor->name[0] = '\0';
    GPTOSS_TRY(take_string(cursor, subject, name_out, length_out));
    const char *name = (const char *)*name_out;
    GPTOSS_TRY(gptoss_name_check(cursor->file->path, subject, name, *length_out,
                                 (int64_t)(cursor->offset - *length_out), cursor->error));
    int shown = *length_out < sizeof cursor->name ? (int)*length_out : (int)sizeof cursor->name - 1;
    snprintf(cursor->name, sizeof cursor->name, "%.*s", shown, name);
    return GPTOSS_OK;
}

/* Appends name to *names and a zero; the copy. */
static const char *keep_name(char **names, const uint8_t *name, uint64_t length) {
    char *copy = *names;
    memcpy(copy, name, length);
    copy[length] = '\0';
    *names += length + 1;
    return copy;
}

/* ---- metadata ---- */

static const uint8_t scalar_bytes[] = {
    [GPTOSS_GGUF_UINT8] = 1,   [GPTOSS_GGUF_INT8] = 1,   [GPTOSS_GGUF_UINT16] = 2,
    [GPTOSS_GGUF_INT16] = 2,   [GPTOSS_GGUF_UINT32] = 4, [GPTOSS_GGUF_INT32] = 4,
    [GPTOSS_GGUF_FLOAT32] = 4, [GPTOSS_GGUF_BOOL] = 1,   [GPTOSS_GGUF_UINT64] = 8,
    [GPTOSS_GGUF_INT64] = 8,   [GPTOSS_GGUF_FLOAT64] = 8};

static enum gptoss_status take_type(struct cursor *cursor, struct gptoss_gguf_value *value) {
    uint64_t start = cursor->offset, type;
    GPTOSS_TRY(take_integer(cursor, 4, "type", &type));
    value->is_array = type == GPTOSS_GGUF_ARRAY;
    value->num_elements = 1;
    if (value->is_array) {
        start = cursor->offset;
        GPTOSS_TRY(take_integer(cursor, 4, "type of elements", &type));
        if (type == GPTOSS_GGUF_ARRAY)
            return refuse(cursor, start, "type of elements", "numbers, booleans or strings",
                          "arrays");
        GPTOSS_TRY(take_integer(cursor, 8, "number of elements", &value->num_elements));
    }
    if (type > GPTOSS_GGUF_FLOAT64) {
        char found[32];
        snprintf(found, sizeof found, "%" PRIu64, type);
        return refuse(cursor, start, "type", "a number from 0 to 12", found);
    }
    value->type = (enum gptoss_gguf_type)type;
    return GPTOSS_OK;
}

static enum gptoss_status take_value(struct cursor *cursor, struct gptoss_gguf_value *value) {
    GPTOSS_TRY(take_type(cursor, value));
    value->file_offset = cursor->offset;
    value->data = cursor->file->data + cursor->offset;
    const uint8_t *bytes;
    if (value->type == GPTOSS_GGUF_STRING) {
        uint64_t length;
        for (uint64_t i = 0; i < value->num_elements; ++i)
            GPTOSS_TRY(take_string(cursor, "text", &bytes, &length));
        value->num_bytes = cursor->offset - value->file_offset;
        return GPTOSS_OK;
    }
    uint64_t num_bytes;
    if (__builtin_mul_overflow(value->num_elements, scalar_bytes[value->type], &num_bytes))
        num_bytes = UINT64_MAX;
    GPTOSS_TRY(take(cursor, num_bytes, "value", &bytes));
    value->num_bytes = num_bytes;
    for (uint64_t i = 0; value->type == GPTOSS_GGUF_BOOL && i < num_bytes; ++i) {
        if (bytes[i] > 1)
            return refuse(cursor, value->file_offset + i, "value", "a boolean, 0 or 1",
                          "another byte");
    }
    return GPTOSS_OK;
}

/* Walks all values from the cursor, twice: to check them and add up their keys, and, with values
 * not NULL, to keep them. */
static enum gptoss_status walk_values(struct cursor *cursor, uint64_t num_values,
                                      struct gptoss_gguf_value *values, char *keys,
                                      uint64_t *keys_bytes_out) {
    *keys_bytes_out = 0;
    for (uint64_t i = 0; i < num_values; ++i) {
        struct gptoss_gguf_value value;
        const uint8_t *key;
        uint64_t length;
        GPTOSS_TRY(take_name(cursor, "key", &key, &length));
        GPTOSS_TRY(take_value(cursor, &value));
        *keys_bytes_out += length + 1;
        if (values == NULL)
            continue;
        value.key = keep_name(&keys, key, length);
        values[i] = value;
    }
    cursor->name[0] = '\0';
    return GPTOSS_OK;
}

static int compare_keys(const void *left, const void *right) {
    const struct gptoss_gguf_value *a = left, *b = right;
    return strcmp(a->key, b->key);
}

const struct gptoss_gguf_value *gptoss_gguf_find(const struct gptoss_gguf *gguf, const char *key) {
    struct gptoss_gguf_value wanted = {.key = key};
    return bsearch(&wanted, gguf->values, gguf->num_values, sizeof wanted, compare_keys);
}

bool gptoss_gguf_is_text(const struct gptoss_gguf *gguf, const char *key, const char *text) {
    const struct gptoss_gguf_value *value = gptoss_gguf_find(gguf, key);
    size_t length = strlen(text);
    return value != NULL && value->type == GPTOSS_GGUF_STRING && !value->is_array &&
           value->num_bytes == 8 + length && memcmp(value->data + 8, text, length) == 0;
}

/* Sorted by key; none twice. */
static enum gptoss_status sort_values(const struct gptoss_file *file, struct gptoss_gguf *gguf,
                                      struct gptoss_error *error) {
    qsort(gguf->values, gguf->num_values, sizeof *gguf->values, compare_keys);
    for (size_t i = 1; i < gguf->num_values; ++i) {
        const struct gptoss_gguf_value *a = &gguf->values[i - 1], *b = &gguf->values[i];
        if (strcmp(a->key, b->key) != 0)
            continue;
        struct gptoss_place place = {
            .file = file->path, .subject = b->key, .offset = (int64_t)b->file_offset};
        return gptoss_format_error(error, &place, "one value of this key",
                                   "another at byte %" PRIu64, a->file_offset);
    }
    return GPTOSS_OK;
}

static enum gptoss_status read_alignment(const struct gptoss_file *file, struct gptoss_gguf *gguf,
                                         struct gptoss_error *error) {
    const struct gptoss_gguf_value *value = gptoss_gguf_find(gguf, "general.alignment");
    gguf->alignment = DEFAULT_ALIGNMENT;
    if (value == NULL)
        return GPTOSS_OK;
    struct gptoss_place place = {
        .file = file->path, .subject = value->key, .offset = (int64_t)value->file_offset};
    if (value->is_array || value->type != GPTOSS_GGUF_UINT32)
        return gptoss_format_error(error, &place, "an unsigned number of 32 bits",
                                   "a value of another type");
    gguf->alignment = load(value->data, 4);
    if (gguf->alignment != 0 && (gguf->alignment & (gguf->alignment - 1)) == 0)
        return GPTOSS_OK;
    return gptoss_format_error(error, &place, "a power of two", "%" PRIu64, gguf->alignment);
}

static enum gptoss_status read_header(struct cursor *cursor, struct gptoss_gguf *gguf,
                                      uint64_t *num_values_out) {
    const uint8_t *magic;
    uint64_t version;
    GPTOSS_TRY(take(cursor, 4, "header", &magic));
    if (memcmp(magic, "GGUF", 4) != 0)
        return refuse(cursor, 0, "header", "a GGUF file, which begins with \"GGUF\"",
                      "another beginning");
    GPTOSS_TRY(take_integer(cursor, 4, "version", &version));
    if (version != 2 && version != 3) {
        char found[64];
        bool is_swapped = version != 0 && (version & 0xFFFF) == 0;
        snprintf(found, sizeof found, "version %" PRIu64 "%s", version,
                 is_swapped ? ", as in a big-endian file" : "");
        return refuse(cursor, 4, "version", "version 2 or 3, little-endian", found);
    }
    gguf->version = (uint32_t)version;
    GPTOSS_TRY(take_integer(cursor, 8, "number of tensors", &gguf->num_tensors));
    return take_integer(cursor, 8, "number of metadata values", num_values_out);
}

static enum gptoss_status parse(struct cursor *cursor, struct gptoss_gguf *gguf) {
    uint64_t num_values = 0;
    GPTOSS_TRY(read_header(cursor, gguf, &num_values));
    GPTOSS_TRY(walk_values(cursor, num_values, NULL, NULL, &gguf->keys_bytes));
    gguf->values = gptoss_allocate(num_values, sizeof *gguf->values);
    gguf->keys = gptoss_allocate(gguf->keys_bytes, 1);
    if (gguf->values == NULL || gguf->keys == NULL)
        return gptoss_error_memory(cursor->error,
                                   num_values * sizeof *gguf->values + gguf->keys_bytes,
                                   "a table of metadata");
    gguf->num_values = num_values;
    cursor->offset = HEADER_BYTES;
    GPTOSS_TRY(walk_values(cursor, num_values, gguf->values, gguf->keys, &gguf->keys_bytes));
    gguf->tensors_offset = cursor->offset;
    GPTOSS_TRY(sort_values(cursor->file, gguf, cursor->error));
    return read_alignment(cursor->file, gguf, cursor->error);
}

enum gptoss_status gptoss_gguf_parse(const struct gptoss_file *file, struct gptoss_gguf *gguf_out,
                                     struct gptoss_error *error) {
    struct gptoss_gguf gguf = {0};
    struct cursor cursor = {.file = file, .error = error};
    enum gptoss_status status = parse(&cursor, &gguf);
    if (status == GPTOSS_OK) {
        gguf.is_ollama = gptoss_gguf_is_text(&gguf, "general.architecture", "gptoss");
        *gguf_out = gguf;
    } else {
        gptoss_gguf_free(&gguf);
    }
    return status;
}

void gptoss_gguf_free(struct gptoss_gguf *gguf) {
    gptoss_free(gguf->values);
    gptoss_free(gguf->keys);
    *gguf = (struct gptoss_gguf){0};
}

/* ---- tensors ---- */

/* ggml's numbers; a type without a format here has its name alone. */
static const struct {
    const char *name;
    bool is_read;
    enum gptoss_dtype dtype;
} types[] = {
    [0] = {"F32", true, GPTOSS_DTYPE_F32},
    [1] = {"F16", true, GPTOSS_DTYPE_F16},
    [2] = {"Q4_0", true, GPTOSS_DTYPE_Q4_0},
    [3] = {"Q4_1", true, GPTOSS_DTYPE_Q4_1},
    [4] = {.name = "number 4, MXFP4 in early files of Ollama"},
    [6] = {"Q5_0", true, GPTOSS_DTYPE_Q5_0},
    [7] = {"Q5_1", true, GPTOSS_DTYPE_Q5_1},
    [8] = {"Q8_0", true, GPTOSS_DTYPE_Q8_0},
    [9] = {.name = "Q8_1"},
    [10] = {"Q2_K", true, GPTOSS_DTYPE_Q2_K},
    [11] = {"Q3_K", true, GPTOSS_DTYPE_Q3_K},
    [12] = {"Q4_K", true, GPTOSS_DTYPE_Q4_K},
    [13] = {"Q5_K", true, GPTOSS_DTYPE_Q5_K},
    [14] = {"Q6_K", true, GPTOSS_DTYPE_Q6_K},
    [15] = {.name = "Q8_K"},
    [16] = {.name = "IQ2_XXS"},
    [17] = {.name = "IQ2_XS"},
    [18] = {.name = "IQ3_XXS"},
    [19] = {.name = "IQ1_S"},
    [20] = {.name = "IQ4_NL"},
    [21] = {.name = "IQ3_S"},
    [22] = {.name = "IQ2_S"},
    [23] = {.name = "IQ4_XS"},
    [24] = {"I8", true, GPTOSS_DTYPE_I8},
    [25] = {"I16", true, GPTOSS_DTYPE_I16},
    [26] = {"I32", true, GPTOSS_DTYPE_I32},
    [27] = {"I64", true, GPTOSS_DTYPE_I64},
    [28] = {"F64", true, GPTOSS_DTYPE_F64},
    [29] = {.name = "IQ1_M"},
    [30] = {"BF16", true, GPTOSS_DTYPE_BF16},
    [34] = {.name = "TQ1_0"},
    [35] = {.name = "TQ2_0"},
    [39] = {"MXFP4", true, GPTOSS_DTYPE_MXFP4_GGUF},
    [40] = {.name = "NVFP4"},
    [41] = {.name = "Q1_0"},
    [42] = {.name = "Q2_0"},
};

static enum gptoss_status take_dtype(struct cursor *cursor, enum gptoss_dtype *dtype_out) {
    static const char supported[] =
        "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K or MXFP4";
    uint64_t start = cursor->offset, type;
    GPTOSS_TRY(take_integer(cursor, 4, "type", &type));
    const char *name = type < sizeof types / sizeof types[0] ? types[type].name : NULL;
    if (name == NULL) {
        char found[32];
        snprintf(found, sizeof found, "number %" PRIu64, type);
        return refuse(cursor, start, "type", "the number of a known type", found);
    }
    if (!types[type].is_read) {
        gptoss_error_set(cursor->error, GPTOSS_ERROR_UNSUPPORTED,
                         "%s: tensor '%s' has the type %s, which is not read yet; supported: %s",
                         cursor->file->path, cursor->name, name, supported);
        gptoss_error_where(cursor->error, cursor->file->path, cursor->name, (int64_t)start);
        gptoss_error_expected(cursor->error, "%s", supported);
        gptoss_error_found(cursor->error, "%s", name);
        return GPTOSS_ERROR_UNSUPPORTED;
    }
    *dtype_out = types[type].dtype;
    return GPTOSS_OK;
}

const char gptoss_gguf_early_mxfp4[] = "MXFP4 of early Ollama";

/* Elements and bytes of a block, by type: of the formats that are only listed. */
static const struct {
    uint16_t elements, bytes;
} blocks[] = {
    [2] = {32, 18},    [3] = {32, 20},    [6] = {32, 22},    [7] = {32, 24},    [9] = {32, 36},
    [10] = {256, 84},  [11] = {256, 110}, [12] = {256, 144}, [13] = {256, 176}, [14] = {256, 210},
    [15] = {256, 292}, [16] = {256, 66},  [17] = {256, 74},  [18] = {256, 98},  [19] = {256, 50},
    [20] = {32, 18},   [21] = {256, 110}, [22] = {256, 82},  [23] = {256, 136}, [29] = {256, 56},
    [34] = {256, 54},  [35] = {256, 66},  [40] = {64, 36},   [41] = {128, 18},
};

/* 0 where the format, or the number of bytes, is not known. */
static uint64_t opaque_bytes(uint64_t type, const struct gptoss_tensor *tensor) {
    if (type >= sizeof blocks / sizeof blocks[0] || blocks[type].elements == 0 ||
        tensor->num_dims == 0)
        return 0;
    uint64_t columns = (uint64_t)tensor->shape[tensor->num_dims - 1];
    uint64_t num_bytes = columns / blocks[type].elements * blocks[type].bytes;
    bool is_known = columns % blocks[type].elements == 0 && columns < UINT64_C(1) << 40;
    for (int32_t i = 0; i < tensor->num_dims - 1; ++i)
        is_known &= !__builtin_mul_overflow(num_bytes, (uint64_t)tensor->shape[i], &num_bytes);
    return is_known ? num_bytes : 0;
}

/* The type, after the shape. */
static enum gptoss_status take_format(struct cursor *cursor, struct gptoss_tensor *tensor) {
    uint64_t start = cursor->offset, type;
    GPTOSS_TRY(take_integer(cursor, 4, "type", &type));
    bool is_known = type < sizeof types / sizeof types[0] && types[type].name != NULL;
    if (type == 4 && cursor->is_ollama) {
        tensor->format = gptoss_gguf_early_mxfp4;
        tensor->dtype = GPTOSS_DTYPE_MXFP4_GGUF;
        return GPTOSS_OK;
    }
    if (cursor->lists_all && !(is_known && types[type].is_read)) {
        tensor->format = is_known ? types[type].name : "unknown";
        tensor->is_opaque = true;
        tensor->num_bytes = opaque_bytes(type, tensor);
        return GPTOSS_OK;
    }
    cursor->offset = start;
    GPTOSS_TRY(take_dtype(cursor, &tensor->dtype));
    tensor->format = types[type].name;
    return GPTOSS_OK;
}

/* The file counts dimensions from the fastest, a tensor's shape from the slowest. */
static enum gptoss_status take_shape(struct cursor *cursor, struct gptoss_tensor *tensor) {
    char found[32];
    uint64_t start = cursor->offset, num_dims;
    GPTOSS_TRY(take_integer(cursor, 4, "number of dimensions", &num_dims));
    if (num_dims > GPTOSS_MAX_DIMS) {
        snprintf(found, sizeof found, "%" PRIu64, num_dims);
        return refuse(cursor, start, "number of dimensions", "at most 4", found);
    }
    tensor->num_dims = (int32_t)num_dims;
    for (int32_t i = tensor->num_dims - 1; i >= 0; --i) {
        uint64_t size;
        start = cursor->offset;
        GPTOSS_TRY(take_integer(cursor, 8, "shape", &size));
        if (size > INT64_MAX) {
            snprintf(found, sizeof found, "%" PRIu64, size);
            return refuse(cursor, start, "shape", "sizes below 2^63", found);
        }
        tensor->shape[i] = (int64_t)size;
    }
    return GPTOSS_OK;
}

/* All but the name; file_offset still counts from the start of the data. */
static enum gptoss_status take_tensor(struct cursor *cursor, struct gptoss_tensor *tensor) {
    uint64_t start = cursor->offset;
    tensor->file = cursor->file->path;
    GPTOSS_TRY(take_shape(cursor, tensor));
    GPTOSS_TRY(take_format(cursor, tensor));
    if (!tensor->is_opaque &&
        !gptoss_shape_bytes(tensor->dtype, tensor->shape, tensor->num_dims, &tensor->num_bytes)) {
        char expected[96], found[96];
        int length = snprintf(expected, sizeof expected, "a shape whose bytes fit 64 bits");
        if (gptoss_dtype_block(tensor->dtype) > 1)
            snprintf(expected + length, sizeof expected - (size_t)length,
                     ", in rows of whole blocks of %" PRIu32 " (%s)",
                     gptoss_dtype_block(tensor->dtype), gptoss_dtype_name(tensor->dtype));
        gptoss_shape_describe(tensor->shape, tensor->num_dims, found, sizeof found);
        return refuse(cursor, start, "shape", expected, found);
    }
    return take_integer(cursor, 8, "offset", &tensor->file_offset);
}

/* As walk_values. */
static enum gptoss_status walk_tensors(struct cursor *cursor, uint64_t num_tensors,
                                       struct gptoss_tensor_table *table,
                                       uint64_t *names_bytes_out) {
    char *names = table == NULL ? NULL : table->names;
    *names_bytes_out = 0;
    for (uint64_t i = 0; i < num_tensors; ++i) {
        struct gptoss_tensor tensor = {0};
        const uint8_t *name;
        uint64_t length;
        GPTOSS_TRY(take_name(cursor, "name of a tensor", &name, &length));
        GPTOSS_TRY(take_tensor(cursor, &tensor));
        *names_bytes_out += length + 1;
        if (table == NULL)
            continue;
        tensor.name = keep_name(&names, name, length);
        table->tensors[table->num_tensors++] = tensor;
    }
    return GPTOSS_OK;
}

/* Puts a tensor's data into the file: aligned, inside, behind the tensor before it. */
static enum gptoss_status place_tensor(const struct gptoss_file *file, uint64_t data_start,
                                       uint64_t alignment, uint64_t *end,
                                       struct gptoss_tensor *tensor, struct gptoss_error *error) {
    struct gptoss_place place = {.file = file->path, .tensor = tensor->name, .subject = "offset"};
    char expected[128];
    uint64_t offset = tensor->file_offset;
    uint64_t data_bytes = file->num_bytes < data_start ? 0 : file->num_bytes - data_start;
    place.offset = offset > INT64_MAX - data_start ? -1 : (int64_t)(data_start + offset);
    if (offset % alignment != 0) {
        snprintf(expected, sizeof expected, "a multiple of %" PRIu64, alignment);
        return gptoss_format_error(error, &place, expected, "%" PRIu64, offset);
    }
    if (offset > data_bytes || tensor->num_bytes > data_bytes - offset) {
        snprintf(expected, sizeof expected,
                 "%" PRIu64 " bytes inside the %" PRIu64 " bytes of data in the file",
                 tensor->num_bytes, data_bytes);
        return gptoss_format_error(error, &place, expected, "%" PRIu64, offset);
    }
    if (offset < *end)
        return gptoss_format_error(error, &place, "data behind the tensor before it",
                                   "an overlap of %" PRIu64 " bytes", *end - offset);
    *end = offset + tensor->num_bytes;
    tensor->file_offset = data_start + offset;
    tensor->data = file->data + tensor->file_offset;
    return GPTOSS_OK;
}

static enum gptoss_status parse_tensors(struct cursor *cursor, const struct gptoss_gguf *gguf,
                                        struct gptoss_tensor_table *table) {
    uint64_t names_bytes, end = 0;
    cursor->offset = gguf->tensors_offset;
    GPTOSS_TRY(walk_tensors(cursor, gguf->num_tensors, NULL, &names_bytes));
    GPTOSS_TRY(gptoss_tensor_table_allocate(table, gguf->num_tensors, names_bytes, cursor->error));
    cursor->offset = gguf->tensors_offset;
    GPTOSS_TRY(walk_tensors(cursor, gguf->num_tensors, table, &names_bytes));
    uint64_t data_start = (cursor->offset + gguf->alignment - 1) & ~(gguf->alignment - 1);
    gptoss_tensor_table_sort(table);
    for (size_t i = 0; i < table->num_tensors; ++i)
        GPTOSS_TRY(place_tensor(cursor->file, data_start, gguf->alignment, &end, &table->tensors[i],
                                cursor->error));
    return GPTOSS_OK;
}

enum gptoss_status gptoss_gguf_parse_tensors(const struct gptoss_file *file,
                                             const struct gptoss_gguf *gguf, bool lists_all,
                                             struct gptoss_tensor_table *table_out,
                                             struct gptoss_error *error) {
    struct gptoss_tensor_table table = {0};
    struct cursor cursor = {.file = file,
                            .in_tensor = true,
                            .lists_all = lists_all,
                            .is_ollama = gguf->is_ollama,
                            .error = error};
    enum gptoss_status status = parse_tensors(&cursor, gguf, &table);
    if (status == GPTOSS_OK) {
        *table_out = table;
    } else {
        gptoss_tensor_table_free(&table);
    }
    return status;
}

/* ---- values as JSON ---- */

static cJSON *json_number(const struct gptoss_gguf_value *value) {
    int num_bytes = scalar_bytes[value->type];
    uint64_t bits = load(value->data, num_bytes), sign = UINT64_C(1) << (8 * num_bytes - 1);
    switch (value->type) {
    case GPTOSS_GGUF_FLOAT32:
        return cJSON_CreateNumber((double)gptoss_float_from_bits((uint32_t)bits));
    case GPTOSS_GGUF_FLOAT64: {
        double number;
        memcpy(&number, &bits, sizeof number);
        return cJSON_CreateNumber(number);
    }
    case GPTOSS_GGUF_BOOL: return cJSON_CreateBool(bits != 0);
    case GPTOSS_GGUF_INT8:
    case GPTOSS_GGUF_INT16:
    case GPTOSS_GGUF_INT32:
    case GPTOSS_GGUF_INT64: return cJSON_CreateNumber((double)(int64_t)((bits ^ sign) - sign));
    default: return cJSON_CreateNumber((double)bits);
    }
}

static cJSON *json_item(const struct gptoss_gguf_value *value) {
    char text[256];
    if (value->is_array) {
        snprintf(text, sizeof text, "an array of %" PRIu64, value->num_elements);
        return cJSON_CreateRaw(text);
    }
    if (value->type != GPTOSS_GGUF_STRING)
        return json_number(value);
    uint64_t length = load(value->data, 8);
    if (length >= sizeof text || memchr(value->data + 8, 0, length) != NULL) {
        snprintf(text, sizeof text, "a text of %" PRIu64 " bytes", length);
        return cJSON_CreateRaw(text);
    }
    memcpy(text, value->data + 8, length);
    text[length] = '\0';
    return cJSON_CreateString(text);
}

enum gptoss_status gptoss_gguf_json(const struct gptoss_gguf *gguf, const char *prefix,
                                    cJSON **object_out, struct gptoss_error *error) {
    size_t length = strlen(prefix);
    cJSON *object = gptoss_allocation_permitted() ? cJSON_CreateObject() : NULL;
    bool complete = object != NULL;
    for (size_t i = 0; i < gguf->num_values && complete; ++i) {
        const struct gptoss_gguf_value *value = &gguf->values[i];
        if (strncmp(value->key, prefix, length) != 0)
            continue;
        cJSON *item = json_item(value);
        complete = item != NULL && cJSON_AddItemToObject(object, value->key + length, item);
        if (!complete)
            cJSON_Delete(item);
    }
    if (!complete) {
        cJSON_Delete(object);
        return gptoss_error_memory(error, sizeof *object, "metadata");
    }
    *object_out = object;
    return GPTOSS_OK;
}
