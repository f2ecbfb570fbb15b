// y = w norm(x) + bias for few tokens: each subgroup multiplies ROWS rows of the weight, straight from
// the packed memory, by one line of x. Grid: rows, lines.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"
#include "activations.glsl"
layout(constant_id = 3) const uint MODE = GPTOSS_PRODUCT_STORE;
layout(constant_id = 4) const uint ROWS = 2;
layout(constant_id = 5) const bool HAS_NORM = false;

layout(push_constant) uniform Push { gptoss_product_push push; };

const bool IS_PAIR = MODE == GPTOSS_PRODUCT_SWIGLU || MODE == GPTOSS_PRODUCT_SILU;
const uint SUMS = IS_PAIR ? 2 * ROWS : ROWS;

void finish(uint line, uint row, uint weight_row, float y, float up) {
    if (!is_absent(push.bias))
        y += Floats(push.bias).at[weight_row];
    uint at = line * push.num_outs + row;
    if (MODE == GPTOSS_PRODUCT_RESIDUAL) {
        Floats(push.extra).at[at] += y;
        if (is_absent(push.result))
            return;
    } else if (IS_PAIR) {
        if (is_absent(push.up))
            up += is_absent(push.bias) ? 0 : Floats(push.bias).at[weight_row + 1];
        else
            up += is_absent(push.up_bias) ? 0 : Floats(push.up_bias).at[weight_row];
        y = MODE == GPTOSS_PRODUCT_SILU ? silu(y) * up : swiglu(y, up, push.limit, push.alpha);
    } else if (MODE == GPTOSS_PRODUCT_GELU) {
        y = gelu(y);
    } else if (MODE == GPTOSS_PRODUCT_ADD) {
        y = fma(push.alpha, y, Floats(push.result).at[at]);
    }
    Floats(push.result).at[at] = y;
}

void main() {
    uint line = gl_WorkGroupID.y;
    uint first = (gl_WorkGroupID.x * gl_NumSubgroups + gl_SubgroupID) * ROWS;
    if (first >= push.num_outs)
        return;
    uint x_line = push.first_token + (is_absent(push.experts) ? line : line / push.num_chosen);
    uint step = IS_PAIR && is_absent(push.up) ? 2 : 1;
    uint matrix = is_absent(push.experts)
                      ? 0
                      : uint(Ints(push.experts).at[line]) * push.num_outs * step;
    float sums[2 * ROWS];
    [[unroll]] for (uint i = 0; i < SUMS; ++i)
        sums[i] = 0;
    float squares = 0;
    for (uint piece = gl_SubgroupInvocationID; piece < PIECES; piece += gl_SubgroupSize) {
        float v[32], w[32];
        load_piece(push.x, x_line, piece, v);
        if (HAS_NORM) {
            load_piece(push.gain, 0, piece, w);
            [[unroll]] for (uint i = 0; i < PIECE; ++i) {
                squares = fma(v[i], v[i], squares);
                v[i] *= w[i];
            }
        }
        [[unroll]] for (uint i = 0; i < SUMS; ++i) {
            uint out_row = min(first + (IS_PAIR ? i / 2 : i), push.num_outs - 1);
            bool is_up = IS_PAIR && (i & 1u) == 1u;
            uint row = matrix + out_row * step + (is_up && step == 2 ? 1 : 0);
            if (is_up && step == 1)
                decode_piece(push.up, push.up_scales, row, piece, w);
            else
                decode_piece(push.weight, push.scales, row, piece, w);
            [[unroll]] for (uint j = 0; j < PIECE; ++j)
                sums[i] = fma(w[j], v[j], sums[i]);
        }
    }
    float scale = 1;
    if (HAS_NORM)
        scale = 1 / sqrt(subgroupAdd(squares) / COLUMNS + push.epsilon);
    [[unroll]] for (uint i = 0; i < SUMS; ++i)
        sums[i] = subgroupAdd(sums[i]) * scale;
    [[unroll]] for (uint i = 0; i < ROWS; ++i)
        if (gl_SubgroupInvocationID == i % gl_SubgroupSize && first + i < push.num_outs)
            finish(line, first + i, matrix + (first + i) * step, sums[IS_PAIR ? 2 * i : i],
                   IS_PAIR ? sums[2 * i + 1] : 0);
}
