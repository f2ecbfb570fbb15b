#include "engine/candidates.h"

#include <math.h>
#include <string.h>

#include "numeric/dtype.h"
#include "platform/allocator.h"
#include "status.h"

/* A key has 32 bits of value and 28 of token: a digit of 12 bits and six of 8. */
#define TOKEN_BITS 28
#define KEY_BITS 60
#define FIRST_BITS 12
#define NEXT_BITS 8

/* ---- keys ---- */

static uint64_t key_from(float value, uint32_t token) {
    uint32_t bits = gptoss_bits_from_float(value + 0.0f); /* -0 becomes +0: they are equal */
    uint32_t ordered = bits ^ (uint32_t)((int32_t)bits >> 31 | INT32_MIN);
    return (uint64_t)ordered << TOKEN_BITS | ((1u << TOKEN_BITS) - 1 - token);
}

int32_t gptoss_key_token(uint64_t key) {
    uint32_t mask = (1u << TOKEN_BITS) - 1;
    return (int32_t)(mask - ((uint32_t)key & mask));
}

float gptoss_key_value(uint64_t key) {
    uint32_t ordered = (uint32_t)(key >> TOKEN_BITS);
    return gptoss_float_from_bits(ordered ^ ~(uint32_t)((int32_t)ordered >> 31 & INT32_MAX));
}

/* Keeps the candidates from cutoff upwards. Without branches: their outcomes would be as random as
 * the logits. */
static void keep_from(struct gptoss_candidates *candidates, uint64_t cutoff) {
    size_t kept = 0;
    for (size_t i = 0; i < candidates->count; ++i) {
        uint64_t key = candidates->keys[i];
        candidates->keys[kept] = key;
        candidates->weights[kept] = candidates->weights[i];
        kept += key >= cutoff;
    }
    candidates->count = kept;
}

static enum gptoss_status allocate(struct gptoss_candidates *candidates, size_t count,
                                   struct gptoss_error *error) {
    uint64_t *memory = gptoss_allocate(2 * count, sizeof *memory);
    if (memory == NULL)
        return gptoss_error_memory(error, 2 * count * sizeof *memory, "candidate tokens");
    *candidates = (struct gptoss_candidates){.keys = memory, .weights = memory + count};
    return GPTOSS_OK;
}

/* What the keys with one digit come to. */
struct bucket {
    uint64_t sum, count;
};

/* The digit at which the running sum, from the largest down, reaches goal; that is reduced by what
 * lies above. */
static uint64_t find_digit(const struct gptoss_candidates *candidates, bool by_weight, int shift,
                           int bits, uint64_t *goal, uint64_t *count_out) {
    struct bucket buckets[1 << FIRST_BITS];
    uint64_t mask = (1u << bits) - 1, digit = mask;
    memset(buckets, 0, sizeof *buckets << bits);
    for (size_t i = 0; i < candidates->count; ++i) {
        struct bucket *bucket = &buckets[candidates->keys[i] >> shift & mask];
        bucket->sum += by_weight ? candidates->weights[i] : 1;
        ++bucket->count;
    }
    while (digit > 0 && buckets[digit].sum < *goal)
        *goal -= buckets[digit--].sum;
    *count_out = buckets[digit].count;
    return digit;
}

/* The candidates whose keys begin with a prefix. */
static void copy_matching(const struct gptoss_candidates *from, int shift, uint64_t prefix,
                          struct gptoss_candidates *to) {
    size_t count = 0;
    for (size_t i = 0; i < from->count; ++i) {
        uint64_t key = from->keys[i];
        to->keys[count] = key;
        to->weights[count] = from->weights[i];
        count += key >> shift == prefix;
    }
    to->count = count;
}

/* Keeps the candidates from the key on at which the running sum of the weights (or of 1 each), in
 * descending order of keys, reaches goal, which is at most their sum. Digit by digit from the top,
 * each time among those alone that have the digits before. */
static enum gptoss_status keep_sum(struct gptoss_candidates *candidates, bool by_weight,
                                   uint64_t goal, struct gptoss_error *error) {
    uint64_t count;
    int shift = KEY_BITS - FIRST_BITS;
    uint64_t prefix = find_digit(candidates, by_weight, shift, FIRST_BITS, &goal, &count);
    struct gptoss_candidates left = {0};
    GPTOSS_TRY(allocate(&left, (size_t)count + 1, error)); /* one more is written */
    copy_matching(candidates, shift, prefix, &left);
    while (shift > 0) {
        shift -= NEXT_BITS;
        prefix =
            prefix << NEXT_BITS | find_digit(&left, by_weight, shift, NEXT_BITS, &goal, &count);
        copy_matching(&left, shift, prefix, &left);
    }
    keep_from(candidates, prefix);
    gptoss_candidates_clear(&left);
    return GPTOSS_OK;
}

/* ---- out of a vocabulary ---- */

enum gptoss_status gptoss_candidates_gather(struct gptoss_candidates *candidates,
                                            const struct gptoss_softmax_row *row, float least,
                                            struct gptoss_error *error) {
    size_t room = 1, count = 0; /* one more is written than there are */
    for (size_t block = 0; block < row->num_blocks; ++block) {
        const float *values = row->values + block * GPTOSS_SOFTMAX_BLOCK;
        int32_t num_found = 0;
        size_t block_count = gptoss_softmax_block_count(row, block);
        for (size_t i = 0; row->maxima[block] >= least && i < block_count; ++i)
            num_found += values[i] >= least;
        room += (size_t)num_found;
    }
    enum gptoss_status status = allocate(candidates, room, error);
    for (size_t block = 0; block < row->num_blocks && status == GPTOSS_OK; ++block) {
        size_t start = block * GPTOSS_SOFTMAX_BLOCK;
        size_t end = start + gptoss_softmax_block_count(row, block);
        for (size_t i = start; row->maxima[block] >= least && i < end; ++i) {
            candidates->keys[count] = key_from(row->values[i], (uint32_t)i);
            count += row->values[i] >= least;
        }
    }
    candidates->count = count;
    return status;
}

/* The kth largest of the blocks' maxima: k tokens at least are not below it. */
static enum gptoss_status bound_of_first(const struct gptoss_softmax_row *row, size_t k,
                                         float *bound_out, struct gptoss_error *error) {
    *bound_out = -INFINITY;
    if (k > row->num_blocks)
        return GPTOSS_OK;
    struct gptoss_candidates blocks = {0};
    GPTOSS_TRY(allocate(&blocks, row->num_blocks, error));
    for (size_t block = 0; block < row->num_blocks; ++block)
        blocks.keys[block] = key_from(row->maxima[block], (uint32_t)block);
    blocks.count = row->num_blocks;
    enum gptoss_status status = keep_sum(&blocks, false, k, error);
    *bound_out = INFINITY;
    for (size_t i = 0; i < blocks.count; ++i) {
        float value = gptoss_key_value(blocks.keys[i]);
        *bound_out = value < *bound_out ? value : *bound_out;
    }
    gptoss_candidates_clear(&blocks);
    return status;
}

enum gptoss_status gptoss_candidates_gather_first(struct gptoss_candidates *candidates,
                                                  const struct gptoss_softmax_row *row, size_t k,
                                                  struct gptoss_error *error) {
    float bound;
    GPTOSS_TRY(bound_of_first(row, k, &bound, error));
    GPTOSS_TRY(gptoss_candidates_gather(candidates, row, bound, error));
    return k < candidates->count ? keep_sum(candidates, false, k, error) : GPTOSS_OK;
}

void gptoss_candidates_clear(struct gptoss_candidates *candidates) {
    gptoss_free(candidates->keys);
    *candidates = (struct gptoss_candidates){0};
}

/* ---- weights ---- */

void gptoss_candidates_weigh(struct gptoss_candidates *candidates,
                             const struct gptoss_softmax_row *row, float temperature) {
    float values[GPTOSS_SOFTMAX_BLOCK];
    for (size_t start = 0; start < candidates->count; start += GPTOSS_SOFTMAX_BLOCK) {
        size_t left = candidates->count - start;
        size_t count = left < GPTOSS_SOFTMAX_BLOCK ? left : GPTOSS_SOFTMAX_BLOCK;
        for (size_t i = 0; i < count; ++i)
            values[i] = gptoss_key_value(candidates->keys[start + i]);
        row->kernels->weigh(values, (int64_t)count, row->maximum, temperature, 0,
                            candidates->weights + start);
    }
}

uint64_t gptoss_candidates_total(const struct gptoss_candidates *candidates) {
    uint64_t total = 0;
    for (size_t i = 0; i < candidates->count; ++i)
        total += candidates->weights[i];
    return total;
}

enum gptoss_status gptoss_candidates_keep_mass(struct gptoss_candidates *candidates, uint64_t goal,
                                               struct gptoss_error *error) {
    return keep_sum(candidates, true, goal, error);
}
