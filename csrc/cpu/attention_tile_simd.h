/* Attention over one tile for any vector type; include after the level's simd header, which defines
 * gptoss_vector, QUERIES (those that share the loads of a value row), load_f16 (a vector from
 * halves in memory) and transpose (WIDTH vectors in place).
 *
 * Keys are transposed once, so that a vector holds one element of WIDTH keys: each of the 16 chains
 * of a dot product is then a loop of fused multiply-adds and their tree 15 additions, without a
 * shuffle. */
#include <string.h>

#include "cpu/attention_tile.h"
#include "cpu/elements.h"
#include "cpu/kernels.h"
#include "numeric/float_math.h"

enum { TILE = GPTOSS_ATTENTION_TILE, WIDTH = GPTOSS_VECTOR_LANES };
enum { VECTORS = 4 }; /* that are summed side by side: enough to hide the latency of an addition */

/* Elements d .. d + WIDTH - 1 of a row as float32, +0 past the row's end, which is not read. */
GPTOSS_INLINE gptoss_vector load_elements(const uint8_t *row, int64_t d, int64_t head_dim,
                                          bool is_f16) {
    int64_t left = head_dim - d, element = is_f16 ? 2 : 4;
    uint32_t tail[WIDTH] = {0};
    const void *elements = row + d * element;
    if (left < WIDTH)
        elements = memcpy(tail, elements, (size_t)(left * element));
    return is_f16 ? load_f16(elements) : gptoss_vector_load(elements);
}

/* Rows at `from` as floats [64][stride], stride a multiple of WIDTH; those that no query sees
 * become +0 unread. */
GPTOSS_INLINE void expand_rows(const struct gptoss_attention_tile *tile, const uint8_t *from,
                               uint64_t seen, bool is_f16, int64_t stride, float *out) {
    for (int64_t j = 0; j < TILE; ++j) {
        if (!(seen >> j & 1)) {
            memset(out + j * stride, 0, (size_t)stride * sizeof *out);
            continue;
        }
        for (int64_t d = 0; d < stride; d += WIDTH) {
            gptoss_vector elements =
                load_elements(from + j * tile->row_bytes, d, tile->head_dim, is_f16);
            gptoss_vector_store(out + j * stride + d, elements);
        }
    }
}

/* rows[64][stride] to keys[stride][64]. */
GPTOSS_INLINE void transpose_rows(const float *rows, int64_t stride, float *keys) {
    for (int64_t j = 0; j < TILE; j += WIDTH) {
        for (int64_t d = 0; d < stride; d += WIDTH) {
            gptoss_vector block[WIDTH];
            for (int64_t i = 0; i < WIDTH; ++i)
                block[i] = gptoss_vector_load(rows + (j + i) * stride + d);
            transpose(block);
            for (int64_t i = 0; i < WIDTH; ++i)
                gptoss_vector_store(keys + (d + i) * TILE + j, block[i]);
        }
    }
}

/* scores[64] = dot(query, key). Chains are visited in bit-reversed order: then the tree's partial
 * sums are a stack, and the c-th chain completes as many of them as c has trailing ones. */
GPTOSS_INLINE void score_keys(const float *keys, const float *query, int64_t head_dim,
                              float *scores) {
    static const int8_t reversed[GPTOSS_LANES] = {0, 8, 4, 12, 2, 10, 6, 14,
                                                  1, 9, 5, 13, 3, 11, 7, 15};
    for (int64_t j = 0; j < TILE; j += VECTORS * WIDTH) {
        gptoss_vector pending[5][VECTORS];
        /* Unrolled, so that pending lies in registers. */
#pragma GCC unroll 16
        for (int c = 0; c < GPTOSS_LANES; ++c) {
            gptoss_vector sum[VECTORS];
            for (int v = 0; v < VECTORS; ++v)
                sum[v] = gptoss_vector_set(0.0f);
            for (int64_t d = reversed[c]; d < head_dim; d += GPTOSS_LANES) {
                const float *key = keys + d * TILE + j;
                gptoss_vector element = gptoss_vector_set(query[d]);
                for (int v = 0; v < VECTORS; ++v)
                    sum[v] =
                        gptoss_vector_fma(gptoss_vector_load(key + v * WIDTH), element, sum[v]);
            }
            int level = 0;
            for (; c >> level & 1; ++level) {
                for (int v = 0; v < VECTORS; ++v)
                    sum[v] = gptoss_vector_add(pending[level][v], sum[v]);
            }
            for (int v = 0; v < VECTORS; ++v)
                pending[level][v] = sum[v];
        }
        for (int v = 0; v < VECTORS; ++v)
            gptoss_vector_store(scores + j + v * WIDTH, pending[4][v]);
    }
}

/* scores[64], still without the scale, become weights exp(score - maximum), +0 where the query does
 * not look. */
GPTOSS_INLINE void weigh_scores(float *scores, float scale, int first, int end, float *maximum_out,
                                float *sum_out) {
    float lanes[GPTOSS_LANES], maximum = -INFINITY;
    for (int j = 0; j < TILE; ++j)
        scores[j] = j >= first && j < end ? scores[j] * scale : -INFINITY;
    for (int l = 0; l < GPTOSS_LANES; ++l)
        lanes[l] = -INFINITY;
    for (int j = 0; j < TILE; j += GPTOSS_LANES) {
        for (int l = 0; l < GPTOSS_LANES; ++l)
            lanes[l] = scores[j + l] > lanes[l] ? scores[j + l] : lanes[l];
    }
    for (int l = 0; l < GPTOSS_LANES; ++l)
        maximum = lanes[l] > maximum ? lanes[l] : maximum;
    for (int j = 0; j < TILE; ++j) {
        float weight = gptoss_expf(scores[j] - maximum);
        scores[j] = j >= first && j < end ? weight : 0.0f;
    }
    for (int l = 0; l < GPTOSS_LANES; ++l)
        lanes[l] = 0.0f;
    for (int j = 0; j < TILE; j += GPTOSS_LANES) {
        for (int l = 0; l < GPTOSS_LANES; ++l)
            lanes[l] += scores[j + l];
    }
    /* -0 and +0 compare equal: whichever came first, the maximum is +0. */
    *maximum_out = maximum + 0.0f;
    *sum_out = gptoss_sum_lanes(lanes);
}

/* The weighted sum of the values for num_queries queries: num_vectors vectors from element d on. */
GPTOSS_INLINE void sum_values(const float *values, int64_t stride, const float (*weights)[TILE],
                              int first, int end, int num_queries, int num_vectors, int64_t d,
                              int64_t head_dim, float *out) {
    gptoss_vector sum[QUERIES][VECTORS];
    for (int i = 0; i < num_queries; ++i) {
        for (int v = 0; v < num_vectors; ++v)
            sum[i][v] = gptoss_vector_set(0.0f);
    }
    for (int64_t j = first; j < end; ++j) {
        gptoss_vector row[VECTORS];
        for (int v = 0; v < num_vectors; ++v)
            row[v] = gptoss_vector_load(values + j * stride + d + v * WIDTH);
        for (int i = 0; i < num_queries; ++i) {
            gptoss_vector weight = gptoss_vector_set(weights[i][j]);
            for (int v = 0; v < num_vectors; ++v)
                sum[i][v] = gptoss_vector_fma(weight, row[v], sum[i][v]);
        }
    }
    bool whole = d + num_vectors * WIDTH <= head_dim;
    float rows[QUERIES][VECTORS * WIDTH];
    for (int i = 0; i < num_queries; ++i) {
        for (int v = 0; v < num_vectors; ++v)
            gptoss_vector_store((whole ? out + i * head_dim + d : rows[i]) + v * WIDTH, sum[i][v]);
    }
    /* Not between the stores: a call takes the sums' registers. */
    for (int i = 0; i < num_queries && !whole; ++i)
        memcpy(out + i * head_dim + d, rows[i], (size_t)(head_dim - d) * sizeof(float));
}

/* The queries from `query` on, num_queries of them, that all see keys first .. end - 1. */
GPTOSS_INLINE void attend(const struct gptoss_attention_tile *tile, const float *keys,
                          const float *values, int64_t stride, int64_t query, int num_queries) {
    int64_t head_dim = tile->head_dim, d = 0;
    int first = tile->first_key[query], end = tile->end_key[query];
    float weights[QUERIES][TILE];
    for (int i = 0; i < num_queries; ++i) {
        score_keys(keys, tile->queries + (query + i) * tile->query_stride, head_dim, weights[i]);
        weigh_scores(weights[i], tile->scale, first, end, tile->maximum + query + i,
                     tile->sum + query + i);
    }
    float *out = tile->value + query * head_dim;
    for (; d + (VECTORS - 1) * WIDTH < head_dim; d += VECTORS * WIDTH) {
        sum_values(values, stride, (const float(*)[TILE])weights, first, end, num_queries, VECTORS,
                   d, head_dim, out);
    }
    for (; d < head_dim; d += WIDTH) {
        sum_values(values, stride, (const float(*)[TILE])weights, first, end, num_queries, 1, d,
                   head_dim, out);
    }
}

/* Whether QUERIES queries from `query` on exist and see the same keys. */
GPTOSS_INLINE bool is_uniform(const struct gptoss_attention_tile *tile, int64_t query) {
    if (tile->num_queries - query < QUERIES)
        return false;
    for (int i = 1; i < QUERIES; ++i) {
        if (tile->first_key[query + i] != tile->first_key[query])
            return false;
        if (tile->end_key[query + i] != tile->end_key[query])
            return false;
    }
    return true;
}

GPTOSS_INLINE void attention_tile(const struct gptoss_attention_tile *tile, float *scratch,
                                  bool is_f16) {
    int64_t stride = (tile->head_dim + WIDTH - 1) / WIDTH * WIDTH;
    float *keys = scratch, *values = keys + TILE * stride;
    uint64_t seen = gptoss_attention_keys_seen(tile);
    /* The keys' rows pass through the room that the values take next. */
    expand_rows(tile, tile->keys, seen, is_f16, stride, values);
    transpose_rows(values, stride, keys);
    expand_rows(tile, tile->values, seen, is_f16, stride, values);
    for (int64_t query = 0; query < tile->num_queries;) {
        if (is_uniform(tile, query)) {
            attend(tile, keys, values, stride, query, QUERIES);
            query += QUERIES;
        } else {
            attend(tile, keys, values, stride, query, 1);
            query += 1;
        }
    }
}

gptoss_attention_tile_fn GPTOSS_KERNEL(attention_tile_f32), GPTOSS_KERNEL(attention_tile_f16);

void GPTOSS_KERNEL(attention_tile_f32)(const struct gptoss_attention_tile *tile, float *scratch) {
    attention_tile(tile, scratch, false);
}

void GPTOSS_KERNEL(attention_tile_f16)(const struct gptoss_attention_tile *tile, float *scratch) {
    attention_tile(tile, scratch, true);
}
