// For few tokens: outputs = weight[expert] x + bias[expert] for each expert chosen, sum = the outputs
// weighted, in rank order, residual += sum. Subgroups take the experts in turns. Grid: rows, tokens.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"
layout(constant_id = 3) const uint ROWS = 2;
layout(constant_id = 4) const uint CHOSEN = 4;
layout(constant_id = 5) const uint SPLIT = 1; // subgroups that share rows, a part of the columns each

layout(push_constant) uniform Push { gptoss_down_push push; };

shared float results[CHOSEN * SPLIT * ROWS]; // [part][rank][row]

void multiply(uint token, uint rank, uint part, uint first) {
    uint line = token * CHOSEN + rank;
    uint matrix = uint(Ints(push.experts).at[line]) * push.num_outs;
    float sums[ROWS];
    [[unroll]] for (uint i = 0; i < ROWS; ++i)
        sums[i] = 0;
    for (uint piece = part * SUBGROUP + gl_SubgroupInvocationID; piece < PIECES;
         piece += SPLIT * SUBGROUP) {
        Piece weights[ROWS];
        float products[ROWS];
        [[unroll]] for (uint i = 0; i < ROWS; ++i) {
            uint row = matrix + min(first + i, push.num_outs - 1);
            weights[i] = load_weight(push.weight, push.scales, row, piece);
            products[i] = 0;
        }
        [[unroll]] for (uint s = 0; s < STEPS_OF_PIECE; ++s) {
            float v[16];
            load_step(push.x, line, piece, s, v);
            [[unroll]] for (uint i = 0; i < ROWS; ++i)
                products[i] = dot_step(weights[i].codes, s, v, products[i]);
        }
        [[unroll]] for (uint i = 0; i < ROWS; ++i)
            sums[i] = fma(weights[i].scale, products[i], sums[i]);
    }
    [[unroll]] for (uint i = 0; i < ROWS; ++i) {
        float y = subgroupAdd(sums[i]);
        uint row = min(first + i, push.num_outs - 1);
        y += part > 0 || is_absent(push.bias) ? 0 : Floats(push.bias).at[matrix + row];
        if (subgroupElect())
            results[(part * CHOSEN + rank) * ROWS + i] = y;
    }
}

void main() {
    uint token = gl_WorkGroupID.y, first = gl_WorkGroupID.x * ROWS;
    for (uint i = gl_SubgroupID; i < CHOSEN * SPLIT; i += gl_NumSubgroups)
        multiply(token, i % CHOSEN, i / CHOSEN, first);
    barrier();
    uint id = gl_LocalInvocationID.x, row = first + id;
    if (id >= ROWS || row >= push.num_outs)
        return;
    float sum = 0;
    for (uint rank = 0; rank < CHOSEN; ++rank) {
        float y = results[rank * ROWS + id];
        for (uint part = 1; part < SPLIT; ++part)
            y += results[(part * CHOSEN + rank) * ROWS + id];
        Floats(push.outputs).at[(token * CHOSEN + rank) * push.num_outs + row] = y;
        sum = fma(Floats(push.weights).at[token * CHOSEN + rank], y, sum);
    }
    Floats(push.sum).at[token * push.num_outs + row] = sum;
    Floats(push.residual).at[token * push.num_outs + row] += sum;
}
