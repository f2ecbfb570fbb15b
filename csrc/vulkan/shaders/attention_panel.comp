// Attention of many rows of one sequence on cooperative matrices. A workgroup has the query heads of
// a head of keys for some rows, line by line; a subgroup LINE_PARTS times 16 of them. Keys and values
// are float16, as the cache holds them; queries are rounded to it, each line times a power of two, and
// so are the weights. Scores, sums and outputs are float32, in matrices of one type, whose layout is
// one, whatever it is: what is to meet a line's elements comes as a matrix. Grid: blocks of rows, heads
// of keys.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_KHR_shader_subgroup_vote : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#include "common.glsl"
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint GROUP = 8;      // query heads of a head of keys
layout(constant_id = 3) const uint LINE_PARTS = 1; // matrices of lines of a subgroup
layout(constant_id = 4) const uint KEYS = 64;      // of a tile
layout(constant_id = 5) const uint CHUNK = 2;      // matrices of keys whose scores are held

layout(push_constant) uniform Push { gptoss_attention_push push; };

#define Queries coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define Keys coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define Halves coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>
#define Sums coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>

const uint SUBGROUPS = WORKGROUP / 32;
const uint LINES = 16 * LINE_PARTS * SUBGROUPS;
const uint ROWS = LINES / GROUP;
const uint STRIDE = HEAD_DIM / 8 + 1; // in vectors of 8 halves
const uint PARTS = HEAD_DIM / 16;
const uint WEIGHT_STRIDE = KEYS / 8 + 1;
const uint TILE_LINES = LINES > 2 * KEYS ? LINES : 2 * KEYS;
const uint TILE_VECTORS = KEYS * HEAD_DIM / 8;
const uint LOADS = (TILE_VECTORS + WORKGROUP - 1) / WORKGROUP;
const uint SCORES = LINE_PARTS * CHUNK;
const uint VALUES = LINE_PARTS * PARTS;
const float NOTHING = -3.0e38;
const float LOG2_E = 1.44269504088896;
const float MOST = 8; // log2 of what a weight may be before the maximum is raised

shared uvec4 tile[TILE_LINES * STRIDE]; // keys, then values; at first the queries
shared uvec4 weights[LINES * WEIGHT_STRIDE];
shared float scratch[SUBGROUPS * 256]; // a matrix of each subgroup

uint first_row, kv_head, first_line; // of the subgroup
uvec4 held[LOADS];                   // of the next tile, on their way

Queries queries[VALUES];
Sums values[VALUES], totals[LINE_PARTS];
// In units of log2: scores of products, less what is the largest so far or near it.
Sums scores[SCORES], scales[LINE_PARTS], maxima[LINE_PARTS];
// Of a line, by its two lanes.
float maximum[LINE_PARTS];
bool is_fresh[LINE_PARTS]; // whether there is neither a key yet nor a sink

void sync() {
    subgroupMemoryBarrierShared();
    subgroupBarrier();
}

bool is_line(uint line) {
    return line < ROWS * GROUP && first_row + line / GROUP < push.num_rows;
}

// A lane's line, of which two lanes have a half each.
uint line_of(uint part) {
    return first_line + 16 * part + gl_SubgroupInvocationID / 2;
}

uint head_of(uint line) {
    return kv_head * GROUP + line % GROUP;
}

uint query_at(uint line) {
    return ((first_row + line / GROUP) * push.num_heads + head_of(line)) * HEAD_DIM;
}

// Rows of v + column * step, each the lanes' of that line.
Sums spread(float v, float step) {
    uint half_line = gl_SubgroupInvocationID % 2 * 8;
    uint to = gl_SubgroupID * 256 + gl_SubgroupInvocationID / 2 * 16 + half_line;
    sync();
    [[unroll]] for (uint k = 0; k < 8; ++k)
        scratch[to + k] = v + step * float(half_line + k);
    sync();
    Sums result;
    coopMatLoad(result, scratch, gl_SubgroupID * 256, 16, gl_CooperativeMatrixLayoutRowMajor);
    return result;
}

// The lane's half of its line.
void gather(Sums matrix, out float v[8]) {
    uint from = gl_SubgroupID * 256 + gl_SubgroupInvocationID / 2 * 16;
    sync();
    coopMatStore(matrix, scratch, gl_SubgroupID * 256, 16, gl_CooperativeMatrixLayoutRowMajor);
    sync();
    [[unroll]] for (uint k = 0; k < 8; ++k)
        v[k] = scratch[from + gl_SubgroupInvocationID % 2 * 8 + k];
}

void load_queries() {
    const uint VECTORS = HEAD_DIM / 16; // of 8, of a lane
    [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part) {
        uint line = line_of(part), first = gl_SubgroupInvocationID % 2 * VECTORS;
        vec4 v[2 * VECTORS];
        float most = 0;
        [[unroll]] for (uint i = 0; i < 2 * VECTORS; ++i) {
            v[i] = is_line(line) ? Vectors(push.queries).at[query_at(line) / 4 + 2 * first + i]
                                 : vec4(0);
            vec4 size = abs(v[i]);
            most = max(most, max(max(size.x, size.y), max(size.z, size.w)));
        }
        most = max(most, subgroupShuffleXor(most, 1));
        uint exponent = clamp(floatBitsToUint(most) >> 23, 15u, 240u);
        float scale = uintBitsToFloat((exponent - 13u) << 23), factor = 1 / scale;
        [[unroll]] for (uint i = 0; i < VECTORS; ++i) {
            f16vec4 a = f16vec4(v[2 * i] * factor), b = f16vec4(v[2 * i + 1] * factor);
            tile[line * STRIDE + first + i] = uvec4(packFloat2x16(a.xy), packFloat2x16(a.zw),
                                                    packFloat2x16(b.xy), packFloat2x16(b.zw));
        }
        scales[part] = spread(scale * push.scale * LOG2_E, 0);
        [[unroll]] for (uint i = 0; i < PARTS; ++i) // after a sync() of spread()
            coopMatLoad(queries[part * PARTS + i], tile,
                        (first_line + 16 * part) * STRIDE + 2 * i, STRIDE,
                        gl_CooperativeMatrixLayoutRowMajor);
    }
}

// A sink counts like a key, whose value is nothing.
void begin_lines() {
    [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part) {
        uint line = line_of(part);
        bool has_sink = !is_absent(push.sinks) && is_line(line);
        maximum[part] = has_sink ? Floats(push.sinks).at[head_of(line)] * LOG2_E : 0;
        is_fresh[part] = !has_sink && is_line(line);
        maxima[part] = spread(maximum[part], 0);
        totals[part] = spread(has_sink ? 1 : 0, 0);
        [[unroll]] for (uint i = 0; i < PARTS; ++i)
            values[part * PARTS + i] = Sums(0.0);
    }
}

// Keys or values of a tile, zeros beyond `end`.
void load_tile(uvec2 base, uint first, uint end) {
    [[unroll]] for (uint i = 0; i < LOADS; ++i) {
        uint at = gl_LocalInvocationID.x + i * WORKGROUP, key = first + at / (HEAD_DIM / 8);
        held[i] = at < TILE_VECTORS && key < end
                      ? Pieces(base).at[first * (HEAD_DIM / 8) + at]
                      : uvec4(0);
    }
}

void store_tile(uint first_line_of_tile) {
    [[unroll]] for (uint i = 0; i < LOADS; ++i) {
        uint at = gl_LocalInvocationID.x + i * WORKGROUP;
        if (at < TILE_VECTORS)
            tile[(first_line_of_tile + at / (HEAD_DIM / 8)) * STRIDE + at % (HEAD_DIM / 8)] =
                held[i];
    }
}

void score(uint first_matrix) {
    [[unroll]] for (uint j = 0; j < CHUNK; ++j) {
        [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part)
            scores[part * CHUNK + j] = Sums(0.0);
        [[unroll]] for (uint i = 0; i < PARTS; ++i) {
            Keys keys;
            coopMatLoad(keys, tile, 16 * (first_matrix + j) * STRIDE + 2 * i, STRIDE,
                        gl_CooperativeMatrixLayoutColumnMajor);
            [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part)
                scores[part * CHUNK + j] =
                    coopMatMulAdd(queries[part * PARTS + i], keys, scores[part * CHUNK + j]);
        }
        [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part)
            [[unroll]] for (uint k = 0; k < scales[part].length(); ++k)
                scores[part * CHUNK + j][k] =
                    fma(scores[part * CHUNK + j][k], scales[part][k], -maxima[part][k]);
    }
}

// Keys that their line does not see. first: the first key, counted from the first row's position.
void mask(int first) {
    float window = push.window > 0 ? float(push.window) : -NOTHING;
    [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part) {
        Sums distance = spread(float(first - int(line_of(part) / GROUP)), 1); // key - own position
        [[unroll]] for (uint j = 0; j < CHUNK; ++j) {
            [[unroll]] for (uint k = 0; k < distance.length(); ++k) {
                float at = distance[k] + float(16 * j);
                if (at > 0 || at <= -window)
                    scores[part * CHUNK + j][k] = NOTHING;
            }
        }
    }
}

// Makes the largest scores zero, if they are above that or the first. What was added with another
// maximum goes along, and so do the weights of matrices 0 .. before - 1 of the tile.
void raise(uint part, uint before) {
    Sums most = scores[part * CHUNK];
    [[unroll]] for (uint j = 1; j < CHUNK; ++j)
        [[unroll]] for (uint k = 0; k < most.length(); ++k)
            most[k] = max(most[k], scores[part * CHUNK + j][k]);
    float v[8], largest = NOTHING;
    gather(most, v);
    [[unroll]] for (uint k = 0; k < 8; ++k)
        largest = max(largest, v[k]);
    largest = max(largest, subgroupShuffleXor(largest, 1));
    bool is_first = is_fresh[part] && largest > NOTHING / 2;
    float up = is_first ? largest : max(largest, 0);
    is_fresh[part] = is_fresh[part] && !is_first;
    maximum[part] += up;
    Sums ups = spread(up, 0), factor = spread(is_first ? 1 : exp2(-up), 0);
    [[unroll]] for (uint k = 0; k < ups.length(); ++k) {
        maxima[part][k] += ups[k];
        totals[part][k] *= factor[k];
        [[unroll]] for (uint j = 0; j < CHUNK; ++j)
            scores[part * CHUNK + j][k] -= ups[k];
        [[unroll]] for (uint i = 0; i < PARTS; ++i)
            values[part * PARTS + i][k] *= factor[k];
    }
    for (uint j = 0; j < before; ++j) {
        uint at = (first_line + 16 * part) * WEIGHT_STRIDE + 2 * j;
        Halves weight;
        coopMatLoad(weight, weights, at, WEIGHT_STRIDE, gl_CooperativeMatrixLayoutRowMajor);
        Sums product = Sums(weight);
        [[unroll]] for (uint k = 0; k < product.length(); ++k)
            product[k] *= factor[k];
        coopMatStore(Halves(product), weights, at, WEIGHT_STRIDE,
                     gl_CooperativeMatrixLayoutRowMajor);
    }
}

// Scores become weights, where the multiplication by values reads them.
void weigh(uint first_matrix) {
    float most = 0;
    bool raises = false;
    [[unroll]] for (uint i = 0; i < SCORES; ++i)
        [[unroll]] for (uint k = 0; k < scores[i].length(); ++k)
            most = max(most, scores[i][k]);
    [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part)
        raises = raises || is_fresh[part];
    if (subgroupAny(raises || most > MOST))
        [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part)
            raise(part, first_matrix);
    [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part) {
        [[unroll]] for (uint j = 0; j < CHUNK; ++j) {
            [[unroll]] for (uint k = 0; k < scores[part * CHUNK + j].length(); ++k)
                scores[part * CHUNK + j][k] = exp2(scores[part * CHUNK + j][k]);
            coopMatStore(Halves(scores[part * CHUNK + j]), weights,
                         (first_line + 16 * part) * WEIGHT_STRIDE + 2 * (first_matrix + j),
                         WEIGHT_STRIDE, gl_CooperativeMatrixLayoutRowMajor);
        }
    }
}

// Values and, as those of ones, the weights themselves.
void add_values() {
    Keys ones = Keys(float16_t(1));
    [[unroll]] for (uint j = 0; j < KEYS / 16; ++j) {
        Queries weight[LINE_PARTS];
        [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part) {
            coopMatLoad(weight[part], weights, (first_line + 16 * part) * WEIGHT_STRIDE + 2 * j,
                        WEIGHT_STRIDE, gl_CooperativeMatrixLayoutRowMajor);
            totals[part] = coopMatMulAdd(weight[part], ones, totals[part]);
        }
        [[unroll]] for (uint i = 0; i < PARTS; ++i) {
            Keys value;
            coopMatLoad(value, tile, (KEYS + 16 * j) * STRIDE + 2 * i, STRIDE,
                        gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part)
                values[part * PARTS + i] =
                    coopMatMulAdd(weight[part], value, values[part * PARTS + i]);
        }
    }
}

void store() {
    [[unroll]] for (uint part = 0; part < LINE_PARTS; ++part) {
        uint line = line_of(part), half_line = gl_SubgroupInvocationID % 2 * 8;
        float v[8];
        [[unroll]] for (uint i = 0; i < PARTS; ++i) {
            [[unroll]] for (uint k = 0; k < totals[part].length(); ++k)
                values[part * PARTS + i][k] /= totals[part][k];
            gather(values[part * PARTS + i], v);
            uint to = query_at(line) + 16 * i + half_line;
            if (is_line(line)) {
                Vectors(push.result).at[to / 4] = vec4(v[0], v[1], v[2], v[3]);
                Vectors(push.result).at[to / 4 + 1] = vec4(v[4], v[5], v[6], v[7]);
            }
        }
        if (is_absent(push.sink_mass))
            continue;
        gather(totals[part], v);
        if (half_line == 0 && is_line(line))
            Floats(push.sink_mass).at[query_at(line) / HEAD_DIM] =
                exp2(Floats(push.sinks).at[head_of(line)] * LOG2_E - maximum[part]) / v[0];
    }
}

void main() {
    // Those with the most keys begin first.
    first_row = (gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x) * ROWS;
    kv_head = gl_WorkGroupID.y;
    first_line = 16 * LINE_PARTS * gl_SubgroupID;
    gptoss_device_row entry = Rows(push.rows).at[first_row];
    uint num_rows = min(ROWS, push.num_rows - first_row);
    uint position = uint(entry.position), end = position + num_rows;
    uint first = push.window > 0 && position + 1 > push.window ? position + 1 - push.window : 0;
    uint start = first / KEYS * KEYS, head = push.layer * 2 * push.num_kv_heads + kv_head;
    uint head_bytes = entry.capacity * HEAD_DIM * 2;
    uvec2 key_base = advance(entry.cache, head, head_bytes);
    uvec2 value_base = advance(entry.cache, head + push.num_kv_heads, head_bytes);

    load_tile(key_base, start, end);
    load_queries();
    begin_lines();
    barrier(); // queries leave the tile
    store_tile(0);
    load_tile(value_base, start, end);
    barrier();
    for (; start < end; start += KEYS) {
        // Whether any line may not see some of the keys.
        bool masks = start + KEYS > position + 1 || push.window > 0 && start + push.window < end;
        for (uint i = 0; i < KEYS / 16; i += CHUNK) {
            score(i);
            if (masks)
                mask(int(start + 16 * i) - int(position));
            weigh(i);
        }
        // Both loads are on their way while matrices are multiplied: those of values during scores.
        store_tile(KEYS);
        load_tile(key_base, start + KEYS, end);
        barrier();
        add_values();
        store_tile(0);
        load_tile(value_base, start + KEYS, end);
        barrier();
    }
    store();
}
