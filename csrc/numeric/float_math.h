/* Single-precision functions that every instruction set computes by the same operations: no
 * branches, no libm, so that loops over them vectorise and all versions give the same bits. */
#ifndef GPTOSS_NUMERIC_FLOAT_MATH_H
#define GPTOSS_NUMERIC_FLOAT_MATH_H

#include <math.h>

#include "numeric/dtype.h"

/* e^x within 1 ulp, subnormal results included; overflows to infinity; exp(-inf) = 0; NaN passes.
 *
 * x = n ln2 + r with |r| <= ln2/2, n ln2 taken off in two parts, the first without error. e^r is a
 * polynomial of least relative error (2^-28.2) whose first two coefficients are 1. 2^n is two
 * factors: only the last product rounds where the result is subnormal. The limits are beyond the
 * points where e^x becomes infinite and zero. */
static inline float gptoss_expf(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    /* x / ln2, rounded to an integer in the low bits */
    float shifted = fmaf(x, 0x1.715476p+0f, 0x1.8p+23f);
    float n = shifted - 0x1.8p+23f;
    float r = fmaf(n, -0x1.62e430p-1f, x);
    r = fmaf(n, 0x1.05c610p-29f, r);
    float power = 0x1.6a4ce4p-10f;
    power = fmaf(power, r, 0x1.123988p-7f);
    power = fmaf(power, r, 0x1.5558b0p-5f);
    power = fmaf(power, r, 0x1.555492p-3f);
    power = fmaf(power, r, 0x1.fffffcp-2f);
    power = fmaf(power, r, 1.0f);
    power = fmaf(power, r, 1.0f);
    int32_t exponent = (int32_t)(gptoss_bits_from_float(shifted) - 0x4B400000u);
    int32_t half = exponent >> 1;
    power *= gptoss_float_from_bits((uint32_t)(half + 127) << 23);
    return power * gptoss_float_from_bits((uint32_t)(exponent - half + 127) << 23);
}

/* 1 / (1 + e^-x) */
static inline float gptoss_sigmoidf(float x) {
    return 1.0f / (1.0f + gptoss_expf(-x));
}

#endif
