// gate = silu(gate) * up, or gelu(gate) where there is no up: what products do themselves unless terms
// of adapters come between. Grid: tokens, columns.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "activations.glsl"

layout(push_constant) uniform Push { gptoss_activate_push push; };

void main() {
    uint column = gl_WorkGroupID.y * WORKGROUP + gl_LocalInvocationID.x;
    if (column >= push.num_columns)
        return;
    uint at = gl_WorkGroupID.x * push.num_columns + column;
    float gate = Floats(push.gate).at[at];
    Floats(push.gate).at[at] =
        is_absent(push.up) ? gelu(gate) : silu(gate) * Floats(push.up).at[at];
}
