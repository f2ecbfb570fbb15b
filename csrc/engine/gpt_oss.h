/* The gpt-oss family: its tensors by name, its activations, its forward pass. */
#ifndef GPTOSS_ENGINE_GPT_OSS_H
#define GPTOSS_ENGINE_GPT_OSS_H

#include "backend.h"
#include "checkpoint/checkpoint.h"
#include "engine/taps.h"

struct gptoss_gpt_oss_layer {
    struct gptoss_vector attention_norm, query_bias, key_bias, value_bias, output_bias, sinks;
    struct gptoss_weight query, key, value, output;
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
 * checks its dtype and shape. */
enum gptoss_status gptoss_gpt_oss_bind(const struct gptoss_checkpoint *checkpoint,
                                       struct gptoss_gpt_oss *weights_out,
                                       struct gptoss_error *error);
void gptoss_gpt_oss_clear(struct gptoss_gpt_oss *weights);

/* Activations of a pass of up to max_rows rows. */
struct gptoss_workspace {
    int64_t max_rows;
    struct gptoss_buffer *residual, *normed;        /* [rows][hidden] */
    struct gptoss_buffer *queries, *keys, *values;  /* [rows][heads * head_dim] */
    struct gptoss_buffer *attention;                /* [rows][num_heads * head_dim] */
    struct gptoss_buffer *sink_mass;                /* [rows][num_heads] */
    struct gptoss_buffer *router_logits;            /* [rows][num_experts] */
    struct gptoss_buffer *experts, *expert_weights; /* [rows][experts_per_token] */
    struct gptoss_buffer *activated;                /* [rows][experts_per_token][intermediate] */
    struct gptoss_buffer *expert_outputs;           /* [rows][experts_per_token][hidden] */
    struct gptoss_buffer *mlp_sum;                  /* [rows][hidden] */
    float *cosine, *sine;                           /* [rows][head_dim / 2] */
    uint64_t num_bytes;
};

struct gptoss_model;

/* One pass over a table of rows whose caches hold all earlier rows. The caller has the back end's
 * turn. */
struct gptoss_pass {
    const struct gptoss_row *rows;
    int64_t num_rows;
    int32_t num_slots;
    struct gptoss_cache *const *caches;     /* [num_slots] */
    struct gptoss_capture *const *captures; /* [num_slots]; NULL: no taps */
    const int64_t *logits_rows;             /* [num_logits_rows]; NULL: first_logits_row and on */
    int64_t first_logits_row, num_logits_rows; /* 0 rows: none */
    float *logits_out;                         /* [num_logits_rows][vocab_size] */
    uint64_t progress_done, progress_total;    /* rows before this pass and in the whole work */
};
enum gptoss_status gptoss_gpt_oss_forward(struct gptoss_model *model,
                                          const struct gptoss_pass *pass,
                                          struct gptoss_error *error);

/* Logits of rows of the last pass of this turn: those listed or, without a list, those from
 * first_row on. logits_out: [num_rows][vocab_size]. */
enum gptoss_status gptoss_gpt_oss_unembed(struct gptoss_model *model, const int64_t *rows,
                                          int64_t first_row, int64_t num_rows, float *logits_out,
                                          struct gptoss_error *error);

void gptoss_workspace_clear(struct gptoss_backend *backend, struct gptoss_workspace *workspace);

#endif
