// y = w norm(x) + bias for few tokens: SPLIT subgroups multiply ROWS rows of the weight, or pairs of them,
// by one line of x. Grid: rows, lines.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "common.glsl"
#include "weights.glsl"
#include "activations.glsl"
layout(constant_id = 3) const uint MODE = GPTOSS_PRODUCT_STORE;
layout(constant_id = 4) const uint ROWS = 2; // at most the size of a subgroup
layout(constant_id = 5) const bool HAS_NORM = false;
layout(constant_id = 6) const uint SPLIT = 1; // subgroups that share rows, a part of the columns each

layout(push_constant) uniform Push { gptoss_product_push push; };

const bool IS_PAIR = MODE == GPTOSS_PRODUCT_SWIGLU || MODE == GPTOSS_PRODUCT_SILU;
const uint SUMS = IS_PAIR ? 2 * ROWS : ROWS;
#include "rows.glsl"

uint first, expert, expert_row, weight_step;

Source source_of(uint i) {
    uint row = min(first + (IS_PAIR ? i / 2 : i), push.num_outs - 1);
    bool is_up = IS_PAIR && (i & 1u) == 1u, from_up = is_up && weight_step == 1;
    return Source(from_up ? push.up : push.weight, from_up ? push.up_scales : push.scales,
                  expert_row + row * weight_step + (is_up && weight_step == 2 ? 1 : 0));
}

#include "finish.glsl"

void main() {
    uint line = gl_WorkGroupID.y;
    const uint SETS = WORKGROUP / SUBGROUP / SPLIT; // of ROWS rows, a workgroup
    first = (gl_WorkGroupID.x * SETS + gl_SubgroupID / SPLIT) * ROWS;
    weight_step = IS_PAIR && is_absent(push.up) ? 2 : 1;
    expert = is_absent(push.experts) ? 0 : uint(Ints(push.experts).at[line]);
    expert_row = expert * push.num_outs * weight_step;
    uint x_line = push.first_token + (is_absent(push.experts) ? line : line / push.num_chosen);
    if (!multiply(push.x, x_line, push.gain))
        return;
    float scale = HAS_NORM ? 1 / sqrt(squares / COLUMNS + push.epsilon) : 1;
    // Each row is finished by an invocation of its own.
    float y = 0, up = 0;
    [[unroll]] for (uint i = 0; i < ROWS; ++i) {
        if (gl_SubgroupInvocationID == i) {
            y = sums[IS_PAIR ? 2 * i : i] * scale;
            up = IS_PAIR ? sums[2 * i + 1] * scale : 0;
        }
    }
    uint row = first + gl_SubgroupInvocationID;
    if (gl_SubgroupInvocationID < ROWS && row < push.num_outs)
        finish(line, row, expert, y, up);
}
