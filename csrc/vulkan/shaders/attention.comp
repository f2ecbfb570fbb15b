// Attention of one query row over the cache, for HEADS query heads that share a head of keys. SPLIT: a
// workgroup a part of the keys, and the last one to finish joins them in their order. What the parts
// are follows from the row alone. Grid: rows, groups of heads, parts.
//
// A thread has 8 elements of a key or value, a piece, and goes through every LINES-th key with them: one
// load serves all heads, and what waits for memory are registers only.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "common.glsl"
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint HEADS = 8; // 1 .. 8
layout(constant_id = 3) const bool SPLIT = false;
layout(constant_id = 4) const bool HAS_F32 = false; // whether any cache of the pass is float32

layout(push_constant) uniform Push { gptoss_attention_push push; };

const uint PIECES = (HEAD_DIM + 7) / 8;
const uint LINES = WORKGROUP / PIECES; // keys at a time
const uint STEPS = GPTOSS_ATTENTION_STEPS;
const uint TILE = STEPS * LINES;
const uint WIDTH = HAS_F32 ? 2 : 1; // vectors of a piece
const uint HELD = STEPS * WIDTH;    // of a tile, by a thread
// Heads in registers: a power of two, for fold().
const uint ROUND_HEADS = HEADS > 4 ? 8 : HEADS > 2 ? 4 : HEADS;
const uint SUMS = 8 * ROUND_HEADS;
// Neighbouring lanes that share a key, as far as they are a power of two.
const uint LOWEST = PIECES & (~PIECES + 1);
const uint SPAN = LOWEST < SUBGROUP ? LOWEST : SUBGROUP;
// Lanes of a subgroup that have the same piece of different keys, if it is whole keys.
const uint REPEATS = SUBGROUP % PIECES == 0 ? SUBGROUP / PIECES : 1;
const uint GROUPS = REPEATS > 1 ? WORKGROUP / SUBGROUP : LINES; // whose sums meet in memory

const uint OUTPUTS = 8 * PIECES * HEADS; // [head][element of a piece][piece]
const uint OWN = (OUTPUTS + WORKGROUP - 1) / WORKGROUP;
const uint VECTORS = OUTPUTS / 4;
const uint SHARES = VECTORS < WORKGROUP ? WORKGROUP / VECTORS : 1; // of the parts, for a join
const uint ENTRY = (OUTPUTS + 2 * HEADS + 3) / 4 * 4;              // what a part leaves
const uint PARTS = GPTOSS_ATTENTION_PARTS;
const float NOTHING = -3.0e38;

// Scores and then weights, [slot][key][head]; and sums that meet.
const uint POOL = GPTOSS_ATTENTION_POOL;
const uint STRIDE = HEADS | 1; // for the banks
const uint SLOTS = PIECES / SPAN;
const uint TILES = POOL / (TILE * STRIDE * SLOTS); // between two joins of the sums
const uint BLOCK = TILES * TILE;
shared float pool[POOL];
shared float maximum[HEADS], total[HEADS], rescale[HEADS]; // of the part
shared float all_maximum[HEADS], all_total[HEADS];         // of all parts and the sink
shared float factors[HEADS * PARTS];

layout(buffer_reference, std430, buffer_reference_align = 16) coherent buffer SharedVectors {
    vec4 at[];
};

// By lanes, whatever order the device gives threads.
uint thread, piece, line;
bool is_f32;
uint num_heads_here;

// Adds `count` values over `lanes` lanes, `stride` apart, and shares the sums out: a lane, i-th of them,
// is left with those of i, i + lanes, ... in the first of v. Lanes beyond `count` get sums twice.
void fold_pairs(inout float v[SUMS], uint pairs, uint step) {
    if (pairs == 0)
        v[0] += subgroupShuffleXor(v[0], step);
    bool is_odd = (gl_SubgroupInvocationID & step) != 0;
    [[unroll]] for (uint i = 0; i < pairs; ++i) {
        float kept = is_odd ? v[2 * i + 1] : v[2 * i], sent = is_odd ? v[2 * i] : v[2 * i + 1];
        v[i] = kept + subgroupShuffleXor(sent, step);
    }
}

void fold(inout float v[SUMS], uint count, uint lanes, uint stride) {
    if (lanes > 1)
        fold_pairs(v, count / 2, stride);
    if (lanes > 2)
        fold_pairs(v, count / 4, 2 * stride);
    if (lanes > 4)
        fold_pairs(v, count / 8, 4 * stride);
    if (lanes > 8)
        fold_pairs(v, count / 16, 8 * stride);
    if (lanes > 16)
        fold_pairs(v, count / 32, 16 * stride);
    if (lanes > 32)
        fold_pairs(v, count / 64, 32 * stride);
    if (lanes > 64)
        fold_pairs(v, 0, 64 * stride);
}

uvec4 words_at(uvec2 base, uint at, uint left) {
    if (HEAD_DIM % 8 == 0)
        return Pieces(base).at[at / 4];
    uvec4 words = uvec4(0);
    [[unroll]] for (uint i = 0; i < 4; ++i)
        words[i] = i < left ? Words(base).at[at + i] : 0;
    return words;
}

// The thread's piece of the keys of a tile, or of the values; zeros beyond `end`.
void load_tile(uvec2 base, uint first, uint end, out uvec4 pieces[HELD]) {
    [[unroll]] for (uint s = 0; s < STEPS; ++s) {
        [[unroll]] for (uint i = 0; i < WIDTH; ++i)
            pieces[s * WIDTH + i] = uvec4(0);
        uint key = first + s * LINES + line, left = HEAD_DIM - 8 * piece;
        if (line >= LINES || key >= end)
            continue;
        if (HAS_F32 && is_f32) {
            uint at = key * HEAD_DIM + 8 * piece;
            pieces[s * WIDTH] = words_at(base, at, left);
            pieces[s * WIDTH + WIDTH - 1] = words_at(base, at + 4, left > 4 ? left - 4 : 0);
        } else {
            pieces[s * WIDTH] = words_at(base, (key * HEAD_DIM + 8 * piece) / 2, left / 2);
        }
    }
}

void widen(uvec4 pieces[HELD], uint s, out float v[8]) {
    uvec4 first = pieces[s * WIDTH], second = pieces[s * WIDTH + WIDTH - 1];
    [[unroll]] for (uint i = 0; i < 4; ++i) {
        vec2 pair = unpackHalf2x16(first[i]);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
    }
    if (HAS_F32 && is_f32) {
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            v[i] = uintBitsToFloat(first[i]);
            v[4 + i] = uintBitsToFloat(second[i]);
        }
    }
}

// The thread's piece of each head.
void load_queries(uint first_head, out float v[SUMS]) {
    [[unroll]] for (uint head = 0; head < ROUND_HEADS; ++head) {
        uint at = (first_head + min(head, num_heads_here - 1)) * HEAD_DIM + 8 * piece;
        if (HEAD_DIM % 8 == 0) {
            [[unroll]] for (uint i = 0; i < 2; ++i) {
                vec4 part = Vectors(push.queries).at[at / 4 + i];
                [[unroll]] for (uint j = 0; j < 4; ++j)
                    v[8 * head + 4 * i + j] = part[j];
            }
        } else {
            [[unroll]] for (uint i = 0; i < 8; ++i)
                v[8 * head + i] = 8 * piece + i < HEAD_DIM ? Floats(push.queries).at[at + i] : 0;
        }
    }
}

// Scores of a block's keys. next: the first tile of the values, on its way.
void score(uvec2 keys, uvec2 values, uint first, uint end, uint first_head,
           out uvec4 next[HELD]) {
    float queries[SUMS];
    load_tile(keys, first, end, next);
    load_queries(first_head, queries);
    for (uint start = first; start < end; start += TILE) {
        uvec4 pieces[HELD];
        [[unroll]] for (uint i = 0; i < HELD; ++i)
            pieces[i] = next[i];
        bool is_last = start + TILE >= end;
        load_tile(is_last ? values : keys, is_last ? first : start + TILE, end, next);
        [[unroll]] for (uint s = 0; s < STEPS; ++s) {
            if (start + s * LINES >= end)
                continue;
            float v[8], sums[SUMS];
            widen(pieces, s, v);
            [[unroll]] for (uint head = 0; head < ROUND_HEADS; ++head) {
                sums[head] = 0;
                [[unroll]] for (uint i = 0; i < 8; ++i)
                    sums[head] = fma(queries[8 * head + i], v[i], sums[head]);
            }
            fold(sums, ROUND_HEADS, SPAN, 1);
            uint to = (piece / SPAN * BLOCK + start - first + s * LINES + line) * STRIDE;
            [[unroll]] for (uint i = 0; i * SPAN < ROUND_HEADS; ++i) {
                uint head = SPAN < ROUND_HEADS ? i * SPAN + piece % SPAN : piece % ROUND_HEADS;
                if (line < LINES && head < HEADS)
                    pool[to + head] = sums[i];
            }
        }
    }
}

// New maxima; scores become weights. A subgroup a head.
void weigh(uint count) {
    uint padded = (count + LINES - 1) / LINES * LINES;
    for (uint head = gl_SubgroupID; head < HEADS; head += gl_NumSubgroups) {
        float old = maximum[head], most = NOTHING, sum = 0;
        for (uint key = gl_SubgroupInvocationID; key < count; key += gl_SubgroupSize) {
            float value = 0;
            for (uint slot = 0; slot < SLOTS; ++slot)
                value += pool[(slot * BLOCK + key) * STRIDE + head];
            value *= push.scale;
            pool[key * STRIDE + head] = value;
            most = max(most, value);
        }
        most = max(old, subgroupMax(most));
        for (uint key = gl_SubgroupInvocationID; key < padded; key += gl_SubgroupSize) {
            float weight = key < count ? exp(pool[key * STRIDE + head] - most) : 0;
            pool[key * STRIDE + head] = weight;
            sum += weight;
        }
        sum = subgroupAdd(sum);
        if (subgroupElect()) {
            float scale = exp(old - most);
            rescale[head] = scale;
            maximum[head] = most;
            total[head] = fma(total[head], scale, sum);
        }
    }
}

// Weighted values of a block, of the thread's keys.
void weigh_values(uvec2 values, uint first, uint end, inout uvec4 next[HELD],
                  out float sums[SUMS]) {
    [[unroll]] for (uint i = 0; i < SUMS; ++i)
        sums[i] = 0;
    for (uint start = first; start < end; start += TILE) {
        uvec4 pieces[HELD];
        [[unroll]] for (uint i = 0; i < HELD; ++i)
            pieces[i] = next[i];
        load_tile(values, start + TILE, end, next);
        [[unroll]] for (uint s = 0; s < STEPS; ++s) {
            if (start + s * LINES >= end)
                continue;
            float v[8];
            widen(pieces, s, v);
            uint from = (start - first + s * LINES + min(line, LINES - 1)) * STRIDE;
            [[unroll]] for (uint head = 0; head < HEADS; ++head) {
                float weight = pool[from + head];
                [[unroll]] for (uint i = 0; i < 8; ++i)
                    sums[8 * head + i] = fma(weight, v[i], sums[8 * head + i]);
            }
        }
    }
}

// Adds the threads' sums to outputs thread, thread + WORKGROUP, ...
void add_sums(float sums[SUMS], inout float outputs[OWN]) {
    const uint LANES = REPEATS < SUMS ? REPEATS : SUMS;
    fold(sums, SUMS, REPEATS, PIECES);
    barrier(); // all have read the weights
    uint group = REPEATS > 1 ? gl_SubgroupID : line, repeat = REPEATS > 1 ? line % LANES : 0;
    [[unroll]] for (uint i = 0; i * LANES < SUMS; ++i) {
        uint element = i * LANES + repeat; // of a piece of a head
        if (line < LINES && element < 8 * HEADS)
            pool[group * OUTPUTS + element * PIECES + piece] = sums[i];
    }
    barrier();
    [[unroll]] for (uint i = 0; i < OWN; ++i) {
        uint at = min(thread + i * WORKGROUP, OUTPUTS - 1);
        float sum = 0;
        for (uint other = 0; other < GROUPS; ++other)
            sum += pool[other * OUTPUTS + at];
        outputs[i] = fma(outputs[i], rescale[at / (8 * PIECES)], sum);
    }
}

void attend(gptoss_device_row entry, uint kv_head, uint first_head, uint begin, uint end,
            out float outputs[OWN]) {
    uint bytes = is_f32 ? 4 : 2, head = push.layer * 2 * push.num_kv_heads + kv_head;
    uint head_bytes = entry.capacity * HEAD_DIM * bytes;
    uvec2 keys = advance(entry.cache, head, head_bytes);
    uvec2 values = advance(entry.cache, head + push.num_kv_heads, head_bytes);
    [[unroll]] for (uint i = 0; i < OWN; ++i)
        outputs[i] = 0;
    if (thread < HEADS) {
        maximum[thread] = NOTHING;
        total[thread] = 0;
    }
    for (uint first = begin; first < end; first += BLOCK) {
        uint block_end = min(first + BLOCK, end);
        uvec4 next[HELD];
        float sums[SUMS];
        barrier();
        score(keys, values, first, block_end, first_head, next);
        barrier();
        weigh(block_end - first);
        barrier();
        weigh_values(values, first, block_end, next, sums);
        add_sums(sums, outputs);
    }
}

// A single part and the sink.
void join_sink(uint first_head, inout float outputs[OWN]) {
    barrier();
    if (thread < num_heads_here) {
        bool has_sink = !is_absent(push.sinks);
        float sink = has_sink ? Floats(push.sinks).at[first_head + thread] : NOTHING;
        float most = max(sink, maximum[thread]);
        rescale[thread] = exp(maximum[thread] - most);
        all_maximum[thread] = most;
        all_total[thread] = fma(total[thread], rescale[thread], has_sink ? exp(sink - most) : 0);
    }
    barrier();
    [[unroll]] for (uint i = 0; i < OWN; ++i)
        outputs[i] *= rescale[min((thread + i * WORKGROUP) / (8 * PIECES), HEADS - 1)];
}

// Leaves a part: outputs, then maximum and total of each head.
void leave(uint entry, float outputs[OWN]) {
    [[unroll]] for (uint i = 0; i < OWN; ++i) {
        uint at = thread + i * WORKGROUP;
        if (at < OUTPUTS)
            Shared(push.partial).at[entry * ENTRY + at] = outputs[i];
    }
    if (thread < HEADS) {
        uint to = entry * ENTRY + OUTPUTS + 2 * thread;
        Shared(push.partial).at[to] = maximum[thread];
        Shared(push.partial).at[to + 1] = total[thread];
    }
}

// What each part, and the sink, count for. A subgroup a head; `count` parts from `entry` on.
void weigh_parts(uint entry, uint count, uint first_head) {
    const uint ROUNDS = (PARTS + SUBGROUP - 1) / SUBGROUP;
    for (uint head = gl_SubgroupID; head < num_heads_here; head += gl_NumSubgroups) {
        bool has_sink = !is_absent(push.sinks);
        float sink = has_sink ? Floats(push.sinks).at[first_head + head] : NOTHING;
        float maxima[ROUNDS], masses[ROUNDS], most = sink, sum = 0;
        [[unroll]] for (uint i = 0; i < ROUNDS; ++i) {
            uint part = gl_SubgroupInvocationID + i * SUBGROUP;
            uint from = (entry + part) * ENTRY + OUTPUTS + 2 * head;
            maxima[i] = part < count ? Shared(push.partial).at[from] : NOTHING;
            masses[i] = part < count ? Shared(push.partial).at[from + 1] : 0;
        }
        [[unroll]] for (uint i = 0; i < ROUNDS; ++i)
            most = max(most, maxima[i]);
        most = subgroupMax(most);
        [[unroll]] for (uint i = 0; i < ROUNDS; ++i) {
            uint part = gl_SubgroupInvocationID + i * SUBGROUP;
            float factor = exp(maxima[i] - most);
            if (part < count)
                factors[head * PARTS + part] = factor;
            sum = fma(masses[i], factor, sum);
        }
        sum = subgroupAdd(sum) + (has_sink ? exp(sink - most) : 0);
        if (subgroupElect()) {
            all_maximum[head] = most;
            all_total[head] = sum;
        }
    }
}

// Threads share the parts, too, and have many loads on their way.
void join_parts(uint entry, uint count, uint first_head, out float outputs[OWN]) {
    const uint LOADS = 8;
    weigh_parts(entry, count, first_head);
    barrier();
    uint share = VECTORS < WORKGROUP ? thread / VECTORS : 0;
    for (uint at = VECTORS < WORKGROUP ? thread % VECTORS : thread; at < VECTORS; at += WORKGROUP) {
        uint head = 4 * at / (8 * PIECES);
        vec4 sum = vec4(0), loads[LOADS];
        for (uint first = share; first < count && share < SHARES; first += LOADS * SHARES) {
            [[unroll]] for (uint i = 0; i < LOADS; ++i) {
                uint part = first + i * SHARES;
                loads[i] = part < count
                               ? SharedVectors(push.partial).at[(entry + part) * (ENTRY / 4) + at]
                               : vec4(0);
            }
            [[unroll]] for (uint i = 0; i < LOADS; ++i) {
                uint part = first + i * SHARES;
                float factor = part < count ? factors[head * PARTS + part] : 0;
                sum = fma(vec4(factor), loads[i], sum);
            }
        }
        [[unroll]] for (uint i = 0; i < 4 && share < SHARES; ++i)
            pool[share * OUTPUTS + 4 * at + i] = sum[i];
    }
    barrier();
    [[unroll]] for (uint i = 0; i < OWN; ++i) {
        uint at = min(thread + i * WORKGROUP, OUTPUTS - 1);
        outputs[i] = 0;
        for (uint other = 0; other < SHARES; ++other)
            outputs[i] += pool[other * OUTPUTS + at];
    }
}

void store(uint first_head, float outputs[OWN]) {
    [[unroll]] for (uint i = 0; i < OWN; ++i) {
        uint at = thread + i * WORKGROUP, head = at / (8 * PIECES);
        uint d = at % PIECES * 8 + at / PIECES % 8;
        if (head < num_heads_here && d < HEAD_DIM)
            Floats(push.result).at[(first_head + head) * HEAD_DIM + d] =
                outputs[i] / all_total[head];
    }
}

void main() {
    uint row = gl_WorkGroupID.x;
    thread = gl_SubgroupID * SUBGROUP + gl_SubgroupInvocationID;
    piece = thread % PIECES;
    line = thread / PIECES;
    uint group = push.num_heads / push.num_kv_heads, blocks = (group + HEADS - 1) / HEADS;
    uint kv_head = gl_WorkGroupID.y / blocks;
    uint first_head = kv_head * group + gl_WorkGroupID.y % blocks * HEADS;
    num_heads_here = min(HEADS, (kv_head + 1) * group - first_head);
    gptoss_device_row entry = Rows(push.rows).at[row];
    is_f32 = HAS_F32 && entry.is_f32 != 0;
    uint end = uint(entry.position) + 1;
    uint begin = push.window > 0 && end > push.window ? end - push.window : 0;
    // Whole tiles, as few as make at most PARTS parts.
    uint tiles = (end - begin + TILE - 1) / TILE;
    uint part_tiles = SPLIT ? (tiles + PARTS - 1) / PARTS : tiles, part = gl_WorkGroupID.z;
    uint count = (tiles + part_tiles - 1) / part_tiles;
    if (part >= count)
        return;
    begin += part * part_tiles * TILE;
    end = min(end, begin + part_tiles * TILE);
    float outputs[OWN];
    uint row_head = row * push.num_heads + first_head; // a line of queries and results
    attend(entry, kv_head, row_head, begin, end, outputs);
    if (count == 1) {
        join_sink(first_head, outputs);
    } else {
        uint lines = row * push.num_kv_heads * blocks + gl_WorkGroupID.y;
        leave(lines * push.num_parts + part, outputs);
        if (!is_last_workgroup(push.counters, lines, count))
            return;
        join_parts(lines * push.num_parts, count, first_head, outputs);
    }
    store(row_head, outputs);
    if (thread < num_heads_here && !is_absent(push.sink_mass))
        Floats(push.sink_mass).at[row_head + thread] =
            exp(Floats(push.sinks).at[first_head + thread] - all_maximum[thread]) /
            all_total[thread];
}
