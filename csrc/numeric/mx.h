/* OCP Microscaling Formats (MX) v1.0: blocks of 32 elements that share one E8M0 scale.
 *
 * A code is one byte here, whatever its width: the element's bits in the low ones, sign first. An
 * element's value is sign * 2^(exponent - bias) * 1.mantissa, with exponent field 0 subnormal; of
 * INT8, two's complement / 64. E4M3 has NaN (0x7F) and no infinity, E5M2 has both as IEEE 754 does,
 * the others have neither.
 *
 * The same bits on every machine: plain IEEE operations, no fused ones. The caller's floating-point
 * environment must be the default one (platform/fp_environment.h).
 */
#ifndef GPTOSS_NUMERIC_MX_H
#define GPTOSS_NUMERIC_MX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GPTOSS_MX_BLOCK = 32, GPTOSS_MX_F16_BLOCK_BYTES = 18 };

enum gptoss_mx_element {
    GPTOSS_MX_E2M1,
    GPTOSS_MX_E2M3,
    GPTOSS_MX_E3M2,
    GPTOSS_MX_E4M3,
    GPTOSS_MX_E5M2,
    GPTOSS_MX_INT8,
    GPTOSS_MX_NUM_ELEMENTS
};

struct gptoss_mx_format {
    const char *name; /* "e2m1" */
    int num_bits, mantissa_bits;
    int min_exponent; /* of the smallest normal number */
    int max_exponent; /* emax of the specification: of the largest one */
    uint8_t max_code; /* of the largest finite magnitude */
};
extern const struct gptoss_mx_format gptoss_mx_formats[GPTOSS_MX_NUM_ELEMENTS];

/* Encodes num_blocks blocks of 32 values.
 *
 * The scale is 2^(floor(log2(max |value|)) - emax), section 6.3 of the specification, and not less
 * than 2^-127; of a block of zeros it is byte 0, 2^-127. With `search` it is the scale of least
 * squared error, of equals the one nearest to that. Elements are value / scale, rounded to nearest,
 * ties to even, saturating; zeros keep their sign. A block with NaN or an infinity becomes NaN:
 * scale 0xFF, codes 0.
 */
void gptoss_mx_encode(enum gptoss_mx_element element, bool search, const float *values,
                      size_t num_blocks, uint8_t *codes_out, uint8_t *scales_out);

/* code * scale, exact, but beyond the range of float32 infinite; NaN where the scale is 0xFF. Bits
 * of a code above the element's width are ignored. */
void gptoss_mx_decode(enum gptoss_mx_element element, const uint8_t *codes, const uint8_t *scales,
                      size_t num_blocks, float *out);

/* A variant of MXFP4 that is not OCP's: 18 bytes a block, a binary16 scale (little-endian) and 16
 * bytes of E2M1 codes, element 2k in the low nibble of byte k and 2k + 1 in the high one.
 * exponent_bias: 1 as OCP, or 2, which halves the value of every code.
 *
 * The scale is max |value| / (largest code), rounded to binary16, at most 65504; codes are
 * value / scale, rounded as above. A block with NaN or an infinity has a NaN for its scale. */
void gptoss_mx_encode_f16_scaled(int exponent_bias, const float *values, size_t num_blocks,
                                 uint8_t *out);
void gptoss_mx_decode_f16_scaled(int exponent_bias, const uint8_t *blocks, size_t num_blocks,
                                 float *out);

#endif
