// Rotates a head of queries or keys in place and stores keys and values of new rows in the cache.
// A workgroup a head; grid: rows, heads (queries, keys, values).
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(constant_id = 1) const uint HEAD_DIM = 64;

layout(push_constant) uniform Push { gptoss_rope_push push; };

shared float head_values[HEAD_DIM];

float rotated(uint row, uint i) {
    if (push.rotation == 2)
        return head_values[i];
    const uint HALF = HEAD_DIM / 2;
    bool neighbours = push.rotation == 1;
    uint angle = neighbours ? i / 2 : i % HALF;
    bool is_second = neighbours ? (i & 1u) == 1u : i >= HALF;
    uint partner = neighbours ? i ^ 1u : (i + HALF) % HEAD_DIM;
    float cosine = Floats(push.cosine).at[row * HALF + angle];
    float sine = Floats(push.sine).at[row * HALF + angle];
    return is_second ? head_values[i] * cosine + head_values[partner] * sine
                     : head_values[i] * cosine - head_values[partner] * sine;
}

void append(gptoss_device_row entry, uint plane, uint head, uint i, float value, float next) {
    uint bytes = entry.is_f32 != 0 ? 4 : 2;
    uint line = ((push.layer * 2 + plane) * push.num_kv_heads + head);
    uvec2 base = advance(entry.cache, line, entry.capacity * HEAD_DIM * bytes);
    uint at = uint(entry.position) * HEAD_DIM + i;
    if (entry.is_f32 != 0) {
        Floats(base).at[at] = value;
        Floats(base).at[at + 1] = next;
    } else {
        Words(base).at[at / 2] = f16_bits(value) | f16_bits(next) << 16;
    }
}

void main() {
    uint row = gl_WorkGroupID.x, head = gl_WorkGroupID.y;
    uvec2 x = push.queries;
    uint heads = push.num_heads, plane = 2;
    if (head >= push.num_heads) {
        head -= push.num_heads;
        heads = push.num_kv_heads;
        plane = head / heads;
        x = plane == 0 ? push.keys : push.values;
        head %= heads;
    }
    uint start = (row * heads + head) * HEAD_DIM;
    for (uint i = gl_LocalInvocationID.x; i < HEAD_DIM; i += WORKGROUP)
        head_values[i] = Floats(x).at[start + i];
    barrier();
    gptoss_device_row entry = Rows(push.rows).at[row];
    for (uint i = 2 * gl_LocalInvocationID.x; i < HEAD_DIM; i += 2 * WORKGROUP) {
        float value = head_values[i], next = head_values[i + 1];
        if (plane != 1) {
            value = rotated(row, i);
            next = rotated(row, i + 1);
            Floats(x).at[start + i] = value;
            Floats(x).at[start + i + 1] = next;
        }
        if (plane != 2 && entry.append != 0)
            append(entry, plane, head, i, value, next);
    }
}
