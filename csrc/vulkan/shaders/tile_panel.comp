// y = w x + bias for many tokens and a weight in tiles, on cooperative matrices: 64 tokens by as many rows
// as there are invocations, or half as many pairs of them; each subgroup has two tiles. Codes become halves
// in registers, lines of x, from round_rows.comp, pass through shared memory. Scales multiply sums of 32
// columns, in float32, so that nothing is rounded but x; or, powers of two that are near enough to each
// other, the halves. Grid and lists as in product_panel.comp.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "tiles.glsl"
#include "activations.glsl"
layout(constant_id = 3) const uint MODE = GPTOSS_PRODUCT_STORE;
layout(constant_id = 4) const bool HAS_EXPERTS = false;
layout(constant_id = 5) const bool SCALES_HALVES = false;

layout(push_constant) uniform Push { gptoss_product_push push; };

const bool IS_PAIR = MODE == GPTOSS_PRODUCT_SWIGLU || MODE == GPTOSS_PRODUCT_SILU;
#include "finish.glsl"
#include "panel.glsl"

const uint PARTS = GPTOSS_TILE_TOKENS / 8;   // columns of the second matrices
const uint STAGE = GPTOSS_TILE_TOKENS * 8;   // vectors of 64 columns of the tokens
const uint LOADS = (STAGE + WORKGROUP - 1) / WORKGROUP; // of x, of an invocation
const uint PIECES_OF_STEP = 2 / BLOCKS_OF_PIECE;
shared uvec4 x_tile[2 * STAGE]; // [step & 1][block][token][quarter of the block]
shared uint lines[GPTOSS_TILE_TOKENS];
const uint OUTS = IS_PAIR ? 16 : 32, RESULT_STRIDE = 36; // for the banks
shared float results[WORKGROUP / 32 * 16 * RESULT_STRIDE];

// Of the step: room for both layouts.
uvec4 x_next[LOADS], pieces[4];
uint x_from[LOADS];
uint scales[4];
uint tile_of[2]; // of this subgroup, in their weights
MatrixC sums[2 * PARTS];

// Where the vectors of x that an invocation brings begin.
void find_x() {
    [[unroll]] for (uint i = 0; i < LOADS; ++i) {
        uint at = gl_LocalInvocationID.x + i * WORKGROUP;
        uint token = at / 4 % GPTOSS_TILE_TOKENS, block = at / (4 * GPTOSS_TILE_TOKENS);
        x_from[i] = input_line(lines[token]) * TILE_STEPS * 8 + block * 4 + at % 4;
    }
}

void load_x(uint step) {
    [[unroll]] for (uint i = 0; i < LOADS; ++i)
        if (STAGE % WORKGROUP == 0 || gl_LocalInvocationID.x + i * WORKGROUP < STAGE)
            x_next[i] = Pieces(push.x).at[x_from[i] + step * 8];
}

void store_x(uint step) {
    [[unroll]] for (uint i = 0; i < LOADS; ++i) {
        uint at = gl_LocalInvocationID.x + i * WORKGROUP;
        if (STAGE % WORKGROUP == 0 || at < STAGE)
            x_tile[(step & 1u) * STAGE + at] = x_next[i];
    }
}

void load_weights(uint step, bool is_apart) {
    uint lane = gl_SubgroupInvocationID;
    [[unroll]] for (uint t = 0; t < 2; ++t) {
        bool from_up = is_apart && t == 1;
        [[unroll]] for (uint p = 0; p < PIECES_OF_STEP; ++p) {
            uint piece = tile_of[t] * TILE_PIECES + step * PIECES_OF_STEP + p;
            pieces[t * PIECES_OF_STEP + p] =
                Pieces(from_up ? push.up : push.weight).at[piece * 32 + lane];
            scales[t * PIECES_OF_STEP + p] =
                Words(from_up ? push.up_scales : push.scales).at[piece * 8 + lane / 4];
        }
    }
}

// Adds the products of a block of 32 columns with eights of tokens.
void multiply_block(Block blocks[2], uint from, const uint parts) {
    [[unroll]] for (uint part = 0; part < parts; ++part) {
        uvec4 x = x_tile[from + part * 32 + gl_SubgroupInvocationID];
        MatrixB b0 = matrix_b(x.x, x.y), b1 = matrix_b(x.z, x.w);
        [[unroll]] for (uint t = 0; t < 2; ++t) {
            uint at = t * PARTS + part;
            MatrixC c = SCALES_HALVES ? sums[at] : MatrixC(0.0);
            c = coopMatMulAdd(blocks[t].halves[0], b0, c);
            c = coopMatMulAdd(blocks[t].halves[1], b1, c);
            if (SCALES_HALVES)
                sums[at] = c;
            else
                [[unroll]] for (uint e = 0; e < 4; ++e)
                    sums[at][e] = fma(blocks[t].scales[e / 2], c[e], sums[at][e]);
        }
    }
}

// Multiplies by so many eights of tokens: for each number a loop without branches.
void multiply_all(bool is_apart, const uint parts) {
    for (uint step = 0; step < TILE_STEPS; ++step) {
        barrier();
        uint next = min(step + 1, TILE_STEPS - 1);
        load_x(next);
        uvec4 own[4] = pieces;
        uint own_scales[4] = scales;
        load_weights(next, is_apart);
        [[unroll]] for (uint b = 0; b < 2; ++b) {
            Block blocks[2];
            [[unroll]] for (uint t = 0; t < 2; ++t) {
                uint at = t * PIECES_OF_STEP + b / BLOCKS_OF_PIECE;
                if (SCALES_HALVES)
                    blocks[t] = scaled_block_of(own[at], own_scales[at], b, push.scale_shift);
                else
                    blocks[t] = block_of(own[at], own_scales[at], b % BLOCKS_OF_PIECE);
            }
            multiply_block(blocks, (step & 1u) * STAGE + b * GPTOSS_TILE_TOKENS * 4, parts);
        }
        store_x(step + 1);
    }
}

void find_tiles_of_weights(Tile tile, bool is_apart) {
    uint sixteens = (push.num_outs + 15) / 16;
    uint first = gl_WorkGroupID.x * (WORKGROUP / (IS_PAIR ? 32 : 16));
    [[unroll]] for (uint t = 0; t < 2; ++t) {
        uint sixteen = min(first + (IS_PAIR ? gl_SubgroupID : 2 * gl_SubgroupID + t), sixteens - 1);
        tile_of[t] = tile.expert * sixteens + sixteen;
        if (IS_PAIR && !is_apart)
            tile_of[t] = 2 * tile_of[t] + t;
    }
}

float whole(float sum, float factor) {
    return SCALES_HALVES ? sum * left_out(push.scale_shift) * factor : undone(sum, factor);
}

// Brings sums of 16 tokens at a time to shared memory, from where invocations side by side store rows
// side by side.
void store_sums(Tile tile) {
    uint lane = gl_SubgroupInvocationID, base = gl_SubgroupID * 16 * RESULT_STRIDE;
    uint first = (gl_WorkGroupID.x * (WORKGROUP / 32) + gl_SubgroupID) * OUTS;
    [[unroll]] for (uint round = 0; round < PARTS / 2; ++round) {
        if (16 * round >= tile.count)
            break;
        subgroupBarrier();
        [[unroll]] for (uint i = 0; i < 16; ++i) {
            uint t = i / 8, part = i / 4 % 2, e = i % 4;
            uint token = 8 * part + lane % 4 * 2 + e % 2, row = 16 * t + lane / 4 + e / 2 * 8;
            results[base + token * RESULT_STRIDE + row] = sums[t * PARTS + 2 * round + part][e];
        }
        subgroupMemoryBarrierShared();
        subgroupBarrier();
        for (uint i = lane; i < 16 * OUTS; i += 32) {
            uint token = 16 * round + i / OUTS, column = i % OUTS;
            uint from = base + i / OUTS * RESULT_STRIDE + column;
            if (token >= tile.count || first + column >= push.num_outs)
                continue;
            float factor = Floats(push.gain).at[input_line(lines[token])];
            finish(lines[token], first + column, tile.expert, whole(results[from], factor),
                   IS_PAIR ? whole(results[from + 16], factor) : 0);
        }
    }
}

void main() {
    Tile tile = find_tile();
    if (tile.count == 0)
        return;
    bool is_apart = IS_PAIR && !is_absent(push.up);
    uint id = gl_LocalInvocationID.x;
    if (id < GPTOSS_TILE_TOKENS)
        lines[id] = output_line(tile, id);
    find_tiles_of_weights(tile, is_apart);
    load_weights(0, is_apart);
    barrier();
    find_x();
    load_x(0);
    store_x(0);
    [[unroll]] for (uint i = 0; i < 2 * PARTS; ++i)
        sums[i] = MatrixC(0.0);
    if (tile.count > 16)
        multiply_all(is_apart, PARTS);
    else
        multiply_all(is_apart, 2);
    store_sums(tile);
}
