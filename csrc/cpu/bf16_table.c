/* MXFP4 to bf16: code c times 2^(b - 127), by the bits. With e the exponent of |c| and f = 0.5
 * where its fraction is one half, bf16 holds (b + e) * 128 + 128 f. Below exponent 1 it is a
 * subnormal, which still holds |c| * 2^(b - 127) exactly; from 255 on it is infinite. The least
 * exponent is -1. */
#include <stdint.h>

#define MAGNITUDE(exponent, half)                                                                  \
    ((exponent) >= 255 ? 0x7F80                                                                    \
     : (exponent) > 0  ? (exponent) * 128 + (half) * 64                                            \
                       : (128 + (half) * 64) >> ((exponent) == 0 ? 1 : 2))
#define POSITIVE(b, sign)                                                                          \
    (sign), (sign) | MAGNITUDE((b) - 1, 0), (sign) | MAGNITUDE(b, 0), (sign) | MAGNITUDE(b, 1),    \
        (sign) | MAGNITUDE((b) + 1, 0), (sign) | MAGNITUDE((b) + 1, 1),                            \
        (sign) | MAGNITUDE((b) + 2, 0), (sign) | MAGNITUDE((b) + 2, 1)
#define SCALE(b) {POSITIVE(b, 0), POSITIVE(b, 0x8000)}
#define SCALES_4(b) SCALE(b), SCALE((b) + 1), SCALE((b) + 2), SCALE((b) + 3)
#define SCALES_16(b) SCALES_4(b), SCALES_4((b) + 4), SCALES_4((b) + 8), SCALES_4((b) + 12)
#define SCALES_64(b) SCALES_16(b), SCALES_16((b) + 16), SCALES_16((b) + 32), SCALES_16((b) + 48)

enum { NaN = 0x7FC0 };

extern const uint16_t gptoss_mxfp4_bf16[256][16];
_Alignas(64) const uint16_t gptoss_mxfp4_bf16[256][16] = {
    SCALES_64(0),
    SCALES_64(64),
    SCALES_64(128),
    SCALES_16(192),
    SCALES_16(208),
    SCALES_16(224),
    SCALES_4(240),
    SCALES_4(244),
    SCALES_4(248),
    SCALE(252),
    SCALE(253),
    SCALE(254),
    {NaN, NaN, NaN, NaN, NaN, NaN, NaN, NaN, NaN, NaN, NaN, NaN, NaN, NaN, NaN, NaN},
};
