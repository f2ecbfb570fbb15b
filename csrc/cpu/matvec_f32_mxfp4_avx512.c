/* out[v][r] = dot(row r, vector v) over MXFP4 rows: lane l of a group is a dword of 8 codes. t =
 * +0; t = fma(code, x, t) eight times; p = fma(scale, t, p); then the tree.
 *
 * Before Zen 4 all 512-bit arithmetic shares two ports, so that each instruction spared counts. A
 * code is looked up by a permutation, which sees only the low four bits of a lane. Codes 2 j and
 * 2 j + 1 come from a load j bytes further on: unshifted and shifted by 4. Where a scale byte
 * precedes each block, that load has the codes of block b another b bytes up: one shift by lanes
 * instead of gathering the blocks. Scales are broadcast from a table. */
#include "cpu/mxfp4_row.h"
#include "cpu/simd_avx512.h"

enum { ROWS = 2, PER_LANE = 8, GROUP = GPTOSS_LANES * PER_LANE, BLOCKS = 4, BLOCK = 32 };
/* Rows are too short for the hardware's prefetchers: with it 23 of 27 GB/s come from memory,
 * without 9 (Zen 5). */
enum { PREFETCH_BYTES = 6144 };

/* Loads of a group, each a byte further on. */
struct loads {
    __m512i at[PER_LANE / 2];
};

GPTOSS_INLINE struct loads load_group(const uint8_t *codes) {
    struct loads loads;
    for (int j = 0; j < PER_LANE / 2; ++j)
        loads.at[j] = _mm512_loadu_si512(codes + j);
    return loads;
}

/* The same of num_bytes bytes, of which none behind is read. */
GPTOSS_INLINE struct loads load_short_group(const uint8_t *codes, int64_t num_bytes) {
    struct loads loads;
    for (int j = 0; j < PER_LANE / 2; ++j) {
        int64_t left = num_bytes - j < 64 ? num_bytes - j : 64;
        loads.at[j] = _mm512_maskz_loadu_epi8(UINT64_MAX >> (64 - left), codes + j);
    }
    return loads;
}

GPTOSS_INLINE __m512 decode(const struct loads *loads, bool is_gguf, int i) {
    const __m512i block_bits =
        _mm512_setr_epi32(0, 0, 0, 0, 8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 24, 24);
    __m512i codes = loads->at[i / 2];
    if (is_gguf)
        codes =
            _mm512_srlv_epi32(codes, _mm512_add_epi32(block_bits, _mm512_set1_epi32(i % 2 * 4)));
    else if (i % 2 == 1)
        codes = _mm512_srli_epi32(codes, 4);
    return gptoss_decode_e2m1(codes);
}

/* t[r][v] = the sum of code times x over the elements of a lane. */
GPTOSS_INLINE void sum_group(const struct loads *loads, bool is_gguf, const float *x,
                             int64_t distance, int num_rows, int num_vectors,
                             __m512 (*t)[GPTOSS_MAX_VECTORS]) {
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            t[r][v] = _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int i = 0; i < PER_LANE; ++i) {
        __m512 values[ROWS];
        for (int r = 0; r < num_rows; ++r)
            values[r] = decode(&loads[r], is_gguf, i);
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
    const bool is_gguf = layout == GPTOSS_LAYOUT_MXFP4_GGUF;
    int64_t distance = gptoss_padded_columns(matrix->num_columns, PER_LANE),
            left = matrix->num_columns;
    struct gptoss_mxfp4_row rows[ROWS];
    struct loads loads[ROWS];
    __m512 p[ROWS][GPTOSS_MAX_VECTORS], t[ROWS][GPTOSS_MAX_VECTORS], scales;
    for (int r = 0; r < num_rows; ++r) {
        rows[r] = gptoss_mxfp4_row(matrix, layout, first_row + r);
        for (int v = 0; v < num_vectors; ++v)
            p[r][v] = _mm512_setzero_ps();
    }
    for (; left > GROUP; left -= GROUP, x += GROUP) {
        for (int r = 0; r < num_rows; ++r) {
            _mm_prefetch((const char *)(rows[r].codes + PREFETCH_BYTES), _MM_HINT_T0);
            loads[r] = load_group(rows[r].codes);
        }
        sum_group(loads, is_gguf, x, distance, num_rows, num_vectors, t);
        for (int r = 0; r < num_rows; ++r) {
            scales = load_scales(rows[r].scales, rows[r].scale_step, BLOCKS);
            for (int v = 0; v < num_vectors; ++v)
                p[r][v] = _mm512_fmadd_ps(scales, t[r][v], p[r][v]);
            rows[r].codes += BLOCKS * rows[r].codes_step;
            rows[r].scales += BLOCKS * rows[r].scale_step;
        }
    }
    /* The last group, of 1 to 4 blocks. */
    int num_blocks = (int)(left / BLOCK);
    for (int r = 0; r < num_rows; ++r)
        loads[r] =
            load_short_group(rows[r].codes, (num_blocks - 1) * rows[r].codes_step + BLOCK / 2);
    sum_group(loads, is_gguf, x, distance, num_rows, num_vectors, t);
    for (int r = 0; r < num_rows; ++r) {
        scales = load_scales(rows[r].scales, rows[r].scale_step, num_blocks);
        for (int v = 0; v < num_vectors; ++v) {
            p[r][v] =
                _mm512_mask3_fmadd_ps(scales, t[r][v], p[r][v], gptoss_first_lanes(4 * num_blocks));
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
