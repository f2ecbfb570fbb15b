/* Encoding float32 in the storage formats of weights: the other direction of numeric/dtype.h.
 *
 * The same bits on every machine: plain IEEE operations in a fixed order, no fused ones. The
 * caller's floating-point environment must be the default one (platform/fp_environment.h).
 */
#ifndef GPTOSS_NUMERIC_ENCODE_H
#define GPTOSS_NUMERIC_ENCODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gptoss.h"

/* Whether anything can be encoded in a format: F32, F16, BF16 and the block formats of GGUF but for
 * Q2_K and Q3_K. */
bool gptoss_can_encode(enum gptoss_dtype dtype);

/* Encodes num_blocks blocks of gptoss_dtype_block(dtype) values and returns num_blocks, or stops at
 * the first block that holds NaN, an infinity, or a value too large for the format, and returns its
 * index.
 *
 * F32, F16, BF16: to nearest even. Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: the bytes of ggml's reference.
 * MXFP4_GGUF: gptoss_mx_encode with a searched scale. Q4_K, Q5_K, Q6_K: a search for scales and
 * minima of least weighted squared error, see encode_k_quants.c. */
size_t gptoss_encode_blocks(enum gptoss_dtype dtype, const float *values, size_t num_blocks,
                            uint8_t *out);

/* encode_k_quants.c: one block of 256 elements. False as above. */
bool gptoss_encode_q4_k(const float *values, uint8_t *out);
bool gptoss_encode_q5_k(const float *values, uint8_t *out);
bool gptoss_encode_q6_k(const float *values, uint8_t *out);

#endif
