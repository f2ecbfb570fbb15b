// Rotates queries and keys in place and stores keys and values of new rows in the cache. A workgroup
// has some heads of a row. Grid: rows, blocks of heads (queries, keys, values).
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint HEADS = 16; // of a workgroup

layout(push_constant) uniform Push { gptoss_rope_push push; };

const uint HALF = HEAD_DIM / 2;
const uint WIDTH = HEAD_DIM % 8 == 0 ? 4 : 2; // elements of a vector
const uint VECTORS = HEADS * HEAD_DIM / WIDTH;
shared vec4 vectors[VECTORS];

layout(buffer_reference, std430, buffer_reference_align = 8) buffer WordPairs { uvec2 at[]; };

struct Place {
    uvec2 address;
    uint line;  // of HEAD_DIM elements there
    uint plane; // of the cache: keys, values; 2: none, for queries
};

Place place_of(uint head) {
    uint row = gl_WorkGroupID.x, kv_heads = push.num_kv_heads;
    if (head < push.num_heads)
        return Place(push.queries, row * push.num_heads + head, 2);
    head -= push.num_heads;
    return head < kv_heads ? Place(push.keys, row * kv_heads + head, 0)
                           : Place(push.values, row * kv_heads + head - kv_heads, 1);
}

vec4 load(uvec2 address, uint at) {
    return WIDTH == 4 ? Vectors(address).at[at / 4]
                      : vec4(Floats(address).at[at], Floats(address).at[at + 1], 0, 0);
}

void store(uvec2 address, uint at, vec4 v) {
    if (WIDTH == 4) {
        Vectors(address).at[at / 4] = v;
    } else {
        Floats(address).at[at] = v.x;
        Floats(address).at[at + 1] = v.y;
    }
}

// Elements i and on of a head, `vector` of the workgroup's.
vec4 rotated(uint vector, uint i) {
    vec4 own = vectors[vector], partners, cosine, sine, signs;
    uint angles = gl_WorkGroupID.x * HALF;
    if (push.rotation == 1) { // neighbours
        uint at = angles + i / 2, next = at + WIDTH / 4;
        partners = own.yxwz;
        cosine = vec2(Floats(push.cosine).at[at], Floats(push.cosine).at[next]).xxyy;
        sine = vec2(Floats(push.sine).at[at], Floats(push.sine).at[next]).xxyy;
        signs = vec4(-1, 1, -1, 1);
    } else if (WIDTH == 4) { // halves, of whole vectors
        partners = vectors[i < HALF ? vector + HALF / 4 : vector - HALF / 4];
        cosine = load(push.cosine, angles + i % HALF);
        sine = load(push.sine, angles + i % HALF);
        signs = vec4(i < HALF ? -1 : 1);
    } else {
        uint first = (vector - i / 2) * 2; // element of the workgroup's
        [[unroll]] for (uint j = 0; j < 2; ++j) {
            uint partner = first + (i + j + HALF) % HEAD_DIM, at = angles + (i + j) % HALF;
            partners[j] = vectors[partner / 2][partner % 2];
            cosine[j] = Floats(push.cosine).at[at];
            sine[j] = Floats(push.sine).at[at];
            signs[j] = i + j < HALF ? -1 : 1;
        }
    }
    return own * cosine + signs * partners * sine;
}

void append(gptoss_device_row entry, uint plane, uint head, uint i, vec4 v) {
    uint line = ((push.layer * 2 + plane) * push.num_kv_heads + head);
    uvec2 base =
        advance(entry.cache, line, entry.capacity * HEAD_DIM * (entry.is_f32 != 0 ? 4 : 2));
    uint at = uint(entry.position) * HEAD_DIM + i;
    if (entry.is_f32 != 0) {
        store(base, at, v);
        return;
    }
    uvec2 words = uvec2(f16_bits(v.x) | f16_bits(v.y) << 16, f16_bits(v.z) | f16_bits(v.w) << 16);
    if (WIDTH == 4)
        WordPairs(base).at[at / 4] = words;
    else
        Words(base).at[at / 2] = words.x;
}

void main() {
    uint first = gl_WorkGroupID.y * HEADS, heads = push.num_heads + 2 * push.num_kv_heads;
    uint count = min(HEADS, heads - first) * HEAD_DIM / WIDTH;
    gptoss_device_row entry = Rows(push.rows).at[gl_WorkGroupID.x];
    for (uint vector = gl_LocalInvocationID.x; vector < count; vector += WORKGROUP) {
        Place place = place_of(first + vector * WIDTH / HEAD_DIM);
        vectors[vector] = load(place.address, place.line * HEAD_DIM + vector * WIDTH % HEAD_DIM);
    }
    barrier();
    for (uint vector = gl_LocalInvocationID.x; vector < count; vector += WORKGROUP) {
        Place place = place_of(first + vector * WIDTH / HEAD_DIM);
        uint i = vector * WIDTH % HEAD_DIM;
        vec4 v = vectors[vector];
        if (place.plane != 1 && push.rotation != 2) {
            v = rotated(vector, i);
            store(place.address, place.line * HEAD_DIM + i, v);
        }
        if (place.plane != 2 && entry.append != 0)
            append(entry, place.plane, place.line - gl_WorkGroupID.x * push.num_kv_heads, i, v);
    }
}
