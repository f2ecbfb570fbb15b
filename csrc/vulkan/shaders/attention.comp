// Attention of one query row over the cache, for HEADS query heads that share a head of keys. Keys
// go in tiles at fixed positions. SPLIT: a workgroup a part, at fixed positions too, and the last one
// to finish joins them in their order. Grid: rows, groups of heads, parts.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint HEADS = 8;
layout(constant_id = 3) const uint KEYS = 32; // in shared memory at a time
layout(constant_id = 4) const bool SPLIT = false;

layout(push_constant) uniform Push { gptoss_attention_push push; };

const uint OWN = (HEADS * HEAD_DIM + WORKGROUP - 1) / WORKGROUP; // values of a thread
const float NOTHING = -3.0e38;

shared float query[HEADS * HEAD_DIM];
shared float tile[KEYS * (HEAD_DIM + 1)];
shared float scores[HEADS * KEYS];
shared float maximum[HEADS], total[HEADS], rescale[HEADS]; // of the part
shared float all_maximum[HEADS], all_total[HEADS]; // of all parts and the sink

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

// New maxima; scores become weights. A subgroup a head.
void weigh_tile(uint count) {
    for (uint head = gl_SubgroupID; head < HEADS; head += gl_NumSubgroups) {
        float old = maximum[head], most = NOTHING, sum = 0;
        for (uint key = gl_SubgroupInvocationID; key < count; key += gl_SubgroupSize)
            most = max(most, scores[head * KEYS + key]);
        most = max(old, subgroupMax(most));
        for (uint key = gl_SubgroupInvocationID; key < KEYS; key += gl_SubgroupSize) {
            float weight = key < count ? exp(scores[head * KEYS + key] - most) : 0;
            scores[head * KEYS + key] = weight;
            sum += weight;
        }
        sum = subgroupAdd(sum);
        if (subgroupElect()) {
            float scale = exp(old - most);
            rescale[head] = scale;
            maximum[head] = most;
            total[head] = total[head] * scale + sum;
        }
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

// Of a part, where workgroups leave it: [row][head][part](maximum, total, values).
const uint ENTRY = HEAD_DIM + 2;

uint entry_at(uint row, uint head, uint part) {
    return ((row * push.num_heads + head) * push.num_parts + part) * ENTRY;
}

// Joins all parts and the sink, for a subgroup a head: first their maximum, then their sum.
void join_totals(uint row, uint first_head, uint count) {
    for (uint head = gl_SubgroupID; head < num_heads_here; head += gl_NumSubgroups) {
        bool has_sink = !is_absent(push.sinks);
        float sink = has_sink ? Floats(push.sinks).at[first_head + head] : NOTHING;
        float most = sink, sum = 0;
        for (uint part = gl_SubgroupInvocationID; part < count; part += gl_SubgroupSize)
            most = max(most, Shared(push.partial).at[entry_at(row, first_head + head, part)]);
        most = subgroupMax(most);
        for (uint part = gl_SubgroupInvocationID; part < count; part += gl_SubgroupSize) {
            uint at = entry_at(row, first_head + head, part);
            sum += Shared(push.partial).at[at + 1] * exp(Shared(push.partial).at[at] - most);
        }
        sum = subgroupAdd(sum) + (has_sink ? exp(sink - most) : 0);
        if (subgroupElect()) {
            all_maximum[head] = most;
            all_total[head] = sum;
        }
    }
    barrier();
}

// A single part and the sink.
void join_sink(uint first_head, inout float values[OWN]) {
    uint id = gl_LocalInvocationID.x;
    if (id < num_heads_here) {
        bool has_sink = !is_absent(push.sinks);
        float sink = has_sink ? Floats(push.sinks).at[first_head + id] : NOTHING;
        float most = max(sink, maximum[id]);
        rescale[id] = exp(maximum[id] - most);
        all_maximum[id] = most;
        all_total[id] = total[id] * rescale[id] + (has_sink ? exp(sink - most) : 0);
    }
    barrier();
    for (uint i = 0; i < OWN; ++i)
        values[i] *= rescale[min((id + i * WORKGROUP) / HEAD_DIM, HEADS - 1)];
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
    uint first_part = begin / GPTOSS_ATTENTION_PART;
    uint count = SPLIT ? (end - 1) / GPTOSS_ATTENTION_PART - first_part + 1 : 1;
    uint part = gl_WorkGroupID.z;
    if (part >= count)
        return;
    for (uint i = id; i < num_heads_here * HEAD_DIM; i += WORKGROUP)
        query[i] = Floats(push.queries).at[(row * push.num_heads + first_head) * HEAD_DIM + i];
    if (count > 1) {
        begin = max(begin, (first_part + part) * GPTOSS_ATTENTION_PART);
        end = min(end, (first_part + part + 1) * GPTOSS_ATTENTION_PART);
    }
    float values[OWN];
    attend_part(kv_head, begin, end, values);
    if (count == 1) {
        join_sink(first_head, values);
        store(row, first_head, values);
        return;
    }
    for (uint i = 0; i < OWN; ++i) {
        uint at = id + i * WORKGROUP, head = at / HEAD_DIM;
        if (head < num_heads_here)
            Shared(push.partial).at[entry_at(row, first_head + head, part) + 2 + at % HEAD_DIM] =
                values[i];
    }
    if (id < num_heads_here) {
        uint to = entry_at(row, first_head + id, part);
        Shared(push.partial).at[to] = maximum[id];
        Shared(push.partial).at[to + 1] = total[id];
    }
    uint counter = row * (push.num_kv_heads * pieces) + gl_WorkGroupID.y;
    if (!is_last_workgroup(push.counters, counter, count))
        return;
    join_totals(row, first_head, count);
    for (uint i = 0; i < OWN; ++i) {
        uint at = id + i * WORKGROUP, head = min(at / HEAD_DIM, num_heads_here - 1);
        values[i] = 0;
        for (uint other = 0; other < count; ++other) {
            uint from = entry_at(row, first_head + head, other);
            values[i] = fma(Shared(push.partial).at[from + 2 + at % HEAD_DIM],
                            exp(Shared(push.partial).at[from] - all_maximum[head]), values[i]);
        }
    }
    store(row, first_head, values);
}
