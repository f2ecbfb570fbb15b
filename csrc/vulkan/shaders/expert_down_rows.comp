// For few tokens: outputs = weight[expert] x + bias[expert] for each expert chosen, sum = the outputs
// weighted, in rank order, residual += sum. Subgroups take the experts in turns. Grid: rows, tokens.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"
layout(constant_id = 3) const uint ROWS = 2;
layout(constant_id = 4) const uint GROUPS = 1; // of ROWS rows, a workgroup

layout(push_constant) uniform Push { gptoss_down_push push; };

shared float results[1024]; // [group][rank][row]

void multiply(uint token, uint rank, uint first, uint at) {
    uint line = token * push.num_chosen + rank;
    uint matrix = uint(Ints(push.experts).at[line]) * push.num_outs;
    float sums[ROWS];
    [[unroll]] for (uint i = 0; i < ROWS; ++i)
        sums[i] = 0;
    for (uint piece = gl_SubgroupInvocationID; piece < PIECES; piece += gl_SubgroupSize) {
        float v[32], w[32];
        load_piece(push.x, line, piece, v);
        [[unroll]] for (uint i = 0; i < ROWS; ++i) {
            decode_piece(push.weight, push.scales, matrix + min(first + i, push.num_outs - 1), piece,
                         w);
            [[unroll]] for (uint j = 0; j < PIECE; ++j)
                sums[i] = fma(w[j], v[j], sums[i]);
        }
    }
    [[unroll]] for (uint i = 0; i < ROWS; ++i) {
        float y = subgroupAdd(sums[i]);
        uint row = min(first + i, push.num_outs - 1);
        y += is_absent(push.bias) ? 0 : Floats(push.bias).at[matrix + row];
        if (subgroupElect())
            results[at + i] = y;
    }
}

void main() {
    uint token = gl_WorkGroupID.y, chosen = push.num_chosen;
    uint start = gl_WorkGroupID.x * GROUPS * ROWS;
    for (uint i = gl_SubgroupID; i < GROUPS * chosen; i += gl_NumSubgroups)
        multiply(token, i % chosen, start + i / chosen * ROWS, (i / chosen * chosen + i % chosen) * ROWS);
    barrier();
    uint id = gl_LocalInvocationID.x, row = start + id;
    if (id >= GROUPS * ROWS || row >= push.num_outs)
        return;
    float sum = 0;
    for (uint rank = 0; rank < chosen; ++rank) {
        float y = results[(id / ROWS * chosen + rank) * ROWS + id % ROWS];
        Floats(push.outputs).at[(token * chosen + rank) * push.num_outs + row] = y;
        sum = fma(Floats(push.weights).at[token * chosen + rank], y, sum);
    }
    Floats(push.sum).at[token * push.num_outs + row] = sum;
    Floats(push.residual).at[token * push.num_outs + row] += sum;
}
