/* out[v][r] = dot(row r, vector v) over MXFP4 rows: lane l of a group is a dword of 8 codes. t =
 * +0; t = fma(code, x, t) eight times; p = fma(scale, t, p); then the tree. A register holds the 8
 * lanes of a pair of blocks. Scales are broadcast from a table. */
#include "cpu/mxfp4_row.h"
#include "cpu/simd_avx2.h"

enum { PER_LANE = 8, GROUP = GPTOSS_LANES * PER_LANE, BLOCK = 32 };
enum { PREFETCH_BYTES = 4096 };

/* Two blocks: two loads that overlap, as blocks are 16 or 17 bytes apart, or one. */
GPTOSS_INLINE __m256i load_pair(const struct gptoss_mxfp4_row *row, int64_t block) {
    const uint8_t *codes = row->codes + block * row->codes_step;
    __m256i first = _mm256_loadu_si256((const void *)codes);
    if (row->codes_step == 16)
        return first;
    return _mm256_blend_epi32(
        first, _mm256_loadu_si256((const void *)(codes + row->codes_step - 16)), 0xF0);
}

GPTOSS_INLINE __m256 load_scales(const struct gptoss_mxfp4_row *row, int64_t block) {
    const uint8_t *scales = row->scales + block * row->scale_step;
    return _mm256_blend_ps(_mm256_set1_ps(gptoss_e8m0_value(scales[0])),
                           _mm256_set1_ps(gptoss_e8m0_value(scales[row->scale_step])), 0xF0);
}

/* pairs: the codes of both blocks, looked up. */
GPTOSS_INLINE void add_pair(const struct gptoss_mxfp4_row *row, int64_t block,
                            const __m256i pairs[4], const float *x, int64_t distance,
                            int num_vectors, __m256 (*p)[2], int half) {
    __m256 t[GPTOSS_MAX_VECTORS], scales = load_scales(row, block);
    for (int v = 0; v < num_vectors; ++v)
        t[v] = _mm256_setzero_ps();
#pragma GCC unroll 8
    for (int i = 0; i < PER_LANE; ++i) {
        __m256 value = gptoss_e2m1_value(pairs, i);
        for (int v = 0; v < num_vectors; ++v)
            t[v] =
                _mm256_fmadd_ps(value, _mm256_loadu_ps(x + v * distance + 16 * i + 8 * half), t[v]);
    }
    for (int v = 0; v < num_vectors; ++v)
        p[v][half] = _mm256_fmadd_ps(scales, t[v], p[v][half]);
}

/* What follows the whole groups: two blocks or the lower lanes of one. */
GPTOSS_INLINE void add_rest(const struct gptoss_mxfp4_row *row, int64_t block, int64_t num_blocks,
                            const float *x, int64_t distance, int num_vectors, __m256 (*p)[2],
                            int half) {
    __m256i mask = gptoss_first_lanes(4 * num_blocks), pairs[4];
    __m256 scales = num_blocks > 1
                        ? load_scales(row, block)
                        : _mm256_set1_ps(gptoss_e8m0_value(row->scales[block * row->scale_step]));
    gptoss_look_up_e2m1(num_blocks > 1 ? load_pair(row, block)
                                       : _mm256_castsi128_si256(_mm_loadu_si128(
                                             (const void *)(row->codes + block * row->codes_step))),
                        pairs);
    for (int v = 0; v < num_vectors; ++v) {
        __m256 t = _mm256_setzero_ps();
        for (int i = 0; i < PER_LANE; ++i)
            t = _mm256_fmadd_ps(gptoss_e2m1_value(pairs, i),
                                _mm256_loadu_ps(x + v * distance + 16 * i + 8 * half), t);
        p[v][half] = gptoss_fma_masked(scales, t, p[v][half], mask);
    }
}

GPTOSS_INLINE void dot_row(struct gptoss_mxfp4_row row, int64_t num_columns, const float *x,
                           int num_vectors, float *out, int64_t num_rows) {
    int64_t distance = gptoss_padded_columns(num_columns, PER_LANE),
            num_blocks = num_columns / BLOCK, block = 0;
    __m256 p[GPTOSS_MAX_VECTORS][2];
    for (int v = 0; v < num_vectors; ++v)
        p[v][0] = p[v][1] = _mm256_setzero_ps();
    /* A chain is long: the next pair is looked up before it. */
    __m256i pairs[4];
    if (num_blocks >= 4)
        gptoss_look_up_e2m1(load_pair(&row, 0), pairs);
    for (; block + 4 <= num_blocks; x += GROUP) {
        _mm_prefetch((const char *)(row.codes + block * row.codes_step + PREFETCH_BYTES),
                     _MM_HINT_T0);
        for (int half = 0; half < 2; ++half, block += 2) {
            __m256i next[4];
            gptoss_look_up_e2m1(load_pair(&row, block + 4 <= num_blocks ? block + 2 : 0), next);
            add_pair(&row, block, pairs, x, distance, num_vectors, p, half);
            memcpy(pairs, next, sizeof pairs);
        }
    }
    for (int half = 0; block < num_blocks; ++half, block += 2)
        add_rest(&row, block, num_blocks - block, x, distance, num_vectors, p, half);
    for (int v = 0; v < num_vectors; ++v)
        out[v * num_rows] = gptoss_sum_16(p[v][0], p[v][1]);
}

GPTOSS_INLINE void dot_rows(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                            int64_t first_row, int64_t num_rows, const float *x, int num_vectors,
                            float *out) {
    for (int64_t r = 0; r < num_rows; ++r)
        dot_row(gptoss_mxfp4_row(matrix, layout, first_row + r), matrix->num_columns, x,
                num_vectors, out + r, num_rows);
}

GPTOSS_INLINE void matvec(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                          int64_t first_row, int64_t num_rows, const float *x, int32_t num_vectors,
                          float *out) {
    switch (num_vectors) {
    case 1: dot_rows(matrix, layout, first_row, num_rows, x, 1, out); break;
    case 2: dot_rows(matrix, layout, first_row, num_rows, x, 2, out); break;
    case 3: dot_rows(matrix, layout, first_row, num_rows, x, 3, out); break;
    default: dot_rows(matrix, layout, first_row, num_rows, x, 4, out);
    }
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_mxfp4), GPTOSS_KERNEL(matvec_mxfp4_gguf);

void GPTOSS_KERNEL(matvec_mxfp4)(const struct gptoss_matrix *matrix, int64_t first_row,
                                 int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                 float *out) {
    matvec(matrix, GPTOSS_LAYOUT_MXFP4, first_row, num_rows, x_lanes, num_vectors, out);
}

void GPTOSS_KERNEL(matvec_mxfp4_gguf)(const struct gptoss_matrix *matrix, int64_t first_row,
                                      int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                      float *out) {
    matvec(matrix, GPTOSS_LAYOUT_MXFP4_GGUF, first_row, num_rows, x_lanes, num_vectors, out);
}
