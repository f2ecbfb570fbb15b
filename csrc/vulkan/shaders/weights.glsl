// Weights in rows, in every layout of push_constants.h, a piece of 16 bytes of codes at a time.
#include "e2m1.glsl"
layout(constant_id = 1) const uint LAYOUT = 0;
layout(constant_id = 2) const uint COLUMNS = 32; // inputs
layout(constant_id = 7) const bool HALVES = false; // subnormal halves are not flushed

const uint PIECE = LAYOUT == GPTOSS_DEVICE_F32     ? 4
                   : LAYOUT == GPTOSS_DEVICE_MXFP4 ? 32
                   : LAYOUT == GPTOSS_DEVICE_Q8    ? 16
                                                   : 8;
const uint BLOCKS = (COLUMNS + 31) / 32; // of a row
const uint PIECES = BLOCKS * 32 / PIECE;
// Words of the scales of a row.
const uint SCALE_WORDS = LAYOUT == GPTOSS_DEVICE_MXFP4 ? (BLOCKS + 3) / 4 : (BLOCKS + 1) / 2;

const float E2M1_FACTOR = HALVES ? 16384.0 : 1.0; // what two_e2m1 leaves out

// The value of the lower half. With an exponent of 126 more, magnitudes from 1.0 on are right; of the two
// below, 2 f - 1 is, which is less than f there alone.
float e2m1(uint halves) {
    float f = uintBitsToFloat(0x3F000000u + ((halves & 0x0E00u) << 13));
    float magnitude = min(f, fma(2.0, f, -1.0));
    return uintBitsToFloat(floatBitsToUint(magnitude) | (halves & 0x8000u) << 16);
}

// Both values, 2^-14 of them where halves are precise.
vec2 two_e2m1(uint word, uint j) {
    uint halves = e2m1_halves(word, j);
    return HALVES ? unpackHalf2x16(halves) : vec2(e2m1(halves), e2m1(halves >> 16));
}

// 2^(byte - 127); 0xFF is NaN. Byte 0, 2^-127, is a subnormal, which devices may take for 0.
float e8m0(uint byte) {
    return uintBitsToFloat(byte == 255u ? 0x7FC00000u : byte == 0u ? 0x00400000u : byte << 23);
}

float half_at(uvec2 address, uint index) {
    vec2 pair = unpackHalf2x16(Words(address).at[index >> 1]);
    return (index & 1u) == 0u ? pair.x : pair.y;
}

int signed_byte(uint word, uint index) {
    return bitfieldExtract(int(word), int(8u * index), 8);
}

// Products go through a piece in steps, so that few elements of x are in registers at a time.
const uint STEP = LAYOUT == GPTOSS_DEVICE_MXFP4 ? 8 : PIECE;
const uint STEPS_OF_PIECE = PIECE / STEP;

struct Piece {
    uvec4 codes;
    float scale;
};

// A word of scales of pieces has that of piece in its lower bits then.
uint scale_bits(uint word, uint piece) {
    return LAYOUT == GPTOSS_DEVICE_MXFP4 ? word >> 8 * (piece & 3u) & 255u : word >> 16 * (piece >> 1 & 1u);
}

float scale_from(uint bits) {
    return LAYOUT == GPTOSS_DEVICE_MXFP4 ? e8m0(bits) : unpackHalf2x16(bits).x;
}

// Which word of a row's scales.
uint scale_word(uint piece) {
    return piece >> 2; // four bytes, or two halves of two pieces each
}

float scale_at(uvec2 scales, uint row, uint piece) {
    if (LAYOUT != GPTOSS_DEVICE_MXFP4 && LAYOUT != GPTOSS_DEVICE_Q8)
        return 1;
    return scale_from(scale_bits(Words(scales).at[row * SCALE_WORDS + scale_word(piece)], piece));
}

// Loads of these stay before the barrier that they come before; those of readonly memory are moved to
// where they are used, where each is waited for.
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Stream { uvec4 at[]; };

Piece load_weight(uvec2 weight, uvec2 scales, uint row, uint piece) {
    float factor = LAYOUT == GPTOSS_DEVICE_MXFP4 ? E2M1_FACTOR : 1;
    return Piece(Stream(weight).at[row * PIECES + piece], scale_at(scales, row, piece) * factor);
}

// sum + the products of a step's elements, without the scale, and v.
float dot_step(uvec4 codes, uint step, float v[16], float sum) {
    if (LAYOUT == GPTOSS_DEVICE_MXFP4) {
        [[unroll]] for (uint j = 0; j < 4; ++j) {
            vec2 pair = two_e2m1(codes[step], j);
            sum = fma(pair.x, v[j], fma(pair.y, v[j + 4], sum));
        }
    } else if (LAYOUT == GPTOSS_DEVICE_Q8) {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            // 1024 + 128 + the byte is a half, whose lowest bits are those of the byte.
            uint word = codes[i] ^ 0x80808080u;
            vec2 even = unpackHalf2x16(word & 0x00FF00FFu | 0x64006400u) - 1152.0;
            vec2 odd = unpackHalf2x16(word >> 8 & 0x00FF00FFu | 0x64006400u) - 1152.0;
            sum = fma(even.x, v[4 * i], fma(odd.x, v[4 * i + 1], sum));
            sum = fma(even.y, v[4 * i + 2], fma(odd.y, v[4 * i + 3], sum));
        }
    } else if (LAYOUT == GPTOSS_DEVICE_F32) {
        [[unroll]] for (uint i = 0; i < 4; ++i)
            sum = fma(uintBitsToFloat(codes[i]), v[i], sum);
    } else {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            vec2 pair = LAYOUT == GPTOSS_DEVICE_F16
                            ? unpackHalf2x16(codes[i])
                            : vec2(uintBitsToFloat(codes[i] << 16),
                                   uintBitsToFloat(codes[i] & 0xFFFF0000u));
            sum = fma(pair.x, v[2 * i], fma(pair.y, v[2 * i + 1], sum));
        }
    }
    return sum;
}

// STEP elements of a line of x from a step of a piece on; zeros beyond its end.
void load_step(uvec2 x, uint line, uint piece, uint step, out float v[16]) {
    uint start = piece * PIECE + step * STEP;
    if (COLUMNS % 32 == 0) {
        [[unroll]] for (uint i = 0; i < STEP / 4; ++i) {
            vec4 part = Vectors(x).at[(line * COLUMNS + start) / 4 + i];
            [[unroll]] for (uint j = 0; j < 4; ++j)
                v[4 * i + j] = part[j];
        }
    } else {
        [[unroll]] for (uint i = 0; i < STEP; ++i)
            v[i] = start + i < COLUMNS ? Floats(x).at[line * COLUMNS + start + i] : 0;
    }
}

// Elements piece * PIECE and on of a row.
void decode_piece(uvec2 weight, uvec2 scales, uint row, uint piece, out float w[32]) {
    uint at = row * PIECES + piece;
    if (LAYOUT == GPTOSS_DEVICE_F32) {
        vec4 v = Vectors(weight).at[at];
        [[unroll]] for (uint i = 0; i < 4; ++i)
            w[i] = v[i];
        return;
    }
    uvec4 codes = Pieces(weight).at[at];
    if (LAYOUT == GPTOSS_DEVICE_F16) {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            vec2 pair = unpackHalf2x16(codes[i]);
            w[2 * i] = pair.x;
            w[2 * i + 1] = pair.y;
        }
    } else if (LAYOUT == GPTOSS_DEVICE_BF16) {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            w[2 * i] = uintBitsToFloat(codes[i] << 16);
            w[2 * i + 1] = uintBitsToFloat(codes[i] & 0xFFFF0000u);
        }
    } else if (LAYOUT == GPTOSS_DEVICE_MXFP4) {
        float scale = scale_at(scales, row, piece) * E2M1_FACTOR;
        [[unroll]] for (uint i = 0; i < 4; ++i)
            [[unroll]] for (uint j = 0; j < 4; ++j) {
                vec2 pair = two_e2m1(codes[i], j);
                w[8 * i + j] = scale * pair.x;
                w[8 * i + j + 4] = scale * pair.y;
            }
    } else {
        float scale = scale_at(scales, row, piece);
        [[unroll]] for (uint i = 0; i < 4; ++i)
            [[unroll]] for (uint j = 0; j < 4; ++j)
                w[4 * i + j] = scale * float(signed_byte(codes[i], j));
    }
}
