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
enum { CACHE_LINE = 64, PARTY = 8 };
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

/* Asks for row j of the tile that most likely comes next, the one behind this. With few queries
 * there is too little work between the tiles for the hardware to read ahead by itself. */
GPTOSS_INLINE void prefetch_next(const struct gptoss_attention_tile *tile, const uint8_t *from,
                                 int64_t j, int64_t row_bytes) {
    uintptr_t next = (uintptr_t)from + (uintptr_t)((j + TILE) * tile->row_bytes);
    for (int64_t byte = 0; byte < row_bytes; byte += CACHE_LINE)
        __builtin_prefetch((const void *)(next + (uintptr_t)byte));
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
        prefetch_next(tile, from, j, tile->head_dim * (is_f16 ? 2 : 4));
    }
}

/* Keys of which all are seen, in whole vectors, to keys[stride][64]. */
GPTOSS_INLINE void transpose_whole(const struct gptoss_attention_tile *tile, bool is_f16,
                                   float *keys) {
    int64_t head_dim = tile->head_dim, element = is_f16 ? 2 : 4;
    for (int64_t j = 0; j < TILE; j += WIDTH) {
        const uint8_t *rows = (const uint8_t *)tile->keys + j * tile->row_bytes;
        for (int64_t i = 0; i < WIDTH; ++i)
            prefetch_next(tile, tile->keys, j + i, head_dim * element);
        for (int64_t d = 0; d < head_dim; d += WIDTH) {
            gptoss_vector block[WIDTH];
            for (int64_t i = 0; i < WIDTH; ++i)
                block[i] = load_elements(rows + i * tile->row_bytes, d, head_dim, is_f16);
            transpose(block);
            for (int64_t i = 0; i < WIDTH; ++i)
                gptoss_vector_store(keys + (d + i) * TILE + j, block[i]);
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

/* scores[i][64] = dot(query i, key) for one or two queries, which share the loads of the keys and
 * hide each other's latencies. Chains are visited in bit-reversed order: then the tree's partial
 * sums are a stack, and the c-th chain completes as many of them as c has trailing ones. */
GPTOSS_INLINE void score_keys(const float *keys, const float *queries, int64_t query_stride,
                              int num_queries, int64_t head_dim, float (*scores)[TILE]) {
    static const int8_t reversed[GPTOSS_LANES] = {0, 8, 4, 12, 2, 10, 6, 14,
                                                  1, 9, 5, 13, 3, 11, 7, 15};
    for (int64_t j = 0; j < TILE; j += VECTORS * WIDTH) {
        gptoss_vector pending[5][2][VECTORS];
        /* Unrolled, so that levels are known to the compiler. */
#pragma GCC unroll 16
        for (int c = 0; c < GPTOSS_LANES; ++c) {
            gptoss_vector sum[2][VECTORS];
            for (int i = 0; i < num_queries; ++i)
                for (int v = 0; v < VECTORS; ++v)
                    sum[i][v] = gptoss_vector_set(0.0f);
            for (int64_t d = reversed[c]; d < head_dim; d += GPTOSS_LANES)
                for (int v = 0; v < VECTORS; ++v) {
                    gptoss_vector key = gptoss_vector_load(keys + d * TILE + j + v * WIDTH);
                    for (int i = 0; i < num_queries; ++i)
                        sum[i][v] = gptoss_vector_fma(
                            key, gptoss_vector_set(queries[i * query_stride + d]), sum[i][v]);
                }
            int level = 0;
            for (; c >> level & 1; ++level)
                for (int i = 0; i < num_queries; ++i)
                    for (int v = 0; v < VECTORS; ++v)
                        sum[i][v] = gptoss_vector_add(pending[level][i][v], sum[i][v]);
            for (int i = 0; i < num_queries; ++i)
                for (int v = 0; v < VECTORS; ++v)
                    pending[level][i][v] = sum[i][v];
        }
        for (int i = 0; i < num_queries; ++i)
            for (int v = 0; v < VECTORS; ++v)
                gptoss_vector_store(scores[i] + j + v * WIDTH, pending[4][i][v]);
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

/* The weighted sums of num_queries queries from `query` on that all see the same keys. */
GPTOSS_INLINE void weigh_values(const struct gptoss_attention_tile *tile, const float *values,
                                int64_t stride, const float (*weights)[TILE], int64_t query,
                                int num_queries) {
    int64_t head_dim = tile->head_dim, d = 0;
    int first = tile->first_key[query], end = tile->end_key[query];
    float *out = tile->value + query * head_dim;
    for (; d + (VECTORS - 1) * WIDTH < head_dim; d += VECTORS * WIDTH)
        sum_values(values, stride, weights, first, end, num_queries, VECTORS, d, head_dim, out);
    for (; d < head_dim; d += WIDTH)
        sum_values(values, stride, weights, first, end, num_queries, 1, d, head_dim, out);
}

/* Whether QUERIES of the queries query .. end - 1 exist and see the same keys. */
GPTOSS_INLINE bool is_uniform(const struct gptoss_attention_tile *tile, int64_t query,
                              int64_t end) {
    if (end - query < QUERIES)
        return false;
    for (int i = 1; i < QUERIES; ++i) {
        if (tile->first_key[query + i] != tile->first_key[query])
            return false;
        if (tile->end_key[query + i] != tile->end_key[query])
            return false;
    }
    return true;
}

/* Queries query .. end - 1, PARTY at most: first all their scores, then all their sums, so that
 * keys and values take turns in the first-level cache once for all of them. */
GPTOSS_INLINE void attend(const struct gptoss_attention_tile *tile, const float *keys,
                          const float *values, int64_t stride, int64_t query, int64_t end) {
    float weights[PARTY][TILE];
    int64_t first = query, num_queries = end - query, i = 0;
    const float *rows = tile->queries + first * tile->query_stride;
    for (; i + 2 <= num_queries; i += 2)
        score_keys(keys, rows + i * tile->query_stride, tile->query_stride, 2, tile->head_dim,
                   weights + i);
    if (i < num_queries)
        score_keys(keys, rows + i * tile->query_stride, tile->query_stride, 1, tile->head_dim,
                   weights + i);
    for (i = 0; i < num_queries; ++i)
        weigh_scores(weights[i], tile->scale, tile->first_key[first + i], tile->end_key[first + i],
                     tile->maximum + first + i, tile->sum + first + i);
    while (query < end) {
        const float(*party)[TILE] = (const float(*)[TILE])(weights + (query - first));
        if (is_uniform(tile, query, end)) {
            weigh_values(tile, values, stride, party, query, QUERIES);
            query += QUERIES;
        } else {
            weigh_values(tile, values, stride, party, query, 1);
            query += 1;
        }
    }
}

GPTOSS_INLINE void attention_tile(const struct gptoss_attention_tile *tile, float *scratch,
                                  bool is_f16) {
    int64_t stride = (tile->head_dim + WIDTH - 1) / WIDTH * WIDTH;
    float *keys = scratch, *values = keys + TILE * stride;
    uint64_t seen = gptoss_attention_keys_seen(tile);
    if (seen == UINT64_MAX && stride == tile->head_dim) {
        transpose_whole(tile, is_f16, keys);
    } else {
        /* The keys' rows pass through the room that the values take next. */
        expand_rows(tile, tile->keys, seen, is_f16, stride, values);
        transpose_rows(values, stride, keys);
    }
    expand_rows(tile, tile->values, seen, is_f16, stride, values);
    for (int64_t query = 0; query < tile->num_queries; query += PARTY) {
        int64_t left = tile->num_queries - query;
        attend(tile, keys, values, stride, query, query + (left < PARTY ? left : PARTY));
    }
}

gptoss_attention_tile_fn GPTOSS_KERNEL(attention_tile_f32), GPTOSS_KERNEL(attention_tile_f16);

void GPTOSS_KERNEL(attention_tile_f32)(const struct gptoss_attention_tile *tile, float *scratch) {
    attention_tile(tile, scratch, false);
}

void GPTOSS_KERNEL(attention_tile_f16)(const struct gptoss_attention_tile *tile, float *scratch) {
    attention_tile(tile, scratch, true);
}
