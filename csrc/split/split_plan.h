/* Which member of a split back end holds which weights. */
#ifndef GPTOSS_SPLIT_SPLIT_PLAN_H
#define GPTOSS_SPLIT_SPLIT_PLAN_H

#include "split/split.h"

/* Bytes on a GPU, as a pass that only tells its weights has shown them. */
struct gptoss_split_sizes {
    int32_t num_layers;
    uint64_t embedding, unembedding;
    uint64_t shared; /* of both, counted once where they lie together: tied weights */
    uint64_t layers[GPTOSS_MAX_LAYERS], experts[GPTOSS_MAX_LAYERS]; /* layers: but for experts */
    uint64_t row_bytes, max_row_bytes; /* of a row of all activations, and of the largest */
    uint64_t part_bytes;               /* of a row's attention to a part of the keys */
    uint64_t logits_bytes;             /* of a row of logits */
    uint64_t kv_bytes;                 /* of a position of a layer, in float16 */
    int64_t num_positions;             /* to keep room for, at most */
};

struct gptoss_split_plan {
    int embedding, unembedding; /* members */
    uint8_t layers[GPTOSS_MAX_LAYERS], experts[GPTOSS_MAX_LAYERS];
    uint64_t weight_bytes[GPTOSS_MAX_MEMBERS], cache_bytes[GPTOSS_MAX_MEMBERS];
    uint64_t activation_bytes; /* kept free on each GPU */
};

/* members: as of gptoss_split_create; has_cpu: the last one is. GPTOSS_ERROR_MEMORY: not one layer
 * fits, with the bytes that are needed as expected. */
enum gptoss_status gptoss_split_make_plan(const struct gptoss_split_sizes *sizes,
                                          const struct gptoss_split_member *members,
                                          int num_members, bool has_cpu,
                                          struct gptoss_split_plan *plan,
                                          struct gptoss_error *error);

#endif
