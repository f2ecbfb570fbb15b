// Attention of many rows of one sequence on cooperative matrices. A workgroup has the query heads of
// a head of keys for some rows, 64 lines in all; a subgroup, of four, 16 of them. Keys and values are
// float16, as the cache holds them; queries are rounded to it, each line times a power of two, and
// so are the weights. Maxima, sums and outputs are float32. Grid: blocks of rows, heads of keys.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_KHR_shader_subgroup_vote : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#include "common.glsl"
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint GROUP = 8; // query heads of a head of keys

layout(push_constant) uniform Push { gptoss_attention_push push; };

const uint LINES = 64;
const uint KEYS = 32;
const uint STRIDE = HEAD_DIM / 8 + 1; // in vectors of 8 halves
const uint PARTS = HEAD_DIM / 16;
const uint WEIGHT_STRIDE = KEYS / 8 + 1;
const uint ROWS = LINES / GROUP;
const float NOTHING = -3.0e38;

shared uvec4 tile[2 * KEYS * STRIDE]; // keys, then values; at first the queries
shared float scores[4 * 16 * KEYS];   // of each subgroup
shared uvec4 weights[4 * 16 * WEIGHT_STRIDE];
shared float factors[4 * 256];
shared float line_scale[LINES]; // of products with a line of queries

uint first_row, kv_head;

bool is_line(uint line) {
    return line < ROWS * GROUP && first_row + line / GROUP < push.num_rows;
}

uint query_at(uint line) {
    uint row = first_row + line / GROUP, head = kv_head * GROUP + line % GROUP;
    return (row * push.num_heads + head) * HEAD_DIM;
}

void load_queries() {
    uint id = gl_LocalInvocationID.x;
    if (id < LINES) {
        float most = 0;
        for (uint d = 0; is_line(id) && d < HEAD_DIM; ++d)
            most = max(most, abs(Floats(push.queries).at[query_at(id) + d]));
        uint exponent = clamp(floatBitsToUint(most) >> 23, 15u, 240u);
        line_scale[id] = uintBitsToFloat((exponent - 13u) << 23);
    }
    barrier();
    for (uint i = id; i < LINES * HEAD_DIM / 8; i += WORKGROUP) {
        uint line = i / (HEAD_DIM / 8), part = i % (HEAD_DIM / 8);
        uvec4 halves = uvec4(0);
        if (is_line(line)) {
            float factor = 1 / line_scale[line];
            [[unroll]] for (uint j = 0; j < 4; ++j) {
                uint at = query_at(line) + 8 * part + 2 * j;
                halves[j] = packFloat2x16(f16vec2(Floats(push.queries).at[at] * factor,
                                                  Floats(push.queries).at[at + 1] * factor));
            }
        }
        tile[line * STRIDE + part] = halves;
    }
    barrier();
    if (id < LINES)
        line_scale[id] *= push.scale;
}

void load_keys(gptoss_device_row entry, uint first, uint end) {
    for (uint i = gl_LocalInvocationID.x; i < 2 * KEYS * HEAD_DIM / 8; i += WORKGROUP) {
        uint line = i / (HEAD_DIM / 8), part = i % (HEAD_DIM / 8);
        uint plane = line / KEYS, key = first + line % KEYS;
        uint head = (push.layer * 2 + plane) * push.num_kv_heads + kv_head;
        uvec2 base = advance(entry.cache, head, entry.capacity * HEAD_DIM * 2);
        tile[line * STRIDE + part] =
            key < end ? Pieces(base).at[key * (HEAD_DIM / 8) + part] : uvec4(0);
    }
}

void main() {
    uint lane = gl_SubgroupInvocationID, group = gl_SubgroupID;
    first_row = gl_WorkGroupID.x * ROWS;
    kv_head = gl_WorkGroupID.y;
    gptoss_device_row entry = Rows(push.rows).at[first_row];
    uint num_rows = min(ROWS, push.num_rows - first_row);
    uint position = uint(entry.position), end = position + num_rows;
    uint first = push.window > 0 && position + 1 > push.window ? position + 1 - push.window : 0;

    load_queries();
    coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA> queries[PARTS];
    [[unroll]] for (uint i = 0; i < PARTS; ++i)
        coopMatLoad(queries[i], tile, group * 16 * STRIDE + 2 * i, STRIDE,
                    gl_CooperativeMatrixLayoutRowMajor);
    coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator> values[PARTS];
    [[unroll]] for (uint i = 0; i < PARTS; ++i)
        values[i] = coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>(0.0);

    // Two lanes have a line, and 16 keys of a tile each.
    uint line = group * 16 + lane / 2, head = kv_head * GROUP + line % GROUP;
    uint at_position = position + line / GROUP; // of the line's row
    uint from = push.window > 0 && at_position + 1 > push.window ? at_position + 1 - push.window : 0;
    bool has_sink = !is_absent(push.sinks) && is_line(line);
    float maximum = has_sink ? Floats(push.sinks).at[head] : NOTHING;
    float total = has_sink ? 1 : 0;

    for (uint start = first / KEYS * KEYS; start < end; start += KEYS) {
        barrier();
        load_keys(entry, start, end);
        barrier();
        coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator> products[2];
        [[unroll]] for (uint j = 0; j < 2; ++j) {
            products[j] = coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>(0.0);
            [[unroll]] for (uint i = 0; i < PARTS; ++i) {
                coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB> keys;
                coopMatLoad(keys, tile, 16 * j * STRIDE + 2 * i, STRIDE,
                            gl_CooperativeMatrixLayoutColumnMajor);
                products[j] = coopMatMulAdd(queries[i], keys, products[j]);
            }
            coopMatStore(products[j], scores, group * 16 * KEYS + 16 * j, KEYS,
                         gl_CooperativeMatrixLayoutRowMajor);
        }
        subgroupMemoryBarrierShared();
        subgroupBarrier();

        float score[16], most = NOTHING;
        [[unroll]] for (uint k = 0; k < 16; ++k) {
            uint key = start + lane % 2 * 16 + k;
            float value = scores[line * KEYS + lane % 2 * 16 + k] * line_scale[line];
            score[k] = key >= from && key <= at_position ? value : NOTHING;
            most = max(most, score[k]);
        }
        most = max(maximum, max(most, subgroupShuffleXor(most, 1)));
        float rescale = exp(maximum - most), sum = 0;
        uvec4 halves[2];
        [[unroll]] for (uint k = 0; k < 8; ++k) {
            f16vec2 pair = f16vec2(score[2 * k] == NOTHING ? 0 : exp(score[2 * k] - most),
                                   score[2 * k + 1] == NOTHING ? 0 : exp(score[2 * k + 1] - most));
            halves[k / 4][k % 4] = packFloat2x16(pair);
            sum += float(pair.x) + float(pair.y);
        }
        total = total * rescale + sum + subgroupShuffleXor(sum, 1);
        maximum = most;
        weights[line * WEIGHT_STRIDE + lane % 2 * 2] = halves[0];
        weights[line * WEIGHT_STRIDE + lane % 2 * 2 + 1] = halves[1];
        bool rescales = subgroupAny(rescale != 1);
        if (rescales) {
            [[unroll]] for (uint k = 0; k < 8; ++k)
                factors[group * 256 + lane / 2 * 16 + lane % 2 * 8 + k] = rescale;
        }
        subgroupMemoryBarrierShared();
        subgroupBarrier();
        if (rescales) {
            coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator> factor;
            coopMatLoad(factor, factors, group * 256, 16, gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint i = 0; i < PARTS; ++i)
                for (uint k = 0; k < values[i].length(); ++k)
                    values[i][k] *= factor[k];
        }
        [[unroll]] for (uint j = 0; j < 2; ++j) {
            coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA> weight;
            coopMatLoad(weight, weights, group * 16 * WEIGHT_STRIDE + 2 * j, WEIGHT_STRIDE,
                        gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint i = 0; i < PARTS; ++i) {
                coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB> value;
                coopMatLoad(value, tile, (KEYS + 16 * j) * STRIDE + 2 * i, STRIDE,
                            gl_CooperativeMatrixLayoutRowMajor);
                values[i] = coopMatMulAdd(weight, value, values[i]);
            }
        }
    }

    [[unroll]] for (uint i = 0; i < PARTS; ++i) {
        subgroupBarrier();
        coopMatStore(values[i], scores, group * 16 * KEYS, KEYS, gl_CooperativeMatrixLayoutRowMajor);
        subgroupMemoryBarrierShared();
        subgroupBarrier();
        [[unroll]] for (uint k = 0; k < 8; ++k) {
            uint d = lane % 2 * 8 + k;
            if (is_line(line))
                Floats(push.result).at[query_at(line) + 16 * i + d] =
                    scores[line * KEYS + d] / total;
        }
    }
    if (lane % 2 == 0 && is_line(line) && !is_absent(push.sink_mass))
        Floats(push.sink_mass).at[(first_row + line / GROUP) * push.num_heads + head] =
            exp(Floats(push.sinks).at[head] - maximum) / total;
}
