/* Sixteen bytes, for codes of fewer bits, on x86; include after the level's simd header. */
#ifndef GPTOSS_CPU_SIMD_BYTES_X86_H
#define GPTOSS_CPU_SIMD_BYTES_X86_H

typedef __m128i gptoss_bytes;

GPTOSS_INLINE gptoss_bytes gptoss_bytes_load(const uint8_t *from) {
    return _mm_loadu_si128((const void *)from);
}
GPTOSS_INLINE gptoss_bytes gptoss_bytes_set(uint64_t low, uint64_t high) {
    return _mm_set_epi64x((long long)high, (long long)low);
}
/* (byte >> shift) & mask of each; mask has at most 8 - shift bits. */
GPTOSS_INLINE gptoss_bytes gptoss_bytes_bits(gptoss_bytes a, int shift, int mask) {
    return _mm_and_si128(_mm_srl_epi16(a, _mm_cvtsi32_si128(shift)), _mm_set1_epi8((char)mask));
}
/* low | high << shift of each; no bit leaves its byte. */
GPTOSS_INLINE gptoss_bytes gptoss_bytes_join(gptoss_bytes low, gptoss_bytes high, int shift) {
    return _mm_or_si128(low, _mm_sll_epi16(high, _mm_cvtsi32_si128(shift)));
}
GPTOSS_INLINE gptoss_bytes gptoss_bytes_subtract(gptoss_bytes a, int b) {
    return _mm_sub_epi8(a, _mm_set1_epi8((char)b));
}
/* The 16 bits of two bytes, lowest first, as 0 or 1. */
GPTOSS_INLINE gptoss_bytes gptoss_bytes_spread(const uint8_t *two) {
    const __m128i from = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m128i bits = _mm_set1_epi64x((long long)0x8040201008040201);
    uint16_t both;
    memcpy(&both, two, sizeof both);
    __m128i spread = _mm_shuffle_epi8(_mm_cvtsi32_si128(both), from);
    return _mm_min_epu8(_mm_and_si128(spread, bits), _mm_set1_epi8(1));
}

/* ---- sixteen halfwords ---- */

typedef __m256i gptoss_halves;

/* The bytes, each in the high half. */
GPTOSS_INLINE gptoss_halves gptoss_halves_from_bytes(gptoss_bytes a) {
    return _mm256_slli_epi16(_mm256_cvtepu8_epi16(a), 8);
}
/* Sixteen codes of 6 bits, which are 12 bytes from number `first` on, each in the high bits; what
 * is below is left over from its neighbours. */
GPTOSS_INLINE gptoss_halves gptoss_halves_from_six_bits(gptoss_bytes a, int first) {
    const __m256i order =
        _mm256_setr_epi8(0, 1, 0, 1, 1, 2, 1, 2, 3, 4, 3, 4, 4, 5, 4, 5, /* of each two bytes */
                         6, 7, 6, 7, 7, 8, 7, 8, 9, 10, 9, 10, 10, 11, 10, 11);
    const __m256i powers = _mm256_set1_epi64x(0x0001004000100400); /* 2^10, 2^4, 2^6, 1 */
    __m256i from = _mm256_add_epi8(order, _mm256_set1_epi8((char)first));
    __m256i pairs = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(a), from);
    return _mm256_mullo_epi16(pairs, powers);
}
/* (a >> shift) & mask of each, the sign bit moving in from the left. */
GPTOSS_INLINE gptoss_halves gptoss_halves_shift(gptoss_halves a, int shift, int mask) {
    return _mm256_and_si256(_mm256_sra_epi16(a, _mm_cvtsi32_si128(shift)),
                            _mm256_set1_epi16((short)mask));
}
/* All ones, a NaN, where all but the sign is equal to magnitude. */
GPTOSS_INLINE gptoss_halves gptoss_halves_make_nan(gptoss_halves a, int magnitude) {
    __m256i rest = _mm256_and_si256(a, _mm256_set1_epi16(0x7FFF));
    return _mm256_or_si256(a, _mm256_cmpeq_epi16(rest, _mm256_set1_epi16((short)magnitude)));
}

GPTOSS_INLINE float gptoss_widen_f16(const uint8_t *half) {
    uint16_t bits;
    memcpy(&bits, half, sizeof bits);
    return _cvtsh_ss(bits);
}

#endif
