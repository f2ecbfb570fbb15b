// normed = rms_norm(x); logits = weight normed + bias; the largest, ties by lowest expert; the
// softmax over them. A workgroup a row.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"
layout(constant_id = 3) const uint EXPERTS = 32;

layout(push_constant) uniform Push { gptoss_route_push push; };

shared float logits[EXPERTS];

void choose(uint row) {
    float first = 0, sum = 0;
    for (uint rank = 0; rank < push.num_chosen; ++rank) {
        uint index = 0;
        float value = 0;
        bool found = false;
        for (uint expert = 0; expert < EXPERTS; ++expert) {
            float logit = logits[expert];
            bool taken = false;
            for (uint i = 0; i < rank; ++i)
                taken = taken || Words(push.experts).at[row * push.num_chosen + i] == expert;
            // NaN ranks above all numbers, so that it reaches the logits, where it is reported.
            if (!taken && (!found || logit > value || (isnan(logit) && !isnan(value)))) {
                found = true;
                index = expert;
                value = logit;
            }
        }
        first = rank == 0 ? value : first;
        float weight = exp(value - first);
        sum += weight;
        Words(push.experts).at[row * push.num_chosen + rank] = index;
        Floats(push.weights).at[row * push.num_chosen + rank] = weight;
    }
    for (uint rank = 0; rank < push.num_chosen; ++rank)
        Floats(push.weights).at[row * push.num_chosen + rank] /= sum;
}

void main() {
    uint row = gl_WorkGroupID.x, id = gl_LocalInvocationID.x;
    float squares = 0;
    for (uint i = id; i < COLUMNS; i += WORKGROUP) {
        float value = Floats(push.x).at[row * COLUMNS + i];
        squares = fma(value, value, squares);
    }
    float scale = 1 / sqrt(workgroup_sum(squares) / COLUMNS + push.epsilon);
    for (uint i = id; i < COLUMNS; i += WORKGROUP)
        Floats(push.normed).at[row * COLUMNS + i] =
            Floats(push.x).at[row * COLUMNS + i] * scale * Floats(push.gain).at[i];
    memoryBarrierBuffer();
    barrier();
    for (uint expert = gl_SubgroupID; expert < EXPERTS; expert += gl_NumSubgroups) {
        float sum = 0;
        for (uint piece = gl_SubgroupInvocationID; piece < PIECES; piece += gl_SubgroupSize) {
            float v[32], w[32];
            load_piece(push.normed, row, piece, v);
            decode_piece(push.weight, push.scales, expert, piece, w);
            [[unroll]] for (uint j = 0; j < PIECE; ++j)
                sum = fma(w[j], v[j], sum);
        }
        sum = subgroupAdd(sum);
        if (subgroupElect()) {
            sum += is_absent(push.bias) ? 0 : Floats(push.bias).at[expert];
            logits[expert] = sum;
            Floats(push.logits).at[row * EXPERTS + expert] = sum;
        }
    }
    barrier();
    if (id == 0)
        choose(row);
}
