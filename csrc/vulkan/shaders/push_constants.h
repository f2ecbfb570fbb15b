/* The parameters of the shaders, declared once for C and GLSL. Addresses are those of device memory
 * and 0 where something is absent; sizes count elements unless they say bytes. */
#ifndef GPTOSS_VULKAN_PUSH_CONSTANTS_H
#define GPTOSS_VULKAN_PUSH_CONSTANTS_H

#ifdef VULKAN
#define uint64_t uvec2
#define uint32_t uint
#define int32_t int
#else
#include <stdint.h>
#endif

/* How weights lie in device memory. A row is padded to whole blocks of 32 with zeros; codes come in
 * pieces of 16 bytes. */
#define GPTOSS_DEVICE_F32 0
#define GPTOSS_DEVICE_F16 1
#define GPTOSS_DEVICE_BF16 2
/* 32 codes a piece, eight a word, four a half: sign and magnitude of the first in bits 15 and 11 to
 * 9, as in a float16, of the second in 12 and 8 to 6, of the third in 14 and 5 to 3, of the fourth
 * in 13 and 2 to 0. A byte 2^(s-127) a piece, in whole words a row. */
#define GPTOSS_DEVICE_MXFP4 3
#define GPTOSS_DEVICE_Q8                                                                           \
    4 /* 16 int8 codes a piece; an f16 scale every two pieces, in whole words a row */
/* Tiles of 16 rows by 64 columns for subgroups of 32, in the order in which cooperative matrices
 * hold them (fragments.glsl): invocation 4 g + t has, of rows g and g + 8, columns 8 t to 8 t + 7
 * of each block of 32. Tiles of a row of them follow each other, a matrix is padded to whole tiles.
 * MXFP4: a piece for each invocation: words as above of row g and of row g + 8, of one block and of
 * the next; a word of scales for each g in that order. */
#define GPTOSS_DEVICE_MXFP4_TILES 5
/* Two pieces, a block each: of row g the codes, plus 128, of columns 0, 1, 4, 5 and of 2, 3, 6, 7,
 * the same of row g + 8; for each g a word of scales in f16, row g in its lower half. */
#define GPTOSS_DEVICE_Q8_TILES 6

/* What becomes of a product y = w x + bias. */
#define GPTOSS_PRODUCT_STORE 0
#define GPTOSS_PRODUCT_RESIDUAL 1 /* residual += y, out = y where asked for */
#define GPTOSS_PRODUCT_SWIGLU 2   /* of pairs (gate, up), clamped: gpt-oss */
#define GPTOSS_PRODUCT_SILU 3     /* silu(gate) * up */
#define GPTOSS_PRODUCT_GELU 4
#define GPTOSS_PRODUCT_ADD 5 /* out += factor * y: a term of an adapter */

/* Attention of few rows: keys that a thread has in registers, words of shared memory for scores and
 * sums, and the parts of a row at most. */
#define GPTOSS_ATTENTION_STEPS 2
#define GPTOSS_ATTENTION_POOL 4608
#define GPTOSS_ATTENTION_PARTS 48
#define GPTOSS_ROUTE_ROWS 8 /* of a workgroup, where there are many */
/* Tokens and weight rows of a tile of a panel product. */
#define GPTOSS_TILE_TOKENS 64
#define GPTOSS_TILE_ROWS 64
#define GPTOSS_MATRIX_ROWS 128  /* of cooperative matrices */
#define GPTOSS_SUBGROUP_ROWS 32 /* of them, with 32 of the tile's tokens, for a subgroup */
#define GPTOSS_MATRIX_WORKGROUP (64 * GPTOSS_MATRIX_ROWS / GPTOSS_SUBGROUP_ROWS)
/* Of weights in tiles whose scales are in the halves, which takes few registers. */
#define GPTOSS_SCALED_WORKGROUP 384

/* A row of the table, with its cache: [layer][keys, values][kv_head][capacity][head_dim] */
struct gptoss_device_row {
    uint64_t cache;
    uint32_t capacity, is_f32;
    int32_t token, position;
    uint32_t append; /* whether keys and values are new to the cache */
    uint32_t unused; /* whole vectors of 16 bytes */
};

struct gptoss_embed_push {
    uint64_t rows, weight, scales, positions, position_scales, result;
    uint32_t num_columns;
};

struct gptoss_norm_push {
    uint64_t x, gain, bias, result, list; /* list: rows of x, or 0: first and on */
    uint32_t num_columns, first;
    float epsilon;
};

/* Product of num_tokens lines of x, or of those of the experts chosen, with rows of a weight. */
struct gptoss_product_push {
    uint64_t x, weight, scales, up, up_scales, bias, up_bias, result;
    uint64_t extra;   /* residual */
    uint64_t gain;    /* of the norm that goes before, or 0; of matrices the scales of x's lines */
    uint64_t experts; /* chosen, or in a panel the list of tiles; 0: no experts */
    uint64_t routes;  /* sorted by expert, in a panel */
    uint32_t num_outs, num_tokens, num_chosen;
    float epsilon, limit, alpha; /* alpha: also the factor of ADD */
    uint32_t first_token;
    uint32_t scale_shift; /* of a panel whose scales are in the halves: tiles.glsl */
};

struct gptoss_activate_push {
    uint64_t gate, up; /* up: 0 for gelu(gate) */
    uint32_t num_columns;
};

struct gptoss_round_push {
    uint64_t x, result, scales;
};

/* Words for each invocation, see fragments.glsl: eight elements 16 m + k of a MatrixA, four 8 k + n
 * of a MatrixB and 8 m + n of a MatrixC, eight 16 m + n of a WideC; two numbers in float16. */
#define GPTOSS_FRAGMENT_WORDS 25
struct gptoss_fragments_push {
    uint64_t result;
};

struct gptoss_down_push {
    uint64_t x, weight, scales, bias, experts, weights, outputs, sum, residual, counters;
    uint32_t num_outs, num_chosen;
};

struct gptoss_sum_push {
    uint64_t outputs, weights, sum, residual;
    uint32_t num_columns, num_chosen;
};

struct gptoss_rope_push {
    uint64_t rows, queries, keys, values, cosine, sine;
    uint32_t layer, num_heads, num_kv_heads, rotation;
};

struct gptoss_attention_push {
    uint64_t rows, queries, sinks, result, sink_mass, partial, counters;
    uint32_t layer, num_heads, num_kv_heads, window, num_parts, num_rows;
    float scale;
};

struct gptoss_route_push {
    uint64_t x, gain, weight, scales, bias, normed, logits, experts, weights, counters;
    uint32_t num_rows, num_experts, num_chosen;
    float epsilon;
};

/* tiles: [1 + num] of (expert, first route, routes): first their number. */
struct gptoss_group_push {
    uint64_t experts, routes, tiles;
    uint32_t num_routes, num_experts;
};

/* Guessing a token: parts of the logits, each some workgroup's, and the stages in their order. */
#define GPTOSS_GUESS_PARTS 64
#define GPTOSS_GUESS_MAXIMA 0 /* the largest of each part, and where the first of it is */
#define GPTOSS_GUESS_SUMS 1   /* the weights of each part, added; not where temperature is 0 */
#define GPTOSS_GUESS_TOKEN 2  /* by one workgroup: which it is */

/* parts: maxima, their tokens, sums; random: 32 bits; token, copy: where the token goes. */
struct gptoss_guess_push {
    uint64_t logits, parts, random, token, copy;
    uint32_t vocab_size;
    float temperature, min_p;
};

#endif
