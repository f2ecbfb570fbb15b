/* out[v][r] = dot(row r, vector v) over MXFP4 rows: lane l of a group is a dword of 8 codes. t =
 * +0; t = fma(code, x, t) eight times; p = fma(scale, t, p); then the tree.
 *
 * Before Zen 4 all 512-bit arithmetic shares two ports, so that each instruction spared counts. A
 * code is looked up by a permutation, which sees only the low four bits of a lane: code i comes
 * there by a shift of 4 i. Loads a byte or more further on would spare some shifts, but nearly all
 * would cross cache lines, which costs more. Blocks that a scale byte precedes are loaded one by
 * one. Scales are broadcast from a table. */
#include "cpu/mxfp4_row.h"
#include "cpu/simd_avx512.h"

enum { ROWS = 2, PER_LANE = 8, GROUP = GPTOSS_LANES * PER_LANE, BLOCKS = 4, BLOCK = 32 };
/* Rows are too short for the hardware's prefetchers: with it 23 of 27 GB/s come from memory,
 * without 9 (Zen 5). */
enum { PREFETCH_BYTES = 6144 };

/* The codes of up to four blocks, zeros behind. */
GPTOSS_INLINE __m512i load_group(const struct gptoss_mxfp4_row *row, int num_blocks) {
    if (row->codes_step == BLOCK / 2 && num_blocks == BLOCKS)
        return _mm512_loadu_si512(row->codes);
    __m512i codes = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)row->codes));
    for (int b = 1; b < num_blocks; ++b)
        codes = _mm512_mask_broadcast_i32x4(
            codes, (__mmask16)(0xF << (4 * b)),
            _mm_loadu_si128((const __m128i *)(row->codes + b * row->codes_step)));
    return codes;
}

/* t[r][v] = the sum of code times x over the elements of a lane. */
GPTOSS_INLINE void sum_group(const __m512i *codes, const float *x, int64_t distance, int num_rows,
                             int num_vectors, __m512 (*t)[GPTOSS_MAX_VECTORS]) {
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            t[r][v] = _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int i = 0; i < PER_LANE; ++i) {
        __m512 values[ROWS];
        for (int r = 0; r < num_rows; ++r)
            values[r] = gptoss_decode_e2m1(_mm512_srli_epi32(codes[r], 4 * (unsigned)i));
        for (int v = 0; v < num_vectors; ++v) {
            __m512 x_lane = _mm512_loadu_ps(x + v * distance + GPTOSS_LANES * i);
            for (int r = 0; r < num_rows; ++r)
                t[r][v] = _mm512_fmadd_ps(values[r], x_lane, t[r][v]);
        }
    }
}

/* Each of num_blocks scales in the four lanes of its block. */
GPTOSS_INLINE __m512 load_scales(const uint8_t *scales, int64_t step, int num_blocks) {
    __m512 spread = _mm512_set1_ps(gptoss_e8m0_value(scales[0]));
    for (int b = 1; b < num_blocks; ++b)
        spread = _mm512_mask_broadcastss_ps(spread, (__mmask16)(0xF << (4 * b)),
                                            _mm_set_ss(gptoss_e8m0_value(scales[b * step])));
    return spread;
}

GPTOSS_INLINE void dot_rows(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                            int64_t first_row, const float *x, int num_rows, int num_vectors,
                            float *out, int64_t out_stride) {
    int64_t distance = gptoss_padded_columns(matrix->num_columns, PER_LANE),
            left = matrix->num_columns;
    struct gptoss_mxfp4_row rows[ROWS];
    __m512i codes[ROWS];
    __m512 p[ROWS][GPTOSS_MAX_VECTORS], t[ROWS][GPTOSS_MAX_VECTORS], scales;
    for (int r = 0; r < num_rows; ++r) {
        rows[r] = gptoss_mxfp4_row(matrix, layout, first_row + r);
        for (int v = 0; v < num_vectors; ++v)
            p[r][v] = _mm512_setzero_ps();
    }
    for (; left >= GROUP; left -= GROUP, x += GROUP) {
        for (int r = 0; r < num_rows; ++r) {
            _mm_prefetch((const char *)(rows[r].codes + PREFETCH_BYTES), _MM_HINT_T0);
            codes[r] = load_group(&rows[r], BLOCKS);
        }
        sum_group(codes, x, distance, num_rows, num_vectors, t);
        for (int r = 0; r < num_rows; ++r) {
            scales = load_scales(rows[r].scales, rows[r].scale_step, BLOCKS);
            for (int v = 0; v < num_vectors; ++v)
                p[r][v] = _mm512_fmadd_ps(scales, t[r][v], p[r][v]);
            rows[r].codes += BLOCKS * rows[r].codes_step;
            rows[r].scales += BLOCKS * rows[r].scale_step;
        }
    }
    int num_blocks = (int)(left / BLOCK); /* of a short last group */
    if (num_blocks > 0) {
        for (int r = 0; r < num_rows; ++r)
            codes[r] = load_group(&rows[r], num_blocks);
        sum_group(codes, x, distance, num_rows, num_vectors, t);
    }
    for (int r = 0; r < num_rows; ++r) {
        if (num_blocks > 0)
            scales = load_scales(rows[r].scales, rows[r].scale_step, num_blocks);
        for (int v = 0; v < num_vectors; ++v) {
            if (num_blocks > 0)
                p[r][v] = _mm512_mask3_fmadd_ps(scales, t[r][v], p[r][v],
                                                gptoss_first_lanes(4 * num_blocks));
            out[v * out_stride + r] = gptoss_sum_16(p[r][v]);
        }
    }
}

GPTOSS_INLINE void multiply(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                            int64_t first_row, int64_t num_rows, const float *x, int at_once,
                            int num_vectors, float *out) {
    int64_t r = 0;
    for (; r + at_once <= num_rows; r += at_once)
        dot_rows(matrix, layout, first_row + r, x, at_once, num_vectors, out + r, num_rows);
    for (; r < num_rows; ++r)
        dot_rows(matrix, layout, first_row + r, x, 1, num_vectors, out + r, num_rows);
}

/* Several vectors are more than the first-level cache holds: two rows share their loads. */
GPTOSS_INLINE void matvec(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                          int64_t first_row, int64_t num_rows, const float *x, int32_t num_vectors,
                          float *out) {
    switch (num_vectors) {
    case 1: multiply(matrix, layout, first_row, num_rows, x, 1, 1, out); break;
    case 2: multiply(matrix, layout, first_row, num_rows, x, ROWS, 2, out); break;
    case 3: multiply(matrix, layout, first_row, num_rows, x, ROWS, 3, out); break;
    default: multiply(matrix, layout, first_row, num_rows, x, ROWS, 4, out);
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
