/* The CPU kernels: one const table per instruction-set level, chosen once per model.
 *
 * A kernel is a pure function of its arguments. The scalar kernels are the specification
 * (docs/numerics.md); every other level gives the same bits. No kernel reads or writes past the
 * elements it names. Pointers need no alignment.
 *
 * Lane order. A dot product keeps 16 partial sums. A weight layout names its group of 16 * per_lane
 * consecutive elements; lane l owns elements l * per_lane .. l * per_lane + per_lane - 1 of every
 * group, in that order. The elements of one lane, group after group, are its chain. Unscaled
 * layouts have per_lane 1; MXFP4 has 8 (group 128), and in its GGUF form a lane's 8 elements are
 * those of its dword of codes, which are not neighbours (gptoss_lane_element).
 *
 *     unscaled:  p[l] = fma(w, x, p[l])                      over the chain
 *     MXFP4:     t = +0; t = fma(code, x, t) over the lane's elements of the group; p[l] =
 * fma(scale, t, p[l]) result:    p[l] += p[l+8], then +4, +2, +1             (l below 8, 4, 2, 1)
 *
 * Elements that a short last group lacks are skipped: their lanes keep their sums.
 */
#ifndef GPTOSS_CPU_KERNELS_H
#define GPTOSS_CPU_KERNELS_H

#include "gptoss.h"

#define GPTOSS_LANES 16

/* How a weight matrix lies in memory. */
enum gptoss_layout {
    GPTOSS_LAYOUT_F32,
    GPTOSS_LAYOUT_F16,
    GPTOSS_LAYOUT_BF16,
    GPTOSS_LAYOUT_F32_TRANSPOSED, /* stored [inputs][outputs], as unquantised experts are */
    GPTOSS_LAYOUT_F16_TRANSPOSED,
    GPTOSS_LAYOUT_BF16_TRANSPOSED,
    GPTOSS_LAYOUT_MXFP4, /* 16 bytes of codes a block of 32, low nibble first; scales in a plane of
                            their own */
    GPTOSS_LAYOUT_MXFP4_GGUF, /* blocks of 17 bytes: the scale, then 16 bytes of codes */
    GPTOSS_LAYOUT_Q8_0, /* blocks of 34 bytes: an f16 scale d, then 32 int8 codes q. Unscaled in the
                           sense of this page: the weight d * q is exact in float32 */
    /* The other block formats of GGUF, unscaled likewise: weights as numeric/block_formats.h. */
    GPTOSS_LAYOUT_Q4_0,
    GPTOSS_LAYOUT_Q4_1,
    GPTOSS_LAYOUT_Q5_0,
    GPTOSS_LAYOUT_Q5_1,
    GPTOSS_LAYOUT_Q2_K,
    GPTOSS_LAYOUT_Q3_K,
    GPTOSS_LAYOUT_Q4_K,
    GPTOSS_LAYOUT_Q5_K,
    GPTOSS_LAYOUT_Q6_K,
    /* 24 or 32 bytes of codes a block of 32, scales in a plane of their own; unscaled too: weights
     * as numeric/block_formats.h. */
    GPTOSS_LAYOUT_MXFP6_E2M3,
    GPTOSS_LAYOUT_MXFP6_E3M2,
    GPTOSS_LAYOUT_MXFP8_E4M3,
    GPTOSS_LAYOUT_MXFP8_E5M2,
    GPTOSS_NUM_LAYOUTS
};

/* One weight matrix: num_rows outputs, num_columns inputs. */
struct gptoss_matrix {
    enum gptoss_layout layout;
    int64_t num_rows, num_columns; /* num_columns: whole blocks */
    const uint8_t *data;
    int64_t
        row_bytes; /* from one stored row to the next (transposed: one stored row is one input) */
    const uint8_t *scales;   /* of layouts with planes: one E8M0 byte a block */
    int64_t scale_row_bytes; /* likewise */
};

static inline bool gptoss_layout_is_scaled(enum gptoss_layout layout) {
    return layout == GPTOSS_LAYOUT_MXFP4 || layout == GPTOSS_LAYOUT_MXFP4_GGUF;
}
/* The format that is stored so. */
static inline enum gptoss_dtype gptoss_layout_dtype(enum gptoss_layout layout) {
    static const uint8_t dtypes[GPTOSS_NUM_LAYOUTS] = {
        [GPTOSS_LAYOUT_F32] = GPTOSS_DTYPE_F32,
        [GPTOSS_LAYOUT_F16] = GPTOSS_DTYPE_F16,
        [GPTOSS_LAYOUT_BF16] = GPTOSS_DTYPE_BF16,
        [GPTOSS_LAYOUT_F32_TRANSPOSED] = GPTOSS_DTYPE_F32,
        [GPTOSS_LAYOUT_F16_TRANSPOSED] = GPTOSS_DTYPE_F16,
        [GPTOSS_LAYOUT_BF16_TRANSPOSED] = GPTOSS_DTYPE_BF16,
        [GPTOSS_LAYOUT_MXFP4] = GPTOSS_DTYPE_MXFP4,
        [GPTOSS_LAYOUT_MXFP4_GGUF] = GPTOSS_DTYPE_MXFP4_GGUF,
        [GPTOSS_LAYOUT_Q8_0] = GPTOSS_DTYPE_Q8_0,
        [GPTOSS_LAYOUT_Q4_0] = GPTOSS_DTYPE_Q4_0,
        [GPTOSS_LAYOUT_Q4_1] = GPTOSS_DTYPE_Q4_1,
        [GPTOSS_LAYOUT_Q5_0] = GPTOSS_DTYPE_Q5_0,
        [GPTOSS_LAYOUT_Q5_1] = GPTOSS_DTYPE_Q5_1,
        [GPTOSS_LAYOUT_Q2_K] = GPTOSS_DTYPE_Q2_K,
        [GPTOSS_LAYOUT_Q3_K] = GPTOSS_DTYPE_Q3_K,
        [GPTOSS_LAYOUT_Q4_K] = GPTOSS_DTYPE_Q4_K,
        [GPTOSS_LAYOUT_Q5_K] = GPTOSS_DTYPE_Q5_K,
        [GPTOSS_LAYOUT_Q6_K] = GPTOSS_DTYPE_Q6_K,
        [GPTOSS_LAYOUT_MXFP6_E2M3] = GPTOSS_DTYPE_MXFP6_E2M3,
        [GPTOSS_LAYOUT_MXFP6_E3M2] = GPTOSS_DTYPE_MXFP6_E3M2,
        [GPTOSS_LAYOUT_MXFP8_E4M3] = GPTOSS_DTYPE_MXFP8_E4M3,
        [GPTOSS_LAYOUT_MXFP8_E5M2] = GPTOSS_DTYPE_MXFP8_E5M2,
    };
    return (enum gptoss_dtype)dtypes[layout];
}
static inline bool gptoss_layout_is_transposed(enum gptoss_layout layout) {
    return layout >= GPTOSS_LAYOUT_F32_TRANSPOSED && layout <= GPTOSS_LAYOUT_BF16_TRANSPOSED;
}
static inline int gptoss_layout_per_lane(enum gptoss_layout layout) {
    return gptoss_layout_is_scaled(layout) ? 8 : 1;
}
/* Which element of a group is number i of a lane's. */
static inline int64_t gptoss_lane_element(enum gptoss_layout layout, int lane, int i) {
    if (layout == GPTOSS_LAYOUT_MXFP4_GGUF)
        return lane / 4 * 32 + lane % 4 * 4 + i / 2 + i % 2 * 16;
    return (int64_t)lane * gptoss_layout_per_lane(layout) + i;
}
/* Whether inputs of both are packed alike. */
static inline bool gptoss_layouts_share_input(enum gptoss_layout a, enum gptoss_layout b) {
    return a == b || (!gptoss_layout_is_scaled(a) && !gptoss_layout_is_scaled(b));
}
/* Groups a row has, the short last one included. */
static inline int64_t gptoss_num_groups(int64_t num_columns, int per_lane) {
    return (num_columns + GPTOSS_LANES * per_lane - 1) / (GPTOSS_LANES * per_lane);
}
/* Elements of lane's chain. */
static inline int64_t gptoss_chain_length(int64_t num_columns, int per_lane, int lane) {
    int64_t group = (int64_t)GPTOSS_LANES * per_lane;
    int64_t left = num_columns % group - (int64_t)lane * per_lane;
    return num_columns / group * per_lane + (left < 0 ? 0 : left > per_lane ? per_lane : left);
}

/* ---- matrix times a few vectors ----
 * x_lanes: the vectors one after another, each in lane order, whole groups, absent elements +0:
 *     x_lanes[g * 16 * per_lane + i * 16 + l] = x[g * 16 * per_lane + lane_element(l, i)]
 * out[v * num_rows + r - first_row] = dot(row r, vector v) for the num_rows rows from first_row.
 * Weights are decoded once for all vectors. 1 <= num_vectors <= GPTOSS_MAX_VECTORS. */
#define GPTOSS_MAX_VECTORS 4
typedef void gptoss_matvec_fn(const struct gptoss_matrix *matrix, int64_t first_row,
                              int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                              float *out);
/* Floats from one vector to the next. */
static inline int64_t gptoss_padded_columns(int64_t num_columns, int per_lane) {
    return gptoss_num_groups(num_columns, per_lane) * GPTOSS_LANES * per_lane;
}

/* ---- matrix times many vectors: expand a panel of 32 rows once, multiply it by tiles of 6 tokens
 * ---- values: [16 lanes][chain_stride][32 rows], weights or codes in chain order, chain_stride =
 * num_groups * per_lane; scales: [lanes/lanes_per_scale][num_groups][32 rows], MXFP4:
 * lanes_per_scale 4. Rows past the last are +0. */
#define GPTOSS_PANEL_ROWS 32
#define GPTOSS_TILE_TOKENS 6
#define GPTOSS_MAX_TILES 16
#define GPTOSS_LANES_PER_SCALE 4

struct gptoss_panel {
    int64_t num_columns;
    int per_lane;
    float *values, *scales; /* scales: NULL where the layout has none */
};
static inline int64_t gptoss_panel_num_values(int64_t num_columns, int per_lane) {
    return gptoss_num_groups(num_columns, per_lane) * per_lane * GPTOSS_LANES * GPTOSS_PANEL_ROWS;
}
static inline int64_t gptoss_panel_num_scales(int64_t num_columns, int per_lane) {
    return gptoss_num_groups(num_columns, per_lane) * (GPTOSS_LANES / GPTOSS_LANES_PER_SCALE) *
           GPTOSS_PANEL_ROWS;
}
typedef void gptoss_expand_panel_fn(const struct gptoss_matrix *matrix, int64_t first_row,
                                    int64_t num_rows, struct gptoss_panel *panel);

/* x_tiles: [num_tiles][16 lanes][chain_stride][6 tokens]; out: [num_tiles * 6 tokens][32 rows];
 * scratch: GPTOSS_MULTIPLY_SCRATCH floats. 1 <= num_tiles <= GPTOSS_MAX_TILES. */
#define GPTOSS_MULTIPLY_SCRATCH (5 * GPTOSS_MAX_TILES * GPTOSS_TILE_TOKENS * GPTOSS_PANEL_ROWS)
typedef void gptoss_multiply_panel_fn(const struct gptoss_panel *panel, const float *x_tiles,
                                      int64_t num_tiles, float *out, float *scratch);

/* ---- attention over one tile of up to 64 keys ----
 * Tiles lie at absolute positions 64 n. Query i sees keys first_key[i] <= j < end_key[i] of the
 * tile (0 .. 64), the others are skipped. With s_j = dot(q, k_j) * scale (lane order of an unscaled
 * row): maximum = max s_j;   p_j = exp(s_j - maximum);   sum: lane j % 16 += p_j, ascending, then
 * the tree of a dot product; value[d] = fma(p_j, v_j[d], value[d]) over ascending j, from +0. A
 * query that sees no key gets maximum -inf, sum 0, value 0. */
#define GPTOSS_ATTENTION_TILE 64
struct gptoss_attention_tile {
    const void *keys, *values; /* row j at + j * row_bytes; rows no query sees are not read */
    int64_t row_bytes;
    int32_t head_dim, num_queries;
    float scale;
    const float *queries; /* [num_queries] rows, query_stride floats apart */
    int64_t query_stride;
    const int32_t *first_key, *end_key; /* [num_queries] */
    float *maximum, *sum;               /* [num_queries] */
    float *value;                       /* [num_queries][head_dim] */
};
/* scratch: GPTOSS_ATTENTION_SCRATCH(head_dim) floats. */
#define GPTOSS_ATTENTION_SCRATCH(head_dim)                                                         \
    (2 * GPTOSS_ATTENTION_TILE * ((int64_t)(head_dim) + 16) + 64)
typedef void gptoss_attention_tile_fn(const struct gptoss_attention_tile *tile, float *scratch);

/* ---- elementwise kernels: one portable source each, compiled for every level ---- */
struct gptoss_kernels {
    const char *isa;
    gptoss_matvec_fn *matvec[GPTOSS_NUM_LAYOUTS];
    gptoss_expand_panel_fn *expand_panel[GPTOSS_NUM_LAYOUTS];
    gptoss_multiply_panel_fn *multiply_panel_unscaled, *multiply_panel_scaled;
    gptoss_attention_tile_fn *attention_tile_f32,
        *attention_tile_f16; /* by the type of the cache */

    /* Joins a tile to the running state of each query: M = max(*maximum, tile_maximum); a =
     * exp(*maximum - M); b = exp(tile_maximum - M); *sum = fma(tile_sum, b, *sum * a); value[d] =
     * fma(tile_value[d], b, value[d] * a). value, tile_value: [num_queries][head_dim]. The two
     * sides do not overlap. */
    void (*attention_merge)(float *maximum, float *sum, float *value, const float *tile_maximum,
                            const float *tile_sum, const float *tile_value, int64_t num_queries,
                            int64_t head_dim);
    /* out[i] = (x[i] * r) * gain[i], r = 1 / sqrt(sum(x * x) / n + eps); the sum of squares as an
     * unscaled dot product. */
    void (*rms_norm)(const float *x, const float *gain, int64_t n, float eps, float *out);
    /* m = sum(x) / n, d[i] = x[i] - m, r = 1 / sqrt(sum(d * d) / n + eps); out[i] = fma(d[i] * r,
     * gain[i], bias[i]); both sums in the lanes of an unscaled dot product. */
    void (*layer_norm)(const float *x, const float *gain, const float *bias, int64_t n, float eps,
                       float *out);
    /* Half-split rotation in place, half = head_dim / 2: a = x[i], b = x[i + half];
     * x[i] = fma(-b, sine[i], a * cosine[i]); x[i + half] = fma(a, sine[i], b * cosine[i]). */
    void (*rope)(float *x, const float *cosine, const float *sine, int64_t half, int64_t num_heads);
    /* The same of neighbours: a = x[2i], b = x[2i + 1]. */
    void (*rope_neighbours)(float *x, const float *cosine, const float *sine, int64_t half,
                            int64_t num_heads);
    /* g = min(gate_up[2i], limit), u = clamp(gate_up[2i+1], -limit, limit), NaN passing;
     * out[i] = (g * (1 / (1 + exp(-(alpha * g))))) * (u + 1). */
    void (*swiglu)(const float *gate_up, int64_t n, float limit, float alpha, float *out);
    /* gate[i] = (gate[i] * (1 / (1 + exp(-gate[i])))) * up[i] */
    void (*silu_multiply)(float *gate, const float *up, int64_t n);
    /* u = x[i] * fma(x[i] * x[i], a, b), a and b the float32 next to 0.044715 b and 2 sqrt(2 / pi);
     * out[i] = x[i] * (1 / (1 + exp(-u))), the tanh form of GELU. */
    void (*gelu)(const float *x, int64_t n, float *out);
    void (*add)(float *x, const float *y, int64_t n); /* x[i] = x[i] + y[i] */
    void (*multiply_add)(float *sum, float weight, const float *y,
                         int64_t n); /* sum[i] = fma(weight, y[i], sum[i]) */
    void (*divide)(const float *x, float divisor, int64_t n,
                   float *out);                                        /* out[i] = x[i] / divisor */
    void (*convert_f32_f16)(const float *x, int64_t n, uint16_t *out); /* round to nearest even */

    /* What softmax over a vocabulary takes, in blocks of GPTOSS_SOFTMAX_BLOCK (numeric/softmax.h).
     * d[i] = x[i] - maximum, 0 where both are equal, infinite or not; no x is above the maximum.
     *
     * The largest of each block, the last of which may be short; NaN if any is. */
    void (*block_maxima)(const float *x, int64_t n, float *maxima);
    /* sum + e^d[0] + e^d[1] ..., each added by itself, exponentials and sums in double; at most a
     * block, without NaN. */
    double (*add_powers)(double sum, const float *x, int64_t n, float maximum);
    /* weights[i] = round(2^40 e^(d[i] / temperature)), 0 for those below the least; their sum. As
     * above, and with a temperature above 0. */
    uint64_t (*weigh)(const float *x, int64_t n, float maximum, float temperature, uint64_t least,
                      uint64_t *weights);
    /* The result of add_powers; *total_out: that of weigh at temperature 1. */
    double (*add_powers_and_weigh)(double sum, const float *x, int64_t n, float maximum,
                                   uint64_t least, uint64_t *total_out);
};

/* All levels compiled in, worst first; names as in gptoss_isa_name. NULL past the end. */
const struct gptoss_kernels *gptoss_kernels_at(size_t index);
/* The table of that name if it is compiled and this machine can run it; NULL isa: the best one. */
const struct gptoss_kernels *gptoss_kernels_select(const char *isa);

/* A kernel's name at the level a source is compiled for: GPTOSS_KERNEL(matvec_bf16) ->
 * gptoss_matvec_bf16_avx2. */
#define GPTOSS_JOIN2(a, b) a##_##b
#define GPTOSS_JOIN(a, b) GPTOSS_JOIN2(a, b)
#define GPTOSS_KERNEL(name) GPTOSS_JOIN(gptoss_##name, GPTOSS_ISA)

#endif
