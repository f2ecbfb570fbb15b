// normed = rms_norm(x); logits = weight normed + bias; the experts chosen, for few rows. The last
// workgroup of a row to finish chooses. Grid: rows, experts.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#include "common.glsl"
#include "weights.glsl"
layout(constant_id = 3) const uint EXPERTS = 32;

layout(push_constant) uniform Push { gptoss_route_push push; };

const uint ROWS = 1;
#include "choose.glsl"

void main() {
    uint row = gl_WorkGroupID.x, expert = gl_WorkGroupID.y, id = gl_LocalInvocationID.x;
    // Products with x * gain, so that nothing waits for the norm, whose scale comes in the end.
    float sum = 0, squares = 0;
    for (uint piece = id; piece < PIECES; piece += WORKGROUP) {
        Piece weights = load_weight(push.weight, push.scales, expert, piece);
        float product = 0;
        [[unroll]] for (uint s = 0; s < STEPS_OF_PIECE; ++s) {
            float v[16], gain[16];
            load_step(push.x, row, piece, s, v);
            load_step(push.gain, 0, piece, s, gain);
            [[unroll]] for (uint i = 0; i < STEP; ++i) {
                squares = fma(v[i], v[i], squares);
                v[i] *= gain[i];
            }
            product = dot_step(weights.codes, s, v, product);
        }
        sum = fma(weights.scale, product, sum);
    }
    sum = workgroup_sum(sum);
    float scale = 1 / sqrt(workgroup_sum(squares) / COLUMNS + push.epsilon);
    if (id == 0) {
        float bias = is_absent(push.bias) ? 0 : Floats(push.bias).at[expert];
        Shared(push.logits).at[row * EXPERTS + expert] = fma(sum, scale, bias);
    }
    uint first = gl_WorkGroupID.y * WORKGROUP + id;
    for (uint i = first; i < COLUMNS; i += gl_NumWorkGroups.y * WORKGROUP)
        Floats(push.normed).at[row * COLUMNS + i] =
            Floats(push.x).at[row * COLUMNS + i] * scale * Floats(push.gain).at[i];
    if (!is_last_workgroup(push.counters, row, gl_NumWorkGroups.y))
        return;
    for (uint i = id; i < EXPERTS; i += WORKGROUP)
        logits[i] = Shared(push.logits).at[row * EXPERTS + i];
    barrier();
    if (gl_SubgroupID == 0)
        choose(row, 0);
}
