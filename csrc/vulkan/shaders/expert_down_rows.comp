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

#include "down.glsl"

uint first, expert, expert_row;

Source source_of(uint i) {
    return Source(push.weight, push.scales, expert_row + min(first + i, push.num_outs - 1));
}

void main() {
    const uint TOGETHER = WORKGROUP / SUBGROUP * ROWS; // rows of a workgroup
    uint group = gl_WorkGroupID.x / CHOSEN, token = gl_WorkGroupID.y;
    uint line = token * CHOSEN + gl_WorkGroupID.x % CHOSEN, lane = gl_SubgroupInvocationID;
    first = group * TOGETHER + gl_SubgroupID * ROWS;
    expert = uint(Ints(push.experts).at[line]);
    expert_row = expert * push.num_outs;
    multiply(push.x, line, uvec2(0));
    float y = 0;
    [[unroll]] for (uint i = 0; i < ROWS; ++i)
        y = lane == i ? sums[i] : y;
    if (lane < ROWS)
        store_output(line, expert, first + lane, y);
    add_outputs(group, TOGETHER);
}
