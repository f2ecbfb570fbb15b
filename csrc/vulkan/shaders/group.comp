// Routes in order of their experts, and the list of tiles that product_panel.comp works on. One
// workgroup; routes of an expert stay in order, so that sums do.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_ballot : require
#include "common.glsl"
layout(constant_id = 1) const uint EXPERTS = 32;

layout(push_constant) uniform Push { gptoss_group_push push; };

shared uint starts[EXPERTS + 1], tile_starts[EXPERTS + 1];

// The routes of an expert, in order: how many or, with a place to write them to, they themselves.
uint scan(uint expert, bool writes, uint at) {
    uint count = 0;
    for (uint first = 0; first < push.num_routes; first += gl_SubgroupSize) {
        uint route = first + gl_SubgroupInvocationID;
        bool is_its = route < push.num_routes && Words(push.experts).at[route] == expert;
        uvec4 ballot = subgroupBallot(is_its);
        if (writes && is_its)
            Words(push.routes).at[at + count + subgroupBallotExclusiveBitCount(ballot)] = route;
        count += subgroupBallotBitCount(ballot);
    }
    return count;
}

void main() {
    uint id = gl_LocalInvocationID.x;
    // A subgroup an expert, so that the order needs no atomics.
    for (uint expert = gl_SubgroupID; expert < EXPERTS; expert += gl_NumSubgroups) {
        uint count = scan(expert, false, 0);
        if (subgroupElect())
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
    for (uint expert = gl_SubgroupID; expert < EXPERTS; expert += gl_NumSubgroups) {
        uint start = starts[expert], end = starts[expert + 1];
        scan(expert, true, start);
        for (uint i = gl_SubgroupInvocationID; start + i * GPTOSS_TILE_TOKENS < end;
             i += gl_SubgroupSize) {
            uint first = start + i * GPTOSS_TILE_TOKENS, at = 1 + 3 * (tile_starts[expert] + i);
            Words(push.tiles).at[at] = expert;
            Words(push.tiles).at[at + 1] = first;
            Words(push.tiles).at[at + 2] = min(end - first, GPTOSS_TILE_TOKENS);
        }
    }
}
