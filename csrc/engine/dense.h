/* Decoders whose every weight works on every token: the MLP that they share, and the
 * families that are made of them, llama.c and gpt2.c. */
#ifndef GPTOSS_ENGINE_DENSE_H
#define GPTOSS_ENGINE_DENSE_H

#include "engine/attention.h"
#include "engine/weights.h"

/* Vectors and matrices that a family lacks have no data. */
struct gptoss_dense_layer {
    struct gptoss_attention_weights attention;
    struct gptoss_vector mlp_norm, mlp_norm_bias;
    struct gptoss_weight gate, up, down;
    struct gptoss_vector gate_bias, up_bias, down_bias;
};

struct gptoss_dense {
    struct gptoss_weight embedding, positions, unembedding;
    struct gptoss_vector final_norm, final_norm_bias;
    struct gptoss_dense_layer *layers; /* [num_layers]; owned */
};

/* Room for the layers. */
enum gptoss_status gptoss_dense_allocate(struct gptoss_model *model, struct gptoss_error *error);
void gptoss_dense_clear(struct gptoss_model *model);

/* residual += down (silu(gate n) * up n), without a gate down gelu(up n); n = norm(residual). */
enum gptoss_status gptoss_dense_mlp(struct gptoss_model *model, const struct gptoss_pass *pass,
                                    const struct gptoss_row_table *table, int32_t layer);
/* logits = unembedding norm(residual) */
enum gptoss_status gptoss_dense_unembed(struct gptoss_model *model, const struct gptoss_pass *pass,
                                        const struct gptoss_row_table *table);

/* ---- the families: see engine/families.h ---- */

enum gptoss_status gptoss_llama_bind(struct gptoss_model *model, struct gptoss_error *error);
enum gptoss_status gptoss_llama_forward(struct gptoss_model *model, const struct gptoss_pass *pass,
                                        const struct gptoss_row_table *table);
enum gptoss_status gptoss_gpt2_bind(struct gptoss_model *model, struct gptoss_error *error);
enum gptoss_status gptoss_gpt2_forward(struct gptoss_model *model, const struct gptoss_pass *pass,
                                       const struct gptoss_row_table *table);

#endif
