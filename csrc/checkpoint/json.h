/* JSON as checkpoints use it, over cJSON. */
#ifndef GPTOSS_CHECKPOINT_JSON_H
#define GPTOSS_CHECKPOINT_JSON_H

#include <cjson/cJSON.h>

#include "gptoss.h"

/* Parses one JSON object that must fill text[num_bytes] but for white space. offset: where text
 * stands in its file, for messages. Freed with cJSON_Delete. */
enum gptoss_status gptoss_json_parse(const char *file, const uint8_t *text, uint64_t num_bytes,
                                     uint64_t offset, cJSON **object_out,
                                     struct gptoss_error *error);

/* The same of a whole file of at most 16 MiB. */
enum gptoss_status gptoss_json_read(const char *path, cJSON **object_out,
                                    struct gptoss_error *error);

/* Whether item is a number without a fraction in minimum .. maximum (at most 2^53, where doubles
 * stop being exact). */
bool gptoss_json_integer(const cJSON *item, int64_t minimum, int64_t maximum, int64_t *value_out);

/* What item is, for messages: JSON if that is short enough, else its kind and size; "nothing" for
 * NULL. */
void gptoss_json_describe(const cJSON *item, char *text, size_t num_bytes);

#endif
