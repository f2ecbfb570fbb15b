/* Which files a checkpoint consists of. */
#ifndef GPTOSS_CHECKPOINT_LAYOUT_H
#define GPTOSS_CHECKPOINT_LAYOUT_H

#include <cjson/cJSON.h>

#include "gptoss.h"

struct gptoss_layout {
    bool
        is_gguf; /* one weight file or the parts of one, in order; the first is the configuration */
    char *config_path;
    char **weight_paths;
    size_t num_weight_paths;
    cJSON *index; /* model.safetensors.index.json, or NULL */
    const cJSON
        *weight_map; /* in index: tensor name to file name; every value is a plain file name */
    char *index_path;
};

/* path is a directory or one .safetensors or .gguf file. In a directory the weights are, first
 * found: the files that model.safetensors.index.json names (all in this directory),
 * model.safetensors, the only *.safetensors file, all with config.json; without that or without
 * .safetensors files the only *.gguf file, or the only set of parts of one. A file called
 * NAME-00002-of-00003.gguf stands for all three, which must be there. needs_config: whether
 * safetensors need their config.json; without, config_path may be where nothing is. No weight file
 * is opened. A path where nothing is: GPTOSS_ERROR_IO; one without a checkpoint:
 * GPTOSS_ERROR_FORMAT. On failure nothing is held. */
enum gptoss_status gptoss_layout_find(const char *path, bool needs_config,
                                      struct gptoss_layout *layout_out, struct gptoss_error *error);
void gptoss_layout_free(struct gptoss_layout *layout);

#endif
