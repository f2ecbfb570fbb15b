// Tells which elements of cooperative matrices each invocation of a subgroup has, and how float16 is
// rounded to, for vulkan_tiles.c to compare with what fragments.glsl counts on. A subgroup.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "fragments.glsl"

layout(push_constant) uniform Push { gptoss_fragments_push push; };

shared float16_t numbers[256];
shared float sums[256];

void main() {
    uint lane = gl_LocalInvocationID.x;
    for (uint i = lane; i < 256; i += 32) {
        numbers[i] = float16_t(float(i));
        sums[i] = float(i);
    }
    barrier();
    MatrixA a;
    MatrixB b;
    MatrixC c;
    WideC wide;
    coopMatLoad(a, numbers, 0, 16, gl_CooperativeMatrixLayoutRowMajor);
    coopMatLoad(b, numbers, 0, 8, gl_CooperativeMatrixLayoutRowMajor);
    coopMatLoad(c, sums, 0, 8, gl_CooperativeMatrixLayoutRowMajor);
    coopMatLoad(wide, sums, 0, 16, gl_CooperativeMatrixLayoutRowMajor);
    uint at = lane * GPTOSS_FRAGMENT_WORDS;
    for (uint i = 0; i < 8; ++i) {
        Words(push.result).at[at + i] = i < a.length() ? uint(float(a[i])) : ~0u;
        Words(push.result).at[at + 16 + i] = i < wide.length() ? uint(wide[i]) : ~0u;
    }
    for (uint i = 0; i < 4; ++i) {
        Words(push.result).at[at + 8 + i] = i < b.length() ? uint(float(b[i])) : ~0u;
        Words(push.result).at[at + 12 + i] = i < c.length() ? uint(c[i]) : ~0u;
    }
    // 1 + (lane + 1/2) 2^-10 is half way between two.
    float half_way = 1 + (float(lane) + 0.5) / 1024;
    Words(push.result).at[at + 24] = pack_halves(half_way, -half_way);
}
