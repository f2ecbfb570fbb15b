#include "engine/rope.h"

#include <math.h>

#include "numeric/double_math.h"
#include "numeric/dtype.h"
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

static double clamp(double x) {
    return x < 0 ? 0 : x > 1 ? 1 : x;
}

/* Between the frequency as it is, where kept is 1, and divided by the factor, where it is 0. */
static double interpolate(const struct gptoss_config *config, double frequency, double kept) {
    return (1 - kept) / (config->rope_factor * frequency) + kept / frequency;
}

/* Frequencies that turn often over the original context are kept, those that turn seldom are
 * divided. */
static double scale_llama3(const struct gptoss_config *config, double frequency) {
    double turns = config->rope_original_positions / (2 * PI * frequency);
    double low = config->rope_low_frequency_factor, high = config->rope_high_frequency_factor;
    return interpolate(config, frequency, clamp((turns - low) / (high - low)));
}

/* Not inlined: its arithmetic must stay between the changes of environment around it. */
__attribute__((noinline)) static void fill_frequencies(const struct gptoss_config *config,
                                                       const float *divisors,
                                                       struct gptoss_rope *rope) {
    double low = 0, high = 1, log_theta = gptoss_log(config->rope_theta);
    if (config->rope_scaling == GPTOSS_ROPE_YARN)
        correction_range(config, &low, &high);
    for (int32_t i = 0; i < rope->half; ++i) {
        double frequency = gptoss_exp(2.0 * i / config->head_dim * log_theta);
        double inverse = 1 / frequency, ramp;
        switch (config->rope_scaling) {
        case GPTOSS_ROPE_YARN:
            ramp = clamp((i - low) / (high - low));
            inverse = ramp / (config->rope_factor * frequency) + (1 - ramp) / frequency;
            break;
        case GPTOSS_ROPE_LINEAR: inverse = 1 / (config->rope_factor * frequency); break;
        case GPTOSS_ROPE_LLAMA3: inverse = scale_llama3(config, frequency); break;
        case GPTOSS_ROPE_DIVISORS:
            inverse = 1 / (config->rope_factor * frequency * (double)divisors[i]);
            break;
        default: break;
        }
        rope->inverse_frequencies[i] = (float)inverse;
    }
}

enum gptoss_status gptoss_rope_init(struct gptoss_rope *rope, const struct gptoss_config *config,
                                    const struct gptoss_vector *divisors,
                                    struct gptoss_error *error) {
    bool is_yarn = config->rope_scaling == GPTOSS_ROPE_YARN;
    *rope = (struct gptoss_rope){.concentration = is_yarn ? config->rope_attention_factor : 1};
    if (config->rope_scaling == GPTOSS_ROPE_NONE)
        return GPTOSS_OK;
    int32_t half = config->head_dim / 2;
    float *frequencies = gptoss_allocate((size_t)half, sizeof(float));
    if (frequencies == NULL)
        return gptoss_error_memory(error, (uint64_t)half * sizeof(float), "rotary frequencies");
    rope->half = half;
    rope->inverse_frequencies = frequencies;
    if (config->rope_scaling == GPTOSS_ROPE_DIVISORS)
        gptoss_decode_elements(divisors->dtype, divisors->data, (size_t)half, frequencies);
    uint64_t saved = gptoss_fp_environment_set_default();
    fill_frequencies(config, frequencies, rope);
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
