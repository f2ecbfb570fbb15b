// y = w x + bias for many tokens on cooperative matrices: a tile of 64 tokens by 128 rows of the
// weight, both in float16, sums in float32. Lines of x come from round_rows.comp. Grid and lists as in
// product_panel.comp.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_EXT_spirv_intrinsics : require
#include "common.glsl"
#include "weights.glsl"
#include "activations.glsl"
layout(constant_id = 3) const uint MODE = GPTOSS_PRODUCT_STORE;
layout(constant_id = 4) const bool HAS_EXPERTS = false;

// DenormPreserve of 16 bits: codes of 4 bits are subnormal halves on their way.
spirv_execution_mode(extensions = ["SPV_KHR_float_controls"], capabilities = [4464], 4459, 16);

layout(push_constant) uniform Push { gptoss_product_push push; };

const bool IS_PAIR = MODE == GPTOSS_PRODUCT_SWIGLU || MODE == GPTOSS_PRODUCT_SILU;
#include "finish.glsl"
#include "panel.glsl"

const uint THREADS = GPTOSS_MATRIX_WORKGROUP;
const uint ROW_PARTS = GPTOSS_SUBGROUP_ROWS / 16;
const uint DEPTH = 64;                         // columns in shared memory at a time
const uint STRIDE = DEPTH / 8 + 1;             // in vectors of 8 halves; one more for the banks
const uint X_LOADS = GPTOSS_TILE_TOKENS * DEPTH / 8 / THREADS;
const uint W_LOADS = GPTOSS_MATRIX_ROWS * DEPTH / PIECE / THREADS;
const uint STEPS = (COLUMNS + DEPTH - 1) / DEPTH;
shared uvec4 x_tile[GPTOSS_TILE_TOKENS * STRIDE];
shared uvec4 w_tile[GPTOSS_MATRIX_ROWS * STRIDE];
shared float results[THREADS * 8]; // 16 x 16 of each subgroup
shared uint lines[GPTOSS_TILE_TOKENS];

Tile tile;
uint first_row, weight_step, matrix;
uvec4 x_next[X_LOADS], w_next[W_LOADS];
float w_scale[W_LOADS];

void load(uint step) {
    [[unroll]] for (uint i = 0; i < X_LOADS; ++i) {
        uint at = gl_LocalInvocationID.x + i * THREADS, token = at / (DEPTH / 8);
        x_next[i] = Pieces(push.x).at[(input_line(lines[token]) * STEPS + step) * (DEPTH / 8) +
                                      at % (DEPTH / 8)];
    }
    const uint IN_STEP = DEPTH / PIECE;
    [[unroll]] for (uint i = 0; i < W_LOADS; ++i) {
        uint at = gl_LocalInvocationID.x + i * THREADS, tile_row = at / IN_STEP;
        uint piece = step * IN_STEP + at % IN_STEP;
        uint out_row = min(first_row + (IS_PAIR ? tile_row / 2 : tile_row), push.num_outs - 1);
        bool is_up = IS_PAIR && (tile_row & 1u) == 1u;
        uint row = matrix + out_row * weight_step + (is_up && weight_step == 2 ? 1 : 0);
        bool from_up = is_up && weight_step == 1;
        uint from = row * PIECES + piece;
        if (piece >= PIECES) { // the last step may reach beyond the row
            w_next[i] = uvec4(0);
            w_scale[i] = 0;
            continue;
        }
        w_next[i] = Pieces(from_up ? push.up : push.weight).at[from];
        uvec2 scales = from_up ? push.up_scales : push.scales;
        w_scale[i] = scale_at(scales, row, piece);
    }
}

uint pack(float a, float b) {
    return packFloat2x16(f16vec2(a, b));
}

// 8 codes of 4 bits, in the order 0, 4, 1, 5, ... factor makes good what e2m1_halves leaves out.
uvec4 halves_of_codes(uint codes, f16vec2 factor) {
    uvec4 bits;
    [[unroll]] for (uint i = 0; i < 4; ++i)
        bits[i] = packFloat2x16(unpackFloat2x16(e2m1_halves(codes, i)) * factor);
    return bits;
}

void store_tiles() {
    [[unroll]] for (uint i = 0; i < X_LOADS; ++i) {
        uint at = gl_LocalInvocationID.x + i * THREADS;
        x_tile[at / (DEPTH / 8) * STRIDE + at % (DEPTH / 8)] = x_next[i];
    }
    const uint IN_STEP = DEPTH / PIECE;
    [[unroll]] for (uint i = 0; i < W_LOADS; ++i) {
        uint at = gl_LocalInvocationID.x + i * THREADS, tile_row = at / IN_STEP;
        uint column = at % IN_STEP * PIECE;
        uint to = tile_row * STRIDE + column / 8;
        uvec4 c = w_next[i];
        if (LAYOUT == GPTOSS_DEVICE_MXFP4) {
            f16vec2 factor = f16vec2(float16_t(w_scale[i] * 16384.0));
            [[unroll]] for (uint j = 0; j < 4; ++j)
                w_tile[to + j] = halves_of_codes(c[j], factor);
        } else if (LAYOUT == GPTOSS_DEVICE_F16) {
            w_tile[to] = c;
        } else if (LAYOUT == GPTOSS_DEVICE_BF16) {
            [[unroll]] for (uint j = 0; j < 4; ++j)
                c[j] = pack(uintBitsToFloat(c[j] << 16), uintBitsToFloat(c[j] & 0xFFFF0000u));
            w_tile[to] = c;
        } else if (LAYOUT == GPTOSS_DEVICE_F32) { // half a vector: written by words below
            uvec2 half_vector = uvec2(pack(uintBitsToFloat(c.x), uintBitsToFloat(c.y)),
                                      pack(uintBitsToFloat(c.z), uintBitsToFloat(c.w)));
            if (column % 8 == 0)
                w_tile[to].xy = half_vector;
            else
                w_tile[to].zw = half_vector;
        } else {
            [[unroll]] for (uint k = 0; k < 2; ++k) {
                uvec4 v;
                [[unroll]] for (uint j = 0; j < 4; ++j) {
                    uint word = c[2 * k + j / 2], byte = j % 2 * 2;
                    float a = float(signed_byte(word, byte)), b = float(signed_byte(word, byte + 1));
                    v[j] = pack(w_scale[i] * a, w_scale[i] * b);
                }
                w_tile[to + k] = v;
            }
        }
    }
}

void store_sum(uint token, uint tile_row, float y, float up) {
    uint row = first_row + (IS_PAIR ? tile_row / 2 : tile_row);
    if (token >= tile.count || row >= push.num_outs)
        return;
    float factor = Floats(push.gain).at[input_line(lines[token])];
    finish(lines[token], row, tile.expert, y * factor, up * factor);
}

void main() {
    tile = find_tile();
    if (tile.count == 0)
        return;
    weight_step = IS_PAIR && is_absent(push.up) ? 2 : 1;
    matrix = tile.expert * push.num_outs * weight_step;
    first_row = gl_WorkGroupID.x * (IS_PAIR ? GPTOSS_MATRIX_ROWS / 2 : GPTOSS_MATRIX_ROWS);
    if (gl_LocalInvocationID.x < GPTOSS_TILE_TOKENS)
        lines[gl_LocalInvocationID.x] = output_line(tile, gl_LocalInvocationID.x);
    barrier();
    uint token_part = gl_SubgroupID % 2 * 32;
    uint row_part = gl_SubgroupID / 2 * GPTOSS_SUBGROUP_ROWS;
    coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator> sums[2 * ROW_PARTS];
    [[unroll]] for (uint i = 0; i < 2 * ROW_PARTS; ++i)
        sums[i] = coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>(0.0);
    load(0);
    for (uint step = 0; step < STEPS; ++step) {
        barrier();
        store_tiles();
        barrier();
        if (step + 1 < STEPS)
            load(step + 1);
        [[unroll]] for (uint k = 0; k < DEPTH / 16; ++k) {
            coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA> x[2];
            [[unroll]] for (uint i = 0; i < 2; ++i)
                coopMatLoad(x[i], x_tile, (token_part + 16 * i) * STRIDE + 2 * k, STRIDE,
                            gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint j = 0; j < ROW_PARTS; ++j) {
                coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB> w;
                coopMatLoad(w, w_tile, (row_part + 16 * j) * STRIDE + 2 * k, STRIDE,
                            gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint i = 0; i < 2; ++i)
                    sums[2 * j + i] = coopMatMulAdd(x[i], w, sums[2 * j + i]);
            }
        }
    }
    [[unroll]] for (uint i = 0; i < 2 * ROW_PARTS; ++i) {
        uint base = gl_SubgroupID * 256;
        subgroupBarrier();
        coopMatStore(sums[i], results, base, 16, gl_CooperativeMatrixLayoutRowMajor);
        subgroupMemoryBarrierShared();
        subgroupBarrier();
        const uint COUNT = IS_PAIR ? 128 : 256;
        for (uint at = gl_SubgroupInvocationID; at < COUNT; at += gl_SubgroupSize) {
            uint element = IS_PAIR ? 2 * at : at;
            store_sum(token_part + i % 2 * 16 + element / 16, row_part + i / 2 * 16 + element % 16,
                   results[base + element], IS_PAIR ? results[base + element + 1] : 0);
        }
    }
}
