// Weights in every layout of push_constants.h, a piece of 16 bytes of codes at a time.
layout(constant_id = 1) const uint LAYOUT = 0;
layout(constant_id = 2) const uint COLUMNS = 32; // inputs

const uint PIECE = LAYOUT == GPTOSS_DEVICE_F32     ? 4
                   : LAYOUT == GPTOSS_DEVICE_MXFP4 ? 32
                   : LAYOUT == GPTOSS_DEVICE_Q8 || LAYOUT == GPTOSS_DEVICE_AFFINE ? 16
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
    } else if (LAYOUT == GPTOSS_DEVICE_Q8) {
        float scale = half_at(scales, at >> 1);
        [[unroll]] for (uint i = 0; i < 4; ++i)
            [[unroll]] for (uint j = 0; j < 4; ++j)
                w[4 * i + j] = scale * float(signed_byte(codes[i], j));
    } else {
        float scale = Floats(scales).at[2 * at], offset = Floats(scales).at[2 * at + 1];
        [[unroll]] for (uint i = 0; i < 4; ++i)
            [[unroll]] for (uint j = 0; j < 4; ++j)
                w[4 * i + j] = fma(scale, float(signed_byte(codes[i], j)), offset);
    }
}

// Elements piece * PIECE and on of a line of x; zeros beyond its end.
void load_piece(uvec2 x, uint line, uint piece, out float v[32]) {
    uint start = piece * PIECE;
    if (COLUMNS % 4 == 0 && (COLUMNS % 32 == 0 || PIECE == 4)) {
        [[unroll]] for (uint i = 0; i < PIECE / 4; ++i) {
            vec4 part = COLUMNS % 32 == 0 || start < COLUMNS
                            ? Vectors(x).at[(line * COLUMNS + start) / 4 + i]
                            : vec4(0);
            v[4 * i] = part.x;
            v[4 * i + 1] = part.y;
            v[4 * i + 2] = part.z;
            v[4 * i + 3] = part.w;
        }
        return;
    }
    [[unroll]] for (uint i = 0; i < PIECE; ++i)
        v[i] = start + i < COLUMNS ? Floats(x).at[line * COLUMNS + start + i] : 0;
}
