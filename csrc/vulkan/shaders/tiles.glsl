// Weights in tiles (push_constants.h), multiplied by cooperative matrices that are filled in registers.
#extension GL_EXT_spirv_intrinsics : require
#include "e2m1.glsl"
#include "fragments.glsl"
layout(constant_id = 1) const uint LAYOUT = GPTOSS_DEVICE_MXFP4_TILES;
layout(constant_id = 2) const uint COLUMNS = 32; // inputs

// DenormPreserve of 16 bits: codes of 4 bits are subnormal halves.
spirv_execution_mode(extensions = ["SPV_KHR_float_controls"], capabilities = [4464], 4459, 16);

const bool IS_E2M1 = LAYOUT == GPTOSS_DEVICE_MXFP4_TILES;
const uint TILE_STEPS = (COLUMNS + 63) / 64;           // of 64 columns
const uint BLOCKS_OF_PIECE = IS_E2M1 ? 2 : 1;
const uint TILE_PIECES = TILE_STEPS * 2 / BLOCKS_OF_PIECE; // of an invocation

layout(buffer_reference, std430, buffer_reference_align = 16) buffer Stream { uvec4 at[]; };

// Two bytes of a word, which are 128 more than the codes: 1024 + the byte is a half whose lowest bits
// are those of the byte.
uint q8_halves(uint word) {
    return packFloat2x16(unpackFloat2x16(word & 0x00FF00FFu | 0x64006400u) - f16vec2(1152.0hf));
}

// A block of 32 columns of 16 rows, in two matrices of 16. An invocation's columns come in the order
// 0, 4, 1, 5 and 2, 6, 3, 7.
struct Block {
    MatrixA halves[2];
    vec2 scales; // of rows g and g + 8, with what the halves leave out
};

Block block_of(uvec4 piece, uint scales, uint index) {
    Block block;
    if (IS_E2M1) {
        uint a = piece[2 * index], b = piece[2 * index + 1];
        [[unroll]] for (uint i = 0; i < 2; ++i)
            block.halves[i] = matrix_a(e2m1_halves(a, 2 * i), e2m1_halves(a, 2 * i + 1),
                                       e2m1_halves(b, 2 * i), e2m1_halves(b, 2 * i + 1));
        // Of a NaN this makes an infinity: see undone. 2^-127 becomes 0.
        uint low = index == 0 ? scales << 23 : scales << 7;
        uint high = index == 0 ? scales << 15 : scales >> 1;
        block.scales = vec2(uintBitsToFloat(low & 0x7F800000u), uintBitsToFloat(high & 0x7F800000u));
    } else {
        [[unroll]] for (uint i = 0; i < 2; ++i)
            block.halves[i] = matrix_a(q8_halves(piece[i]), q8_halves(piece[i] >> 8),
                                       q8_halves(piece[2 + i]), q8_halves(piece[2 + i] >> 8));
        block.scales = unpackHalf2x16(scales);
    }
    return block;
}

// The same of E2M1 with scales in the halves, times 2^(s - shift - 15): see gptoss_tile_find_shift.
Block scaled_block_of(uvec4 piece, uint scales, uint index, uint shift) {
    Block block;
    uint pairs[2][4];
    [[unroll]] for (uint high = 0; high < 2; ++high) {
        uint word = piece[2 * index + high];
        int exponent = int(bitfieldExtract(scales, int(16 * index + 8 * high), 8)) - int(shift);
        f16vec2 factor = unpackFloat2x16(uint(max(exponent, 0)) * 0x04000400u);
        [[unroll]] for (uint j = 0; j < 4; ++j)
            pairs[high][j] = packFloat2x16(unpackFloat2x16(e2m1_halves(word, j)) * factor);
    }
    [[unroll]] for (uint i = 0; i < 2; ++i)
        block.halves[i] =
            matrix_a(pairs[0][2 * i], pairs[0][2 * i + 1], pairs[1][2 * i], pairs[1][2 * i + 1]);
    return block;
}

// What such halves leave out: 2^-14 of the codes, and 2^(s - 127) / 2^(s - shift - 15) of the scales.
float left_out(uint shift) {
    return uintBitsToFloat(shift + 29 << 23);
}

// A sum of such products, times what was left out of x. Infinite scales stand for NaN.
float undone(float sum, float factor) {
    if (!IS_E2M1)
        return sum * factor;
    return isinf(sum) ? uintBitsToFloat(0x7FC00000u) : sum * 16384.0 * factor;
}
