// y = w x + bias for many tokens: a tile of 64 tokens by 64 rows of the weight, which is decoded into
// shared memory once for all of them. Grid: rows, tiles of tokens. With experts, tiles come from
// the list that group.comp makes, and lines of x are those of the tile's routes.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"
#include "activations.glsl"
layout(constant_id = 3) const uint MODE = GPTOSS_PRODUCT_STORE;
layout(constant_id = 4) const bool HAS_EXPERTS = false;

layout(push_constant) uniform Push { gptoss_product_push push; };

const bool IS_PAIR = MODE == GPTOSS_PRODUCT_SWIGLU || MODE == GPTOSS_PRODUCT_SILU;
#include "finish.glsl"
#include "panel.glsl"

const uint DEPTH = 32;                                  // columns in shared memory at a time
const uint STRIDE = GPTOSS_TILE_TOKENS + 4;
shared float x_tile[DEPTH * STRIDE];                    // [column][token]
shared float w_tile[DEPTH * (GPTOSS_TILE_ROWS + 4)];    // [column][row]
shared uint lines[GPTOSS_TILE_TOKENS];                  // output lines of the tile's tokens

void load_x(uint piece, uint count) {
    // Four tokens a thread column: consecutive threads take consecutive columns of a line.
    for (uint i = gl_LocalInvocationID.x; i < GPTOSS_TILE_TOKENS * DEPTH; i += WORKGROUP) {
        uint token = i / DEPTH, column = i % DEPTH, at = piece * DEPTH + column;
        float value = 0;
        if (token < count && at < COLUMNS)
            value = Floats(push.x).at[input_line(lines[token]) * COLUMNS + at];
        x_tile[column * STRIDE + token] = value;
    }
}

void load_w(uint block, uint first_row, uint matrix, uint step) {
    const uint IN_BLOCK = 32 / PIECE;
    float w[32];
    for (uint i = gl_LocalInvocationID.x; i < GPTOSS_TILE_ROWS * IN_BLOCK; i += WORKGROUP) {
        uint tile_row = i / IN_BLOCK, piece = block * IN_BLOCK + i % IN_BLOCK;
        uint out_row = first_row + (IS_PAIR ? tile_row / 2 : tile_row);
        bool is_up = IS_PAIR && (tile_row & 1u) == 1u;
        uint row = matrix + min(out_row, push.num_outs - 1) * step + (is_up && step == 2 ? 1 : 0);
        if (is_up && step == 1)
            decode_piece(push.up, push.up_scales, row, piece, w);
        else
            decode_piece(push.weight, push.scales, row, piece, w);
        [[unroll]] for (uint j = 0; j < PIECE; ++j)
            w_tile[(i % IN_BLOCK * PIECE + j) * STRIDE + tile_row] = w[j];
    }
}

void main() {
    Tile tile = find_tile();
    if (tile.count == 0)
        return;
    const uint OUTS = IS_PAIR ? GPTOSS_TILE_ROWS / 2 : GPTOSS_TILE_ROWS;
    uint first_row = gl_WorkGroupID.x * OUTS;
    uint step = IS_PAIR && is_absent(push.up) ? 2 : 1;
    uint matrix = tile.expert * push.num_outs * step;
    uint id = gl_LocalInvocationID.x;
    if (id < GPTOSS_TILE_TOKENS)
        lines[id] = output_line(tile, id);
    uint tx = id % 16, ty = id / 16;
    vec4 sums[4] = vec4[](vec4(0), vec4(0), vec4(0), vec4(0));
    for (uint block = 0; block < BLOCKS; ++block) {
        barrier();
        load_x(block, tile.count);
        load_w(block, first_row, matrix, step);
        barrier();
        for (uint k = 0; k < DEPTH; ++k) {
            uint x_at = k * STRIDE + 4 * ty, w_at = k * STRIDE + 4 * tx;
            vec4 w = vec4(w_tile[w_at], w_tile[w_at + 1], w_tile[w_at + 2], w_tile[w_at + 3]);
            [[unroll]] for (uint i = 0; i < 4; ++i)
                sums[i] = fma(vec4(x_tile[x_at + i]), w, sums[i]);
        }
    }
    [[unroll]] for (uint i = 0; i < 4; ++i) {
        if (4 * ty + i >= tile.count)
            break;
        uint line = lines[4 * ty + i];
        [[unroll]] for (uint j = 0; j < 4; ++j) {
            uint row = first_row + (IS_PAIR ? (4 * tx + j) / 2 : 4 * tx + j);
            if (row >= push.num_outs || (IS_PAIR && (j & 1u) == 1u))
                continue;
            finish(line, row, tile.expert, sums[i][j], IS_PAIR ? sums[i][j + 1] : 0);
        }
    }
}
