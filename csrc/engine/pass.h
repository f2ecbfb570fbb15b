/* A forward pass over a table of rows: what all families share of it. */
#ifndef GPTOSS_ENGINE_PASS_H
#define GPTOSS_ENGINE_PASS_H

#include "backend.h"
#include "engine/taps.h"

struct gptoss_model;

/* Activations of a pass of up to max_rows rows. */
struct gptoss_workspace {
    int64_t max_rows;
    struct gptoss_buffer *residual, *normed;        /* [rows][hidden] */
    struct gptoss_buffer *queries, *keys, *values;  /* [rows][heads * head_dim] */
    struct gptoss_buffer *attention;                /* [rows][num_heads * head_dim] */
    struct gptoss_buffer *sink_mass;                /* [rows][num_heads] */
    struct gptoss_buffer *router_logits;            /* [rows][num_experts] */
    struct gptoss_buffer *experts, *expert_weights; /* [rows][experts_per_token] */
    struct gptoss_buffer *activated;      /* [rows][experts_per_token or 1][intermediate] */
    struct gptoss_buffer *expert_outputs; /* [rows][experts_per_token][hidden] */
    struct gptoss_buffer *mlp_output;     /* [rows][hidden] */
    float *cosine, *sine;                 /* [rows][head_dim / 2] */
    struct gptoss_norm final_norm;        /* of the last pass, as its unembedding */
    const struct gptoss_weight *unembedding;
    uint64_t num_bytes; /* of cosine and sine; the back end counts the buffers */
};
void gptoss_workspace_clear(struct gptoss_backend *backend, struct gptoss_workspace *workspace);

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
    bool is_deferred;                          /* logits are there at the end of the turn */
    uint64_t progress_done, progress_total;    /* rows before this pass and in the whole work */
};
enum gptoss_status gptoss_pass_run(struct gptoss_model *model, const struct gptoss_pass *pass,
                                   struct gptoss_error *error);

/* After a deferred pass: guesses the token of the next (backend.h). */
enum gptoss_status gptoss_pass_guess(struct gptoss_model *model, const struct gptoss_guess *guess,
                                     struct gptoss_error *error);
/* Results of the deferred pass `index` of the turn, when they are there. */
enum gptoss_status gptoss_pass_take(struct gptoss_model *model, int32_t index,
                                    struct gptoss_error *error);

/* Brings the weights of a newly opened model to where its back end wants them. */
enum gptoss_status gptoss_pass_load(struct gptoss_model *model, gptoss_poll_fn poll, void *user,
                                    struct gptoss_error *error);

/* Logits of rows of the last pass of this turn: those listed or, without a list, those from
 * first_row on. logits_out: [num_rows][vocab_size]. */
enum gptoss_status gptoss_pass_logits(struct gptoss_model *model, const int64_t *rows,
                                      int64_t first_row, int64_t num_rows, float *logits_out,
                                      struct gptoss_error *error);

/* ---- for the families' forward functions ---- */

/* Whether any slot's generator keeps a layer's tap. */
bool gptoss_pass_wants(const struct gptoss_model *model, const struct gptoss_pass *pass,
                       int32_t layer, enum gptoss_layer_tap tap);
/* Copies the rows of a tap to the generators that keep it. */
void gptoss_pass_keep(struct gptoss_model *model, const struct gptoss_pass *pass, int32_t layer,
                      enum gptoss_layer_tap tap, struct gptoss_buffer *buffer);

/* LayerNorm where there is a bias, with data; else RMSNorm. */
struct gptoss_norm gptoss_pass_norm(const struct gptoss_config *config,
                                    const struct gptoss_vector *gain,
                                    const struct gptoss_vector *bias);

/* residual = embedding[token], plus positions[position] unless NULL. */
enum gptoss_status gptoss_pass_embed(struct gptoss_model *model, const struct gptoss_pass *pass,
                                     const struct gptoss_row_table *table,
                                     const struct gptoss_weight *embedding,
                                     const struct gptoss_weight *positions);
/* Tells how far the pass is when a layer begins. */
void gptoss_pass_progress(struct gptoss_model *model, const struct gptoss_pass *pass,
                          int32_t layer);
/* logits = weight norm(residual), of the rows asked for. */
enum gptoss_status gptoss_pass_unembed(struct gptoss_model *model, const struct gptoss_pass *pass,
                                       const struct gptoss_row_table *table,
                                       struct gptoss_norm norm, const struct gptoss_weight *weight);

#endif
