// Attention of many rows of one sequence, as attention_panel.comp, on cooperative matrices that are
// filled in registers: scores become weights where they are, and these are multiplied by values at once.
// A workgroup has the query heads of a head of keys for some rows, line by line; a subgroup LINE_PARTS
// times 16 of them. Keys and values are float16, as the cache holds them; queries, in units of log2 of
// their scores, and weights are rounded to it. Scores, sums and outputs are float32. As FlashAttention-2
// (arXiv:2307.08691), but that the maximum of a line is raised only when weights would leave the range
// of float16. Grid: blocks of rows, heads of keys.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_vote : require
#include "common.glsl"
#include "fragments.glsl"
layout(constant_id = 1) const uint HEAD_DIM = 64;  // whole blocks of 32
layout(constant_id = 2) const uint GROUP = 8;      // query heads of a head of keys
layout(constant_id = 3) const uint LINE_PARTS = 1; // matrices of lines of a subgroup
layout(constant_id = 4) const uint KEYS = 64;      // of a tile

layout(push_constant) uniform Push { gptoss_attention_push push; };

const uint SUBGROUPS = WORKGROUP / 32;
const uint LINES = 16 * LINE_PARTS * SUBGROUPS;
const uint ROWS = LINES / GROUP;
const uint STEP = 32, SCORES = STEP / 8; // keys whose scores are in registers at a time
const uint BLOCKS = HEAD_DIM / 32;
const uint WIDE = HEAD_DIM / 16;
const uint STRIDE = HEAD_DIM / 8 + 1; // of values, in vectors of 8 halves; one more for the banks
const uint VECTORS = KEYS * HEAD_DIM / 8, LOADS = VECTORS / WORKGROUP;
const float NOTHING = -3.0e38;
const float LOG2_E = 1.44269504088896;
const float MOST = 8; // log2 of what a weight may be before the maximum is raised

// Of two tiles in turn.
shared uvec4 key_tile[2 * VECTORS]; // [block of 32 elements][key][quarter of the block]
shared uvec4 value_tile[2 * KEYS * STRIDE];

uint first_row, kv_head, first_line, lane, g, t; // first_line: of the subgroup
uint position;                                   // of the first row
uvec2 key_base, value_base;
uvec4 held_keys[LOADS], held_values[LOADS];      // of the next tile, on their way

// By invocation: lines g and g + 8 of each part.
MatrixA queries[LINE_PARTS * WIDE];
WideC values[LINE_PARTS * WIDE];
MatrixC totals[LINE_PARTS];
// What is added to scores, in units of log2: minus the largest of a line so far, or near it.
MatrixC floors[LINE_PARTS];
bool is_fresh; // whether a line of the subgroup has neither a key yet nor a sink
MatrixC scores[LINE_PARTS * SCORES]; // of 8 keys each

uint line_of(uint part, uint high) {
    return first_line + 16 * part + 8 * high + g;
}

bool is_line(uint line) {
    return line < ROWS * GROUP && first_row + line / GROUP < push.num_rows;
}

uint head_of(uint line) {
    return kv_head * GROUP + line % GROUP;
}

uint query_at(uint line) {
    return ((first_row + line / GROUP) * push.num_heads + head_of(line)) * HEAD_DIM;
}

// What float16 holds of it; NaN stays.
vec4 limit(vec4 v) {
    return mix(clamp(v, -65504.0, 65504.0), v, isnan(v));
}

// Elements 8 t to 8 t + 7 of each block of 32 of a line, in float16 and in units of log2 of its scores. The
// order of elements within a block is that of the keys in key_tile, which is all that matters.
void load_query(uint line, out uvec4 halves[BLOCKS]) {
    float factor = push.scale * LOG2_E;
    [[unroll]] for (uint b = 0; b < BLOCKS; ++b) {
        uint at = query_at(line) / 4 + b * 8 + 2 * t;
        vec4 low = is_line(line) ? Vectors(push.queries).at[at] : vec4(0);
        vec4 high = is_line(line) ? Vectors(push.queries).at[at + 1] : vec4(0);
        low = limit(low * factor);
        high = limit(high * factor);
        halves[b] = uvec4(pack_halves(low.x, low.y), pack_halves(low.z, low.w),
                          pack_halves(high.x, high.y), pack_halves(high.z, high.w));
    }
}

// Queries, and sinks: a sink counts like a key, whose value is nothing.
void begin_lines() {
    is_fresh = false;
    [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part) {
        // Those of the invocation's neighbor, exchanged: drivers would keep what they can round again
        // in float32, and do so in each step.
        uvec4 low[BLOCKS], high[BLOCKS];
        load_query(line_of(part, 0) ^ 1, low);
        load_query(line_of(part, 1) ^ 1, high);
        [[unroll]] for (uint b = 0; b < BLOCKS; ++b) {
            low[b] = subgroupShuffleXor(low[b], 4);
            high[b] = subgroupShuffleXor(high[b], 4);
            queries[part * WIDE + 2 * b] = matrix_a(low[b].x, low[b].y, high[b].x, high[b].y);
            queries[part * WIDE + 2 * b + 1] = matrix_a(low[b].z, low[b].w, high[b].z, high[b].w);
        }
        totals[part] = floors[part] = MatrixC(0.0);
        [[unroll]] for (uint k = 0; k < 4; ++k) {
            uint line = line_of(part, k / 2);
            bool has_sink = !is_absent(push.sinks) && is_line(line);
            floors[part][k] = has_sink ? -Floats(push.sinks).at[head_of(line)] * LOG2_E : 0;
            totals[part][k] = has_sink ? 1 : 0;
            is_fresh = is_fresh || !has_sink;
        }
        [[unroll]] for (uint i = 0; i < WIDE; ++i)
            values[part * WIDE + i] = WideC(0.0);
    }
    is_fresh = subgroupAny(is_fresh);
}

// Keys and values of a tile, zeros beyond `end`.
void load_tile(uint first, uint end) {
    [[unroll]] for (uint i = 0; i < LOADS; ++i) {
        uint at = gl_LocalInvocationID.x + i * WORKGROUP, key = first + at / (HEAD_DIM / 8);
        uint from = first * (HEAD_DIM / 8) + at;
        held_keys[i] = key < end ? Pieces(key_base).at[from] : uvec4(0);
        held_values[i] = key < end ? Pieces(value_base).at[from] : uvec4(0);
    }
}

void store_tile(uint index) {
    [[unroll]] for (uint i = 0; i < LOADS; ++i) {
        uint at = gl_LocalInvocationID.x + i * WORKGROUP;
        uint key = at / (HEAD_DIM / 8), piece = at % (HEAD_DIM / 8);
        key_tile[index * VECTORS + (piece / 4 * KEYS + key) * 4 + piece % 4] = held_keys[i];
        value_tile[(index * KEYS + key) * STRIDE + piece] = held_values[i];
    }
}

// Scores of some keys of a tile.
void score(uint index, uint first_key) {
    [[unroll]] for (uint j = 0; j < SCORES; ++j) {
        [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part)
            scores[part * SCORES + j] = floors[part];
        [[unroll]] for (uint b = 0; b < BLOCKS; ++b) {
            uvec4 keys = key_tile[index * VECTORS + (b * KEYS + first_key + 8 * j) * 4 + lane];
            MatrixB b0 = matrix_b(keys.x, keys.y), b1 = matrix_b(keys.z, keys.w);
            [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part) {
                uint i = part * SCORES + j;
                scores[i] = coopMatMulAdd(queries[part * WIDE + 2 * b], b0, scores[i]);
                scores[i] = coopMatMulAdd(queries[part * WIDE + 2 * b + 1], b1, scores[i]);
            }
        }
    }
}

// Keys that their line does not see. first: the first key, counted from the first row's position.
void mask(int first) {
    int window = push.window > 0 ? int(push.window) : 0x7FFFFFFF;
    [[unroll]] for (uint i = 0; i < LINE_PARTS * SCORES; ++i) {
        [[unroll]] for (uint e = 0; e < 4; ++e) {
            int key = first + int(8 * (i % SCORES) + 2 * t + e % 2);
            int ahead = key - int(line_of(i / SCORES, e / 2) / GROUP); // of its own position
            if (ahead > 0 || -ahead >= window)
                scores[i][e] = NOTHING;
        }
    }
}

float largest_of(uint part, uint high) {
    float largest = NOTHING;
    [[unroll]] for (uint j = 0; j < SCORES; ++j)
        largest = max(largest, max(scores[part * SCORES + j][2 * high],
                                   scores[part * SCORES + j][2 * high + 1]));
    return largest;
}

// Makes the largest scores zero, if they are above that or the first. What was added with another
// floor goes along.
void raise(uint part) {
    [[unroll]] for (uint high = 0; high < 2; ++high) {
        float largest = largest_of(part, high);
        largest = max(largest, subgroupShuffleXor(largest, 1));
        largest = max(largest, subgroupShuffleXor(largest, 2));
        bool is_first = totals[part][2 * high] == 0, is_any = largest > NOTHING / 2;
        float up = is_first && is_any ? largest : max(largest, 0);
        float factor = is_first ? 1 : exp2(-up);
        is_fresh = is_fresh || is_first && !is_any;
        [[unroll]] for (uint k = 2 * high; k < 2 * high + 2; ++k) {
            floors[part][k] -= up;
            totals[part][k] *= factor;
            [[unroll]] for (uint j = 0; j < SCORES; ++j)
                scores[part * SCORES + j][k] -= up;
        }
        [[unroll]] for (uint i = 0; i < WIDE; ++i)
            [[unroll]] for (uint k = 4 * high; k < 4 * high + 4; ++k)
                values[part * WIDE + i][k] *= factor;
    }
}

bool is_above() {
    float most = 0;
    [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part)
        most = max(most, max(largest_of(part, 0), largest_of(part, 1)));
    return subgroupAny(most > MOST);
}

// Scores become weights.
void weigh() {
    // Once, if at all, but drivers move all that a branch may change to other registers, each time.
    for (bool raises = is_fresh; raises || is_above(); raises = false) {
        is_fresh = false;
        [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part)
            raise(part);
        is_fresh = subgroupAny(is_fresh);
    }
    [[unroll]] for (uint i = 0; i < LINE_PARTS * SCORES; ++i)
        [[unroll]] for (uint k = 0; k < 4; ++k)
            scores[i][k] = exp2(scores[i][k]);
}

// Values and, as those of ones, the weights themselves.
void add_values(uint index, uint first_key) {
    MatrixB ones = MatrixB(float16_t(1));
    [[unroll]] for (uint j = 0; j < SCORES; j += 2) {
        MatrixA weights[LINE_PARTS];
        [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part) {
            uint i = part * SCORES + j;
            weights[part] = matrix_a(pack_halves(scores[i][0], scores[i][1]),
                                     pack_halves(scores[i + 1][0], scores[i + 1][1]),
                                     pack_halves(scores[i][2], scores[i][3]),
                                     pack_halves(scores[i + 1][2], scores[i + 1][3]));
            totals[part] = coopMatMulAdd(weights[part], ones, totals[part]);
        }
        [[unroll]] for (uint i = 0; i < WIDE; ++i) {
            WideB value;
            coopMatLoad(value, value_tile, (index * KEYS + first_key + 8 * j) * STRIDE + 2 * i, STRIDE,
                        gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part)
                values[part * WIDE + i] =
                    coopMatMulAdd(weights[part], value, values[part * WIDE + i]);
        }
    }
}

layout(buffer_reference, std430, buffer_reference_align = 8) buffer Pairs { vec2 at[]; };

void store() {
    [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part) {
        [[unroll]] for (uint high = 0; high < 2; ++high) {
            uint line = line_of(part, high);
            if (!is_line(line))
                continue;
            float factor = 1 / totals[part][2 * high];
            [[unroll]] for (uint i = 0; i < 2 * WIDE; ++i) {
                uint e = 4 * high + i % 2 * 2;
                Pairs(push.result).at[query_at(line) / 2 + 4 * i + t] =
                    vec2(values[part * WIDE + i / 2][e], values[part * WIDE + i / 2][e + 1]) * factor;
            }
            if (!is_absent(push.sink_mass) && t == 0)
                Floats(push.sink_mass).at[query_at(line) / HEAD_DIM] =
                    exp2(Floats(push.sinks).at[head_of(line)] * LOG2_E + floors[part][2 * high]) * factor;
        }
    }
}

// Of a tile, while the next is on its way.
void add_tile(uint index, uint start, uint end, bool masks) {
    barrier();
    load_tile(start + KEYS, end);
    [[unroll]] for (uint key = 0; key < KEYS; key += STEP) {
        score(index, key);
        if (masks)
            mask(int(start + key) - int(position));
        weigh();
        add_values(index, key);
    }
    store_tile(index ^ 1);
}

void main() {
    lane = gl_SubgroupInvocationID;
    g = lane / 4;
    t = lane % 4;
    // Those with the most keys begin first.
    first_row = (gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x) * ROWS;
    kv_head = gl_WorkGroupID.y;
    first_line = 16 * LINE_PARTS * gl_SubgroupID;
    gptoss_device_row entry = Rows(push.rows).at[first_row];
    position = uint(entry.position);
    uint end = position + min(ROWS, push.num_rows - first_row);
    uint first = push.window > 0 && position + 1 > push.window ? position + 1 - push.window : 0;
    uint start = first / KEYS * KEYS, head = push.layer * 2 * push.num_kv_heads + kv_head;
    uint head_bytes = entry.capacity * HEAD_DIM * 2;
    key_base = advance(entry.cache, head, head_bytes);
    value_base = advance(entry.cache, head + push.num_kv_heads, head_bytes);

    load_tile(start, end);
    begin_lines();
    store_tile(0);
    // Tiles whose keys all lines see come first, in a loop of their own.
    uint whole = push.window > 0 ? 0 : (position + 1) / KEYS * KEYS, index = 0;
    for (; start < whole; start += KEYS, index ^= 1)
        add_tile(index, start, end, false);
    for (; start < end; start += KEYS, index ^= 1)
        add_tile(index, start, end, true);
    store();
}
