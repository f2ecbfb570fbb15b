/* Powers e^((x - maximum) / temperature) of one block of logits: their sum, and their roundings to
 * integers.
 *
 * Both are defined by the double precision of numeric/double_math.h, and the sum by its order, one
 * addition after another. Both are found faster. As long as a sum s stays below the next power of
 * two, all it can be is a multiple of one unit, and adding x moves it by x rounded to units, unless
 * x lies between two. Units are integers, which any order adds alike. And which integer x/unit
 * rounds to is mostly told by an estimate, when that is no nearer to the middle between two than
 * its error. A block where that fails (it happens in few) is computed as it is defined. */
#include <math.h>

#include "cpu/kernels.h"
#include "numeric/double_math.h"
#include "numeric/softmax.h"

#define DECLARE(name) __typeof__(*((struct gptoss_kernels *)0)->name) GPTOSS_KERNEL(name)
DECLARE(add_powers);
DECLARE(weigh);
DECLARE(add_powers_and_weigh);

/* Weights are in units of 2^-WEIGHT_UNIT. */
#define WEIGHT_UNIT 40

/* ---- as defined ---- */

static void fill_powers(const float *x, int64_t n, float maximum, double temperature,
                        double *powers) {
    for (int64_t i = 0; i < n; ++i)
        powers[i] = gptoss_softmax_distance(x[i], maximum) / temperature;
    for (int64_t i = 0; i < n; ++i)
        powers[i] = gptoss_exp(powers[i]);
}

static double add_in_order(double sum, const double *powers, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        sum += powers[i];
    return sum;
}

/* round(power 2^40); adding 2^52 leaves the integer in the low bits. */
static void round_weights(const double *powers, int64_t n, uint64_t *weights) {
    for (int64_t i = 0; i < n; ++i)
        weights[i] = gptoss_bits_from_double(powers[i] * 0x1p40 + 0x1p52) & 0xFFFFFFFFFFFFFu;
}

/* ---- estimated ---- */

#ifdef FP_FAST_FMA
/* e^t in units of 2^-unit with an error below 2^-50 of it: 2^-51.5 the polynomial, 2^-52 the
 * roundings. gptoss_exp, which it stands for, has another 2^-52. From -700 down, where it is
 * nothing in any unit, and for NaN it is 0. */
static inline double estimate(double t, double unit) {
    double shift = GPTOSS_ROUNDING + unit; /* an integer, which the last bit of the sum counts */
    double shifted = fma(t, 0x1.71547652b82fep+0, shift), n = shifted - shift;
    double r = fma(n, -GPTOSS_LN2_LOW, fma(n, -GPTOSS_LN2_HIGH, t));
    double power = 0x1.2727a7134f42ap-22;
    power = fma(power, r, 0x1.72f9869d49a1ep-19);
    power = fma(power, r, 0x1.a01b6ce7cdd92p-16);
    power = fma(power, r, 0x1.a0197a4d5472cp-13);
    power = fma(power, r, 0x1.6c16c0c0a9f3dp-10);
    power = fma(power, r, 0x1.1111112d49ddbp-7);
    power = fma(power, r, 0x1.55555555933d7p-5);
    power = fma(power, r, 0x1.555555554bc06p-3);
    power = fma(power, r, 0x1.ffffffffffe17p-2);
    power = fma(power, r, 0x1.000000000001dp+0);
    power = fma(power, r, 1.0);
    uint64_t bits = gptoss_bits_from_double(power) + (gptoss_bits_from_double(shifted) << 52);
    return gptoss_double_from_bits(bits & -(uint64_t)(t > -700));
}

/* The integer next to an estimate, plus BITS_OF_ZERO. *unsure gets its top bit set if it is not
 * certain, which it is for no estimate from 2^48 on. */
#define BITS_OF_ZERO 0x4330000000000000u /* those of 2^52 */
static inline uint64_t round_estimate(double estimate, uint64_t *unsure) {
    double rounded = estimate + 0x1p52;
    double farthest = fma(estimate, 0x1p-49, fabs(estimate - (rounded - 0x1p52)));
    *unsure |= gptoss_bits_from_double(0.5) - 1 - gptoss_bits_from_double(farthest);
    return gptoss_bits_from_double(rounded);
}

/* The number of units that makes the last bit of a sum, if estimates reach so far. */
static bool find_unit(double sum, float maximum, double *unit_out) {
    int64_t exponent = (int64_t)(gptoss_bits_from_double(sum) >> 52);
    *unit_out = (double)(1075 - exponent);
    return exponent >= 1023 - 900 && maximum < INFINITY;
}

/* Adds count units to *sum, unless that reaches the next power of two: then false. */
static bool add_units(double *sum, uint64_t count) {
    uint64_t before = gptoss_bits_from_double(*sum), after = before + count;
    if (before >> 52 != after >> 52)
        return false;
    *sum = gptoss_double_from_bits(after);
    return true;
}

static bool add_estimates(double *sum, const float *x, int64_t n, float maximum) {
    double unit;
    if (!find_unit(*sum, maximum, &unit))
        return false;
    uint64_t count = 0, unsure = 0;
    for (int64_t i = 0; i < n; ++i)
        count += round_estimate(estimate((double)x[i] - (double)maximum, unit), &unsure);
    return unsure >> 63 == 0 && add_units(sum, count - (uint64_t)n * BITS_OF_ZERO);
}

/* Quotients as division rounds them (Markstein): the remainder is exact, and no quotient of 53 bits
 * by 24 lies near enough to the middle between two doubles for the last rounding to err. */
static bool weigh_estimates(const float *x, int64_t n, float maximum, double temperature,
                            uint64_t *weights) {
    if (!(maximum < INFINITY))
        return false;
    uint64_t unsure = 0;
    double inverse = 1 / temperature;
    for (int64_t i = 0; i < n; ++i) {
        double distance = (double)x[i] - (double)maximum, quotient = distance * inverse;
        quotient = fma(fma(-quotient, temperature, distance), inverse, quotient);
        weights[i] = round_estimate(estimate(quotient, WEIGHT_UNIT), &unsure) - BITS_OF_ZERO;
    }
    return unsure >> 63 == 0;
}

static bool add_and_weigh_estimates(double *sum, const float *x, int64_t n, float maximum,
                                    uint64_t *weights) {
    double unit;
    if (!find_unit(*sum, maximum, &unit))
        return false;
    uint64_t count = 0, unsure = 0;
    double to_weight = gptoss_power_of_two(WEIGHT_UNIT - unit);
    for (int64_t i = 0; i < n; ++i) {
        double power = estimate((double)x[i] - (double)maximum, unit);
        count += round_estimate(power, &unsure);
        weights[i] = round_estimate(power * to_weight, &unsure) - BITS_OF_ZERO;
    }
    return unsure >> 63 == 0 && add_units(sum, count - (uint64_t)n * BITS_OF_ZERO);
}

#else
#define add_estimates(...) false
#define weigh_estimates(...) false
#define add_and_weigh_estimates(...) false
#endif

/* ---- the kernels ---- */

/* What fails of a block is found in pieces of so many. */
#define PIECE 32

static double add_piece(double sum, const float *x, int64_t n, float maximum) {
    double powers[PIECE];
    if (add_estimates(&sum, x, n, maximum))
        return sum;
    fill_powers(x, n, maximum, 1, powers);
    return add_in_order(sum, powers, n);
}

static void weigh_piece(const float *x, int64_t n, float maximum, double temperature,
                        uint64_t *weights) {
    double powers[PIECE];
    if (weigh_estimates(x, n, maximum, temperature, weights))
        return;
    fill_powers(x, n, maximum, temperature, powers);
    round_weights(powers, n, weights);
}

static double add_and_weigh_piece(double sum, const float *x, int64_t n, float maximum,
                                  uint64_t *weights) {
    double powers[PIECE];
    if (add_and_weigh_estimates(&sum, x, n, maximum, weights))
        return sum;
    fill_powers(x, n, maximum, 1, powers);
    round_weights(powers, n, weights);
    return add_in_order(sum, powers, n);
}

static inline int64_t piece_at(int64_t start, int64_t n) {
    return n - start < PIECE ? n - start : PIECE;
}

/* Drops weights below the least; the sum of the rest. */
static uint64_t keep_weights(uint64_t *weights, int64_t n, uint64_t least) {
    uint64_t total = 0;
    for (int64_t i = 0; i < n; ++i) {
        weights[i] = (int64_t)weights[i] >= (int64_t)least ? weights[i] : 0;
        total += weights[i];
    }
    return total;
}

double GPTOSS_KERNEL(add_powers)(double sum, const float *x, int64_t n, float maximum) {
    if (add_estimates(&sum, x, n, maximum))
        return sum;
    for (int64_t i = 0; i < n; i += PIECE)
        sum = add_piece(sum, x + i, piece_at(i, n), maximum);
    return sum;
}

uint64_t GPTOSS_KERNEL(weigh)(const float *x, int64_t n, float maximum, float temperature,
                              uint64_t least, uint64_t *weights) {
    if (!weigh_estimates(x, n, maximum, temperature, weights)) {
        for (int64_t i = 0; i < n; i += PIECE)
            weigh_piece(x + i, piece_at(i, n), maximum, temperature, weights + i);
    }
    return keep_weights(weights, n, least);
}

double GPTOSS_KERNEL(add_powers_and_weigh)(double sum, const float *x, int64_t n, float maximum,
                                           uint64_t least, uint64_t *total_out) {
    uint64_t weights[GPTOSS_SOFTMAX_BLOCK];
    if (!add_and_weigh_estimates(&sum, x, n, maximum, weights)) {
        for (int64_t i = 0; i < n; i += PIECE)
            sum = add_and_weigh_piece(sum, x + i, piece_at(i, n), maximum, weights + i);
    }
    *total_out = keep_weights(weights, n, least);
    return sum;
}
