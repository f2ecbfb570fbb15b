#include "numeric/double_math.h"

#include <math.h>

/* Sum of coefficients[i] x^i. */
static double polynomial(const double *coefficients, int count, double x) {
    double sum = coefficients[count - 1];
    for (int i = count - 2; i >= 0; --i)
        sum = sum * x + coefficients[i];
    return sum;
}

double gptoss_log(double x) {
    /* log((1 + s) / (1 - s)) = 2 s + s (z 2/3 + z^2 2/5 + ...), z = s^2; here the bracket over z */
    static const double series[] = {
        2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9,  2.0 / 11,
        2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21,
    };
    if (x != x || x == INFINITY)
        return x;
    if (x < 0)
        return NAN;
    if (x == 0)
        return -INFINITY;
    int64_t exponent = 0;
    if (x < 0x1p-1022) {
        x *= 0x1p54;
        exponent = -54;
    }
    /* x = 2^exponent (1 + f) with 1 + f between sqrt(1/2) and sqrt(2) */
    uint64_t bits = gptoss_bits_from_double(x) - 0x3FE6A09E667F3BCDu;
    exponent += (int64_t)bits >> 52;
    double f = gptoss_double_from_bits((bits & 0xFFFFFFFFFFFFFu) + 0x3FE6A09E667F3BCDu) - 1;
    double s = f / (2 + f), z = s * s;
    /* log(1 + f) = f - (f^2/2 - s (f^2/2 + tail)): the large term is exact, so one rounding counts.
     */
    double tail = z * polynomial(series, 10, z), square = f * f / 2, n = (double)exponent;
    return n * GPTOSS_LN2_HIGH - ((square - (s * (square + tail) + n * GPTOSS_LN2_LOW)) - f);
}

/* sin(r + low) for |r| <= pi/4 and low below half an ulp of r. */
static double sine_near_zero(double r, double low) {
    /* (sin r - r) / r^3, in powers of r^2 */
    static const double series[] = {
        -1.0 / 6,        1.0 / 120,        -1.0 / 5040,          1.0 / 362880,
        -1.0 / 39916800, 1.0 / 6227020800, -1.0 / 1307674368000, 1.0 / 355687428096000,
    };
    double z = r * r;
    return r + (r * z * polynomial(series, 8, z) + low * (1 - z / 2));
}

static double cosine_near_zero(double r, double low) {
    /* (cos r - 1 + r^2/2) / r^4, in powers of r^2 */
    static const double series[] = {
        1.0 / 24,        -1.0 / 720,         1.0 / 40320,          -1.0 / 3628800,
        1.0 / 479001600, -1.0 / 87178291200, 1.0 / 20922789888000, -1.0 / 6402373705728000,
    };
    double z = r * r, half = z / 2, head = 1 - half;
    return head + (((1 - head) - half) + (z * z * polynomial(series, 8, z) - r * low));
}

void gptoss_sincos(float x, double *sine_out, double *cosine_out) {
    /* pi/2 in four parts. The first three have 22 bits: their products with n < 2^31 are exact, and
     * so are the first two differences. What the third loses is kept in `low`. No float but 0 lies
     * within 2^-28 of a multiple. */
    static const double half_pi[4] = {0x1.921fb0p+0, 0x1.5110b0p-22, 0x1.184698p-44,
                                      0x1.3198a2e037073p-69};
    if (!(x >= -0x1p31f && x <= 0x1p31f)) {
        *sine_out = *cosine_out = NAN;
        return;
    }
    double n = ((double)x * 0x1.45f306dc9c883p-1 + GPTOSS_ROUNDING) - GPTOSS_ROUNDING;
    double rest = x - n * half_pi[0] - n * half_pi[1], third = n * half_pi[2];
    double high = rest - third;
    double taken = rest - high;
    double lost = (rest - (high + taken)) - (third - taken);
    double low = lost - n * half_pi[3];
    double r = high + low;
    low = (high - r) + low;

    double sine = sine_near_zero(r, low), cosine = cosine_near_zero(r, low);
    int64_t quadrant = (int64_t)n & 3;
    double odd_sine = quadrant & 1 ? cosine : sine, odd_cosine = quadrant & 1 ? sine : cosine;
    *sine_out = quadrant & 2 ? -odd_sine : odd_sine;
    *cosine_out = (quadrant + 1) & 2 ? -odd_cosine : odd_cosine;
}
