/* The gpt-oss family: its tensors by name, its forward pass. */
#ifndef GPTOSS_ENGINE_GPT_OSS_H
#define GPTOSS_ENGINE_GPT_OSS_H

#include "backend.h"
#include "engine/attention.h"

struct gptoss_gpt_oss_layer {
    struct gptoss_attention_weights attention;
    struct gptoss_vector mlp_norm, router_bias, gate_up_bias, down_bias;
    struct gptoss_weight router, gate_up, down;
    /* GGUF: gate_up is the gate alone and this is up; else without data, and rows of gate and up
     * take turns in gate_up. */
    struct gptoss_weight up;
    struct gptoss_vector up_bias;
};

struct gptoss_gpt_oss {
    struct gptoss_weight embedding, unembedding;
    struct gptoss_vector final_norm;
    struct gptoss_gpt_oss_layer *layers; /* [num_layers]; owned */
};

/* Finds every tensor, in the Hugging Face or the original layout or under llama.cpp's names, and
 * checks its dtype and shape. What is held on failure goes with clear. */
enum gptoss_status gptoss_gpt_oss_bind(struct gptoss_model *model, struct gptoss_error *error);
void gptoss_gpt_oss_clear(struct gptoss_model *model);

enum gptoss_status gptoss_gpt_oss_forward(struct gptoss_model *model,
                                          const struct gptoss_pass *pass,
                                          const struct gptoss_row_table *table);

#endif
