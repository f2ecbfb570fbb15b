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

shared float maxima[64];

float largest() {
    float most = 0;
    for (uint i = gl_LocalInvocationID.x; i < COLUMNS; i += WORKGROUP)
        most = max(most, abs(Floats(push.x).at[gl_WorkGroupID.x * COLUMNS + i]));
    most = subgroupMax(most);
    if (subgroupElect())
        maxima[gl_SubgroupID] = most;
    barrier();
    most = 0;
    for (uint i = 0; i < gl_NumSubgroups; ++i)
        most = max(most, maxima[i]);
    return most;
}

void main() {
    uint line = gl_WorkGroupID.x;
    uint exponent = clamp(floatBitsToUint(largest()) >> 23, 15u, 240u);
    float factor = uintBitsToFloat((127u + 13u + 127u - exponent) << 23);
    if (gl_LocalInvocationID.x == 0)
        Floats(push.scales).at[line] = uintBitsToFloat((exponent - 13u) << 23);
    const uint WORDS = (COLUMNS + 63) / 64 * 32;
    for (uint word = gl_LocalInvocationID.x; word < WORDS; word += WORKGROUP) {
        uint first = 2 * word, second = first + 1;
        if (INTERLEAVE) {
            first = word / 4 * 8 + word % 4;
            second = first + 4;
        }
        uint at = line * COLUMNS;
        float a = first < COLUMNS ? Floats(push.x).at[at + first] * factor : 0;
        float b = second < COLUMNS ? Floats(push.x).at[at + second] * factor : 0;
        Words(push.result).at[line * WORDS + word] = f16_bits(a) | f16_bits(b) << 16;
    }
}
