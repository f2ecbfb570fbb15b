// y = w norm(x) + bias for few tokens and a weight in tiles: a workgroup multiplies 16 rows, or 16 pairs
// of them, by one line of x. Grid: rows, lines.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "tiles.glsl"
#include "activations.glsl"
layout(constant_id = 3) const uint MODE = GPTOSS_PRODUCT_STORE;
layout(constant_id = 4) const uint SPLIT = 4;
layout(constant_id = 5) const bool HAS_NORM = false;
const bool IS_PAIR = MODE == GPTOSS_PRODUCT_SWIGLU || MODE == GPTOSS_PRODUCT_SILU;
const uint TILES = IS_PAIR ? 2 : 1;
#include "tile_rows.glsl"

layout(push_constant) uniform Push { gptoss_product_push push; };
#include "finish.glsl"

void main() {
    uint line = gl_WorkGroupID.y, expert = 0, x_line_index = push.first_token + line;
    if (!is_absent(push.experts)) {
        expert = uint(Ints(push.experts).at[line]);
        x_line_index = push.first_token + line / push.num_chosen;
    }
    uint sixteens = (push.num_outs + 15) / 16, in_pair = gl_SubgroupID / SPLIT;
    bool is_apart = IS_PAIR && !is_absent(push.up), from_up = is_apart && in_pair == 1;
    uint tile = expert * sixteens + gl_WorkGroupID.x;
    if (IS_PAIR && !is_apart)
        tile = 2 * tile + in_pair;
    multiply_line(from_up ? push.up : push.weight, from_up ? push.up_scales : push.scales, tile, push.x,
                  x_line_index, push.gain, push.epsilon);
    uint id = gl_LocalInvocationID.x, row = gl_WorkGroupID.x * 16 + id;
    if (id < 16 && row < push.num_outs)
        finish(line, row, expert, sum_of(0, id), IS_PAIR ? sum_of(1, id) : 0);
}
