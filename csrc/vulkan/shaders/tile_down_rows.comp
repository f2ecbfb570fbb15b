// expert_down_rows.comp for a weight in tiles: a workgroup has 16 rows of one expert. Grid: ranks by
// rows, tokens.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "tiles.glsl"
layout(constant_id = 3) const uint SPLIT = 4;
layout(constant_id = 4) const uint CHOSEN = 4;
const uint TILES = 1;
const bool HAS_NORM = false;
#include "tile_rows.glsl"

layout(push_constant) uniform Push { gptoss_down_push push; };
#include "down.glsl"

void main() {
    uint group = gl_WorkGroupID.x / CHOSEN, line = gl_WorkGroupID.y * CHOSEN + gl_WorkGroupID.x % CHOSEN;
    uint expert = uint(Ints(push.experts).at[line]), id = gl_LocalInvocationID.x;
    multiply_line(push.weight, push.scales, expert * ((push.num_outs + 15) / 16) + group, push.x, line,
                  uvec2(0), 0);
    if (id < 16)
        store_output(line, expert, group * 16 + id, sum_of(0, id));
    add_outputs(group, 16);
}
