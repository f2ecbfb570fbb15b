// What route.comp computes, for many rows: a workgroup has ROWS of them and all experts, so that x comes
// from memory once and a weight serves all rows. Grid: blocks of rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#include "common.glsl"
#include "weights.glsl"
layout(constant_id = 3) const uint EXPERTS = 32;

layout(push_constant) uniform Push { gptoss_route_push push; };

const uint ROWS = GPTOSS_ROUTE_ROWS;
#include "choose.glsl"

const uint EACH = 4; // experts of a subgroup at a time
shared float scales[ROWS];

// Rows beyond the end are the last one again.
uint row_at(uint i) {
    return min(gl_WorkGroupID.x * ROWS + i, push.num_rows - 1);
}

// A subgroup a row.
void find_scales() {
    for (uint i = gl_SubgroupID; i < ROWS; i += gl_NumSubgroups) {
        float sum = 0;
        for (uint column = 4 * gl_SubgroupInvocationID; column < COLUMNS;
             column += 4 * gl_SubgroupSize) {
            vec4 v = four_at(push.x, row_at(i), column, COLUMNS);
            sum += dot(v, v);
        }
        sum = subgroupAdd(sum);
        if (subgroupElect())
            scales[i] = 1 / sqrt(sum / COLUMNS + push.epsilon);
    }
}

// Logits of EACH experts from `first` on. A lane has pieces of the weight for all rows.
void multiply(uint first) {
    float sums[EACH * ROWS];
    [[unroll]] for (uint i = 0; i < EACH * ROWS; ++i)
        sums[i] = 0;
    for (uint piece = gl_SubgroupInvocationID; piece < PIECES; piece += gl_SubgroupSize) {
        float w[EACH][32];
        [[unroll]] for (uint e = 0; e < EACH; ++e)
            decode_piece(push.weight, push.scales, min(first + e, EXPERTS - 1), piece, w[e]);
        [[unroll]] for (uint q = 0; q < PIECE / 4; ++q) {
            uint column = piece * PIECE + 4 * q;
            vec4 gain = four_at(push.gain, 0, column, COLUMNS), v[ROWS];
            [[unroll]] for (uint r = 0; r < ROWS; ++r)
                v[r] = four_at(push.x, row_at(r), column, COLUMNS);
            [[unroll]] for (uint e = 0; e < EACH; ++e) {
                [[unroll]] for (uint i = 0; i < 4; ++i) {
                    float weight = w[e][4 * q + i] * gain[i];
                    [[unroll]] for (uint r = 0; r < ROWS; ++r)
                        sums[e * ROWS + r] = fma(weight, v[r][i], sums[e * ROWS + r]);
                }
            }
        }
    }
    [[unroll]] for (uint e = 0; e < EACH; ++e) {
        float bias = is_absent(push.bias) ? 0 : Floats(push.bias).at[min(first + e, EXPERTS - 1)];
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            float sum = fma(subgroupAdd(sums[e * ROWS + r]), scales[r], bias);
            if (subgroupElect() && first + e < EXPERTS)
                logits[r * EXPERTS + first + e] = sum;
        }
    }
}

void store_normed(uint row, float scale) {
    for (uint column = 4 * gl_SubgroupInvocationID; column < COLUMNS;
         column += 4 * gl_SubgroupSize) {
        vec4 v = four_at(push.x, row, column, COLUMNS) * scale * four_at(push.gain, 0, column, COLUMNS);
        if (COLUMNS % 4 == 0) {
            Vectors(push.normed).at[(row * COLUMNS + column) / 4] = v;
        } else {
            [[unroll]] for (uint i = 0; i < 4; ++i)
                if (column + i < COLUMNS)
                    Floats(push.normed).at[row * COLUMNS + column + i] = v[i];
        }
    }
}

void main() {
    find_scales();
    barrier();
    for (uint first = EACH * gl_SubgroupID; first < EXPERTS; first += EACH * gl_NumSubgroups)
        multiply(first);
    barrier();
    for (uint i = gl_SubgroupID; i < ROWS; i += gl_NumSubgroups) {
        uint row = gl_WorkGroupID.x * ROWS + i;
        if (row >= push.num_rows)
            break;
        store_normed(row, scales[i]);
        for (uint expert = gl_SubgroupInvocationID; expert < EXPERTS; expert += gl_SubgroupSize)
            Floats(push.logits).at[row * EXPERTS + expert] = logits[i * EXPERTS + expert];
        choose(row, i);
    }
}
