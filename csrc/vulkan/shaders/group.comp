// Routes in order of their experts, and the list of tiles that product_panel.comp works on. One
// workgroup; routes of an expert stay in order, so that sums do.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(constant_id = 1) const uint EXPERTS = 32;

layout(push_constant) uniform Push { gptoss_group_push push; };

shared uint starts[EXPERTS + 1], tile_starts[EXPERTS + 1];

void main() {
    uint id = gl_LocalInvocationID.x;
    // A thread an expert, so that the order needs no atomics.
    for (uint expert = id; expert < EXPERTS; expert += WORKGROUP) {
        uint count = 0;
        for (uint route = 0; route < push.num_routes; ++route)
            count += uint(Ints(push.experts).at[route] == int(expert));
        starts[expert + 1] = count;
    }
    barrier();
    if (id == 0) {
        starts[0] = tile_starts[0] = 0;
        for (uint expert = 0; expert < EXPERTS; ++expert) {
            uint tiles = (starts[expert + 1] + GPTOSS_TILE_TOKENS - 1) / GPTOSS_TILE_TOKENS;
            tile_starts[expert + 1] = tile_starts[expert] + tiles;
            starts[expert + 1] += starts[expert];
        }
        Words(push.tiles).at[0] = tile_starts[EXPERTS];
    }
    barrier();
    for (uint expert = id; expert < EXPERTS; expert += WORKGROUP) {
        uint at = starts[expert], end = starts[expert + 1], tile = tile_starts[expert];
        for (uint first = at; first < end; first += GPTOSS_TILE_TOKENS, ++tile) {
            Words(push.tiles).at[1 + 3 * tile] = expert;
            Words(push.tiles).at[2 + 3 * tile] = first;
            Words(push.tiles).at[3 + 3 * tile] = min(end - first, GPTOSS_TILE_TOKENS);
        }
        for (uint route = 0; route < push.num_routes; ++route)
            if (Ints(push.experts).at[route] == int(expert))
                Words(push.routes).at[at++] = route;
    }
}
