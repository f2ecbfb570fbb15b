/* Blocks of 256 elements in groups with scales of their own, themselves quantised: Q4_K, Q5_K
 * (value = d * scale * code - dmin * minimum, groups of 32) and Q6_K (d * scale * code, groups of
 * 16).
 *
 * For each group a grid of least weighted squared error is sought by alternation: codes are the
 * nearest points of the grid, the grid is the least-squares fit to its codes. Each step lowers the
 * error, and the best of several starting grids is kept. An element's weight is the group's root
 * mean square plus its own magnitude: large weights count more, as they carry more of a product.
 * Then the scales are rounded to what the block can store, with neighbours tried, and the codes are
 * chosen anew for the rounded grid.
 */
#include <math.h>
#include <string.h>

#include "numeric/dtype.h"
#include "numeric/encode.h"

enum { BLOCK = 256, GROUP = 32, NUM_GROUPS = 8, SMALL_GROUP = 16, PASSES = 3 };

/* The sum of a power of two of terms, halves added to each other: an order that vectorises. */
static float sum_of(float *terms, size_t count) {
    for (size_t half = count / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; ++i)
            terms[i] += terms[i + half];
    return terms[0];
}

/* The nearest integer, ties to even, of |value| < 2^22. */
static float nearest(float value) {
    return (value + 0x1.8p23f) - 0x1.8p23f;
}

static float clamp(float value, float least, float most) {
    value = value > least ? value : least;
    return value < most ? value : most;
}

static void set_weights(const float *values, size_t count, float *weights) {
    float squares[GROUP];
    for (size_t i = 0; i < count; ++i)
        squares[i] = values[i] * values[i];
    float rms = sqrtf(sum_of(squares, count) / (float)count);
    for (size_t i = 0; i < count; ++i)
        weights[i] = rms + fabsf(values[i]);
}

/* ---- grids with a minimum: value = scale * code - minimum, both not negative ---- */

struct grid {
    float scale, minimum;
};

struct group {
    float values[GROUP], weights[GROUP];
    float sum_weights, sum_values; /* the latter weighted */
    float least, most;             /* of the values and 0 */
};

static void read_group(const float *values, float unit, struct group *group) {
    float sum_weights[GROUP], sum_values[GROUP];
    group->least = group->most = 0.0f;
    for (size_t i = 0; i < GROUP; ++i) {
        float value = group->values[i] = values[i] * unit;
        group->least = value < group->least ? value : group->least;
        group->most = value > group->most ? value : group->most;
    }
    set_weights(group->values, GROUP, group->weights);
    for (size_t i = 0; i < GROUP; ++i) {
        sum_weights[i] = group->weights[i];
        sum_values[i] = group->weights[i] * group->values[i];
    }
    group->sum_weights = sum_of(sum_weights, GROUP);
    group->sum_values = sum_of(sum_values, GROUP);
}

/* Nearest codes, and their weighted squared error. */
static float assign(const struct group *group, float levels, struct grid grid, float *codes) {
    float errors[GROUP], inverse = grid.scale > 0.0f ? 1.0f / grid.scale : 0.0f;
    for (size_t i = 0; i < GROUP; ++i) {
        float value = group->values[i];
        codes[i] = clamp(nearest((value + grid.minimum) * inverse), 0.0f, levels);
        float error = grid.scale * codes[i] - grid.minimum - value;
        errors[i] = group->weights[i] * error * error;
    }
    return sum_of(errors, GROUP);
}

/* The least-squares grid of given codes. False if they do not determine one. */
static bool fit(const struct group *group, const float *codes, struct grid *grid_out) {
    float weighted[GROUP], squares[GROUP], products[GROUP];
    for (size_t i = 0; i < GROUP; ++i) {
        weighted[i] = group->weights[i] * codes[i];
        squares[i] = weighted[i] * codes[i];
        products[i] = weighted[i] * group->values[i];
    }
    float c = sum_of(weighted, GROUP), cc = sum_of(squares, GROUP), cv = sum_of(products, GROUP);
    float determinant = group->sum_weights * cc - c * c;
    if (!(determinant > 0.0f))
        return false;
    float scale = (group->sum_weights * cv - group->sum_values * c) / determinant;
    float minimum = (c * cv - cc * group->sum_values) / determinant;
    if (minimum < 0.0f) { /* not storable: the best without one */
        minimum = 0.0f;
        scale = cv / cc;
    }
    *grid_out = (struct grid){scale, minimum};
    return scale > 0.0f;
}

static struct grid search_grid(const struct group *group, float levels) {
    static const float stretches[] = {0.0f, -0.8f, -0.4f, 0.4f, 0.8f, 1.3f};
    float codes[GROUP], range = group->most - group->least;
    struct grid best = {range / levels, -group->least};
    float least = assign(group, levels, best, codes);
    for (size_t s = 0; s < sizeof stretches / sizeof stretches[0]; ++s) {
        struct grid grid = {range / (levels + stretches[s]), -group->least};
        assign(group, levels, grid, codes);
        for (int pass = 0; pass < PASSES && fit(group, codes, &grid); ++pass) {
            float error = assign(group, levels, grid, codes);
            if (error < least) {
                least = error;
                best = grid;
            }
        }
    }
    return best;
}

/* Rounds a group's grid to multiples of d and dmin, up to 63: the best of the neighbours, whose
 * codes are left. */
static void round_grid(const struct group *group, float levels, struct grid grid, float d,
                       float dmin, uint8_t *scale_out, uint8_t *minimum_out, float *codes) {
    float tried[GROUP], least = INFINITY;
    float scale = d > 0.0f ? clamp(nearest(grid.scale / d), 0.0f, 63.0f) : 0.0f;
    float minimum = dmin > 0.0f ? clamp(nearest(grid.minimum / dmin), 0.0f, 63.0f) : 0.0f;
    for (int s = -1; s <= 1; ++s)
        for (int m = -1; m <= 1; ++m) {
            float a = clamp(scale + (float)s, 0.0f, 63.0f);
            float b = clamp(minimum + (float)m, 0.0f, 63.0f);
            float error = assign(group, levels, (struct grid){d * a, dmin * b}, tried);
            if (error < least) {
                least = error;
                *scale_out = (uint8_t)a;
                *minimum_out = (uint8_t)b;
                memcpy(codes, tried, sizeof tried);
            }
        }
}

/* ---- Q4_K and Q5_K ---- */

static bool store_f16(float value, uint8_t *out, float *stored_out) {
    uint16_t bits = gptoss_f16_from_float(value);
    memcpy(out, &bits, 2);
    *stored_out = gptoss_float_from_f16(bits);
    return isfinite(*stored_out);
}

/* Eight scales and eight minima of 6 bits in 12 bytes. */
static void pack_scales(const uint8_t *scales, const uint8_t *minima, uint8_t *out) {
    for (size_t j = 0; j < 4; ++j) {
        out[j] = (uint8_t)(scales[j] | scales[j + 4] >> 4 << 6);
        out[j + 4] = (uint8_t)(minima[j] | minima[j + 4] >> 4 << 6);
        out[j + 8] = (uint8_t)((scales[j + 4] & 15) | (minima[j + 4] & 15) << 4);
    }
}

/* A power of two that brings the block's largest magnitude near 1, so that nothing below under- or
 * overflows: squares of values among others. */
static float unit_of(const float *values) {
    uint32_t largest = 0;
    for (size_t i = 0; i < BLOCK; ++i) {
        uint32_t magnitude = gptoss_bits_from_float(values[i]) & 0x7FFFFFFF;
        largest = magnitude > largest ? magnitude : largest;
    }
    int exponent = (int)(largest >> 23) - 127;
    exponent = exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
    return gptoss_float_from_bits((uint32_t)(127 - exponent) << 23);
}

/* The header of 16 bytes and one code an element. */
static bool encode_groups(const float *values, int levels, uint8_t *out, uint8_t *codes_out) {
    struct group groups[NUM_GROUPS];
    struct grid grids[NUM_GROUPS];
    uint8_t scales[NUM_GROUPS], minima[NUM_GROUPS];
    float unit = unit_of(values), scale = 0.0f, minimum = 0.0f, d, dmin;
    for (size_t g = 0; g < NUM_GROUPS; ++g) {
        read_group(values + GROUP * g, unit, &groups[g]);
        grids[g] = search_grid(&groups[g], (float)levels);
        scale = grids[g].scale > scale ? grids[g].scale : scale;
        minimum = grids[g].minimum > minimum ? grids[g].minimum : minimum;
    }
    if (!store_f16(scale / 63.0f / unit, out, &d) ||
        !store_f16(minimum / 63.0f / unit, out + 2, &dmin))
        return false;
    for (size_t g = 0; g < NUM_GROUPS; ++g) {
        float codes[GROUP];
        round_grid(&groups[g], (float)levels, grids[g], d * unit, dmin * unit, &scales[g],
                   &minima[g], codes);
        for (size_t i = 0; i < GROUP; ++i)
            codes_out[GROUP * g + i] = (uint8_t)codes[i];
    }
    pack_scales(scales, minima, out + 4);
    return true;
}

/* Of each 64 codes the low nibbles of the first 32 in the low nibbles of 32 bytes, of the others in
 * the high ones. */
static void pack_nibbles(const uint8_t *codes, uint8_t *out) {
    for (size_t i = 0; i < BLOCK / 2; ++i) {
        const uint8_t *pair = codes + i / 32 * 64 + i % 32;
        out[i] = (uint8_t)((pair[0] & 15) | (pair[32] & 15) << 4);
    }
}

bool gptoss_encode_q4_k(const float *values, uint8_t *out) {
    uint8_t codes[BLOCK];
    if (!encode_groups(values, 15, out, codes))
        return false;
    pack_nibbles(codes, out + 16);
    return true;
}

bool gptoss_encode_q5_k(const float *values, uint8_t *out) {
    uint8_t codes[BLOCK], *fifth_bits = out + 16;
    if (!encode_groups(values, 31, out, codes))
        return false;
    memset(fifth_bits, 0, 32);
    for (size_t i = 0; i < BLOCK; ++i)
        fifth_bits[i % 32] |= (uint8_t)((codes[i] >> 4) << i / 32);
    pack_nibbles(codes, out + 48);
    return true;
}

/* ---- Q6_K: value = scale * code, codes from -32 to 31 ---- */

/* Nearest codes and their weighted squared error; the scale of least error for them. */
static float assign_small(const float *values, const float *weights, float scale, float *codes,
                          float *fitted_out) {
    float errors[SMALL_GROUP], squares[SMALL_GROUP], products[SMALL_GROUP];
    float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    for (size_t i = 0; i < SMALL_GROUP; ++i) {
        float code = clamp(nearest(values[i] * inverse), -32.0f, 31.0f);
        float error = scale * code - values[i], weighted = weights[i] * code;
        errors[i] = weights[i] * error * error;
        squares[i] = weighted * code;
        products[i] = weighted * values[i];
        codes[i] = code;
    }
    float square = sum_of(squares, SMALL_GROUP), product = sum_of(products, SMALL_GROUP);
    *fitted_out = square > 0.0f ? product / square : scale;
    return sum_of(errors, SMALL_GROUP);
}

/* The value of largest magnitude lies near code -32, so the scale has the other sign. */
static float search_scale(const float *values, const float *weights) {
    static const float extents[] = {32.0f, 31.2f, 31.6f, 32.4f, 32.8f, 30.5f};
    float codes[SMALL_GROUP], extreme = 0.0f, best = 0.0f, least = INFINITY;
    for (size_t i = 0; i < SMALL_GROUP; ++i)
        extreme = fabsf(values[i]) > fabsf(extreme) ? values[i] : extreme;
    for (size_t s = 0; s < sizeof extents / sizeof extents[0]; ++s) {
        float scale = extreme / -extents[s];
        for (int pass = 0; pass <= PASSES; ++pass) {
            float fitted;
            float error = assign_small(values, weights, scale, codes, &fitted);
            if (error < least) {
                least = error;
                best = scale;
            }
            scale = fitted;
        }
    }
    return best;
}

/* A group's scale in multiples of d, the best of the neighbours, and its codes from 0 to 63. */
static int8_t round_scale(const float *values, const float *weights, float scale, float d,
                          uint8_t *codes_out) {
    float codes[SMALL_GROUP], least = INFINITY, fitted, best = 0.0f;
    float middle = d != 0.0f ? nearest(scale / d) : 0.0f;
    for (int s = -1; s <= 1; ++s) {
        float tried = clamp(middle + (float)s, -128.0f, 127.0f);
        float error = assign_small(values, weights, d * tried, codes, &fitted);
        if (error < least) {
            least = error;
            best = tried;
            for (size_t i = 0; i < SMALL_GROUP; ++i)
                codes_out[i] = (uint8_t)(codes[i] + 32.0f);
        }
    }
    return (int8_t)best;
}

static void pack_q6_k(const uint8_t *codes, uint8_t *low, uint8_t *high) {
    memset(high, 0, 64);
    for (size_t i = 0; i < BLOCK; ++i) {
        size_t half = i / 128, place = i % 128;
        if (place < 64)
            low[64 * half + place] = (uint8_t)((codes[i] & 15) | (codes[i + 64] & 15) << 4);
        high[32 * half + place % 32] |= (uint8_t)(codes[i] >> 4 << 2 * (place / 32));
    }
}

bool gptoss_encode_q6_k(const float *values, uint8_t *out) {
    enum { COUNT = BLOCK / SMALL_GROUP };
    float scaled[BLOCK], weights[BLOCK], scales[COUNT], unit = unit_of(values), extreme = 0.0f, d;
    uint8_t codes[BLOCK];
    for (size_t i = 0; i < BLOCK; ++i)
        scaled[i] = values[i] * unit;
    for (size_t g = 0; g < COUNT; ++g) {
        size_t at = SMALL_GROUP * g;
        set_weights(scaled + at, SMALL_GROUP, weights + at);
        scales[g] = search_scale(scaled + at, weights + at);
        extreme = fabsf(scales[g]) > fabsf(extreme) ? scales[g] : extreme;
    }
    if (!store_f16(extreme / -128.0f / unit, out + 208, &d))
        return false;
    for (size_t g = 0; g < COUNT; ++g) {
        size_t at = SMALL_GROUP * g;
        out[192 + g] =
            (uint8_t)round_scale(scaled + at, weights + at, scales[g], d * unit, codes + at);
    }
    pack_q6_k(codes, out, out + 128);
    return true;
}
