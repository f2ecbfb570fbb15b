/* Attention over one tile of keys at precision bf16: queries, keys, values and weights rounded to
 * bf16, both products by tdpbf16ps. Tiles hold keys, or elements of values, in rows and up to 16
 * queries in columns, so that all that is done of scores is done of 16 queries side by side:
 *
 *     s_j = dot(k_j, q) * scale;  maximum = max s_j;  p_j = bf16(exp(s_j - maximum))
 *     sum = dp(p_2i and p_2i+1, ones, sum);  value[d] = dot(v[d], p)
 *
 * Keys that a query does not see have weight 0. What their values are does not show as long as they
 * are finite, so one query alone and many give the same bits. */
#include "cpu/attention_tile.h"
#include "cpu/bf16_rows.h"
#include "numeric/float_math.h"

enum { KEYS = GPTOSS_ATTENTION_TILE, QUERIES = 16, TILE_BYTES = 1024, ROW_BYTES = 64 };
enum { KEY_TILES = KEYS / 16, KEY_GROUPS = KEYS / GPTOSS_BF16_GROUP };

gptoss_attention_tile_fn GPTOSS_KERNEL(attention_tile_f32), GPTOSS_KERNEL(attention_tile_f16);

/* Operands as tiles. */
struct operands {
    uint8_t (*keys)[KEY_TILES][16][ROW_BYTES];    /* [group of 32 elements][16 keys a tile] */
    uint8_t (*values)[KEY_GROUPS][16][ROW_BYTES]; /* [16 elements a tile][group of 32 keys] */
    uint8_t (*queries)[16][ROW_BYTES];            /* [group of 32 elements][pair] */
    bool values_are_finite;
    int64_t num_groups, num_value_tiles;
};

/* What becomes of 16 queries. */
struct party {
    _Alignas(64) float scores[KEYS][QUERIES];
    _Alignas(64) uint8_t weights[KEY_GROUPS][16][ROW_BYTES];
    _Alignas(64) float values[4][16][QUERIES]; /* of 64 elements */
    int32_t first[QUERIES], end[QUERIES];
};

static struct operands operands_at(float *scratch, int64_t head_dim) {
    struct operands operands = {.num_groups = gptoss_bf16_num_groups(head_dim),
                                .num_value_tiles = (head_dim + 15) / 16};
    operands.keys = (void *)scratch;
    operands.values = (void *)(operands.keys + operands.num_groups);
    operands.queries = (void *)(operands.values + operands.num_value_tiles);
    return operands;
}

/* Elements d .. d + 15 of a row as float32, +0 past its end. */
GPTOSS_INLINE __m512 load_elements(const uint8_t *row, int64_t d, int64_t head_dim, bool is_f16) {
    int64_t left = head_dim - d;
    __mmask16 mask = gptoss_first_lanes(left < 0 ? 0 : left < 16 ? left : 16);
    return is_f16 ? gptoss_load_16_f16(row, d, mask) : gptoss_load_16_f32(row, d, mask);
}

/* Pairs (low[i], high[i]) as bf16. */
GPTOSS_INLINE __m512i pair_up(__m512 low, __m512 high) {
    static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_loadu_si512(order),
                                    (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

/* ---- operands ---- */

GPTOSS_INLINE void pack_keys(const struct gptoss_attention_tile *tile, uint64_t seen, bool is_f16,
                             struct operands *operands) {
    for (int64_t j = 0; j < KEYS; ++j) {
        const uint8_t *row = (const uint8_t *)tile->keys + j * tile->row_bytes;
        for (int64_t g = 0; g < operands->num_groups; ++g) {
            int64_t d = g * GPTOSS_BF16_GROUP;
            __m512i elements = _mm512_setzero_si512();
            if (seen >> j & 1)
                elements =
                    (__m512i)_mm512_cvtne2ps_pbh(load_elements(row, d + 16, tile->head_dim, is_f16),
                                                 load_elements(row, d, tile->head_dim, is_f16));
            _mm512_storeu_si512(operands->keys[g][j / 16][j % 16], elements);
        }
    }
}

/* Elements of two keys' values as pairs; check becomes NaN where one is not finite in bf16. */
GPTOSS_INLINE __m512i load_value_pair(const struct gptoss_attention_tile *tile, uint64_t seen,
                                      bool is_f16, int64_t key, int64_t d, __m512 *check) {
    const uint8_t *row = (const uint8_t *)tile->values + key * tile->row_bytes;
    __m512 pair[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int i = 0; i < 2; ++i)
        if (seen >> (key + i) & 1) {
            pair[i] = load_elements(row + i * tile->row_bytes, d, tile->head_dim, is_f16);
            /* A little more than rounding to bf16 may add. */
            *check = _mm512_fmadd_ps(_mm512_mul_ps(pair[i], _mm512_set1_ps(1.01f)),
                                     _mm512_setzero_ps(), *check);
        }
    return pair_up(pair[0], pair[1]);
}

GPTOSS_INLINE void pack_values(const struct gptoss_attention_tile *tile, uint64_t seen, bool is_f16,
                               struct operands *operands) {
    __m512 check = _mm512_setzero_ps();
    for (int64_t t = 0; t < operands->num_value_tiles; ++t)
        for (int64_t h = 0; h < KEY_GROUPS; ++h) {
            __m512 pairs[16];
            for (int64_t l = 0; l < 16; ++l)
                pairs[l] = (__m512)load_value_pair(tile, seen, is_f16,
                                                   h * GPTOSS_BF16_GROUP + 2 * l, t * 16, &check);
            gptoss_transpose_16(pairs);
            for (int64_t r = 0; r < 16; ++r)
                _mm512_storeu_ps(operands->values[t][h][r], pairs[r]);
        }
    float lanes[16];
    _mm512_storeu_ps(lanes, check);
    operands->values_are_finite = true;
    for (int l = 0; l < 16; ++l)
        operands->values_are_finite &= lanes[l] == 0;
}

/* Queries first .. first + n - 1, 0 for the rest of 16. */
static void pack_queries(const struct gptoss_attention_tile *tile, int64_t first, int64_t n,
                         struct operands *operands) {
    for (int64_t g = 0; g < operands->num_groups; ++g) {
        int64_t width = gptoss_bf16_group_width(tile->head_dim, g);
        __m512 pairs[16];
        for (int64_t i = 0; i < QUERIES; ++i)
            pairs[i] = i < n ? (__m512)gptoss_bf16_round(
                                   GPTOSS_LAYOUT_BF16,
                                   tile->queries + (first + i) * tile->query_stride, g, width)
                             : _mm512_setzero_ps();
        gptoss_transpose_16(pairs);
        for (int64_t l = 0; l < 16; ++l)
            _mm512_storeu_ps(operands->queries[g][l], pairs[l]);
    }
}

/* ---- products ---- */

/* The compiler does not know what the tile instructions read. */
static inline void settle_memory(const void *local) {
    __asm__ volatile("" : : "r"(local) : "memory");
}

/* Intel SDM volume 1, 18.3.2. All tiles are whole. */
static void configure_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } sizes = {.palette = 1};
    for (int tile = 0; tile < 8; ++tile) {
        sizes.row_bytes[tile] = ROW_BYTES;
        sizes.rows[tile] = 16;
    }
    settle_memory(&sizes);
    _tile_loadconfig(&sizes);
}

static void score(const struct operands *operands, struct party *party) {
    settle_memory(party);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t g = 0; g < operands->num_groups; ++g) {
        _tile_loadd(6, operands->queries[g], ROW_BYTES);
        _tile_loadd(4, operands->keys[g][0], ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, operands->keys[g][1], ROW_BYTES);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(4, operands->keys[g][2], ROW_BYTES);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(5, operands->keys[g][3], ROW_BYTES);
        _tile_dpbf16ps(3, 5, 6);
    }
    _tile_stored(0, party->scores[0], ROW_BYTES);
    _tile_stored(1, party->scores[16], ROW_BYTES);
    _tile_stored(2, party->scores[32], ROW_BYTES);
    _tile_stored(3, party->scores[48], ROW_BYTES);
}

/* Values of num_tiles <= 4 tiles of elements from the first one on. */
static void weigh(const struct operands *operands, int64_t first, int64_t num_tiles,
                  struct party *party) {
    uint8_t(*values)[KEY_GROUPS][16][ROW_BYTES] = operands->values + first;
    settle_memory(party);
    _tile_loadd(6, party->weights[0], ROW_BYTES);
    _tile_loadd(7, party->weights[1], ROW_BYTES);
#define WEIGH_TILE(t)                                                                              \
    if (num_tiles > (t)) {                                                                         \
        _tile_zero(t);                                                                             \
        _tile_loadd(4, values[t][0], ROW_BYTES);                                                   \
        _tile_dpbf16ps(t, 4, 6);                                                                   \
        _tile_loadd(5, values[t][1], ROW_BYTES);                                                   \
        _tile_dpbf16ps(t, 5, 7);                                                                   \
        _tile_stored(t, party->values[t], ROW_BYTES);                                              \
    }
    WEIGH_TILE(0)
    WEIGH_TILE(1)
    WEIGH_TILE(2)
    WEIGH_TILE(3)
#undef WEIGH_TILE
}

/* ---- weights ---- */

/* Scores become weights, two keys' as pairs. whole: all queries see all keys. */
GPTOSS_INLINE void weigh_scores(struct party *party, float scale, bool whole, float *maximum,
                                float *sum_out) {
    /* Four keys' maxima side by side: one would wait for the last. */
    float maxima[4][QUERIES];
    for (int l = 0; l < 4 * QUERIES; ++l)
        maxima[l / QUERIES][l % QUERIES] = -INFINITY;
    for (int j = 0; j < KEYS; j += 4)
        for (int i = 0; i < 4; ++i)
            for (int l = 0; l < QUERIES; ++l) {
                bool sees = whole || (party->first[l] <= j + i && j + i < party->end[l]);
                float s = sees ? party->scores[j + i][l] * scale : -INFINITY;
                party->scores[j + i][l] = s;
                maxima[i][l] = s > maxima[i][l] ? s : maxima[i][l];
            }
    for (int l = 0; l < QUERIES; ++l) {
        float low = maxima[0][l] > maxima[1][l] ? maxima[0][l] : maxima[1][l];
        float high = maxima[2][l] > maxima[3][l] ? maxima[2][l] : maxima[3][l];
        /* -0 and +0 compare equal: whichever came first, the maximum is +0. */
        maximum[l] = (low > high ? low : high) + 0.0f;
    }
    const __m512i ones = _mm512_set1_epi32(0x3F803F80);
    __m512 sum = _mm512_setzero_ps();
    for (int j = 0; j < KEYS; j += 2) {
        float p[2][QUERIES];
        for (int i = 0; i < 2; ++i)
            for (int l = 0; l < QUERIES; ++l) {
                bool sees = whole || (party->first[l] <= j + i && j + i < party->end[l]);
                float weight = gptoss_expf(party->scores[j + i][l] - maximum[l]);
                p[i][l] = sees ? weight : 0.0f;
            }
        __m512i pairs = pair_up(_mm512_loadu_ps(p[0]), _mm512_loadu_ps(p[1]));
        _mm512_storeu_si512(party->weights[j / GPTOSS_BF16_GROUP][j % GPTOSS_BF16_GROUP / 2],
                            pairs);
        sum = _mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)ones);
    }
    _mm512_storeu_ps(sum_out, sum);
}

/* ---- the tile ---- */

/* Values [element][query] to where they belong. */
static void store_values(const struct gptoss_attention_tile *tile, const struct party *party,
                         int64_t first_tile, int64_t num_tiles, int64_t query, int64_t n) {
    for (int64_t t = 0; t < num_tiles; ++t) {
        int64_t d = (first_tile + t) * 16, left = tile->head_dim - d;
        __mmask16 mask = gptoss_first_lanes(left < 16 ? left : 16);
        __m512 block[16];
        /* A sum that was flushed to -0 becomes +0: which of the two depends on absent keys. */
        for (int r = 0; r < 16; ++r)
            block[r] = _mm512_add_ps(_mm512_loadu_ps(party->values[t][r]), _mm512_setzero_ps());
        gptoss_transpose_16(block);
        for (int64_t i = 0; i < n; ++i)
            _mm512_mask_storeu_ps(tile->value + (query + i) * tile->head_dim + d, mask, block[i]);
    }
}

static bool see_alike(const struct gptoss_attention_tile *tile) {
    for (int64_t i = 1; i < tile->num_queries; ++i)
        if (tile->first_key[i] != tile->first_key[0] || tile->end_key[i] != tile->end_key[0])
            return false;
    return true;
}

/* Queries query .. query + n - 1, n <= 16. */
static void attend(const struct gptoss_attention_tile *tile, struct operands *operands,
                   int64_t query, int64_t n) {
    struct party party;
    float maximum[QUERIES], sum[QUERIES];
    bool whole = true, none = true;
    for (int64_t i = 0; i < QUERIES; ++i) {
        /* Columns without a query do as the last one does. */
        int64_t from = query + (i < n ? i : n - 1);
        party.first[i] = tile->first_key[from];
        party.end[i] = tile->end_key[from];
        whole &= party.first[i] == 0 && party.end[i] == KEYS;
        none &= party.first[i] >= party.end[i];
    }
    if (none) {
        for (int64_t i = query; i < query + n; ++i) {
            tile->maximum[i] = -INFINITY;
            tile->sum[i] = 0.0f;
        }
        memset(tile->value + query * tile->head_dim, 0,
               (size_t)(n * tile->head_dim) * sizeof *tile->value);
        return;
    }
    pack_queries(tile, query, n, operands);
    score(operands, &party);
    if (whole)
        weigh_scores(&party, tile->scale, true, maximum, sum);
    else
        weigh_scores(&party, tile->scale, false, maximum, sum);
    memcpy(tile->maximum + query, maximum, (size_t)n * sizeof *maximum);
    memcpy(tile->sum + query, sum, (size_t)n * sizeof *sum);
    for (int64_t t = 0; t < operands->num_value_tiles; t += 4) {
        int64_t left = operands->num_value_tiles - t, num_tiles = left < 4 ? left : 4;
        weigh(operands, t, num_tiles, &party);
        store_values(tile, &party, t, num_tiles, query, n);
    }
}

static void attend_all(const struct gptoss_attention_tile *tile, struct operands *operands) {
    for (int64_t query = 0; query < tile->num_queries; query += QUERIES) {
        int64_t left = tile->num_queries - query;
        attend(tile, operands, query, left < QUERIES ? left : QUERIES);
    }
}

GPTOSS_INLINE void pack_rows(const struct gptoss_attention_tile *tile, bool is_f16,
                             struct operands *operands) {
    uint64_t seen = gptoss_attention_keys_seen(tile);
    pack_keys(tile, seen, is_f16, operands);
    pack_values(tile, seen, is_f16, operands);
}

GPTOSS_INLINE void attention_tile(const struct gptoss_attention_tile *tile, float *scratch,
                                  bool is_f16) {
    struct operands operands = operands_at(scratch, tile->head_dim);
    configure_tiles();
    pack_rows(tile, is_f16, &operands);
    if (operands.values_are_finite || see_alike(tile)) {
        attend_all(tile, &operands);
    } else {
        /* 0 times infinity is NaN: each query has tiles without the values that it does not see. */
        for (int64_t query = 0; query < tile->num_queries; ++query) {
            struct gptoss_attention_tile one = *tile;
            one.num_queries = 1;
            one.queries += query * tile->query_stride;
            one.first_key += query;
            one.end_key += query;
            one.maximum += query;
            one.sum += query;
            one.value += query * tile->head_dim;
            pack_rows(&one, is_f16, &operands);
            attend_all(&one, &operands);
        }
    }
    _tile_release();
}

void GPTOSS_KERNEL(attention_tile_f32)(const struct gptoss_attention_tile *tile, float *scratch) {
    attention_tile(tile, scratch, false);
}

void GPTOSS_KERNEL(attention_tile_f16)(const struct gptoss_attention_tile *tile, float *scratch) {
    attention_tile(tile, scratch, true);
}
