#include "checkpoint/quantization.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/format_error.h"
#include "checkpoint/tensor_table.h"
#include "numeric/dtype.h"
#include "platform/allocator.h"
#include "status.h"

static const char codes_ending[] = "_blocks";

/* The format that a text names, all of which have planes. */
static bool find_format(const cJSON *item, enum gptoss_dtype *format_out) {
    for (int dtype = GPTOSS_DTYPE_MXFP4; cJSON_IsString(item) && dtype <= GPTOSS_DTYPE_MXFP8_E5M2;
         ++dtype) {
        if (gptoss_dtype_has_planes((enum gptoss_dtype)dtype) &&
            strcmp(item->valuestring, gptoss_dtype_name((enum gptoss_dtype)dtype)) == 0) {
            *format_out = (enum gptoss_dtype)dtype;
            return true;
        }
    }
    return false;
}

static void read_format(const struct gptoss_config_reader *reader, const char *key,
                        const cJSON *item, enum gptoss_dtype *format_out) {
    if (!find_format(item, format_out))
        gptoss_config_fail(reader, key,
                           "\"MXFP4\", \"MXFP6_E2M3\", \"MXFP6_E3M2\", \"MXFP8_E4M3\" or "
                           "\"MXFP8_E5M2\"",
                           item);
}

void gptoss_quantization_read(const struct gptoss_config_reader *reader,
                              struct gptoss_quantization *out) {
    *out = (struct gptoss_quantization){.format = GPTOSS_DTYPE_MXFP4};
    const cJSON *object = gptoss_config_find(reader, "quantization_config");
    if (object == NULL)
        return;
    struct gptoss_config_reader inner = *reader;
    inner.section = "quantization_config.";
    inner.object = object;
    if (!cJSON_IsObject(object))
        gptoss_config_fail(reader, "quantization_config", "an object", object);
    const cJSON *method = gptoss_config_find(&inner, "quant_method");
    const char *name = method == NULL ? "mxfp4" : cJSON_IsString(method) ? method->valuestring : "";
    if (strcmp(name, "mx") != 0) {
        if (strcmp(name, "mxfp4") != 0)
            gptoss_config_fail(&inner, "quant_method", "\"mxfp4\" or \"mx\"", method);
        return;
    }
    read_format(&inner, "format", gptoss_config_find(&inner, "format"), &out->format);
    const cJSON *formats = gptoss_config_find(&inner, "formats"), *entry;
    if (formats == NULL)
        return;
    if (!cJSON_IsObject(formats)) {
        gptoss_config_fail(&inner, "formats", "an object", formats);
        return;
    }
    inner.section = "quantization_config.formats.";
    cJSON_ArrayForEach(entry, formats) {
        enum gptoss_dtype unused;
        if (*reader->status == GPTOSS_OK)
            *reader->status =
                gptoss_name_check(reader->file, "name in quantization_config.formats",
                                  entry->string, strlen(entry->string), -1, reader->error);
        read_format(&inner, entry->string, entry, &unused);
    }
    out->formats = cJSON_DetachItemViaPointer((cJSON *)object, (cJSON *)formats);
}

static bool is_codes(const struct gptoss_tensor *tensor) {
    size_t length = strlen(tensor->name), ending = sizeof codes_ending - 1;
    if (tensor->dtype != GPTOSS_DTYPE_U8 || length <= ending)
        return false;
    const char *end = tensor->name + length - ending;
    return (end[0] == '_' || end[0] == '.') && strcmp(end + 1, codes_ending + 1) == 0;
}

static int compare_name(const void *name, const void *tensor) {
    return strcmp(name, ((const struct gptoss_tensor *)tensor)->name);
}

enum gptoss_status gptoss_quantization_apply(const struct gptoss_quantization *quantization,
                                             const char *config_path, struct gptoss_tensor *tensors,
                                             size_t num_tensors, struct gptoss_error *error) {
    for (size_t i = 0; i < num_tensors; ++i)
        if (is_codes(&tensors[i]))
            tensors[i].weight_dtype = quantization->format;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, quantization->formats) {
        size_t num_bytes = strlen(entry->string) + sizeof codes_ending;
        char *name = gptoss_allocate(num_bytes, 1);
        if (name == NULL)
            return gptoss_error_memory(error, num_bytes, "a name");
        snprintf(name, num_bytes, "%s%s", entry->string, codes_ending);
        struct gptoss_tensor *tensor =
            bsearch(name, tensors, num_tensors, sizeof *tensors, compare_name);
        gptoss_free(name);
        if (tensor == NULL || !is_codes(tensor)) {
            struct gptoss_place place = {.file = config_path,
                                         .tensor = entry->string,
                                         .subject = "quantization_config.formats",
                                         .offset = -1};
            return gptoss_format_error(error, &place,
                                       "the name of a weight with a U8 tensor NAME_blocks", "%s",
                                       tensor == NULL ? "none of this name" : "another dtype");
        }
        find_format(entry, &tensor->weight_dtype);
    }
    return GPTOSS_OK;
}

void gptoss_quantization_free(struct gptoss_quantization *quantization) {
    cJSON_Delete(quantization->formats);
    quantization->formats = NULL;
}
