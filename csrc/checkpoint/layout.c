#include "checkpoint/layout.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/format_error.h"
#include "checkpoint/json.h"
#include "platform/allocator.h"
#include "platform/directory.h"
#include "status.h"

static bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), ending_length = strlen(ending);
    return length >= ending_length && strcmp(text + length - ending_length, ending) == 0;
}

/* directory_length bytes of directory, a slash unless it is empty or ends with one, and name. */
static enum gptoss_status join(const char *directory, size_t directory_length, const char *name,
                               char **path_out, struct gptoss_error *error) {
    size_t num_bytes = directory_length + strlen(name) + 2;
    char *path = gptoss_allocate(num_bytes, 1);
    if (path == NULL)
        return gptoss_error_memory(error, num_bytes, "a path");
    bool needs_slash = directory_length > 0 && directory[directory_length - 1] != '/';
    memcpy(path, directory, directory_length);
    strcpy(path + directory_length, needs_slash ? "/" : "");
    strcat(path, name);
    *path_out = path;
    return GPTOSS_OK;
}

static enum gptoss_status add_weight_file(const char *directory, size_t directory_length,
                                          const char *name, struct gptoss_layout *layout,
                                          struct gptoss_error *error) {
    char **path = &layout->weight_paths[layout->num_weight_paths];
    enum gptoss_status status = join(directory, directory_length, name, path, error);
    if (status == GPTOSS_OK)
        ++layout->num_weight_paths;
    return status;
}

static enum gptoss_status allocate_weight_files(size_t count, struct gptoss_layout *layout,
                                                struct gptoss_error *error) {
    layout->weight_paths = gptoss_allocate(count, sizeof *layout->weight_paths);
    if (layout->weight_paths != NULL)
        return GPTOSS_OK;
    return gptoss_error_memory(error, count * sizeof *layout->weight_paths, "a list of files");
}

static int compare_names(const void *left, const void *right) {
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* The index must keep to its own directory, whoever wrote it. */
static enum gptoss_status check_weight_map(const struct gptoss_layout *layout,
                                           struct gptoss_error *error) {
    struct gptoss_place place = {.file = layout->index_path, .subject = "weight_map", .offset = -1};
    char text[128];
    if (!cJSON_IsObject(layout->weight_map) || layout->weight_map->child == NULL) {
        gptoss_json_describe(layout->weight_map, text, sizeof text);
        return gptoss_format_error(error, &place, "an object with an entry for each tensor", "%s",
                                   text);
    }
    const cJSON *item;
    cJSON_ArrayForEach(item, layout->weight_map) {
        if (!cJSON_IsString(item) || item->valuestring[0] == '.' ||
            strchr(item->valuestring, '/') != NULL ||
            !ends_with(item->valuestring, ".safetensors")) {
            place.tensor = item->string;
            gptoss_json_describe(item, text, sizeof text);
            return gptoss_format_error(
                error, &place, "the name of a .safetensors file beside the index", "%s", text);
        }
    }
    return GPTOSS_OK;
}

static enum gptoss_status find_indexed(const char *directory, struct gptoss_layout *layout,
                                       struct gptoss_error *error) {
    enum gptoss_status status = gptoss_json_read(layout->index_path, &layout->index, error);
    if (status != GPTOSS_OK)
        return status;
    layout->weight_map = cJSON_GetObjectItemCaseSensitive(layout->index, "weight_map");
    status = check_weight_map(layout, error);
    if (status != GPTOSS_OK)
        return status;

    size_t num_entries = (size_t)cJSON_GetArraySize(layout->weight_map), count = 0;
    const char **names = gptoss_allocate(num_entries, sizeof *names);
    if (names == NULL)
        return gptoss_error_memory(error, num_entries * sizeof *names, "a list of files");
    const cJSON *item;
    cJSON_ArrayForEach(item, layout->weight_map) names[count++] = item->valuestring;
    qsort(names, num_entries, sizeof *names, compare_names);
    status = allocate_weight_files(num_entries, layout, error);
    for (size_t i = 0; i < num_entries && status == GPTOSS_OK; ++i) {
        if (i > 0 && strcmp(names[i], names[i - 1]) == 0)
            continue;
        status = add_weight_file(directory, strlen(directory), names[i], layout, error);
    }
    gptoss_free(names);
    return status;
}

/* The end of the name of a part, "-00002-of-00003.gguf". */
enum { PART_BYTES = 20, PART_DIGITS = 5 };

static bool read_digits(const char *text, int *number_out) {
    *number_out = 0;
    for (int i = 0; i < PART_DIGITS; ++i) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        *number_out = 10 * *number_out + (text[i] - '0');
    }
    return true;
}

/* Whether a name is that of one of several parts. */
static bool is_part(const char *name, int *count_out) {
    size_t length = strlen(name);
    int number;
    if (length <= PART_BYTES)
        return false;
    const char *end = name + length - PART_BYTES;
    return end[0] == '-' && read_digits(end + 1, &number) && strncmp(end + 6, "-of-", 4) == 0 &&
           read_digits(end + 10, count_out) && strcmp(end + 15, ".gguf") == 0 && number >= 1 &&
           number <= *count_out && *count_out > 1;
}

static bool are_of_one_set(const char *a, const char *b) {
    size_t length = strlen(a);
    int count;
    return is_part(a, &count) && is_part(b, &count) && strlen(b) == length &&
           memcmp(a, b, length - PART_BYTES + 1) == 0 &&
           strcmp(a + length - PART_BYTES + 1 + PART_DIGITS,
                  b + length - PART_BYTES + 1 + PART_DIGITS) == 0;
}

/* What a directory without an index holds. */
struct census {
    size_t num_safetensors, num_gguf, num_others;
    bool is_one_set;       /* the .gguf files are all parts of one */
    char safetensors[256]; /* the longest name there can be */
    char gguf[256];
    char other[256]; /* one of the files of other formats */
};

static void count_file(void *user, const char *name) {
    static const char *const other_formats[] = {".bin", ".pth", ".pt", ".onnx", ".npz"};
    struct census *census = user;
    if (ends_with(name, ".safetensors")) {
        ++census->num_safetensors;
        snprintf(census->safetensors, sizeof census->safetensors, "%s", name);
        return;
    }
    if (ends_with(name, ".gguf")) {
        census->is_one_set =
            census->num_gguf == 0 || (census->is_one_set && are_of_one_set(name, census->gguf));
        ++census->num_gguf;
        snprintf(census->gguf, sizeof census->gguf, "%s", name);
        return;
    }
    for (size_t i = 0; i < sizeof other_formats / sizeof other_formats[0]; ++i) {
        if (!ends_with(name, other_formats[i]))
            continue;
        ++census->num_others;
        snprintf(census->other, sizeof census->other, "%s", name);
    }
}

/* A directory that is no checkpoint: say what was looked for, what is there, and what is near. */
static enum gptoss_status nothing_found(const char *directory, const char *missing,
                                        const struct census *census, struct gptoss_error *error) {
    struct gptoss_place place = {.file = directory, .offset = -1};
    char *nearby = NULL;
    enum gptoss_status status =
        join(directory, strlen(directory), "original/config.json", &nearby, error);
    if (status != GPTOSS_OK)
        return status;
    const char *hint = "";
    if (gptoss_path_kind(nearby) == GPTOSS_PATH_OTHER)
        hint = "; its subdirectory original/ has a config.json, try that";
    gptoss_free(nearby);
    if (census->num_safetensors > 0) {
        return gptoss_format_error(error, &place, missing, "%zu .safetensors files%s",
                                   census->num_safetensors, hint);
    }
    if (census->num_gguf > 0) {
        return gptoss_format_error(error, &place, missing,
                                   "%zu .gguf files; give the path of one, as %s", census->num_gguf,
                                   census->gguf);
    }
    if (census->num_others > 0) {
        return gptoss_format_error(error, &place, missing,
                                   "only formats that are not read, as %s%s", census->other, hint);
    }
    return gptoss_format_error(error, &place, missing, "none%s", hint);
}

/* Part `number` of the file that the last weight path names. */
static enum gptoss_status add_part(const char *directory, size_t directory_length, const char *name,
                                   int number, int count, struct gptoss_layout *layout,
                                   struct gptoss_error *error) {
    char digits[16], expected[128];
    GPTOSS_TRY(add_weight_file(directory, directory_length, name, layout, error));
    char *path = layout->weight_paths[layout->num_weight_paths - 1];
    snprintf(digits, sizeof digits, "%05d", number);
    memcpy(path + strlen(path) - PART_BYTES + 1, digits, PART_DIGITS);
    if (gptoss_path_kind(path) != GPTOSS_PATH_NONE)
        return GPTOSS_OK;
    struct gptoss_place place = {.file = path, .offset = -1};
    snprintf(expected, sizeof expected, "part %d of %d beside the others", number, count);
    return gptoss_format_error(error, &place, expected, "no such file; download it too");
}

/* directory_length bytes of directory, a slash unless it is empty, and name. */
static enum gptoss_status use_gguf(const char *directory, size_t directory_length, const char *name,
                                   struct gptoss_layout *layout, struct gptoss_error *error) {
    int count = 1;
    bool is_split = is_part(name, &count);
    layout->is_gguf = true;
    gptoss_free(layout->config_path);
    layout->config_path = NULL;
    GPTOSS_TRY(allocate_weight_files(is_split ? (size_t)count : 1, layout, error));
    if (!is_split)
        GPTOSS_TRY(add_weight_file(directory, directory_length, name, layout, error));
    for (int number = 1; is_split && number <= count; ++number)
        GPTOSS_TRY(add_part(directory, directory_length, name, number, count, layout, error));
    return join("", 0, layout->weight_paths[0], &layout->config_path, error);
}

static enum gptoss_status find_in_directory(const char *directory, bool needs_config,
                                            struct gptoss_layout *layout,
                                            struct gptoss_error *error) {
    size_t length = strlen(directory);
    struct census census = {0};
    enum gptoss_status status = join(directory, length, "config.json", &layout->config_path, error);
    if (status == GPTOSS_OK) {
        status =
            join(directory, length, "model.safetensors.index.json", &layout->index_path, error);
    }
    if (status == GPTOSS_OK)
        status = gptoss_directory_visit(directory, count_file, &census, error);
    if (status != GPTOSS_OK)
        return status;
    bool has_config = gptoss_path_kind(layout->config_path) != GPTOSS_PATH_NONE;
    bool are_weights_elsewhere = has_config && census.num_safetensors > 0;
    if (census.is_one_set && !are_weights_elsewhere)
        return use_gguf(directory, length, census.gguf, layout, error);
    if (!has_config && needs_config)
        return nothing_found(directory, "a config.json that describes the model", &census, error);
    if (gptoss_path_kind(layout->index_path) != GPTOSS_PATH_NONE)
        return find_indexed(directory, layout, error);

    status = allocate_weight_files(1, layout, error);
    if (status == GPTOSS_OK)
        status = add_weight_file(directory, length, "model.safetensors", layout, error);
    if (status != GPTOSS_OK || gptoss_path_kind(layout->weight_paths[0]) != GPTOSS_PATH_NONE)
        return status;
    if (census.num_safetensors != 1) {
        return nothing_found(
            directory, "model.safetensors.index.json, model.safetensors or a single *.safetensors",
            &census, error);
    }
    gptoss_free(layout->weight_paths[--layout->num_weight_paths]);
    return add_weight_file(directory, length, census.safetensors, layout, error);
}

static enum gptoss_status find_beside_file(const char *path, bool needs_config,
                                           struct gptoss_layout *layout,
                                           struct gptoss_error *error) {
    const char *slash = strrchr(path, '/');
    size_t length = slash == NULL ? 0 : (size_t)(slash - path) + 1;
    struct gptoss_place place = {.file = path, .offset = -1};
    if (ends_with(path, ".gguf"))
        return use_gguf(path, length, path + length, layout, error);
    if (!ends_with(path, ".safetensors")) {
        return gptoss_format_error(error, &place, "a directory, a .safetensors or a .gguf file",
                                   "none of them");
    }
    enum gptoss_status status = join(path, length, "config.json", &layout->config_path, error);
    if (status == GPTOSS_OK && needs_config &&
        gptoss_path_kind(layout->config_path) == GPTOSS_PATH_NONE) {
        status = gptoss_format_error(error, &place, "a config.json beside it", "none");
    }
    if (status == GPTOSS_OK)
        status = allocate_weight_files(1, layout, error);
    if (status == GPTOSS_OK)
        status = add_weight_file(path, length, path + length, layout, error);
    return status;
}

enum gptoss_status gptoss_layout_find(const char *path, bool needs_config,
                                      struct gptoss_layout *layout_out,
                                      struct gptoss_error *error) {
    struct gptoss_layout layout = {0};
    enum gptoss_status status;
    enum gptoss_path_kind kind = gptoss_path_kind(path);
    int number = errno;
    switch (kind) {
    case GPTOSS_PATH_DIRECTORY:
        status = find_in_directory(path, needs_config, &layout, error);
        break;
    case GPTOSS_PATH_OTHER: status = find_beside_file(path, needs_config, &layout, error); break;
    default:
        status =
            gptoss_error_set(error, GPTOSS_ERROR_IO, "cannot open %s: %s", path, strerror(number));
        gptoss_error_where(error, path, NULL, -1);
        if (error != NULL)
            error->system_errno = number;
    }
    if (status == GPTOSS_OK) {
        *layout_out = layout;
    } else {
        gptoss_layout_free(&layout);
    }
    return status;
}

void gptoss_layout_free(struct gptoss_layout *layout) {
    for (size_t i = 0; i < layout->num_weight_paths; ++i)
        gptoss_free(layout->weight_paths[i]);
    gptoss_free(layout->weight_paths);
    gptoss_free(layout->config_path);
    gptoss_free(layout->index_path);
    cJSON_Delete(layout->index);
    *layout = (struct gptoss_layout){0};
}
