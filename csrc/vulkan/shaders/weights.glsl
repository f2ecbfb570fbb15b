// Weights in every layout of push_constants.h, a piece of 16 bytes of codes at a time.
layout(constant_id = 1) const uint LAYOUT = 0;
layout(constant_id = 2) const uint COLUMNS = 32; // inputs
layout(constant_id = 7) const bool HALVES = false; // subnormal halves are not flushed

const uint PIECE = LAYOUT == GPTOSS_DEVICE_F32     ? 4
                   : LAYOUT == GPTOSS_DEVICE_MXFP4 ? 32
                   : LAYOUT == GPTOSS_DEVICE_Q8    ? 16
                                                   : 8;
const uint BLOCKS = (COLUMNS + 31) / 32; // of a row
const uint PIECES = BLOCKS * 32 / PIECE;

// E2M1: with an exponent of 126 more, codes from 1.0 on are right; of the two below, 2 f - 1 is,
// which is less than f there alone.
float e2m1(uint nibble) {
    float f = uintBitsToFloat(0x3F000000u + ((nibble & 7u) << 22));
    float magnitude = min(f, fma(2.0, f, -1.0));
    return uintBitsToFloat(floatBitsToUint(magnitude) | (nibble & 8u) << 28);
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

// 2^-14 of the values of nibbles j and j + 4, on their way through halves: sign and magnitude of E2M1
// are those of a half, subnormals included.
vec2 two_e2m1(uint word, uint j) {
    uint magnitude = j < 3 ? word << 9 - 4 * j : word >> 3;
    return unpackHalf2x16(magnitude & 0x0E000E00u | word << 12 - 4 * j & 0x80008000u);
}

// Products go through a piece in steps, so that few elements of x are in registers at a time.
const uint STEP = LAYOUT == GPTOSS_DEVICE_MXFP4 ? 8 : PIECE;
const uint STEPS_OF_PIECE = PIECE / STEP;

struct Piece {
    uvec4 codes;
    float scale;
};

Piece load_weight(uvec2 weight, uvec2 scales, uint row, uint piece) {
    uint at = row * PIECES + piece;
    float scale = 1;
    if (LAYOUT == GPTOSS_DEVICE_MXFP4)
        scale = e8m0(Words(scales).at[at >> 2] >> 8 * (at & 3u) & 255u) * (HALVES ? 16384 : 1);
    else if (LAYOUT == GPTOSS_DEVICE_Q8)
        scale = half_at(scales, at >> 1);
    return Piece(Pieces(weight).at[at], scale);
}

// sum + the products of a step's elements, without the scale, and v.
float dot_step(uvec4 codes, uint step, float v[16], float sum) {
    if (LAYOUT == GPTOSS_DEVICE_MXFP4) {
        uint word = codes[step];
        if (HALVES) {
            [[unroll]] for (uint j = 0; j < 4; ++j) {
                vec2 pair = two_e2m1(word, j);
                sum = fma(pair.x, v[j], fma(pair.y, v[j + 4], sum));
            }
        } else {
            [[unroll]] for (uint j = 0; j < 8; ++j)
                sum = fma(e2m1(word >> 4 * j), v[j], sum);
        }
    } else if (LAYOUT == GPTOSS_DEVICE_Q8) {
        [[unroll]] for (uint i = 0; i < 4; ++i)
            [[unroll]] for (uint j = 0; j < 4; ++j)
                sum = fma(float(signed_byte(codes[i], j)), v[4 * i + j], sum);
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
        float scale = e8m0(Words(scales).at[at >> 2] >> 8 * (at & 3u) & 255u);
        [[unroll]] for (uint i = 0; i < 4; ++i)
            [[unroll]] for (uint j = 0; j < 8; ++j)
                w[8 * i + j] = scale * e2m1(codes[i] >> 4 * j);
    } else {
        float scale = half_at(scales, at >> 1);
        [[unroll]] for (uint i = 0; i < 4; ++i)
            [[unroll]] for (uint j = 0; j < 4; ++j)
                w[4 * i + j] = scale * float(signed_byte(codes[i], j));
    }
}
