#include "engine/taps.h"

#include <inttypes.h>
#include <stdio.h>

#include "platform/allocator.h"
#include "status.h"

static bool has_tap(const struct gptoss_config *config, enum gptoss_layer_tap tap) {
    switch (tap) {
    case GPTOSS_TAP_SINK_MASS:
    case GPTOSS_TAP_ROUTER_LOGITS:
    case GPTOSS_TAP_ROUTER_EXPERTS:
    case GPTOSS_TAP_ROUTER_WEIGHTS:
    case GPTOSS_TAP_EXPERT_OUTPUTS: return config->num_experts > 0;
    default: return true;
    }
}

/* How many of a layer's taps come before this one. */
static size_t rank_of(const struct gptoss_config *config, int tap) {
    size_t rank = 0;
    for (int before = 0; before < tap; ++before)
        rank += has_tap(config, (enum gptoss_layer_tap)before);
    return rank;
}

size_t gptoss_layer_tap_index(const struct gptoss_config *config, int32_t layer,
                              enum gptoss_layer_tap tap) {
    return 1 + (size_t)layer * rank_of(config, GPTOSS_NUM_LAYER_TAPS) + rank_of(config, tap);
}

static void set_shape(struct gptoss_tap *tap, enum gptoss_dtype dtype, int64_t first,
                      int64_t second) {
    tap->dtype = dtype;
    tap->num_dims = second > 0 ? 2 : 1;
    tap->shape[0] = first;
    tap->shape[1] = second;
}

static void describe_layer_tap(const struct gptoss_config *config, enum gptoss_layer_tap which,
                               struct gptoss_tap *tap) {
    const enum gptoss_dtype f32 = GPTOSS_DTYPE_F32;
    int64_t hidden = config->hidden_size, chosen = config->experts_per_token,
            head_dim = config->head_dim;
    switch (which) {
    case GPTOSS_TAP_Q:
    case GPTOSS_TAP_ATTN_OUTPUT: set_shape(tap, f32, config->num_heads, head_dim); break;
    case GPTOSS_TAP_K:
    case GPTOSS_TAP_V: set_shape(tap, f32, config->num_kv_heads, head_dim); break;
    case GPTOSS_TAP_SINK_MASS: set_shape(tap, f32, config->num_heads, 0); break;
    case GPTOSS_TAP_ROUTER_LOGITS: set_shape(tap, f32, config->num_experts, 0); break;
    case GPTOSS_TAP_ROUTER_EXPERTS: set_shape(tap, GPTOSS_DTYPE_I32, chosen, 0); break;
    case GPTOSS_TAP_ROUTER_WEIGHTS: set_shape(tap, f32, chosen, 0); break;
    case GPTOSS_TAP_EXPERT_OUTPUTS: set_shape(tap, f32, chosen, hidden); break;
    default: set_shape(tap, f32, hidden, 0);
    }
}

void gptoss_tap_describe(const struct gptoss_config *config, size_t index,
                         struct gptoss_tap *tap_out) {
    static const char *const names[GPTOSS_NUM_LAYER_TAPS] = {
        [GPTOSS_TAP_ATTN_NORM] = "attn_norm",
        [GPTOSS_TAP_Q] = "q",
        [GPTOSS_TAP_K] = "k",
        [GPTOSS_TAP_V] = "v",
        [GPTOSS_TAP_ATTN_OUTPUT] = "attn_output",
        [GPTOSS_TAP_SINK_MASS] = "sink_mass",
        [GPTOSS_TAP_ATTN_RESIDUAL] = "attn_residual",
        [GPTOSS_TAP_MLP_NORM] = "mlp_norm",
        [GPTOSS_TAP_ROUTER_LOGITS] = "router_logits",
        [GPTOSS_TAP_ROUTER_EXPERTS] = "router_experts",
        [GPTOSS_TAP_ROUTER_WEIGHTS] = "router_weights",
        [GPTOSS_TAP_EXPERT_OUTPUTS] = "expert_outputs",
        [GPTOSS_TAP_MLP_OUTPUT] = "mlp_output",
        [GPTOSS_TAP_RESIDUAL] = "residual",
    };
    *tap_out = (struct gptoss_tap){0};
    set_shape(tap_out, GPTOSS_DTYPE_F32, config->hidden_size, 0);
    if (index == gptoss_embedding_tap()) {
        snprintf(tap_out->name, sizeof tap_out->name, "embedding");
    } else if (index == gptoss_final_norm_tap(config)) {
        snprintf(tap_out->name, sizeof tap_out->name, "final_norm");
    } else {
        size_t num_taps = rank_of(config, GPTOSS_NUM_LAYER_TAPS);
        size_t layer = (index - 1) / num_taps, rank = (index - 1) % num_taps;
        int which = 0;
        while (rank_of(config, which) < rank || !has_tap(config, (enum gptoss_layer_tap)which))
            ++which;
        snprintf(tap_out->name, sizeof tap_out->name, "layers.%zu.%s", layer, names[which]);
        describe_layer_tap(config, (enum gptoss_layer_tap)which, tap_out);
    }
}

uint64_t gptoss_tap_row_bytes(const struct gptoss_tap *tap) {
    uint64_t num_bytes = 4;
    for (int32_t d = 0; d < tap->num_dims; ++d)
        num_bytes *= (uint64_t)tap->shape[d];
    return num_bytes;
}

bool gptoss_capture_wants(const struct gptoss_capture *capture, size_t tap) {
    return capture != NULL && capture->mask != NULL && capture->mask[tap];
}

void gptoss_capture_drop(struct gptoss_capture *capture) {
    for (size_t tap = 0; capture->data != NULL && tap < capture->num_taps; ++tap) {
        gptoss_free(capture->data[tap]);
        capture->data[tap] = NULL;
    }
    capture->num_rows = capture->max_rows = 0;
}

enum gptoss_status gptoss_capture_begin(struct gptoss_capture *capture,
                                        const struct gptoss_config *config, int64_t num_rows,
                                        struct gptoss_error *error) {
    gptoss_capture_drop(capture);
    for (size_t index = 0; index < capture->num_taps; ++index) {
        if (!gptoss_capture_wants(capture, index))
            continue;
        struct gptoss_tap tap;
        gptoss_tap_describe(config, index, &tap);
        capture->data[index] = gptoss_allocate((size_t)num_rows, gptoss_tap_row_bytes(&tap));
        if (capture->data[index] != NULL)
            continue;
        gptoss_capture_drop(capture);
        return gptoss_error_set(error, GPTOSS_ERROR_MEMORY,
                                "cannot keep %" PRId64 " rows of tap %s (%" PRIu64
                                " bytes a row); prefill fewer "
                                "tokens at a time or capture fewer taps",
                                num_rows, tap.name, gptoss_tap_row_bytes(&tap));
    }
    capture->max_rows = num_rows;
    return GPTOSS_OK;
}

void *gptoss_capture_rows(struct gptoss_capture *capture, const struct gptoss_config *config,
                          size_t tap) {
    if (!gptoss_capture_wants(capture, tap) || capture->data[tap] == NULL)
        return NULL;
    struct gptoss_tap description;
    gptoss_tap_describe(config, tap, &description);
    return (uint8_t *)capture->data[tap] +
           (uint64_t)capture->num_rows * gptoss_tap_row_bytes(&description);
}
