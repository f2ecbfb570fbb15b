// out = norm(x) for the rows listed: RMSNorm, or LayerNorm where there is a bias. A workgroup a row.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(constant_id = 1) const uint WIDTH = 1; // columns of a thread at a time

layout(push_constant) uniform Push { gptoss_norm_push push; };

void main() {
    uint row = gl_WorkGroupID.x, n = push.num_columns, first = WIDTH * gl_LocalInvocationID.x;
    uint from = is_absent(push.list) ? push.first + row : Words(push.list).at[row];
    bool layer_norm = !is_absent(push.bias);
    float mean = 0, sum = 0;
    if (layer_norm) {
        for (uint i = first; i < n; i += WIDTH * WORKGROUP)
            sum += dot(load_columns(push.x, from * n + i, WIDTH), vec4(1));
        mean = workgroup_sum(sum) / n;
        sum = 0;
    }
    for (uint i = first; i < n; i += WIDTH * WORKGROUP) {
        vec4 value = load_columns(push.x, from * n + i, WIDTH) - mean;
        sum += WIDTH == 4 ? dot(value, value) : value.x * value.x;
    }
    float scale = 1 / sqrt(workgroup_sum(sum) / n + push.epsilon);
    for (uint i = first; i < n; i += WIDTH * WORKGROUP) {
        vec4 value = (load_columns(push.x, from * n + i, WIDTH) - mean) * scale *
                     load_columns(push.gain, i, WIDTH);
        if (layer_norm)
            value += load_columns(push.bias, i, WIDTH);
        store_columns(push.result, row * n + i, WIDTH, value);
    }
}
