#include "cpu/kernels.h"
#include "numeric/float_math.h"

/* Queries whose factors are computed side by side. */
enum { STRIP = 64 };

void GPTOSS_KERNEL(attention_merge)(float *maximum, float *sum, float *value,
                                    const float *tile_maximum, const float *tile_sum,
                                    const float *tile_value, int64_t num_queries, int64_t head_dim);

/* Both sides are rescaled to the common maximum: sum = sum a + tile_sum b, and so each value. */
static void merge_strip(float *restrict maximum, float *restrict sum, float *restrict value,
                        const float *restrict tile_maximum, const float *restrict tile_sum,
                        const float *restrict tile_value, int64_t num_queries, int64_t head_dim) {
    float a[STRIP], b[STRIP];
    for (int64_t i = 0; i < num_queries; ++i) {
        float common = tile_maximum[i] > maximum[i] ? tile_maximum[i] : maximum[i];
        a[i] = gptoss_expf(maximum[i] - common);
        b[i] = gptoss_expf(tile_maximum[i] - common);
        maximum[i] = common;
        sum[i] = fmaf(tile_sum[i], b[i], sum[i] * a[i]);
    }
    for (int64_t i = 0; i < num_queries; ++i, value += head_dim, tile_value += head_dim)
        for (int64_t d = 0; d < head_dim; ++d)
            value[d] = fmaf(tile_value[d], b[i], value[d] * a[i]);
}

void GPTOSS_KERNEL(attention_merge)(float *maximum, float *sum, float *value,
                                    const float *tile_maximum, const float *tile_sum,
                                    const float *tile_value, int64_t num_queries,
                                    int64_t head_dim) {
    for (int64_t i = 0; i < num_queries; i += STRIP) {
        int64_t left = num_queries - i;
        merge_strip(maximum + i, sum + i, value + i * head_dim, tile_maximum + i, tile_sum + i,
                    tile_value + i * head_dim, left < STRIP ? left : STRIP, head_dim);
    }
}
