/* Named activations that a generator keeps on request. */
#ifndef GPTOSS_ENGINE_TAPS_H
#define GPTOSS_ENGINE_TAPS_H

#include "gptoss.h"

/* Taps of a layer, in the order a token meets them. Models without experts lack those of sinks,
 * router and experts. */
enum gptoss_layer_tap {
    GPTOSS_TAP_ATTN_NORM,
    GPTOSS_TAP_Q, /* after rope */
    GPTOSS_TAP_K, /* after rope, before rounding to the cache's type */
    GPTOSS_TAP_V,
    GPTOSS_TAP_ATTN_OUTPUT, /* before the output projection */
    GPTOSS_TAP_SINK_MASS,   /* attention probability on the sink */
    GPTOSS_TAP_ATTN_RESIDUAL,
    GPTOSS_TAP_MLP_NORM,
    GPTOSS_TAP_ROUTER_LOGITS,
    GPTOSS_TAP_ROUTER_EXPERTS, /* in rank order */
    GPTOSS_TAP_ROUTER_WEIGHTS,
    GPTOSS_TAP_EXPERT_OUTPUTS, /* of each chosen expert, not weighted */
    GPTOSS_TAP_MLP_OUTPUT,     /* of experts the weighted sum */
    GPTOSS_TAP_RESIDUAL,
    GPTOSS_NUM_LAYER_TAPS
};

/* Index among the model's taps: the embedding, every layer's, the final norm. */
static inline size_t gptoss_embedding_tap(void) {
    return 0;
}
size_t gptoss_layer_tap_index(const struct gptoss_config *config, int32_t layer,
                              enum gptoss_layer_tap tap);
static inline size_t gptoss_final_norm_tap(const struct gptoss_config *config) {
    return gptoss_layer_tap_index(config, config->num_layers, (enum gptoss_layer_tap)0);
}

void gptoss_tap_describe(const struct gptoss_config *config, size_t index,
                         struct gptoss_tap *tap_out);
/* Bytes of one row. */
uint64_t gptoss_tap_row_bytes(const struct gptoss_tap *tap);

/* What one call keeps: for each captured tap, memory for all rows of the call. */
struct gptoss_capture {
    size_t num_taps;
    uint8_t *mask;    /* [num_taps] */
    void **data;      /* [num_taps], NULL where nothing is kept */
    int64_t num_rows; /* rows kept so far, the same for all taps */
    int64_t max_rows;
};

bool gptoss_capture_wants(const struct gptoss_capture *capture, size_t tap);
/* Room for num_rows rows of every tap wanted; what was kept before is freed. */
enum gptoss_status gptoss_capture_begin(struct gptoss_capture *capture,
                                        const struct gptoss_config *config, int64_t num_rows,
                                        struct gptoss_error *error);
/* Where the rows of the current pass go; NULL if the tap is not wanted. */
void *gptoss_capture_rows(struct gptoss_capture *capture, const struct gptoss_config *config,
                          size_t tap);
void gptoss_capture_drop(struct gptoss_capture *capture);

#endif
