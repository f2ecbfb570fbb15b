/* out[r] = dot(row r, x) over MXFP4 rows: lane l of a group's 64 bytes is a dword of 8 codes, low
 * nibbles first. t = +0; t = fma(code, x, t) eight times; p = fma(scale, t, p) then the tree. The
 * scales of two groups are decoded at once. */
#include "cpu/kernels.h"
#include "cpu/simd_avx2.h"

enum { PER_LANE = 8, GROUP = 128, HALF_BYTES = 32, GROUP_SCALES = 4, BATCH = 2 };

GPTOSS_INLINE __m256 sum_half_group(__m256i codes, const float *x) {
    __m256 values[PER_LANE], t = _mm256_setzero_ps();
    gptoss_decode_e2m1(codes, values);
    for (int i = 0; i < PER_LANE; ++i)
        t = _mm256_fmadd_ps(values[i], _mm256_loadu_ps(x + 16 * i), t);
    return t;
}

/* The scales of half a group of a batch, each in the four lanes of its block. */
GPTOSS_INLINE __m256 spread_scales(__m256 scales, int half) {
    const __m256i block_of_lane = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    return _mm256_permutevar8x32_ps(scales,
                                    _mm256_add_epi32(block_of_lane, _mm256_set1_epi32(2 * half)));
}

/* What follows the whole batches: up to BATCH - 1 whole groups and a part of one, of 4, 8 or 12
 * lanes. */
static void add_rest(const uint8_t *codes, const uint8_t *row_scales, int64_t num_lanes,
                     const float *x, __m256 p[2]) {
    uint64_t bytes = 0;
    memcpy(&bytes, row_scales, (size_t)(num_lanes / 4));
    __m256 scales = gptoss_decode_e8m0(bytes);
    for (int half = 0; num_lanes > 0; ++half, num_lanes -= 8) {
        __m256i mask = gptoss_first_lanes(num_lanes);
        __m256i dwords = _mm256_maskload_epi32((const int *)(codes + half * HALF_BYTES), mask);
        __m256 t = sum_half_group(dwords, x + half / 2 * GROUP + half % 2 * 8);
        p[half % 2] = gptoss_fma_masked(spread_scales(scales, half), t, p[half % 2], mask);
    }
}

static float dot(const uint8_t *codes, const uint8_t *row_scales, int64_t num_columns,
                 const float *x_lanes) {
    __m256 p[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    int64_t g = 0;
    for (; g + BATCH <= num_columns / GROUP; g += BATCH) {
        uint64_t bytes;
        memcpy(&bytes, row_scales + g * GROUP_SCALES, sizeof bytes);
        __m256 scales = gptoss_decode_e8m0(bytes);
        for (int b = 0; b < BATCH; ++b) {
            const uint8_t *group = codes + (g + b) * 2 * HALF_BYTES;
            const float *x = x_lanes + (g + b) * GROUP;
            __m256i low = _mm256_loadu_si256((const void *)group);
            __m256i high = _mm256_loadu_si256((const void *)(group + HALF_BYTES));
            p[0] = _mm256_fmadd_ps(spread_scales(scales, 2 * b), sum_half_group(low, x), p[0]);
            p[1] = _mm256_fmadd_ps(spread_scales(scales, 2 * b + 1), sum_half_group(high, x + 8),
                                   p[1]);
        }
    }
    add_rest(codes + g * 2 * HALF_BYTES, row_scales + g * GROUP_SCALES,
             (num_columns - g * GROUP) / PER_LANE, x_lanes + g * GROUP, p);
    return gptoss_sum_16(p[0], p[1]);
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_mxfp4);

static void matvec_mxfp4_one(const struct gptoss_matrix *matrix, int64_t first_row,
                             int64_t num_rows, const float *x_lanes, float *out) {
    for (int64_t r = 0; r < num_rows; ++r) {
        int64_t row = first_row + r;
        out[r] = dot(matrix->data + row * matrix->row_bytes,
                     matrix->scales + row * matrix->scale_row_bytes, matrix->num_columns, x_lanes);
    }
}

void GPTOSS_KERNEL(matvec_mxfp4)(const struct gptoss_matrix *matrix, int64_t first_row,
                                 int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                 float *out) {
    for (int32_t v = 0; v < num_vectors; ++v)
        matvec_mxfp4_one(matrix, first_row, num_rows,
                         x_lanes + v * gptoss_padded_columns(matrix->num_columns, PER_LANE),
                         out + v * num_rows);
}

/* ---- blocks of 17 bytes ---- */

/* Two of a group's blocks, or one: the lanes of the other keep their sums. */
GPTOSS_INLINE __m256 add_blocks(const uint8_t *blocks, int num_blocks, const float *x, __m256 p) {
    __m128i low = _mm_loadu_si128((const void *)(blocks + 1)), high = _mm_setzero_si128();
    uint64_t bytes = blocks[0];
    if (num_blocks == 2) {
        high = _mm_loadu_si128((const void *)(blocks + 18));
        bytes |= (uint64_t)blocks[17] << 8;
    }
    __m256 t = sum_half_group(_mm256_set_m128i(high, low), x);
    __m256 scales = spread_scales(gptoss_decode_e8m0(bytes), 0);
    return num_blocks == 2 ? _mm256_fmadd_ps(scales, t, p)
                           : gptoss_fma_masked(scales, t, p, gptoss_first_lanes(4));
}

static float dot_gguf(const uint8_t *blocks, int64_t num_columns, const float *x_lanes) {
    __m256 p[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (; num_columns >= GROUP; num_columns -= GROUP, blocks += 68, x_lanes += GROUP) {
        p[0] = add_blocks(blocks, 2, x_lanes, p[0]);
        p[1] = add_blocks(blocks + 34, 2, x_lanes + 8, p[1]);
    }
    for (int half = 0; num_columns > 0; ++half, num_columns -= 64)
        p[half] =
            add_blocks(blocks + half * 34, num_columns >= 64 ? 2 : 1, x_lanes + half * 8, p[half]);
    return gptoss_sum_16(p[0], p[1]);
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_mxfp4_gguf);

static void matvec_mxfp4_gguf_one(const struct gptoss_matrix *matrix, int64_t first_row,
                                  int64_t num_rows, const float *x_lanes, float *out) {
    for (int64_t r = 0; r < num_rows; ++r)
        out[r] = dot_gguf(matrix->data + (first_row + r) * matrix->row_bytes, matrix->num_columns,
                          x_lanes);
}

void GPTOSS_KERNEL(matvec_mxfp4_gguf)(const struct gptoss_matrix *matrix, int64_t first_row,
                                      int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                      float *out) {
    for (int32_t v = 0; v < num_vectors; ++v)
        matvec_mxfp4_gguf_one(matrix, first_row, num_rows,
                              x_lanes + v * gptoss_padded_columns(matrix->num_columns, PER_LANE),
                              out + v * num_rows);
}
