/* Reads keys of one JSON object, each with its type and range checked. For config.c, which knows
 * what the keys of gpt-oss mean, and config_dense.c, which knows those of the other families. */
#ifndef GPTOSS_CHECKPOINT_CONFIG_READER_H
#define GPTOSS_CHECKPOINT_CONFIG_READER_H

#include <cjson/cJSON.h>

#include "gptoss.h"

#define GPTOSS_MAX_POSITIONS (1 << 30)

/* The first failure is kept and later reads do nothing, so that callers need not look after each.
 */
struct gptoss_config_reader {
    const char *file;
    const char *section; /* "" or "rope_scaling.", before the key in messages */
    const cJSON *object;
    enum gptoss_status *status;
    struct gptoss_error *error;
};

enum gptoss_config_necessity { GPTOSS_CONFIG_OPTIONAL, GPTOSS_CONFIG_REQUIRED };

/* GPTOSS_ERROR_FORMAT: "FILE: KEY: expected E, found F". */
void gptoss_config_fail(const struct gptoss_config_reader *reader, const char *key,
                        const char *expected, const cJSON *found);

/* NULL for keys that are absent or null. */
const cJSON *gptoss_config_find(const struct gptoss_config_reader *reader, const char *key);
/* Of two spellings the one that is there, else the first. */
const char *gptoss_config_either(const struct gptoss_config_reader *reader, const char *key,
                                 const char *other);

/* These leave *value alone where the key is absent. */
void gptoss_config_integer(const struct gptoss_config_reader *reader, const char *key,
                           enum gptoss_config_necessity necessity, int32_t minimum, int32_t maximum,
                           int32_t *value);
/* A number above minimum, at most maximum. */
void gptoss_config_number(const struct gptoss_config_reader *reader, const char *key,
                          double minimum, double maximum, double *value);
void gptoss_config_float(const struct gptoss_config_reader *reader, const char *key, double minimum,
                         double maximum, float *value);
void gptoss_config_bool(const struct gptoss_config_reader *reader, const char *key, bool *value);

/* These fail unless the key is absent or holds exactly this. */
void gptoss_config_demand_text(const struct gptoss_config_reader *reader, const char *key,
                               const char *text);
void gptoss_config_demand_number(const struct gptoss_config_reader *reader, const char *key,
                                 double number);
void gptoss_config_demand_bool(const struct gptoss_config_reader *reader, const char *key,
                               bool value);

/* The settings of the rotation in a config.json, "rope_parameters" or "rope_scaling"; false if
 * there are none or they are no object. */
bool gptoss_config_rope(const struct gptoss_config_reader *reader,
                        struct gptoss_config_reader *rope_out);

/* ---- config.c: YaRN, on top of the positions and of defaults in *config ---- */

/* From the settings of the rotation. */
void gptoss_config_yarn(const struct gptoss_config_reader *rope, struct gptoss_config *config);
/* From the metadata of a GGUF file. */
void gptoss_config_gguf_yarn(const struct gptoss_config_reader *reader,
                             struct gptoss_config *config);

/* ---- config_dense.c: whole configurations; *config is overwritten ---- */

void gptoss_config_llama(const struct gptoss_config_reader *reader, struct gptoss_config *config);
void gptoss_config_gguf_llama(const struct gptoss_config_reader *reader,
                              struct gptoss_config *config);
void gptoss_config_gpt2(const struct gptoss_config_reader *reader, struct gptoss_config *config);
void gptoss_config_gguf_gpt2(const struct gptoss_config_reader *reader,
                             struct gptoss_config *config);

#endif
