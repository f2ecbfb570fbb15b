// sum = the experts' outputs weighted, in rank order; residual += sum. Grid: tokens, columns.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(push_constant) uniform Push { gptoss_sum_push push; };

void main() {
    uint token = gl_WorkGroupID.x, column = gl_WorkGroupID.y * WORKGROUP + gl_LocalInvocationID.x;
    if (column >= push.num_columns)
        return;
    float sum = 0;
    for (uint rank = 0; rank < push.num_chosen; ++rank) {
        uint line = token * push.num_chosen + rank;
        sum = fma(Floats(push.weights).at[line],
                  Floats(push.outputs).at[line * push.num_columns + column], sum);
    }
    Floats(push.sum).at[token * push.num_columns + column] = sum;
    Floats(push.residual).at[token * push.num_columns + column] += sum;
}
