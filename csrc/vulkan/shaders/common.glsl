// What every shader begins with: memory by address, sums over a workgroup.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require

#include "push_constants.h"

layout(constant_id = 0) const uint WORKGROUP = 256;
layout(local_size_x_id = 0) in;
layout(constant_id = 8) const uint SUBGROUP = 32;

layout(buffer_reference, std430, buffer_reference_align = 4) buffer Floats { float at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Ints { int at[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Vectors { vec4 at[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer Pieces { uvec4 at[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer Rows {
    gptoss_device_row at[];
};

bool is_absent(uvec2 address) {
    return address == uvec2(0);
}

// address + count * bytes
uvec2 advance(uvec2 address, uint count, uint bytes) {
    uint low, high, carry;
    umulExtended(count, bytes, high, low);
    address.x = uaddCarry(address.x, low, carry);
    address.y += high + carry;
    return address;
}

// Elements of lines whose lengths `width` divides: 1 or 4 of them.
vec4 load_columns(uvec2 address, uint at, uint width) {
    return width == 4 ? Vectors(address).at[at / 4] : vec4(Floats(address).at[at], 0, 0, 0);
}

void store_columns(uvec2 address, uint at, uint width, vec4 v) {
    if (width == 4)
        Vectors(address).at[at / 4] = v;
    else
        Floats(address).at[at] = v.x;
}

// Four elements of a line of so many columns, which begin a vector if lines do; zeros beyond its end.
vec4 four_at(uvec2 address, uint line, uint column, uint columns) {
    uint at = line * columns + column;
    if (columns % 4 == 0)
        return column < columns ? Vectors(address).at[at / 4] : vec4(0);
    vec4 four = vec4(0);
    [[unroll]] for (uint i = 0; i < 4; ++i)
        four[i] = column + i < columns ? Floats(address).at[at + i] : 0;
    return four;
}

// IEEE binary16 bits, round to nearest even: what packHalf2x16 does not promise.
uint f16_bits(float value) {
    uint bits = floatBitsToUint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude >= 0x47800000u) // 65536 and on
        return sign | (magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u);
    if (magnitude < 0x38800000u) // subnormal: the sum rounds at 2^-24
        return sign | (floatBitsToUint(uintBitsToFloat(magnitude) + 0.5) - 0x3F000000u);
    uint rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
    return sign | (rounded - 0x38000000u) >> 13;
}

// What workgroups tell each other.
layout(buffer_reference, std430, buffer_reference_align = 4) coherent buffer Shared { float at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) coherent buffer Counters { uint at[]; };
shared uint is_last;

// Whether this is the last of `count` workgroups to get here, which then sees what the others wrote to
// Shared memory before. The counter is zero before and after.
bool is_last_workgroup(uvec2 counters, uint index, uint count) {
    memoryBarrierBuffer();
    barrier();
    if (gl_LocalInvocationIndex == 0) {
        is_last = atomicAdd(Counters(counters).at[index], 1) == count - 1 ? 1 : 0;
        if (is_last == 1)
            Counters(counters).at[index] = 0;
    }
    memoryBarrierBuffer();
    barrier();
    return is_last == 1;
}

shared float sum_parts[64];

// The sum over the workgroup, for all of it.
float workgroup_sum(float value) {
    float part = subgroupAdd(value);
    barrier();
    if (subgroupElect())
        sum_parts[gl_SubgroupID] = part;
    barrier();
    float sum = 0;
    for (uint i = 0; i < gl_NumSubgroups; ++i)
        sum += sum_parts[i];
    return sum;
}
