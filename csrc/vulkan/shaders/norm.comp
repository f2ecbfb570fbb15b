// out = norm(x) for the rows listed: RMSNorm, or LayerNorm where there is a bias. A workgroup a row.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(push_constant) uniform Push { gptoss_norm_push push; };

void main() {
    uint row = gl_WorkGroupID.x, n = push.num_columns;
    uint from = is_absent(push.list) ? push.first + row : Words(push.list).at[row];
    bool layer_norm = !is_absent(push.bias);
    float mean = 0, sum = 0;
    if (layer_norm) {
        for (uint i = gl_LocalInvocationID.x; i < n; i += WORKGROUP)
            sum += Floats(push.x).at[from * n + i];
        mean = workgroup_sum(sum) / n;
        sum = 0;
    }
    for (uint i = gl_LocalInvocationID.x; i < n; i += WORKGROUP) {
        float value = Floats(push.x).at[from * n + i] - mean;
        sum = fma(value, value, sum);
    }
    float scale = 1 / sqrt(workgroup_sum(sum) / n + push.epsilon);
    for (uint i = gl_LocalInvocationID.x; i < n; i += WORKGROUP) {
        float value = (Floats(push.x).at[from * n + i] - mean) * scale * Floats(push.gain).at[i];
        Floats(push.result).at[row * n + i] = layer_norm ? value + Floats(push.bias).at[i] : value;
    }
}
