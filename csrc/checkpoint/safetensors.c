#include "checkpoint/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint/format_error.h"
#include "checkpoint/json.h"
#include "status.h"

#define MAX_EXACT_INTEGER ((int64_t)1 << 53)

static const uint64_t max_header_bytes = 100000000; /* the format's own limit */

/* The dtypes a file may hold, by the names that gptoss_dtype_name gives them. */
static const char dtype_list[] =
    "F32, F16, BF16, F64, U8, I8, U16, I16, U32, I32, U64, I64, BOOL, F8_E4M3 or F8_E5M2";

/* One entry of the header, with what its messages need. */
struct entry {
    const struct gptoss_file *file;
    uint64_t data_start; /* in the file */
    const cJSON *json;
    const char *name;
};

static enum gptoss_status entry_error(const struct entry *entry, const char *subject,
                                      const char *expected, const cJSON *found,
                                      struct gptoss_error *error) {
    struct gptoss_place place = {
        .file = entry->file->path, .tensor = entry->name, .subject = subject, .offset = -1};
    char text[128];
    gptoss_json_describe(found, text, sizeof text);
    return gptoss_format_error(error, &place, expected, "%s", text);
}

static enum gptoss_status parse_dtype(const struct entry *entry, enum gptoss_dtype *dtype_out,
                                      struct gptoss_error *error) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(entry->json, "dtype");
    if (cJSON_IsString(item)) {
        for (int dtype = 0; dtype < GPTOSS_DTYPE_MXFP4; ++dtype) {
            if (strcmp(item->valuestring, gptoss_dtype_name((enum gptoss_dtype)dtype)) == 0) {
                *dtype_out = (enum gptoss_dtype)dtype;
                return GPTOSS_OK;
            }
        }
    }
    return entry_error(entry, "dtype", dtype_list, item, error);
}

static enum gptoss_status parse_shape(const struct entry *entry, struct gptoss_tensor *tensor,
                                      struct gptoss_error *error) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(entry->json, "shape");
    if (!cJSON_IsArray(item))
        return entry_error(entry, "shape", "an array", item, error);
    const cJSON *size;
    cJSON_ArrayForEach(size, item) {
        if (tensor->num_dims == GPTOSS_MAX_DIMS) {
            struct gptoss_place place = {
                .file = entry->file->path, .tensor = entry->name, .subject = "shape", .offset = -1};
            return gptoss_format_error(error, &place, "at most 4 dimensions", "%d",
                                       cJSON_GetArraySize(item));
        }
        if (!gptoss_json_integer(size, 0, MAX_EXACT_INTEGER, &tensor->shape[tensor->num_dims++])) {
            return entry_error(entry, "shape", "integers from 0 to 2^53", size, error);
        }
    }
    return GPTOSS_OK;
}

/* begin and end inside the data, and as far apart as shape and dtype demand. */
static enum gptoss_status parse_offsets(const struct entry *entry, struct gptoss_tensor *tensor,
                                        struct gptoss_error *error) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(entry->json, "data_offsets");
    int64_t begin, end;
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 2 ||
        !gptoss_json_integer(item->child, 0, MAX_EXACT_INTEGER, &begin) ||
        !gptoss_json_integer(item->child->next, 0, MAX_EXACT_INTEGER, &end)) {
        return entry_error(entry, "data_offsets", "two integers from 0 to 2^53", item, error);
    }
    struct gptoss_place place = {.file = entry->file->path,
                                 .tensor = entry->name,
                                 .subject = "data_offsets",
                                 .offset = (int64_t)entry->data_start + begin};
    char expected[128];
    uint64_t data_bytes = entry->file->num_bytes - entry->data_start;
    if (begin > end || (uint64_t)end > data_bytes) {
        snprintf(expected, sizeof expected,
                 "begin <= end <= %" PRIu64 ", the bytes of data in the file", data_bytes);
        return gptoss_format_error(error, &place, expected, "[%" PRId64 ", %" PRId64 "]", begin,
                                   end);
    }
    uint64_t wanted;
    tensor->num_bytes = (uint64_t)(end - begin);
    if (!gptoss_shape_bytes(tensor->dtype, tensor->shape, tensor->num_dims, &wanted) ||
        wanted != tensor->num_bytes) {
        char shape[96];
        gptoss_shape_describe(tensor->shape, tensor->num_dims, shape, sizeof shape);
        snprintf(expected, sizeof expected, "the bytes of %s %s", gptoss_dtype_name(tensor->dtype),
                 shape);
        return gptoss_format_error(error, &place, expected, "%" PRIu64 " bytes", tensor->num_bytes);
    }
    tensor->file_offset = entry->data_start + (uint64_t)begin;
    tensor->data = entry->file->data + tensor->file_offset;
    return GPTOSS_OK;
}

static enum gptoss_status parse_entry(const struct entry *entry, struct gptoss_tensor *tensor,
                                      struct gptoss_error *error) {
    GPTOSS_TRY(gptoss_name_check(entry->file->path, "name of a tensor", entry->name,
                                 strlen(entry->name), -1, error));
    if (!cJSON_IsObject(entry->json))
        return entry_error(entry, NULL, "an object", entry->json, error);
    tensor->file = entry->file->path;
    enum gptoss_status status = parse_dtype(entry, &tensor->dtype, error);
    tensor->format = gptoss_dtype_name(tensor->dtype);
    if (status == GPTOSS_OK)
        status = parse_shape(entry, tensor, error);
    if (status == GPTOSS_OK)
        status = parse_offsets(entry, tensor, error);
    return status;
}

/* Tensors, sorted, must follow one another from the first byte of data to the last. */
static enum gptoss_status check_cover(const struct gptoss_file *file, uint64_t data_start,
                                      const struct gptoss_tensor_table *contents,
                                      struct gptoss_error *error) {
    uint64_t end = data_start;
    struct gptoss_place place = {.file = file->path};
    char expected[128];
    for (size_t i = 0; i < contents->num_tensors; ++i) {
        const struct gptoss_tensor *tensor = &contents->tensors[i];
        if (tensor->file_offset != end) {
            place.tensor = tensor->name;
            place.offset = (int64_t)tensor->file_offset;
            snprintf(expected, sizeof expected,
                     "data from byte %" PRIu64 " on, where the tensor before it ends", end);
            return gptoss_format_error(error, &place, expected, "%s of %" PRIu64 " bytes",
                                       tensor->file_offset < end ? "an overlap" : "a hole",
                                       tensor->file_offset < end ? end - tensor->file_offset
                                                                 : tensor->file_offset - end);
        }
        end += tensor->num_bytes;
    }
    if (end == file->num_bytes)
        return GPTOSS_OK;
    place.offset = (int64_t)end;
    snprintf(expected, sizeof expected, "%" PRIu64 " bytes, where the last tensor ends", end);
    return gptoss_format_error(error, &place, expected, "%" PRIu64 " bytes", file->num_bytes);
}

static enum gptoss_status parse_entries(const struct gptoss_file *file, uint64_t data_start,
                                        const cJSON *header, struct gptoss_tensor_table *contents,
                                        struct gptoss_error *error) {
    size_t num_entries = 0;
    uint64_t names_bytes = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, header) {
        ++num_entries;
        names_bytes += strlen(item->string) + 1;
    }
    enum gptoss_status status =
        gptoss_tensor_table_allocate(contents, num_entries, names_bytes, error);
    if (status != GPTOSS_OK)
        return status;
    char *name = contents->names;
    struct entry entry = {.file = file, .data_start = data_start};
    cJSON_ArrayForEach(entry.json, header) {
        if (strcmp(entry.json->string, "__metadata__") == 0)
            continue;
        struct gptoss_tensor *tensor = &contents->tensors[contents->num_tensors];
        size_t length = strlen(entry.json->string) + 1;
        memcpy(name, entry.json->string, length);
        tensor->name = entry.name = name;
        name += length;
        status = parse_entry(&entry, tensor, error);
        if (status != GPTOSS_OK)
            return status;
        ++contents->num_tensors;
    }
    gptoss_tensor_table_sort(contents);
    return check_cover(file, data_start, contents, error);
}

/* The header's length, checked against the file and the format's limit. */
static enum gptoss_status read_header_length(const struct gptoss_file *file, uint64_t *length_out,
                                             struct gptoss_error *error) {
    struct gptoss_place place = {.file = file->path, .subject = "length of the header"};
    uint64_t length = 0;
    if (file->num_bytes < 8) {
        return gptoss_format_error(error, &place, "8 bytes", "a file of %" PRIu64 " bytes",
                                   file->num_bytes);
    }
    for (int i = 7; i >= 0; --i)
        length = length << 8 | file->data[i];
    uint64_t most = file->num_bytes - 8 < max_header_bytes ? file->num_bytes - 8 : max_header_bytes;
    if (length > most) {
        char expected[96];
        snprintf(expected, sizeof expected, "at most %" PRIu64 " bytes", most);
        return gptoss_format_error(error, &place, expected, "%" PRIu64, length);
    }
    *length_out = length;
    return GPTOSS_OK;
}

enum gptoss_status gptoss_safetensors_parse(const struct gptoss_file *file,
                                            struct gptoss_tensor_table *contents_out,
                                            struct gptoss_error *error) {
    struct gptoss_tensor_table contents = {0};
    cJSON *header = NULL;
    uint64_t header_bytes = 0;
    enum gptoss_status status = read_header_length(file, &header_bytes, error);
    if (status == GPTOSS_OK)
        status = gptoss_json_parse(file->path, file->data + 8, header_bytes, 8, &header, error);
    if (status == GPTOSS_OK)
        status = parse_entries(file, 8 + header_bytes, header, &contents, error);
    cJSON_Delete(header);
    if (status == GPTOSS_OK) {
        *contents_out = contents;
    } else {
        gptoss_tensor_table_free(&contents);
    }
    return status;
}
