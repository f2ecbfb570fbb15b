/* The block formats (numeric/block_formats.h) for any vector type; include after the level's simd
 * header, which defines gptoss_vector, gptoss_bytes, gptoss_halves and what is done with them.
 *
 * A block is read in runs of 32 elements, and these in halves of 16: the codes of a half, then
 * w = s * code, or s * code + o. A block's s and o are computed once, when it is begun.
 *
 * MXFP6 and MXFP8: every code is a binary16 number times a power of two, its format's unit, which
 * the processor widens. w = s * (unit * number), of which the inner product is exact. */
#ifndef GPTOSS_CPU_BLOCK_FORMATS_SIMD_H
#define GPTOSS_CPU_BLOCK_FORMATS_SIMD_H

#include "cpu/kernels.h"
#include "numeric/block_formats.h"

enum { RUN = 32, HALF_RUN = 16, MAX_PARTS = 16, VECTORS_A_HALF = HALF_RUN / GPTOSS_VECTOR_LANES };

/* s and o of a block's parts, which are its halves, its runs, or the whole of it. */
struct factors {
    float scales[MAX_PARTS], offsets[MAX_PARTS];
};

typedef void begin_fn(const uint8_t *block, struct factors *factors);
typedef gptoss_bytes codes_fn(const uint8_t *block, int run, int half);
typedef gptoss_halves numbers_fn(const uint8_t *block, int half);

/* Passed by value to inline functions alone, so that its members are constants there. */
struct format {
    begin_fn *begin;
    codes_fn *codes; /* signed */
    int block_bytes, num_runs, parts_of_run;
    bool has_offsets;
    /* Of formats with scales in a plane of their own, in place of begin and codes. */
    numbers_fn *numbers;
    float unit;
};

/* Blocks of some rows of a matrix, one below the other. */
struct block_column {
    const uint8_t *data, *scales; /* scales: NULL but for formats with planes */
    int64_t row_bytes, scale_row_bytes;
};
GPTOSS_INLINE struct block_column first_blocks(struct format format,
                                               const struct gptoss_matrix *matrix, int64_t row) {
    struct block_column blocks = {matrix->data + row * matrix->row_bytes, NULL, matrix->row_bytes,
                                  matrix->scale_row_bytes};
    if (format.numbers != NULL)
        blocks.scales = matrix->scales + row * matrix->scale_row_bytes;
    return blocks;
}
GPTOSS_INLINE void next_blocks(struct format format, struct block_column *blocks) {
    blocks->data += format.block_bytes;
    if (format.numbers != NULL)
        ++blocks->scales;
}
GPTOSS_INLINE void begin_block(struct format format, const struct block_column *blocks, int64_t row,
                               struct factors *factors) {
    if (format.numbers != NULL) {
        uint8_t scale = blocks->scales[row * blocks->scale_row_bytes];
        memcpy(factors->scales, &gptoss_e8m0_bits[scale], sizeof factors->scales[0]);
    } else {
        format.begin(blocks->data + row * blocks->row_bytes, factors);
    }
}

/* Sixteen elements of a block. */
GPTOSS_INLINE void decode_half(struct format format, const uint8_t *block,
                               const struct factors *factors, int run, int half,
                               gptoss_vector out[VECTORS_A_HALF]) {
    if (format.numbers != NULL) {
        gptoss_halves numbers = format.numbers(block, half);
        gptoss_vector scale = gptoss_vector_set(factors->scales[0]);
        for (int i = 0; i < VECTORS_A_HALF; ++i)
            out[i] =
                gptoss_vector_multiply(gptoss_vector_multiply(gptoss_vector_from_halves(numbers, i),
                                                              gptoss_vector_set(format.unit)),
                                       scale);
        return;
    }
    gptoss_bytes codes = format.codes(block, run, half);
    int part = format.parts_of_run == 2 ? 2 * run + half : run;
    gptoss_vector scale = gptoss_vector_set(factors->scales[part]);
    for (int i = 0; i < VECTORS_A_HALF; ++i) {
        gptoss_vector code = gptoss_vector_from_bytes(codes, i);
        out[i] = format.has_offsets
                     ? gptoss_vector_fma(code, scale, gptoss_vector_set(factors->offsets[part]))
                     : gptoss_vector_multiply(code, scale);
    }
}

/* out[i] = factor * bytes[i], of the first num_parts. */
GPTOSS_INLINE void multiply_bytes(gptoss_bytes bytes, float factor, int num_parts,
                                  float out[MAX_PARTS]) {
    for (int i = 0; i * GPTOSS_VECTOR_LANES < num_parts; ++i)
        gptoss_vector_store(
            out + i * GPTOSS_VECTOR_LANES,
            gptoss_vector_multiply(gptoss_vector_set(factor), gptoss_vector_from_bytes(bytes, i)));
}

/* ---- blocks of 32 ---- */

GPTOSS_INLINE void begin_q4_0(const uint8_t *block, struct factors *factors) {
    factors->scales[0] = gptoss_widen_f16(block);
}
GPTOSS_INLINE gptoss_bytes codes_q4_0(const uint8_t *block, int run, int half) {
    (void)run;
    return gptoss_bytes_subtract(gptoss_bytes_bits(gptoss_bytes_load(block + 2), 4 * half, 15), 8);
}

GPTOSS_INLINE void begin_q4_1(const uint8_t *block, struct factors *factors) {
    factors->scales[0] = gptoss_widen_f16(block);
    factors->offsets[0] = gptoss_widen_f16(block + 2);
}
GPTOSS_INLINE gptoss_bytes codes_q4_1(const uint8_t *block, int run, int half) {
    (void)run;
    return gptoss_bytes_bits(gptoss_bytes_load(block + 4), 4 * half, 15);
}

/* Five bits: nibbles, and the highest of each in 4 bytes before them. */
GPTOSS_INLINE gptoss_bytes codes_of_5_bits(const uint8_t *high, int half) {
    gptoss_bytes low = gptoss_bytes_bits(gptoss_bytes_load(high + 4), 4 * half, 15);
    return gptoss_bytes_join(low, gptoss_bytes_spread(high + 2 * half), 4);
}
GPTOSS_INLINE void begin_q5_0(const uint8_t *block, struct factors *factors) {
    begin_q4_0(block, factors);
}
GPTOSS_INLINE gptoss_bytes codes_q5_0(const uint8_t *block, int run, int half) {
    (void)run;
    return gptoss_bytes_subtract(codes_of_5_bits(block + 2, half), 16);
}
GPTOSS_INLINE void begin_q5_1(const uint8_t *block, struct factors *factors) {
    begin_q4_1(block, factors);
}
GPTOSS_INLINE gptoss_bytes codes_q5_1(const uint8_t *block, int run, int half) {
    (void)run;
    return codes_of_5_bits(block + 4, half);
}

/* ---- blocks of 256 ---- */

/* Two, one or four bits of each element, in bytes that 4, 8 or 2 runs share. */
GPTOSS_INLINE gptoss_bytes two_bits(const uint8_t *bytes, int run, int half) {
    gptoss_bytes shared = gptoss_bytes_load(bytes + run / 4 * RUN + half * HALF_RUN);
    return gptoss_bytes_bits(shared, run % 4 * 2, 3);
}
GPTOSS_INLINE gptoss_bytes one_bit(const uint8_t *bytes, int run, int half) {
    return gptoss_bytes_bits(gptoss_bytes_load(bytes + half * HALF_RUN), run, 1);
}
GPTOSS_INLINE gptoss_bytes four_bits(const uint8_t *bytes, int run, int half) {
    gptoss_bytes shared = gptoss_bytes_load(bytes + run / 2 * RUN + half * HALF_RUN);
    return gptoss_bytes_bits(shared, run % 2 * 4, 15);
}

GPTOSS_INLINE void begin_q2_k(const uint8_t *block, struct factors *factors) {
    gptoss_bytes both = gptoss_bytes_load(block);
    float scale = gptoss_widen_f16(block + 80), minimum = gptoss_widen_f16(block + 82);
    multiply_bytes(gptoss_bytes_bits(both, 0, 15), scale, 16, factors->scales);
    multiply_bytes(gptoss_bytes_bits(both, 4, 15), -minimum, 16, factors->offsets);
}
GPTOSS_INLINE gptoss_bytes codes_q2_k(const uint8_t *block, int run, int half) {
    return two_bits(block + 16, run, half);
}

/* Eight bytes of two words. */
GPTOSS_INLINE uint64_t join_words(uint32_t low, uint32_t high) {
    return low | (uint64_t)high << 32;
}

GPTOSS_INLINE void begin_q3_k(const uint8_t *block, struct factors *factors) {
    const uint64_t four = 0x0F0F0F0F0F0F0F0F, two = 0x0303030303030303;
    uint64_t low;
    uint32_t high;
    memcpy(&low, block + 96, sizeof low);
    memcpy(&high, block + 104, sizeof high);
    uint64_t first = (low & four) | (join_words(high, high >> 2) & two) << 4;
    uint64_t last = (low >> 4 & four) | (join_words(high >> 4, high >> 6) & two) << 4;
    multiply_bytes(gptoss_bytes_subtract(gptoss_bytes_set(first, last), 32),
                   gptoss_widen_f16(block + 108), 16, factors->scales);
}
GPTOSS_INLINE gptoss_bytes codes_q3_k(const uint8_t *block, int run, int half) {
    gptoss_bytes low = two_bits(block + 32, run, half), high = one_bit(block, run, half);
    return gptoss_bytes_subtract(gptoss_bytes_join(low, high, 2), 4);
}

GPTOSS_INLINE void begin_q4_k(const uint8_t *block, struct factors *factors) {
    const uint32_t two = 0x03030303, four = 0x0F0F0F0F, six = 0x3F3F3F3F;
    uint32_t stored[3];
    memcpy(stored, block + 4, sizeof stored);
    uint64_t scales = join_words(stored[0] & six, (stored[2] & four) | (stored[0] >> 6 & two) << 4);
    uint64_t minima =
        join_words(stored[1] & six, (stored[2] >> 4 & four) | (stored[1] >> 6 & two) << 4);
    multiply_bytes(gptoss_bytes_set(scales, 0), gptoss_widen_f16(block), 8, factors->scales);
    multiply_bytes(gptoss_bytes_set(minima, 0), -gptoss_widen_f16(block + 2), 8, factors->offsets);
}
GPTOSS_INLINE gptoss_bytes codes_q4_k(const uint8_t *block, int run, int half) {
    return four_bits(block + 16, run, half);
}

GPTOSS_INLINE void begin_q5_k(const uint8_t *block, struct factors *factors) {
    begin_q4_k(block, factors);
}
GPTOSS_INLINE gptoss_bytes codes_q5_k(const uint8_t *block, int run, int half) {
    return gptoss_bytes_join(four_bits(block + 48, run, half), one_bit(block + 16, run, half), 4);
}

GPTOSS_INLINE void begin_q6_k(const uint8_t *block, struct factors *factors) {
    multiply_bytes(gptoss_bytes_load(block + 192), gptoss_widen_f16(block + 208), 16,
                   factors->scales);
}
GPTOSS_INLINE gptoss_bytes codes_q6_k(const uint8_t *block, int run, int half) {
    gptoss_bytes shared = gptoss_bytes_load(block + run / 4 * 64 + run % 2 * RUN + half * HALF_RUN);
    gptoss_bytes low = gptoss_bytes_bits(shared, run % 4 / 2 * 4, 15);
    gptoss_bytes high = two_bits(block + 128, run, half);
    return gptoss_bytes_subtract(gptoss_bytes_join(low, high, 4), 32);
}

/* ---- MXFP6 and MXFP8 ---- */

/* Bytes 0 to 15 or 8 to 23 of a block, so that nothing behind it is read. */
GPTOSS_INLINE gptoss_halves six_bits(const uint8_t *block, int half) {
    return gptoss_halves_from_six_bits(gptoss_bytes_load(block + 8 * half), 4 * half);
}
GPTOSS_INLINE gptoss_halves numbers_mxfp6_e2m3(const uint8_t *block, int half) {
    return gptoss_halves_shift(six_bits(block, half), 3, 0x8F80);
}
GPTOSS_INLINE gptoss_halves numbers_mxfp6_e3m2(const uint8_t *block, int half) {
    return gptoss_halves_shift(six_bits(block, half), 2, 0x9F00);
}
/* The code that is NaN would be a number of binary16. */
GPTOSS_INLINE gptoss_halves numbers_mxfp8_e4m3(const uint8_t *block, int half) {
    gptoss_halves codes = gptoss_halves_from_bytes(gptoss_bytes_load(block + half * HALF_RUN));
    return gptoss_halves_make_nan(gptoss_halves_shift(codes, 1, 0xBF80), 0x3F80);
}
GPTOSS_INLINE gptoss_halves numbers_mxfp8_e5m2(const uint8_t *block, int half) {
    return gptoss_halves_from_bytes(gptoss_bytes_load(block + half * HALF_RUN));
}

/* X(name, format) */
#define FOR_FORMATS(X)                                                                             \
    X(q4_0, BLOCKS(q4_0, 18, 1, 1, false))                                                         \
    X(q4_1, BLOCKS(q4_1, 20, 1, 1, true))                                                          \
    X(q5_0, BLOCKS(q5_0, 22, 1, 1, false))                                                         \
    X(q5_1, BLOCKS(q5_1, 24, 1, 1, true))                                                          \
    X(q2_k, BLOCKS(q2_k, 84, 8, 2, true))                                                          \
    X(q3_k, BLOCKS(q3_k, 110, 8, 2, false))                                                        \
    X(q4_k, BLOCKS(q4_k, 144, 8, 1, true))                                                         \
    X(q5_k, BLOCKS(q5_k, 176, 8, 1, true))                                                         \
    X(q6_k, BLOCKS(q6_k, 210, 8, 2, false))                                                        \
    X(mxfp6_e2m3, PLANES(mxfp6_e2m3, 24, 0x1p14f))                                                 \
    X(mxfp6_e3m2, PLANES(mxfp6_e3m2, 24, 0x1p12f))                                                 \
    X(mxfp8_e4m3, PLANES(mxfp8_e4m3, 32, 0x1p8f))                                                  \
    X(mxfp8_e5m2, PLANES(mxfp8_e5m2, 32, 1.0f))
/* Bytes of a block, runs, parts of a run, whether there are offsets. */
#define BLOCKS(name, ...) ((struct format){begin_##name, codes_##name, __VA_ARGS__, NULL, 0.0f})
/* Bytes of a block, unit. */
#define PLANES(name, block_bytes, unit)                                                            \
    ((struct format){NULL, NULL, block_bytes, 1, 1, false, numbers_##name, unit})

#endif
