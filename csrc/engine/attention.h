/* The attention of all families: its weights and its forward pass. */
#ifndef GPTOSS_ENGINE_ATTENTION_H
#define GPTOSS_ENGINE_ATTENTION_H

#include "engine/pass.h"

/* Of a layer. Vectors that a family lacks have no data. */
struct gptoss_attention_weights {
    struct gptoss_vector norm, norm_bias;
    struct gptoss_weight query, key, value, output;
    struct gptoss_vector query_bias, key_bias, value_bias, output_bias;
    struct gptoss_vector sinks;
};

/* residual += output attention(rotate(query n), rotate(key n), value n), n = norm(residual); over
 * the cache, which holds the new keys and values then. */
enum gptoss_status gptoss_attend(struct gptoss_model *model, const struct gptoss_pass *pass,
                                 const struct gptoss_row_table *table, int32_t layer,
                                 const struct gptoss_attention_weights *weights,
                                 enum gptoss_rotation rotation);

#endif
