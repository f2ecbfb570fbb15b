// sum = the experts' outputs weighted, in rank order; residual += sum. Grid: tokens, columns.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(constant_id = 1) const uint WIDTH = 1; // columns of a thread: 4 where that divides them

layout(push_constant) uniform Push { gptoss_sum_push push; };

void main() {
    uint token = gl_WorkGroupID.x;
    uint column = WIDTH * (gl_WorkGroupID.y * WORKGROUP + gl_LocalInvocationID.x);
    if (column >= push.num_columns)
        return;
    vec4 sum = vec4(0);
    for (uint rank = 0; rank < push.num_chosen; ++rank) {
        uint line = token * push.num_chosen + rank;
        sum = fma(vec4(Floats(push.weights).at[line]),
                  load_columns(push.outputs, line * push.num_columns + column, WIDTH), sum);
    }
    uint at = token * push.num_columns + column;
    store_columns(push.sum, at, WIDTH, sum);
    store_columns(push.residual, at, WIDTH, load_columns(push.residual, at, WIDTH) + sum);
}
