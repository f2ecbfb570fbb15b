// normed = rms_norm(x); logits = weight normed + bias; the largest, ties by lowest expert; the
// softmax over them. The last workgroup of a row to finish chooses. Grid: rows, experts.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#include "common.glsl"
#include "weights.glsl"
layout(constant_id = 3) const uint EXPERTS = 32;

layout(push_constant) uniform Push { gptoss_route_push push; };

shared float logits[EXPERTS], weights[EXPERTS];
shared uint keys[EXPERTS];

// Floats in order as integers. NaN ranks above all numbers, so that it reaches the logits, where it
// is reported. 0: none.
uint rank_key(float value) {
    uint bits = floatBitsToUint(value);
    return isnan(value) ? 0xFFFFFFFFu : value == 0 ? 0x80000000u : (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// By the first subgroup: the largest of its lanes' largest, again and again.
void choose(uint row) {
    float first = 0, sum = 0;
    for (uint rank = 0; rank < push.num_chosen; ++rank) {
        uint key = 0, index = EXPERTS;
        for (uint expert = gl_SubgroupInvocationID; expert < EXPERTS; expert += gl_SubgroupSize) {
            if (keys[expert] > key) {
                key = keys[expert];
                index = expert;
            }
        }
        uint most = subgroupMax(key);
        index = subgroupMin(key == most ? index : EXPERTS);
        float value = logits[index];
        first = rank == 0 ? value : first;
        float weight = exp(value - first);
        sum += weight;
        if (index % gl_SubgroupSize == gl_SubgroupInvocationID) {
            keys[index] = 0; // which only this lane looks at
            Words(push.experts).at[row * push.num_chosen + rank] = index;
            weights[rank] = weight;
        }
    }
    subgroupMemoryBarrierShared();
    subgroupBarrier();
    for (uint rank = gl_SubgroupInvocationID; rank < push.num_chosen; rank += gl_SubgroupSize)
        Floats(push.weights).at[row * push.num_chosen + rank] = weights[rank] / sum;
}

void main() {
    uint row = gl_WorkGroupID.x, expert = gl_WorkGroupID.y, id = gl_LocalInvocationID.x;
    // Products with x * gain, so that nothing waits for the norm, whose scale comes in the end.
    float sum = 0, squares = 0;
    for (uint piece = id; piece < PIECES; piece += WORKGROUP) {
        Piece weights = load_weight(push.weight, push.scales, expert, piece);
        float product = 0;
        [[unroll]] for (uint s = 0; s < STEPS_OF_PIECE; ++s) {
            float v[16], gain[16];
            load_step(push.x, row, piece, s, v);
            load_step(push.gain, 0, piece, s, gain);
            [[unroll]] for (uint i = 0; i < STEP; ++i) {
                squares = fma(v[i], v[i], squares);
                v[i] *= gain[i];
            }
            product = dot_step(weights.codes, s, v, product);
        }
        sum = fma(weights.scale, product, sum);
    }
    sum = workgroup_sum(sum);
    float scale = 1 / sqrt(workgroup_sum(squares) / COLUMNS + push.epsilon);
    if (id == 0) {
        float bias = is_absent(push.bias) ? 0 : Floats(push.bias).at[expert];
        Shared(push.logits).at[row * EXPERTS + expert] = fma(sum, scale, bias);
    }
    uint first = gl_WorkGroupID.y * WORKGROUP + id;
    for (uint i = first; i < COLUMNS; i += gl_NumWorkGroups.y * WORKGROUP)
        Floats(push.normed).at[row * COLUMNS + i] =
            Floats(push.x).at[row * COLUMNS + i] * scale * Floats(push.gain).at[i];
    if (!is_last_workgroup(push.counters, row, gl_NumWorkGroups.y))
        return;
    for (uint i = id; i < EXPERTS; i += WORKGROUP) {
        logits[i] = Shared(push.logits).at[row * EXPERTS + i];
        keys[i] = rank_key(logits[i]);
    }
    barrier();
    if (gl_SubgroupID == 0)
        choose(row);
}
