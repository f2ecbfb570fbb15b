#include "checkpoint/json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint/format_error.h"
#include "platform/allocator.h"
#include "platform/mapped_file.h"
#include "status.h"

static const uint64_t max_file_bytes = 16 << 20;

static bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

enum gptoss_status gptoss_json_parse(const char *file, const uint8_t *text, uint64_t num_bytes,
                                     uint64_t offset, cJSON **object_out,
                                     struct gptoss_error *error) {
    /* A copy with a terminator: some releases of cJSON look one byte past a text that ends in the
     * middle. */
    char *copy = num_bytes < SIZE_MAX ? gptoss_allocate(num_bytes + 1, 1) : NULL;
    if (copy == NULL || !gptoss_allocation_permitted()) {
        gptoss_free(copy);
        return gptoss_error_memory(error, num_bytes + 1, "JSON");
    }
    memcpy(copy, text, num_bytes);

    const char *end = copy;
    cJSON *object = cJSON_ParseWithLengthOpts(copy, num_bytes + 1, &end, false);
    while (object != NULL && end < copy + num_bytes && is_space(*end))
        ++end;
    uint64_t position = (uint64_t)(end - copy);
    if (position > num_bytes)
        position = num_bytes;
    bool is_whole = object != NULL && position == num_bytes;
    unsigned char next = (unsigned char)copy[position];
    gptoss_free(copy);
    if (is_whole && cJSON_IsObject(object)) {
        *object_out = object;
        return GPTOSS_OK;
    }

    struct gptoss_place place = {
        .file = file, .subject = "JSON", .offset = (int64_t)(offset + position)};
    if (is_whole) {
        place.offset = (int64_t)offset;
        gptoss_format_error(error, &place, "an object", "another kind of value");
    } else if (position == num_bytes) {
        gptoss_format_error(error, &place, "valid JSON", "the end of the text at byte %llu",
                            (unsigned long long)(offset + position));
    } else {
        gptoss_format_error(error, &place, "valid JSON", "a fault at byte %llu (0x%02X)",
                            (unsigned long long)(offset + position), next);
    }
    cJSON_Delete(object);
    return GPTOSS_ERROR_FORMAT;
}

enum gptoss_status gptoss_json_read(const char *path, cJSON **object_out,
                                    struct gptoss_error *error) {
    struct gptoss_file file;
    struct gptoss_progress progress = {0};
    enum gptoss_status status = gptoss_file_open(path, &file, error);
    if (status != GPTOSS_OK)
        return status;
    if (file.num_bytes > max_file_bytes) {
        struct gptoss_place place = {.file = path, .subject = "size", .offset = -1};
        status = gptoss_format_error(error, &place, "at most 16 MiB", "%llu bytes",
                                     (unsigned long long)file.num_bytes);
    } else {
        status = gptoss_file_read(&file, &progress, error);
    }
    if (status == GPTOSS_OK)
        status = gptoss_json_parse(path, file.data, file.num_bytes, 0, object_out, error);
    gptoss_file_close(&file);
    return status;
}

bool gptoss_json_integer(const cJSON *item, int64_t minimum, int64_t maximum, int64_t *value_out) {
    if (!cJSON_IsNumber(item))
        return false;
    double value = item->valuedouble;
    if (!(value >= (double)minimum && value <= (double)maximum) || value != floor(value))
        return false;
    *value_out = (int64_t)value;
    return true;
}

void gptoss_json_describe(const cJSON *item, char *text, size_t num_bytes) {
    if (item == NULL) {
        snprintf(text, num_bytes, "nothing");
    } else if (!cJSON_PrintPreallocated((cJSON *)item, text, (int)num_bytes, false)) {
        snprintf(text, num_bytes, "%s of %d %s",
                 cJSON_IsString(item)  ? "a string"
                 : cJSON_IsArray(item) ? "an array"
                                       : "an object",
                 cJSON_IsString(item) ? (int)strlen(item->valuestring) : cJSON_GetArraySize(item),
                 cJSON_IsString(item) ? "bytes" : "entries");
    }
}
