/* out[v][r] = dot(row r, vector v) over Q8_0 rows: w = d * q, then lane l of a register is p[l] =
 * fma(w, x, p[l]), then the tree. Scales of sixteen blocks are widened at once, and come back from
 * memory as operands of multiplications: broadcast so, they cost no arithmetic. */
#include "cpu/kernels.h"
#include "cpu/simd_avx512.h"

enum { ROWS = 4, BLOCK = 32, BLOCK_BYTES = 34, SCALES = 16 };

/* Those of up to SCALES blocks of a row. */
GPTOSS_INLINE void widen_scales(const uint8_t *blocks, int num_blocks, float *scales) {
    uint16_t halves[SCALES] = {0};
    for (int b = 0; b < num_blocks; ++b)
        memcpy(&halves[b], blocks + b * BLOCK_BYTES, sizeof halves[b]);
    _mm512_storeu_ps(scales, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)halves)));
}

/* p[r][v] += a block of some rows times its place of the vectors. */
GPTOSS_INLINE void add_block(const uint8_t *block, int64_t row_bytes, const float *scales,
                             const float *x, int64_t distance, int num_rows, int num_vectors,
                             __m512 (*p)[GPTOSS_MAX_VECTORS]) {
    for (int r = 0; r < num_rows; ++r) {
        const uint8_t *codes = block + r * row_bytes + (BLOCK_BYTES - BLOCK);
        gptoss_prefetch_next(codes, num_rows * row_bytes, BLOCK);
        for (int i = 0; i < BLOCK; i += GPTOSS_LANES) {
            __m512i q = _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(codes + i)));
            __m512 w = _mm512_mul_ps(_mm512_cvtepi32_ps(q), _mm512_set1_ps(scales[r * SCALES]));
            for (int v = 0; v < num_vectors; ++v)
                p[r][v] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x + v * distance + i), p[r][v]);
        }
    }
}

GPTOSS_INLINE void dot_rows(const uint8_t *rows, int64_t row_bytes, int64_t num_columns,
                            const float *x, int num_rows, int num_vectors, float *out,
                            int64_t out_stride) {
    int64_t distance = gptoss_padded_columns(num_columns, 1);
    __m512 p[ROWS][GPTOSS_MAX_VECTORS];
    float scales[ROWS * SCALES];
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            p[r][v] = _mm512_setzero_ps();
    for (int64_t left = num_columns / BLOCK; left > 0; left -= SCALES) {
        int num_blocks = left < SCALES ? (int)left : SCALES;
        for (int r = 0; r < num_rows; ++r)
            widen_scales(rows + r * row_bytes, num_blocks, scales + r * SCALES);
#pragma GCC unroll 4
        for (int b = 0; b < num_blocks; ++b, rows += BLOCK_BYTES, x += BLOCK)
            add_block(rows, row_bytes, scales + b, x, distance, num_rows, num_vectors, p);
    }
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            out[v * out_stride + r] = gptoss_sum_16(p[r][v]);
}

GPTOSS_INLINE void matvec(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                          const float *x, int at_once, int num_vectors, float *out) {
    const uint8_t *rows = matrix->data + first_row * matrix->row_bytes;
    int64_t r = 0;
    for (; r + at_once <= num_rows; r += at_once)
        dot_rows(rows + r * matrix->row_bytes, matrix->row_bytes, matrix->num_columns, x, at_once,
                 num_vectors, out + r, num_rows);
    for (; r < num_rows; ++r)
        dot_rows(rows + r * matrix->row_bytes, matrix->row_bytes, matrix->num_columns, x, 1,
                 num_vectors, out + r, num_rows);
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_q8_0);

void GPTOSS_KERNEL(matvec_q8_0)(const struct gptoss_matrix *matrix, int64_t first_row,
                                int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                float *out) {
    switch (num_vectors) {
    case 1: matvec(matrix, first_row, num_rows, x_lanes, ROWS, 1, out); break;
    case 2: matvec(matrix, first_row, num_rows, x_lanes, ROWS, 2, out); break;
    case 3: matvec(matrix, first_row, num_rows, x_lanes, ROWS, 3, out); break;
    default: matvec(matrix, first_row, num_rows, x_lanes, ROWS, 4, out);
    }
}
