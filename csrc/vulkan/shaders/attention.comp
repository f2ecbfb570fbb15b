// Attention of one query row over the cache, for HEADS query heads that share a head of keys. Keys
// go in parts of 256 at fixed positions; parts are joined in their order, from the sink on. SPLIT:
// a workgroup a part, and the last one to finish joins them. Grid: rows, groups of heads, parts.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint HEADS = 8;
layout(constant_id = 3) const uint KEYS = 32; // in shared memory at a time
layout(constant_id = 4) const bool SPLIT = false;

layout(push_constant) uniform Push { gptoss_attention_push push; };

layout(buffer_reference, std430, buffer_reference_align = 4) coherent buffer Shared { float at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) coherent buffer Counters { uint at[]; };

const uint OWN = (HEADS * HEAD_DIM + WORKGROUP - 1) / WORKGROUP; // values of a thread
const float NOTHING = -3.0e38;

shared float query[HEADS * HEAD_DIM];
shared float tile[KEYS * (HEAD_DIM + 1)];
shared float scores[HEADS * KEYS];
shared float maximum[HEADS], total[HEADS], rescale[HEADS]; // of the part
shared float all_maximum[HEADS], all_total[HEADS], old_scale[HEADS], new_scale[HEADS];
shared uint is_last;

gptoss_device_slot slot;
uint num_heads_here;

void load_tile(uint plane, uint kv_head, uint first, uint count) {
    uint bytes = slot.is_f32 != 0 ? 4 : 2;
    uint line = (push.layer * 2 + plane) * push.num_kv_heads + kv_head;
    uvec2 base = advance(slot.cache, line, slot.capacity * HEAD_DIM * bytes);
    for (uint i = 2 * gl_LocalInvocationID.x; i < count * HEAD_DIM; i += 2 * WORKGROUP) {
        uint at = first * HEAD_DIM + i, to = i / HEAD_DIM * (HEAD_DIM + 1) + i % HEAD_DIM;
        vec2 pair = slot.is_f32 != 0 ? vec2(Floats(base).at[at], Floats(base).at[at + 1])
                                     : unpackHalf2x16(Words(base).at[at / 2]);
        tile[to] = pair.x;
        tile[to + 1] = pair.y;
    }
}

void score_tile(uint count) {
    for (uint i = gl_LocalInvocationID.x; i < HEADS * KEYS; i += WORKGROUP) {
        uint head = i / KEYS, key = i % KEYS;
        float sum = NOTHING;
        if (key < count && head < num_heads_here) {
            sum = 0;
            for (uint d = 0; d < HEAD_DIM; ++d)
                sum = fma(query[head * HEAD_DIM + d], tile[key * (HEAD_DIM + 1) + d], sum);
            sum *= push.scale;
        }
        scores[i] = sum;
    }
}

// New maxima; scores become weights.
void weigh_tile(uint count) {
    if (gl_LocalInvocationID.x < HEADS) {
        uint head = gl_LocalInvocationID.x;
        float old = maximum[head], most = old;
        for (uint key = 0; key < count; ++key)
            most = max(most, scores[head * KEYS + key]);
        rescale[head] = exp(old - most);
        maximum[head] = most;
    }
    barrier();
    for (uint i = gl_LocalInvocationID.x; i < HEADS * KEYS; i += WORKGROUP)
        scores[i] = i % KEYS < count ? exp(scores[i] - maximum[i / KEYS]) : 0;
    barrier();
    if (gl_LocalInvocationID.x < HEADS) {
        uint head = gl_LocalInvocationID.x;
        float sum = 0;
        for (uint key = 0; key < count; ++key)
            sum += scores[head * KEYS + key];
        total[head] = total[head] * rescale[head] + sum;
    }
}

void attend_part(uint kv_head, uint begin, uint end, inout float values[OWN]) {
    for (uint i = 0; i < OWN; ++i)
        values[i] = 0;
    if (gl_LocalInvocationID.x < HEADS) {
        maximum[gl_LocalInvocationID.x] = NOTHING;
        total[gl_LocalInvocationID.x] = 0;
    }
    for (uint first = begin; first < end;) {
        uint count = min(KEYS - first % KEYS, end - first); // tiles at fixed positions, too
        barrier();
        load_tile(0, kv_head, first, count);
        barrier();
        score_tile(count);
        barrier();
        load_tile(1, kv_head, first, count);
        weigh_tile(count);
        barrier();
        for (uint i = 0; i < OWN; ++i) {
            uint at = gl_LocalInvocationID.x + i * WORKGROUP;
            uint head = min(at / HEAD_DIM, HEADS - 1), d = at % HEAD_DIM;
            float sum = 0;
            for (uint key = 0; key < count; ++key)
                sum = fma(scores[head * KEYS + key], tile[key * (HEAD_DIM + 1) + d], sum);
            values[i] = fma(values[i], rescale[head], sum);
        }
        first += count;
    }
    barrier();
}

// Joins a part's maximum and total to those of all before it, head by head.
void join(uint head, float part_maximum, float part_total) {
    float most = max(all_maximum[head], part_maximum);
    old_scale[head] = exp(all_maximum[head] - most);
    new_scale[head] = exp(part_maximum - most);
    all_maximum[head] = most;
    all_total[head] = all_total[head] * old_scale[head] + part_total * new_scale[head];
}

void begin_join(uint first_head) {
    uint head = gl_LocalInvocationID.x;
    if (head < HEADS) {
        bool has_sink = !is_absent(push.sinks) && head < num_heads_here;
        all_maximum[head] = has_sink ? Floats(push.sinks).at[first_head + head] : NOTHING;
        all_total[head] = has_sink ? 1 : 0;
    }
    barrier();
}

void store(uint row, uint first_head, float all_values[OWN]) {
    for (uint i = 0; i < OWN; ++i) {
        uint at = gl_LocalInvocationID.x + i * WORKGROUP, head = at / HEAD_DIM;
        if (head < num_heads_here)
            Floats(push.result).at[(row * push.num_heads + first_head) * HEAD_DIM + at] =
                all_values[i] / all_total[head];
    }
    uint head = gl_LocalInvocationID.x;
    if (head < num_heads_here && !is_absent(push.sink_mass))
        Floats(push.sink_mass).at[row * push.num_heads + first_head + head] =
            exp(Floats(push.sinks).at[first_head + head] - all_maximum[head]) / all_total[head];
}

void main() {
    uint row = gl_WorkGroupID.x, id = gl_LocalInvocationID.x;
    uint group = push.num_heads / push.num_kv_heads, pieces = (group + HEADS - 1) / HEADS;
    uint kv_head = gl_WorkGroupID.y / pieces;
    uint first_head = kv_head * group + gl_WorkGroupID.y % pieces * HEADS;
    num_heads_here = min(HEADS, (kv_head + 1) * group - first_head);
    gptoss_device_row entry = Rows(push.rows).at[row];
    slot = Slots(push.slots).at[entry.slot];
    uint end = uint(entry.position) + 1;
    uint begin = push.window > 0 && end > push.window ? end - push.window : 0;
    uint first_part = begin / GPTOSS_ATTENTION_PART, last_part = (end - 1) / GPTOSS_ATTENTION_PART;
    uint my_part = first_part + gl_WorkGroupID.z;
    if (SPLIT && my_part > last_part)
        return;
    for (uint i = id; i < num_heads_here * HEAD_DIM; i += WORKGROUP)
        query[i] = Floats(push.queries).at[(row * push.num_heads + first_head) * HEAD_DIM + i];
    float values[OWN], all_values[OWN];
    for (uint i = 0; i < OWN; ++i)
        all_values[i] = 0;

    // [row][head][part](maximum, total, values)
    const uint ENTRY = HEAD_DIM + 2;
    uint parts_at = (row * push.num_heads + first_head) * push.num_parts;
    if (SPLIT && first_part < last_part) {
        attend_part(kv_head, max(begin, my_part * GPTOSS_ATTENTION_PART),
                    min(end, (my_part + 1) * GPTOSS_ATTENTION_PART), values);
        for (uint i = 0; i < OWN; ++i) {
            uint at = id + i * WORKGROUP, head = at / HEAD_DIM;
            if (head < num_heads_here)
                Shared(push.partial).at[(parts_at + head * push.num_parts + gl_WorkGroupID.z) * ENTRY +
                                        2 + at % HEAD_DIM] = values[i];
        }
        if (id < num_heads_here) {
            uint to = (parts_at + id * push.num_parts + gl_WorkGroupID.z) * ENTRY;
            Shared(push.partial).at[to] = maximum[id];
            Shared(push.partial).at[to + 1] = total[id];
        }
        memoryBarrierBuffer();
        barrier();
        if (id == 0) {
            uint counter = row * (push.num_kv_heads * pieces) + gl_WorkGroupID.y;
            uint before = atomicAdd(Counters(push.counters).at[counter], 1);
            is_last = before == last_part - first_part ? 1 : 0;
            if (is_last == 1)
                Counters(push.counters).at[counter] = 0;
        }
        memoryBarrierBuffer();
        barrier();
        if (is_last == 0)
            return;
    }
    begin_join(first_head);
    for (uint part = first_part; part <= last_part; ++part) {
        uint z = part - first_part;
        bool is_stored = SPLIT && first_part < last_part;
        if (!is_stored)
            attend_part(kv_head, max(begin, part * GPTOSS_ATTENTION_PART),
                        min(end, (part + 1) * GPTOSS_ATTENTION_PART), values);
        if (id < HEADS) {
            uint from = (parts_at + min(id, num_heads_here - 1) * push.num_parts + z) * ENTRY;
            join(id, is_stored ? Shared(push.partial).at[from] : maximum[id],
                 is_stored ? Shared(push.partial).at[from + 1] : total[id]);
        }
        barrier();
        for (uint i = 0; i < OWN; ++i) {
            uint at = id + i * WORKGROUP, head = min(at / HEAD_DIM, num_heads_here - 1);
            float value =
                is_stored ? Shared(push.partial).at[(parts_at + head * push.num_parts + z) * ENTRY + 2 +
                                                    at % HEAD_DIM]
                          : values[i];
            all_values[i] = all_values[i] * old_scale[head] + value * new_scale[head];
        }
        barrier();
    }
    store(row, first_head, all_values);
}
