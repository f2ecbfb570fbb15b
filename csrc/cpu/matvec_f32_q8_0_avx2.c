/* out[v][r] = dot(row r, vector v) over Q8_0 rows: w = d * q, then lane l of two registers is p[l]
 * = fma(w, x, p[l]), then the tree. Scales are widened for four blocks at once. */
#include "cpu/kernels.h"
#include "cpu/simd_avx2.h"

enum { ROWS = 4, VECTORS = 2, BLOCK = 32, BLOCK_BYTES = 34, BATCH = 4 };

/* p[r][v] += up to BATCH blocks of some rows times their place of the vectors. */
GPTOSS_INLINE void add_blocks(const uint8_t *blocks, int64_t row_bytes, int num_blocks,
                              const float *x, int64_t distance, int num_rows, int num_vectors,
                              __m256 (*p)[VECTORS][2]) {
    __m256 scales[ROWS];
    for (int r = 0; r < num_rows; ++r) {
        uint64_t halves = 0;
        for (int b = 0; b < num_blocks; ++b) {
            uint16_t half;
            memcpy(&half, blocks + r * row_bytes + b * BLOCK_BYTES, sizeof half);
            halves |= (uint64_t)half << (16 * b);
        }
        __m128 four = _mm_cvtph_ps(_mm_cvtsi64_si128((long long)halves));
        scales[r] = _mm256_set_m128(four, four);
    }
    for (int b = 0; b < num_blocks; ++b)
        for (int r = 0; r < num_rows; ++r) {
            const uint8_t *codes = blocks + r * row_bytes + b * BLOCK_BYTES + 2;
            __m256 scale = _mm256_permutevar_ps(scales[r], _mm256_set1_epi32(b));
            for (int at = 0; at < BLOCK; at += 8) {
                __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(codes + at)));
                __m256 w = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(q));
                for (int v = 0; v < num_vectors; ++v)
                    p[r][v][at / 8 % 2] = _mm256_fmadd_ps(
                        w, _mm256_loadu_ps(x + v * distance + b * BLOCK + at), p[r][v][at / 8 % 2]);
            }
        }
}

GPTOSS_INLINE void dot_rows(const uint8_t *rows, int64_t row_bytes, int64_t num_columns,
                            const float *x, int num_rows, int num_vectors, float *out,
                            int64_t out_stride) {
    int64_t distance = gptoss_padded_columns(num_columns, 1), left = num_columns / BLOCK;
    __m256 p[ROWS][VECTORS][2];
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            p[r][v][0] = p[r][v][1] = _mm256_setzero_ps();
    for (; left >= BATCH; left -= BATCH, rows += BATCH * BLOCK_BYTES, x += BATCH * BLOCK) {
        for (int r = 0; r < num_rows; ++r)
            gptoss_prefetch_next(rows + r * row_bytes, num_rows * row_bytes, BATCH * BLOCK_BYTES);
        add_blocks(rows, row_bytes, BATCH, x, distance, num_rows, num_vectors, p);
    }
    for (; left > 0; --left, rows += BLOCK_BYTES, x += BLOCK)
        add_blocks(rows, row_bytes, 1, x, distance, num_rows, num_vectors, p);
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v)
            out[v * out_stride + r] = gptoss_sum_16(p[r][v][0], p[r][v][1]);
}

GPTOSS_INLINE void multiply(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                            const float *x, int at_once, int num_vectors, float *out) {
    const uint8_t *rows = matrix->data + first_row * matrix->row_bytes;
    int64_t row_bytes = matrix->row_bytes, r = 0;
    for (; r + at_once <= num_rows; r += at_once)
        dot_rows(rows + r * row_bytes, row_bytes, matrix->num_columns, x, at_once, num_vectors,
                 out + r, num_rows);
    for (; r < num_rows; ++r)
        dot_rows(rows + r * row_bytes, row_bytes, matrix->num_columns, x, 1, num_vectors, out + r,
                 num_rows);
}

gptoss_matvec_fn GPTOSS_KERNEL(matvec_q8_0);

void GPTOSS_KERNEL(matvec_q8_0)(const struct gptoss_matrix *matrix, int64_t first_row,
                                int64_t num_rows, const float *x_lanes, int32_t num_vectors,
                                float *out) {
    int64_t distance = gptoss_padded_columns(matrix->num_columns, 1);
    for (; num_vectors >= VECTORS; num_vectors -= VECTORS) {
        multiply(matrix, first_row, num_rows, x_lanes, ROWS / VECTORS, VECTORS, out);
        x_lanes += VECTORS * distance;
        out += VECTORS * num_rows;
    }
    if (num_vectors > 0)
        multiply(matrix, first_row, num_rows, x_lanes, ROWS, 1, out);
}
