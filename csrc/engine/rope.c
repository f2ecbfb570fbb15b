#include "engine/rope.h"

#include <math.h>

#include "numeric/double_math.h"
#include "platform/allocator.h"
#include "platform/fp_environment.h"
#include "status.h"

static const double PI = 0x1.921fb54442d18p+1;

/* The index, as a real number, of the frequency that turns this often over the original context. */
static double correction_index(const struct gptoss_config *config, double rotations) {
    double turns = config->rope_original_positions / (rotations * 2 * PI);
    return config->head_dim * gptoss_log(turns) / (2 * gptoss_log(config->rope_theta));
}

/* The indices of frequencies between which interpolation by rope_factor sets in. */
static void correction_range(const struct gptoss_config *config, double *low_out,
                             double *high_out) {
    double low = correction_index(config, config->rope_beta_fast);
    double high = correction_index(config, config->rope_beta_slow);
    if (config->rope_truncate) {
        low = floor(low);
        high = ceil(high);
    }
    if (low < 0)
        low = 0;
    if (high > config->head_dim - 1)
        high = config->head_dim - 1;
    if (low == high)
        high += 0.001;
    *low_out = low;
    *high_out = high;
}

/* Not inlined: its arithmetic must stay between the changes of environment around it. */
__attribute__((noinline)) static void fill_frequencies(const struct gptoss_config *config,
                                                       struct gptoss_rope *rope) {
    bool is_yarn = config->rope_scaling == GPTOSS_ROPE_YARN;
    double low = 0, high = 1, log_theta = gptoss_log(config->rope_theta);
    if (is_yarn)
        correction_range(config, &low, &high);
    for (int32_t i = 0; i < rope->half; ++i) {
        double frequency = gptoss_exp(2.0 * i / config->head_dim * log_theta);
        double inverse = 1 / frequency;
        if (is_yarn) {
            double ramp = (i - low) / (high - low);
            ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
            inverse = ramp / (config->rope_factor * frequency) + (1 - ramp) / frequency;
        }
        rope->inverse_frequencies[i] = (float)inverse;
    }
}

enum gptoss_status gptoss_rope_init(struct gptoss_rope *rope, const struct gptoss_config *config,
                                    struct gptoss_error *error) {
    int32_t half = config->head_dim / 2;
    bool is_yarn = config->rope_scaling == GPTOSS_ROPE_YARN;
    *rope = (struct gptoss_rope){
        .half = half,
        .concentration = is_yarn ? config->rope_attention_factor : 1,
        .inverse_frequencies = gptoss_allocate((size_t)half, sizeof(float)),
    };
    if (rope->inverse_frequencies == NULL)
        return gptoss_error_memory(error, (uint64_t)half * sizeof(float), "rotary frequencies");
    uint64_t saved = gptoss_fp_environment_set_default();
    fill_frequencies(config, rope);
    gptoss_fp_environment_restore(saved);
    return GPTOSS_OK;
}

void gptoss_rope_clear(struct gptoss_rope *rope) {
    gptoss_free(rope->inverse_frequencies);
    *rope = (struct gptoss_rope){0};
}

void gptoss_rope_fill(const struct gptoss_rope *rope, int64_t position, float *cosine_out,
                      float *sine_out) {
    for (int32_t i = 0; i < rope->half; ++i) {
        float angle = (float)position * rope->inverse_frequencies[i];
        double sine, cosine;
        gptoss_sincos(angle, &sine, &cosine);
        cosine_out[i] = (float)(cosine * rope->concentration);
        sine_out[i] = (float)(sine * rope->concentration);
    }
}
