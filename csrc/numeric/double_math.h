/* exp, log, sine and cosine in double, from + - * / alone: the same bits on every machine, which
 * libm does not promise. Each is within 1 ulp. */
#ifndef GPTOSS_NUMERIC_DOUBLE_MATH_H
#define GPTOSS_NUMERIC_DOUBLE_MATH_H

#include <stdint.h>
#include <string.h>

static inline double gptoss_double_from_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline uint64_t gptoss_bits_from_double(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Adding and taking off 1.5 * 2^52 rounds to the nearest integer, for magnitudes below 2^51; after
 * the addition alone the integer is in the low bits. */
#define GPTOSS_ROUNDING 0x1.8p+52
/* ln 2 in two parts; the first has 32 bits, so that its products with exponents are exact. */
#define GPTOSS_LN2_HIGH 0x1.62e42fee00000p-1
#define GPTOSS_LN2_LOW 0x1.a39ef35793c76p-33

/* 2^n for an integral n between -1022 and 1023. */
static inline double gptoss_power_of_two(double n) {
    return gptoss_double_from_bits((gptoss_bits_from_double(n + GPTOSS_ROUNDING) + 1023) << 52);
}

/* Overflows to infinity; subnormal results are right; exp(-inf) = 0; NaN passes. Without branches,
 * so that loops over it vectorise: e^x = 2^n e^r with |r| <= ln2/2, e^r by its series. 2^n is two
 * factors: only the last product rounds where the result is subnormal. The limits are beyond the
 * points where the result is infinite and zero. */
static inline double gptoss_exp(double x) {
    x = x > 710 ? 710 : x;
    x = x < -746 ? -746 : x;
    double n = (x * 0x1.71547652b82fep+0 + GPTOSS_ROUNDING) - GPTOSS_ROUNDING;
    double high = x - n * GPTOSS_LN2_HIGH, low = n * GPTOSS_LN2_LOW, r = high - low;
    double series = 1.0 / 6227020800; /* (e^r - 1 - r) / r^2 */
    series = series * r + 1.0 / 479001600;
    series = series * r + 1.0 / 39916800;
    series = series * r + 1.0 / 3628800;
    series = series * r + 1.0 / 362880;
    series = series * r + 1.0 / 40320;
    series = series * r + 1.0 / 5040;
    series = series * r + 1.0 / 720;
    series = series * r + 1.0 / 120;
    series = series * r + 1.0 / 24;
    series = series * r + 1.0 / 6;
    series = series * r + 1.0 / 2;
    double power = 1 + (high + (r * r * series - low));
    double half = (n * 0.5 + GPTOSS_ROUNDING) - GPTOSS_ROUNDING;
    return power * gptoss_power_of_two(half) * gptoss_power_of_two(n - half);
}

/* log(0) = -inf; log of a negative number is NaN; NaN and +inf pass. */
double gptoss_log(double x);
/* x in radians, |x| <= 2^31; beyond, and for NaN, both are NaN. A float, because that bounds how
 * near it can be to a multiple of pi/2. */
void gptoss_sincos(float x, double *sine_out, double *cosine_out);

#endif
