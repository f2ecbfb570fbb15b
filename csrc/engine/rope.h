/* Rotary positions: frequencies, plain or scaled, and the cosines and sines of a position. */
#ifndef GPTOSS_ENGINE_ROPE_H
#define GPTOSS_ENGINE_ROPE_H

#include "backend.h"

struct gptoss_rope {
    int32_t half;               /* head_dim / 2, or 0 */
    double concentration;       /* multiplies cosine and sine */
    float *inverse_frequencies; /* [half], radians a position; owned */
};

/* Frequencies of a valid config (even head_dim, rope_theta > 1); none, half = 0, of one without
 * rotation. divisors: of GPTOSS_ROPE_DIVISORS, all above 0. Released with gptoss_rope_clear. */
enum gptoss_status gptoss_rope_init(struct gptoss_rope *rope, const struct gptoss_config *config,
                                    const struct gptoss_vector *divisors,
                                    struct gptoss_error *error);
void gptoss_rope_clear(struct gptoss_rope *rope);

/* cosine_out, sine_out: [half], times the concentration. 0 <= position <= 2^31. Called in the
 * default floating-point environment. */
void gptoss_rope_fill(const struct gptoss_rope *rope, int64_t position, float *cosine_out,
                      float *sine_out);

#endif
