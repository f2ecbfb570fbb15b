/* Looks at every weight once for values no sound checkpoint holds. Runs at the rate of memory:
 * eight bytes at a time, all lanes of a word tested by one addition, and only a block with a hit is
 * looked at again. */
#include <stdio.h>
#include <string.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/format_error.h"
#include "numeric/block_formats.h"
#include "platform/allocator.h"
#include "platform/mapped_file.h"
#include "status.h"

/* How to see a bad lane in a word. Adding unit to the masked lane carries into its sign bit just
 * when all bits of mask are set; no lane carries into the next. */
struct pattern {
    uint64_t mask;   /* in every lane: exponent bits, or all bits below the sign where only they
                        together are bad */
    uint64_t unit;   /* in every lane: the lowest bit of mask */
    uint64_t sign;   /* in every lane: the sign bit */
    uint64_t either; /* all ones: any sign is bad; 0: only lanes whose sign bit is set */
    size_t lane_bytes;
    size_t block_bytes; /* of block formats, where only the scales are looked at: num_scales lanes
                           side by side from scales_at on */
    size_t scales_at, num_scales;
};

#define LANES8(x) (UINT64_C(0x0101010101010101) * (x))
#define LANES16(x) (UINT64_C(0x0001000100010001) * (x))
#define LANES32(x) (UINT64_C(0x0000000100000001) * (x))
#define ANY_SIGN UINT64_MAX

static const struct pattern pattern_f64 = {
    UINT64_C(0x7FF) << 52, UINT64_C(1) << 52, UINT64_C(1) << 63, ANY_SIGN, 8, 0, 0, 0};
static const struct pattern pattern_f32 = {
    LANES32(0x7F800000), LANES32(0x00800000), LANES32(0x80000000), ANY_SIGN, 4, 0, 0, 0};
static const struct pattern pattern_bf16 = {
    LANES16(0x7F80), LANES16(0x0080), LANES16(0x8000), ANY_SIGN, 2, 0, 0, 0};
static const struct pattern pattern_f16 = {
    LANES16(0x7C00), LANES16(0x0400), LANES16(0x8000), ANY_SIGN, 2, 0, 0, 0};
static const struct pattern pattern_e5m2 = {
    LANES8(0x7C), LANES8(0x04), LANES8(0x80), ANY_SIGN, 1, 0, 0, 0};
static const struct pattern pattern_e4m3 = {
    LANES8(0x7F), LANES8(0x01), LANES8(0x80), ANY_SIGN, 1, 0, 0, 0};
static const struct pattern pattern_e8m0 = {
    LANES8(0x7F), LANES8(0x01), LANES8(0x80), 0, 1, 0, 0, 0};
static const struct pattern pattern_mxfp4_gguf = {0x7F, 0x01, 0x80, 0, 1, 17, 0, 1};

/* Of f16 scales in blocks. */
#define PATTERN_F16(block_bytes, scales_at, num_scales)                                            \
    {LANES16(0x7C00), LANES16(0x0400), LANES16(0x8000), ANY_SIGN, 2,                               \
     block_bytes,     scales_at,       num_scales}
static const struct pattern block_patterns[] = {
    [GPTOSS_DTYPE_Q8_0] = PATTERN_F16(34, 0, 1),    [GPTOSS_DTYPE_Q4_0] = PATTERN_F16(18, 0, 1),
    [GPTOSS_DTYPE_Q4_1] = PATTERN_F16(20, 0, 2),    [GPTOSS_DTYPE_Q5_0] = PATTERN_F16(22, 0, 1),
    [GPTOSS_DTYPE_Q5_1] = PATTERN_F16(24, 0, 2),    [GPTOSS_DTYPE_Q2_K] = PATTERN_F16(84, 80, 2),
    [GPTOSS_DTYPE_Q3_K] = PATTERN_F16(110, 108, 1), [GPTOSS_DTYPE_Q4_K] = PATTERN_F16(144, 0, 2),
    [GPTOSS_DTYPE_Q5_K] = PATTERN_F16(176, 0, 2),   [GPTOSS_DTYPE_Q6_K] = PATTERN_F16(210, 208, 1),
};

#define BLOCK_WORDS 512
#define CHUNK_BYTES ((uint64_t)1 << 22) /* between polls */

static inline uint64_t bad_lanes(const struct pattern *pattern, uint64_t word) {
    return ((word & pattern->mask) + pattern->unit) & (word | pattern->either) & pattern->sign;
}

/* Offset in the word of the first of some bad lanes. */
static uint64_t first_lane(const struct pattern *pattern, uint64_t bad) {
    return (uint64_t)__builtin_ctzll(bad) / 8 / pattern->lane_bytes * pattern->lane_bytes;
}

static bool block_is_bad(const struct pattern *pattern, const uint8_t *data) {
    const struct pattern p = *pattern;
    uint64_t bad = 0;
    for (int i = 0; i < BLOCK_WORDS; ++i) {
        uint64_t word;
        memcpy(&word, data + 8 * i, 8);
        bad |= bad_lanes(&p, word);
    }
    return bad != 0;
}

/* Offset of the first bad scale, or num_bytes: whole blocks. */
static uint64_t find_bad_scale(const struct pattern *pattern, const uint8_t *data,
                               uint64_t num_bytes) {
    for (uint64_t offset = 0; offset < num_bytes; offset += pattern->block_bytes) {
        uint64_t word = 0;
        memcpy(&word, data + offset + pattern->scales_at,
               pattern->num_scales * pattern->lane_bytes);
        uint64_t bad = bad_lanes(pattern, word);
        if (bad != 0)
            return offset + pattern->scales_at + first_lane(pattern, bad);
    }
    return num_bytes;
}

/* Offset of the first bad lane, or num_bytes. */
static uint64_t find_bad(const struct pattern *pattern, const uint8_t *data, uint64_t num_bytes) {
    uint64_t offset = 0;
    while (num_bytes - offset >= 8 * BLOCK_WORDS && !block_is_bad(pattern, data + offset))
        offset += 8 * BLOCK_WORDS;
    for (; offset < num_bytes; offset += 8) {
        uint64_t word = 0; /* absent bytes are zeros, which are never bad */
        memcpy(&word, data + offset, num_bytes - offset < 8 ? num_bytes - offset : 8);
        uint64_t bad = bad_lanes(pattern, word);
        if (bad != 0)
            return offset + first_lane(pattern, bad);
    }
    return num_bytes;
}

/* Whether a byte tensor is the scales of one in two planes: X_scales beside X_blocks, or X.scales
 * beside X.blocks. */
static enum gptoss_status find_scales(const struct gptoss_checkpoint *checkpoint,
                                      const struct gptoss_tensor *tensor, bool *is_scales_out,
                                      struct gptoss_error *error) {
    static const char ending[] = "scales", partner_ending[] = "blocks";
    size_t length = strlen(tensor->name), ending_length = sizeof ending - 1;
    *is_scales_out = false;
    if (length <= ending_length || strcmp(tensor->name + length - ending_length, ending) != 0)
        return GPTOSS_OK;
    char separator = tensor->name[length - ending_length - 1];
    if (separator != '_' && separator != '.')
        return GPTOSS_OK;

    char *partner_name = gptoss_duplicate_string(tensor->name);
    if (partner_name == NULL)
        return gptoss_error_memory(error, length + 1, "a name");
    memcpy(partner_name + length - ending_length, partner_ending, ending_length);
    const struct gptoss_tensor *partner = gptoss_checkpoint_find(checkpoint, partner_name);
    gptoss_free(partner_name);
    *is_scales_out = partner != NULL && partner->dtype == GPTOSS_DTYPE_U8 &&
                     partner->num_dims == tensor->num_dims + 1;
    return GPTOSS_OK;
}

/* How to look at a tensor; *pattern_out is NULL where any bits are sound. */
static enum gptoss_status choose_pattern(const struct gptoss_checkpoint *checkpoint,
                                         const struct gptoss_tensor *tensor,
                                         const struct pattern **pattern_out,
                                         struct gptoss_error *error) {
    enum gptoss_status status = GPTOSS_OK;
    bool is_scales = false;
    switch (tensor->weight_dtype) {
    case GPTOSS_DTYPE_F64: *pattern_out = &pattern_f64; break;
    case GPTOSS_DTYPE_F32: *pattern_out = &pattern_f32; break;
    case GPTOSS_DTYPE_BF16: *pattern_out = &pattern_bf16; break;
    case GPTOSS_DTYPE_F16: *pattern_out = &pattern_f16; break;
    case GPTOSS_DTYPE_F8_E5M2: *pattern_out = &pattern_e5m2; break;
    case GPTOSS_DTYPE_F8_E4M3: *pattern_out = &pattern_e4m3; break;
    case GPTOSS_DTYPE_MXFP4_GGUF: *pattern_out = &pattern_mxfp4_gguf; break;
    case GPTOSS_DTYPE_MXFP8_E5M2: *pattern_out = &pattern_e5m2; break;
    case GPTOSS_DTYPE_MXFP8_E4M3: *pattern_out = &pattern_e4m3; break;
    case GPTOSS_DTYPE_U8:
        status = find_scales(checkpoint, tensor, &is_scales, error);
        *pattern_out = is_scales ? &pattern_e8m0 : NULL;
        break;
#define BLOCKS(name, NAME, block_bytes) case GPTOSS_DTYPE_##NAME:
        BLOCKS(q8_0, Q8_0, 34)
        GPTOSS_FOR_BLOCK_FORMATS(BLOCKS) *pattern_out = &block_patterns[tensor->dtype];
        break;
    default: *pattern_out = NULL;
    }
    return status;
}

static enum gptoss_status bad_element(const struct gptoss_tensor *tensor,
                                      const struct pattern *pattern, uint64_t offset,
                                      struct gptoss_error *error) {
    struct gptoss_place place = {.file = tensor->file,
                                 .tensor = tensor->name,
                                 .offset = (int64_t)(tensor->file_offset + offset)};
    size_t stride = pattern->block_bytes != 0 ? pattern->block_bytes : pattern->lane_bytes;
    uint64_t bits = 0, lane_mask = UINT64_MAX >> (64 - 8 * pattern->lane_bytes);
    memcpy(&bits, (const uint8_t *)tensor->data + offset, pattern->lane_bytes);
    bool has_infinity = (pattern->unit & lane_mask) != 1;
    bool is_infinity = has_infinity && (bits & ~pattern->mask & ~pattern->sign & lane_mask) == 0;
    return gptoss_format_error(
        error, &place, pattern->either != 0 ? "finite values" : "MX scales below 0xFF",
        "%s (0x%0*llX) at %s %llu", is_infinity ? "an infinity" : "NaN",
        (int)(2 * pattern->lane_bytes), (unsigned long long)bits,
        pattern->block_bytes != 0 ? "block" : "element", (unsigned long long)(offset / stride));
}

static enum gptoss_status verify_tensor(const struct gptoss_tensor *tensor,
                                        const struct pattern *pattern,
                                        struct gptoss_progress *progress,
                                        struct gptoss_error *error) {
    bool in_blocks = pattern->block_bytes != 0;
    uint64_t chunk_bytes =
        in_blocks ? CHUNK_BYTES / pattern->block_bytes * pattern->block_bytes : CHUNK_BYTES;
    for (uint64_t offset = 0; offset < tensor->num_bytes;) {
        uint64_t num_bytes = tensor->num_bytes - offset;
        if (num_bytes > chunk_bytes)
            num_bytes = chunk_bytes;
        uint64_t bad = (in_blocks ? find_bad_scale : find_bad)(
            pattern, (const uint8_t *)tensor->data + offset, num_bytes);
        if (bad < num_bytes)
            return bad_element(tensor, pattern, offset + bad, error);
        offset += num_bytes;
        enum gptoss_status status = gptoss_progress_add(progress, num_bytes, error);
        if (status != GPTOSS_OK)
            return status;
    }
    return GPTOSS_OK;
}

enum gptoss_status gptoss_checkpoint_verify(const struct gptoss_checkpoint *checkpoint,
                                            gptoss_poll_fn poll, void *user,
                                            struct gptoss_error *error) {
    struct gptoss_progress progress = {.poll = poll, .user = user};
    size_t num_tensors = gptoss_checkpoint_num_tensors(checkpoint);
    enum gptoss_status status = GPTOSS_OK;
    /* The first pass only adds up what there is to read. */
    for (int pass = 0; pass < 2; ++pass) {
        for (size_t i = 0; i < num_tensors && status == GPTOSS_OK; ++i) {
            const struct gptoss_tensor *tensor = gptoss_checkpoint_tensor(checkpoint, i);
            const struct pattern *pattern;
            status = choose_pattern(checkpoint, tensor, &pattern, error);
            if (status != GPTOSS_OK || pattern == NULL)
                continue;
            if (pass == 0) {
                progress.total += tensor->num_bytes;
            } else {
                status = verify_tensor(tensor, pattern, &progress, error);
            }
        }
    }
    return status;
}
