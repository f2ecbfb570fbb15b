/* Rotary positions: plain or YaRN frequencies, and the cosines and sines of a position. */
#ifndef GPTOSS_ENGINE_ROPE_H
#define GPTOSS_ENGINE_ROPE_H

#include "gptoss.h"

struct gptoss_rope {
    int32_t half;               /* head_dim / 2 */
    double concentration;       /* multiplies cosine and sine */
    float *inverse_frequencies; /* [half], radians a position; owned */
};

/* Frequencies of a valid config (even head_dim, rope_theta > 1). Released with gptoss_rope_clear.
 */
enum gptoss_status gptoss_rope_init(struct gptoss_rope *rope, const struct gptoss_config *config,
                                    struct gptoss_error *error);
void gptoss_rope_clear(struct gptoss_rope *rope);

/* cosine_out, sine_out: [half], times the concentration. 0 <= position <= 2^31. Called in the
 * default floating-point environment. */
void gptoss_rope_fill(const struct gptoss_rope *rope, int64_t position, float *cosine_out,
                      float *sine_out);

#endif
