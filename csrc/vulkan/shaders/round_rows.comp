// Lines of x as float16 for cooperative matrices, each times the power of two that brings its largest
// element to 2^13 .. 2^14, so that nothing overflows; scales: what undoes it. Columns are padded to
// whole pieces of 64 with zeros and, INTERLEAVE, brought into the order in which matrix_panel.comp
// decodes codes of 4 bits: of each 8 the elements 0, 4, 1, 5, 2, 6, 3, 7. A workgroup a line.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(constant_id = 1) const uint COLUMNS = 32;
layout(constant_id = 2) const bool INTERLEAVE = false;

layout(push_constant) uniform Push { gptoss_round_push push; };

layout(buffer_reference, std430, buffer_reference_align = 16) buffer WordVectors { uvec4 at[]; };

shared float maxima[64];

const uint WIDTH = COLUMNS % 4 == 0 ? 4 : 1;

float largest() {
    float most = 0;
    for (uint i = WIDTH * gl_LocalInvocationID.x; i < COLUMNS; i += WIDTH * WORKGROUP) {
        vec4 v = abs(load_columns(push.x, gl_WorkGroupID.x * COLUMNS + i, WIDTH));
        most = max(most, max(max(v.x, v.y), max(v.z, v.w)));
    }
    most = subgroupMax(most);
    if (subgroupElect())
        maxima[gl_SubgroupID] = most;
    barrier();
    most = 0;
    for (uint i = 0; i < gl_NumSubgroups; ++i)
        most = max(most, maxima[i]);
    return most;
}

// The binary16 bits of four elements of the line from a column on.
uvec4 four_bits(uint column, float factor) {
    vec4 v = four_at(push.x, gl_WorkGroupID.x, column, COLUMNS) * factor;
    return uvec4(f16_bits(v.x), f16_bits(v.y), f16_bits(v.z), f16_bits(v.w));
}

void main() {
    uint line = gl_WorkGroupID.x;
    uint exponent = clamp(floatBitsToUint(largest()) >> 23, 15u, 240u);
    float factor = uintBitsToFloat((127u + 13u + 127u - exponent) << 23);
    if (gl_LocalInvocationID.x == 0)
        Floats(push.scales).at[line] = uintBitsToFloat((exponent - 13u) << 23);
    const uint EIGHTS = (COLUMNS + 63) / 64 * 8;
    for (uint eight = gl_LocalInvocationID.x; eight < EIGHTS; eight += WORKGROUP) {
        uvec4 a = four_bits(8 * eight, factor), b = four_bits(8 * eight + 4, factor);
        WordVectors(push.result).at[line * EIGHTS + eight] =
            INTERLEAVE ? a | b << 16
                       : uvec4(a.x | a.y << 16, a.z | a.w << 16, b.x | b.y << 16, b.z | b.w << 16);
    }
}
