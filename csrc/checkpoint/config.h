/* The configuration of a checkpoint: config.json in the spelling of Hugging Face (rope_scaling or
 * rope_parameters) or of the original release of gpt-oss (rope_ntk_alpha and so on; known by having
 * no model_type), or the metadata that llama.cpp's converter writes into a GGUF file. */
#ifndef GPTOSS_CHECKPOINT_CONFIG_H
#define GPTOSS_CHECKPOINT_CONFIG_H

#include <cjson/cJSON.h>

#include "checkpoint/quantization.h"
#include "gptoss.h"

/* Every value is checked for its type and range, so that sizes computed from them fit 64 bits: at
 * most 2^20 hidden or intermediate, 2^24 tokens, 4096 heads or experts, 1024 per head,
 * GPTOSS_MAX_LAYERS layers, 2^30 positions. Sizes must be stated; the rest, where absent, is what
 * the reference implementations take. sliding_window null: no layer slides, and sliding_window is
 * 0. *quantization_out: zeroed; free it in any case. */
enum gptoss_status gptoss_config_read(const char *path, struct gptoss_config *config_out,
                                      struct gptoss_quantization *quantization_out,
                                      struct gptoss_error *error);

/* GPTOSS_ERROR_UNSUPPORTED that names the architectures there are. */
enum gptoss_status gptoss_config_unsupported(const char *file, const cJSON *architecture,
                                             struct gptoss_error *error);

/* What begins the keys of an architecture in GGUF files, "llama."; NULL if it is not supported. */
const char *gptoss_config_gguf_prefix(const char *architecture);

/* keys: the metadata that begin with the prefix, without it. Those of gpt-oss ("gpt-oss.", or
 * "gptoss." as Ollama's converter has it, which leaves more out) say nothing of the pattern of the
 * layers, the limits of SwiGLU and the truncation of YaRN's range: those are the released
 * models'. */
enum gptoss_status gptoss_config_from_gguf(const char *path, const char *prefix, const cJSON *keys,
                                           struct gptoss_config *config_out,
                                           struct gptoss_error *error);

#endif
