/* out[r] = dot(row r, x) over MXFP4 rows: lane l of a group's 64 bytes is a dword of 8 codes, low
 * nibbles first. t = +0; t = fma(code, x, t) eight times; p = fma(scale, t, p) then the tree. A
 * code is looked up by a permutation, which counts only the low four bits of a lane: one shift a
 * code and no mask. The scales of four groups are decoded at once. */
#include "cpu/kernels.h"
#include "cpu/simd_avx512.h"

enum { ROWS = 2, PER_LANE = 8, GROUP = 128, GROUP_BYTES = 64, GROUP_SCALES = 4, BATCH = 4 };
/* Rows are too short for the hardware's prefetchers: with it 23 of 27 GB/s come from memory,
 * without 9 (Zen 5). */
enum { PREFETCH_BYTES = 6144 };

GPTOSS_INLINE __m512 sum_group(__m512i codes, const float *x) {
    __m512 t = _mm512_setzero_ps();
    for (int i = 0; i < PER_LANE; ++i)
        t = _mm512_fmadd_ps(gptoss_decode_e2m1(_mm512_srli_epi32(codes, 4 * i)),
                            _mm512_loadu_ps(x + 16 * i), t);
    return t;
}

/* The scales of group g of a batch, each in the four lanes of its block. */
GPTOSS_INLINE __m512 spread_scales(__m512 scales, int g) {
    const __m512i block_of_lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_ps(
        _mm512_add_epi32(block_of_lane, _mm512_set1_epi32(GROUP_SCALES * g)), scales);
}

GPTOSS_INLINE void dot_rows(const struct gptoss_matrix *matrix, int64_t first_row,
                            const float *x_lanes, float *out, int num_rows) {
    const uint8_t *rows = matrix->data + first_row * matrix->row_bytes;
    const uint8_t *row_scales = matrix->scales + first_row * matrix->scale_row_bytes;
    int64_t num_whole = matrix->num_columns / GROUP;
    __m512 p[ROWS], scales[ROWS];
    for (int r = 0; r < num_rows; ++r)
        p[r] = _mm512_setzero_ps();
    int64_t g = 0;
    for (; g + BATCH <= num_whole; g += BATCH) {
        for (int r = 0; r < num_rows; ++r)
            scales[r] = gptoss_decode_e8m0(_mm_loadu_si128(
                (const void *)(row_scales + r * matrix->scale_row_bytes + g * GROUP_SCALES)));
        for (int b = 0; b < BATCH; ++b)
            for (int r = 0; r < num_rows; ++r) {
                const uint8_t *codes = rows + r * matrix->row_bytes + (g + b) * GROUP_BYTES;
                _mm_prefetch((const char *)(codes + PREFETCH_BYTES), _MM_HINT_T0);
                __m512 t = sum_group(_mm512_loadu_si512(codes), x_lanes + (g + b) * GROUP);
                p[r] = _mm512_fmadd_ps(spread_scales(scales[r], b), t, p[r]);
            }
    }
    /* Up to BATCH - 1 whole groups and a part of one, of 4, 8 or 12 lanes. */
    int64_t lanes_left = (matrix->num_columns - g * GROUP) / PER_LANE;
    for (int r = 0; lanes_left > 0 && r < num_rows; ++r) {
        const uint8_t *from = row_scales + r * matrix->scale_row_bytes + g * GROUP_SCALES;
        scales[r] =
            gptoss_decode_e8m0(_mm_maskz_loadu_epi8(gptoss_first_lanes(lanes_left / 4), from));
    }
    for (int b = 0; lanes_left > 0; ++b, lanes_left -= GPTOSS_LANES) {
        __mmask16 mask = gptoss_first_lanes(lanes_left < GPTOSS_LANES ? lanes_left : GPTOSS_LANES);
        for (int r = 0; r < num_rows; ++r) {
            __m512i codes = _mm512_maskz_loadu_epi32(mask, rows + r * matrix->row_bytes +
                                                               (g + b) * GROUP_BYTES);
            __m512 t = sum_group(codes, x_lanes + (g + b) * GROUP);
            p[r] = _mm512_mask3_fmadd_ps(spread_scales(scales[r], b), t, p[r], mask);
        }
    }
    for (int r = 0; r < num_rows; ++r)
        out[r] = gptoss_sum_16(p[r]);
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_mxfp4);

static void matvec_mxfp4_one(const struct gptoss_matrix *matrix, int64_t first_row,
                             int64_t num_rows, const float *x_lanes, float *out) {
    int64_t r = 0;
    for (; r + ROWS <= num_rows; r += ROWS)
        dot_rows(matrix, first_row + r, x_lanes, out + r, ROWS);
    for (; r < num_rows; ++r)
        dot_rows(matrix, first_row + r, x_lanes, out + r, 1);
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

/* The codes of the first num_blocks blocks of a group; the lanes of the others are 0. */
GPTOSS_INLINE __m512i load_codes(const uint8_t *blocks, int num_blocks) {
    __m128i quarter[GROUP_SCALES];
    for (int b = 0; b < GROUP_SCALES; ++b)
        quarter[b] = b < num_blocks ? _mm_loadu_si128((const void *)(blocks + b * 17 + 1))
                                    : _mm_setzero_si128();
    __m512i codes = _mm512_inserti32x4(_mm512_castsi128_si512(quarter[0]), quarter[1], 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(codes, quarter[2], 2), quarter[3], 3);
}

GPTOSS_INLINE __m512 load_scales(const uint8_t *blocks, int num_blocks) {
    uint32_t bytes = 0;
    for (int b = 0; b < num_blocks; ++b)
        bytes |= (uint32_t)blocks[b * 17] << (8 * b);
    return spread_scales(gptoss_decode_e8m0(_mm_cvtsi32_si128((int)bytes)), 0);
}

static float dot_gguf(const uint8_t *blocks, int64_t num_columns, const float *x_lanes) {
    __m512 p = _mm512_setzero_ps();
    for (; num_columns >= GROUP; num_columns -= GROUP, blocks += 68, x_lanes += GROUP)
        p = _mm512_fmadd_ps(load_scales(blocks, GROUP_SCALES),
                            sum_group(load_codes(blocks, GROUP_SCALES), x_lanes), p);
    if (num_columns > 0) {
        int num_blocks = (int)(num_columns / 32);
        __m512 t = sum_group(load_codes(blocks, num_blocks), x_lanes);
        p = _mm512_mask3_fmadd_ps(load_scales(blocks, num_blocks), t, p,
                                  gptoss_first_lanes(num_columns / PER_LANE));
    }
    return gptoss_sum_16(p);
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
