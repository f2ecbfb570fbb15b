#include "cpu/kernels.h"
#include "numeric/float_math.h"

void GPTOSS_KERNEL(attention_merge)(float *maximum, float *sum, float *value, float tile_maximum,
                                    float tile_sum, const float *tile_value, int64_t head_dim);

/* Both sides are rescaled to the common maximum: sum = sum a + tile_sum b, and so each value. */
void GPTOSS_KERNEL(attention_merge)(float *maximum, float *sum, float *value, float tile_maximum,
                                    float tile_sum, const float *tile_value, int64_t head_dim) {
    float common = tile_maximum > *maximum ? tile_maximum : *maximum;
    float a = gptoss_expf(*maximum - common), b = gptoss_expf(tile_maximum - common);
    *maximum = common;
    *sum = fmaf(tile_sum, b, *sum * a);
    for (int64_t d = 0; d < head_dim; ++d)
        value[d] = fmaf(tile_value[d], b, value[d] * a);
}
