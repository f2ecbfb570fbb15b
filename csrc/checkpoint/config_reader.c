#include "checkpoint/config_reader.h"

#include <stdio.h>
#include <string.h>

#include "checkpoint/format_error.h"
#include "checkpoint/json.h"

void gptoss_config_fail(const struct gptoss_config_reader *reader, const char *key,
                        const char *expected, const cJSON *found) {
    if (*reader->status != GPTOSS_OK)
        return;
    char subject[128], text[128];
    struct gptoss_place place = {.file = reader->file, .subject = subject, .offset = -1};
    snprintf(subject, sizeof subject, "%s%s", reader->section, key);
    gptoss_json_describe(found, text, sizeof text);
    *reader->status = gptoss_format_error(reader->error, &place, expected, "%s", text);
}

const cJSON *gptoss_config_find(const struct gptoss_config_reader *reader, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(reader->object, key);
    return cJSON_IsNull(item) ? NULL : item;
}

void gptoss_config_integer(const struct gptoss_config_reader *reader, const char *key,
                           enum gptoss_config_necessity necessity, int32_t minimum, int32_t maximum,
                           int32_t *value) {
    const cJSON *item = gptoss_config_find(reader, key);
    if (item == NULL && necessity == GPTOSS_CONFIG_OPTIONAL)
        return;
    int64_t integer;
    if (gptoss_json_integer(item, minimum, maximum, &integer)) {
        *value = (int32_t)integer;
        return;
    }
    char expected[64];
    snprintf(expected, sizeof expected, "an integer from %d to %d", minimum, maximum);
    gptoss_config_fail(reader, key, expected, item);
}

void gptoss_config_number(const struct gptoss_config_reader *reader, const char *key,
                          double minimum, double maximum, double *value) {
    const cJSON *item = gptoss_config_find(reader, key);
    if (item == NULL)
        return;
    if (cJSON_IsNumber(item) && item->valuedouble > minimum && item->valuedouble <= maximum) {
        *value = item->valuedouble;
        return;
    }
    char expected[96];
    snprintf(expected, sizeof expected, "a number above %g and at most %g", minimum, maximum);
    gptoss_config_fail(reader, key, expected, item);
}

void gptoss_config_float(const struct gptoss_config_reader *reader, const char *key, double minimum,
                         double maximum, float *value) {
    double number = *value;
    gptoss_config_number(reader, key, minimum, maximum, &number);
    *value = (float)number;
}

void gptoss_config_bool(const struct gptoss_config_reader *reader, const char *key, bool *value) {
    const cJSON *item = gptoss_config_find(reader, key);
    if (item == NULL)
        return;
    if (!cJSON_IsBool(item))
        gptoss_config_fail(reader, key, "true or false", item);
    *value = cJSON_IsTrue(item);
}

void gptoss_config_demand_text(const struct gptoss_config_reader *reader, const char *key,
                               const char *text) {
    const cJSON *item = gptoss_config_find(reader, key);
    if (item == NULL || (cJSON_IsString(item) && strcmp(item->valuestring, text) == 0))
        return;
    char expected[64];
    snprintf(expected, sizeof expected, "\"%s\"", text);
    gptoss_config_fail(reader, key, expected, item);
}

const char *gptoss_config_either(const struct gptoss_config_reader *reader, const char *key,
                                 const char *other) {
    return gptoss_config_find(reader, key) == NULL && gptoss_config_find(reader, other) != NULL
               ? other
               : key;
}

void gptoss_config_demand_number(const struct gptoss_config_reader *reader, const char *key,
                                 double number) {
    const cJSON *item = gptoss_config_find(reader, key);
    if (item == NULL || (cJSON_IsNumber(item) && item->valuedouble == number))
        return;
    char expected[64];
    snprintf(expected, sizeof expected, "%.12g", number);
    gptoss_config_fail(reader, key, expected, item);
}

void gptoss_config_demand_bool(const struct gptoss_config_reader *reader, const char *key,
                               bool value) {
    const cJSON *item = gptoss_config_find(reader, key);
    if (item != NULL && !(cJSON_IsBool(item) && cJSON_IsTrue(item) == value))
        gptoss_config_fail(reader, key, value ? "true" : "false", item);
}

/* Settings that change the rotation and that nothing here acts on must not pass in silence. */
static void refuse_unknown_rope(const struct gptoss_config_reader *rope) {
    const cJSON *item;
    double rotated = 1.0;
    cJSON_ArrayForEach(item, rope->object) {
        if (cJSON_IsObject(item))
            gptoss_config_fail(rope, item->string, "one setting for all layers", item);
    }
    gptoss_config_number(rope, "partial_rotary_factor", 0.0, 1.0, &rotated);
    if (rotated != 1.0)
        gptoss_config_fail(rope, "partial_rotary_factor", "1",
                           gptoss_config_find(rope, "partial_rotary_factor"));
}

bool gptoss_config_rope(const struct gptoss_config_reader *reader,
                        struct gptoss_config_reader *rope_out) {
    static const char *const names[2][2] = {{"rope_scaling", "rope_scaling."},
                                            {"rope_parameters", "rope_parameters."}};
    const char *const *name = names[gptoss_config_find(reader, "rope_parameters") != NULL];
    const cJSON *settings = gptoss_config_find(reader, name[0]);
    if (settings == NULL)
        return false;
    if (!cJSON_IsObject(settings)) {
        gptoss_config_fail(reader, name[0], "an object", settings);
        return false;
    }
    *rope_out = *reader;
    rope_out->section = name[1];
    rope_out->object = settings;
    refuse_unknown_rope(rope_out);
    return true;
}
