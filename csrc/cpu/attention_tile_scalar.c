/* Attention over one tile, the specification: see gptoss_attention_tile in kernels.h. */
#include "cpu/attention_tile.h"
#include "cpu/elements.h"
#include "cpu/kernels.h"
#include "numeric/float_math.h"

gptoss_attention_tile_fn GPTOSS_KERNEL(attention_tile_f32), GPTOSS_KERNEL(attention_tile_f16);

static float dot(const float *query, const float *key, int64_t n) {
    float lanes[GPTOSS_LANES] = {0};
    for (int64_t d = 0; d < n; ++d)
        lanes[d % GPTOSS_LANES] = fmaf(key[d], query[d], lanes[d % GPTOSS_LANES]);
    return gptoss_sum_lanes(lanes);
}

/* One query over the decoded rows [64][head_dim]. */
static void attend(const struct gptoss_attention_tile *tile, int64_t query, const float *keys,
                   const float *values) {
    const float *q = tile->queries + query * tile->query_stride;
    int64_t n = tile->head_dim;
    int first = tile->first_key[query], end = tile->end_key[query];
    float weights[GPTOSS_ATTENTION_TILE], lanes[GPTOSS_LANES] = {0}, maximum = -INFINITY;
    for (int j = first; j < end; ++j) {
        weights[j] = dot(q, keys + j * n, n) * tile->scale;
        maximum = weights[j] > maximum ? weights[j] : maximum;
    }
    for (int j = first; j < end; ++j) {
        weights[j] = gptoss_expf(weights[j] - maximum);
        lanes[j % GPTOSS_LANES] += weights[j];
    }
    /* -0 and +0 compare equal: whichever came first, the maximum is +0. */
    tile->maximum[query] = maximum + 0.0f;
    tile->sum[query] = gptoss_sum_lanes(lanes);
    float *value = tile->value + query * n;
    for (int64_t d = 0; d < n; ++d)
        value[d] = 0;
    for (int j = first; j < end; ++j) {
        for (int64_t d = 0; d < n; ++d)
            value[d] = fmaf(weights[j], values[j * n + d], value[d]);
    }
}

static void attention_tile(const struct gptoss_attention_tile *tile, enum gptoss_dtype dtype,
                           float *scratch) {
    int64_t n = tile->head_dim;
    float *keys = scratch, *values = keys + GPTOSS_ATTENTION_TILE * n;
    uint64_t seen = gptoss_attention_keys_seen(tile);
    for (int64_t j = 0; j < GPTOSS_ATTENTION_TILE; ++j) {
        if (!(seen >> j & 1))
            continue;
        gptoss_decode_elements(dtype, (const uint8_t *)tile->keys + j * tile->row_bytes, (size_t)n,
                               keys + j * n);
        gptoss_decode_elements(dtype, (const uint8_t *)tile->values + j * tile->row_bytes,
                               (size_t)n, values + j * n);
    }
    for (int64_t query = 0; query < tile->num_queries; ++query)
        attend(tile, query, keys, values);
}

void GPTOSS_KERNEL(attention_tile_f32)(const struct gptoss_attention_tile *tile, float *scratch) {
    attention_tile(tile, GPTOSS_DTYPE_F32, scratch);
}

void GPTOSS_KERNEL(attention_tile_f16)(const struct gptoss_attention_tile *tile, float *scratch) {
    attention_tile(tile, GPTOSS_DTYPE_F16, scratch);
}
