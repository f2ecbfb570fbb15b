// out = embedding[token], plus positions[position] where there are such. A workgroup a row.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"
layout(constant_id = 3) const uint POSITION_LAYOUT = 0;

layout(push_constant) uniform Push { gptoss_embed_push push; };

void main() {
    uint row = gl_WorkGroupID.x;
    gptoss_device_row entry = Rows(push.rows).at[row];
    float w[32];
    for (uint piece = gl_LocalInvocationID.x; piece < PIECES; piece += WORKGROUP) {
        decode_piece(push.weight, push.scales, uint(entry.token), piece, w);
        for (uint i = 0; i < PIECE; ++i) {
            uint column = piece * PIECE + i;
            if (column >= COLUMNS)
                break;
            float value = w[i];
            if (!is_absent(push.positions)) {
                uint at = uint(entry.position) * BLOCKS * 32 + column;
                value += POSITION_LAYOUT == GPTOSS_DEVICE_F32   ? Floats(push.positions).at[at]
                         : POSITION_LAYOUT == GPTOSS_DEVICE_F16 ? half_at(push.positions, at)
                                                                : uintBitsToFloat((at & 1u) == 0u
                                                     ? Words(push.positions).at[at >> 1] << 16
                                                     : Words(push.positions).at[at >> 1] & 0xFFFF0000u);
            }
            Floats(push.result).at[row * COLUMNS + column] = value;
        }
    }
}
