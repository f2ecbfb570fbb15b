// y = w norm(x) + bias for few tokens: SPLIT subgroups multiply ROWS rows of the weight, straight from
// the packed memory, by one line of x. Grid: rows, lines.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"
#include "activations.glsl"
layout(constant_id = 3) const uint MODE = GPTOSS_PRODUCT_STORE;
layout(constant_id = 4) const uint ROWS = 2;
layout(constant_id = 5) const bool HAS_NORM = false;
layout(constant_id = 6) const uint SPLIT = 1; // subgroups that share rows, a part of the columns each

layout(push_constant) uniform Push { gptoss_product_push push; };

const bool IS_PAIR = MODE == GPTOSS_PRODUCT_SWIGLU || MODE == GPTOSS_PRODUCT_SILU;
const uint SUMS = IS_PAIR ? 2 * ROWS : ROWS;
shared float parts[WORKGROUP / SUBGROUP * (SUMS + 1)];

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
    const uint SETS = WORKGROUP / SUBGROUP / SPLIT; // of ROWS rows, a workgroup
    uint set = gl_SubgroupID / SPLIT, part = gl_SubgroupID % SPLIT;
    uint first = (gl_WorkGroupID.x * SETS + set) * ROWS;
    uint x_line = push.first_token + (is_absent(push.experts) ? line : line / push.num_chosen);
    uint step = IS_PAIR && is_absent(push.up) ? 2 : 1;
    uint matrix = is_absent(push.experts)
                      ? 0
                      : uint(Ints(push.experts).at[line]) * push.num_outs * step;
    float sums[2 * ROWS], squares = 0;
    [[unroll]] for (uint i = 0; i < SUMS; ++i)
        sums[i] = 0;
    for (uint piece = part * SUBGROUP + gl_SubgroupInvocationID; piece < PIECES;
         piece += SPLIT * SUBGROUP) {
        Piece weights[2 * ROWS];
        [[unroll]] for (uint i = 0; i < SUMS; ++i) {
            uint out_row = min(first + (IS_PAIR ? i / 2 : i), push.num_outs - 1);
            bool is_up = IS_PAIR && (i & 1u) == 1u, from_up = is_up && step == 1;
            uint row = matrix + out_row * step + (is_up && step == 2 ? 1 : 0);
            weights[i] = load_weight(from_up ? push.up : push.weight,
                                     from_up ? push.up_scales : push.scales, row, piece);
        }
        float products[2 * ROWS];
        [[unroll]] for (uint i = 0; i < SUMS; ++i)
            products[i] = 0;
        [[unroll]] for (uint s = 0; s < STEPS_OF_PIECE; ++s) {
            float v[16];
            load_step(push.x, x_line, piece, s, v);
            if (HAS_NORM) {
                float gain[16];
                load_step(push.gain, 0, piece, s, gain);
                [[unroll]] for (uint i = 0; i < STEP; ++i) {
                    squares = fma(v[i], v[i], squares);
                    v[i] *= gain[i];
                }
            }
            [[unroll]] for (uint i = 0; i < SUMS; ++i)
                products[i] = dot_step(weights[i].codes, s, v, products[i]);
        }
        [[unroll]] for (uint i = 0; i < SUMS; ++i)
            sums[i] = fma(weights[i].scale, products[i], sums[i]);
    }
    [[unroll]] for (uint i = 0; i < SUMS; ++i)
        sums[i] = subgroupAdd(sums[i]);
    if (HAS_NORM)
        squares = subgroupAdd(squares);
    if (SPLIT > 1) {
        uint to = gl_SubgroupID * (SUMS + 1);
        [[unroll]] for (uint i = 0; i < SUMS; ++i)
            if (subgroupElect())
                parts[to + i] = sums[i];
        if (subgroupElect())
            parts[to + SUMS] = squares;
        barrier();
        if (part != 0)
            return;
        for (uint other = 1; other < SPLIT; ++other) {
            uint from = (gl_SubgroupID + other) * (SUMS + 1);
            [[unroll]] for (uint i = 0; i < SUMS; ++i)
                sums[i] += parts[from + i];
            squares += parts[from + SUMS];
        }
    }
    float scale = HAS_NORM ? 1 / sqrt(squares / COLUMNS + push.epsilon) : 1;
    [[unroll]] for (uint i = 0; i < ROWS; ++i)
        if (gl_SubgroupInvocationID == i % SUBGROUP && first + i < push.num_outs)
            finish(line, first + i, matrix + (first + i) * step,
                   sums[IS_PAIR ? 2 * i : i] * scale, IS_PAIR ? sums[2 * i + 1] * scale : 0);
}
