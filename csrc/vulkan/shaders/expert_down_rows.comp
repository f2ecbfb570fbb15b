// For few tokens: outputs = weight[expert] x + bias[expert] for each expert chosen, sum = the outputs
// weighted, in rank order, residual += sum. A subgroup has ROWS rows of one expert; of the workgroups with
// the same rows the last to finish adds. Grid: ranks by rows, tokens.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "common.glsl"
#include "weights.glsl"
layout(constant_id = 3) const uint ROWS = 2;
layout(constant_id = 4) const uint CHOSEN = 4;
const uint SUMS = ROWS, SPLIT = 1;
const bool HAS_NORM = false;
#include "rows.glsl"

layout(push_constant) uniform Push { gptoss_down_push push; };

uint first, expert_row;

Source source_of(uint i) {
    return Source(push.weight, push.scales, expert_row + min(first + i, push.num_outs - 1));
}

void main() {
    const uint TOGETHER = WORKGROUP / SUBGROUP * ROWS; // rows of a workgroup
    uint group = gl_WorkGroupID.x / CHOSEN, token = gl_WorkGroupID.y;
    uint line = token * CHOSEN + gl_WorkGroupID.x % CHOSEN, lane = gl_SubgroupInvocationID;
    first = group * TOGETHER + gl_SubgroupID * ROWS;
    expert_row = uint(Ints(push.experts).at[line]) * push.num_outs;
    multiply(push.x, line, uvec2(0));
    float y = 0;
    [[unroll]] for (uint i = 0; i < ROWS; ++i)
        y = lane == i ? sums[i] : y;
    if (lane < ROWS && first + lane < push.num_outs) {
        y += is_absent(push.bias) ? 0 : Floats(push.bias).at[expert_row + first + lane];
        Shared(push.outputs).at[line * push.num_outs + first + lane] = y;
    }
    if (!is_last_workgroup(push.counters, token * (gl_NumWorkGroups.x / CHOSEN) + group, CHOSEN))
        return;
    for (uint i = gl_LocalInvocationID.x; i < TOGETHER; i += WORKGROUP) {
        uint row = group * TOGETHER + i;
        if (row >= push.num_outs)
            return;
        float sum = 0;
        [[unroll]] for (uint rank = 0; rank < CHOSEN; ++rank) {
            uint from = token * CHOSEN + rank;
            sum = fma(Floats(push.weights).at[from],
                      Shared(push.outputs).at[from * push.num_outs + row], sum);
        }
        Floats(push.sum).at[token * push.num_outs + row] = sum;
        Floats(push.residual).at[token * push.num_outs + row] += sum;
    }
}
