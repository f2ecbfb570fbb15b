// Products of tiles of a weight with one line of x. The line becomes float16 as in round_rows.comp. The
// shader has the constants TILES, of a workgroup, SPLIT, subgroups that share the columns of one, and
// HAS_NORM.
const uint DEEP = IS_E2M1 ? 2 : 4; // pieces on their way
const uint EIGHTS = COLUMNS / 8, EIGHTS_OF_ONE = (EIGHTS + WORKGROUP - 1) / WORKGROUP;
const uint KEPT = EIGHTS_OF_ONE <= 4 ? EIGHTS_OF_ONE : 0; // in registers between two looks at x
const uint SUBGROUPS = TILES * SPLIT;
shared uvec4 x_line[TILE_STEPS * 8];
shared vec2 line_parts[SUBGROUPS];
shared float tile_parts[SUBGROUPS * 16];

float x_factor; // makes good what the line was divided by, and is the norm's factor
float sum_low, sum_high; // of rows g and g + 8

void load_eight(uvec2 x, uint line, uvec2 gain, uint eight, out vec4 v[2], inout vec2 part) {
    [[unroll]] for (uint i = 0; i < 2; ++i) {
        v[i] = Vectors(x).at[line * (COLUMNS / 4) + 2 * eight + i];
        if (HAS_NORM) {
            part.y += dot(v[i], v[i]);
            v[i] *= Vectors(gain).at[2 * eight + i];
        }
        vec4 size = abs(v[i]);
        part.x = max(part.x, max(max(size.x, size.y), max(size.z, size.w)));
    }
}

void store_eight(uint eight, vec4 v[2], float factor) {
    vec4 a = v[0] * factor, b = v[1] * factor;
    x_line[eight] = uvec4(pack_halves(a.x, b.x), pack_halves(a.y, b.y), pack_halves(a.z, b.z),
                          pack_halves(a.w, b.w));
}

// Brings the line to shared memory: x, times the gain of the norm, times a power of two.
void round_line(uvec2 x, uint line, uvec2 gain, float epsilon) {
    vec2 part = vec2(0); // the largest magnitude, the sum of squares
    vec4 kept[2 * KEPT + 2], v[2];
    uint id = gl_LocalInvocationID.x;
    if (KEPT == 0) {
        for (uint eight = id; eight < EIGHTS; eight += WORKGROUP)
            load_eight(x, line, gain, eight, v, part);
    }
    [[unroll]] for (uint i = 0; i < KEPT; ++i) {
        if (id + i * WORKGROUP < EIGHTS) {
            load_eight(x, line, gain, id + i * WORKGROUP, v, part);
            kept[2 * i] = v[0];
            kept[2 * i + 1] = v[1];
        }
    }
    [[unroll]] for (uint distance = 16; distance > 0; distance /= 2) {
        part.x = max(part.x, subgroupShuffleXor(part.x, distance));
        if (HAS_NORM)
            part.y += subgroupShuffleXor(part.y, distance);
    }
    if (gl_SubgroupInvocationID == 0)
        line_parts[gl_SubgroupID] = part;
    barrier();
    part = vec2(0);
    [[unroll]] for (uint i = 0; i < SUBGROUPS; ++i)
        part = vec2(max(part.x, line_parts[i].x), part.y + line_parts[i].y);
    uint exponent = clamp(floatBitsToUint(part.x) >> 23, 15u, 240u);
    float factor = uintBitsToFloat((127u + 13u + 127u - exponent) << 23);
    x_factor = uintBitsToFloat((exponent - 13u) << 23);
    if (HAS_NORM)
        x_factor /= sqrt(part.y / COLUMNS + epsilon);
    if (KEPT == 0) {
        for (uint eight = id; eight < EIGHTS; eight += WORKGROUP) {
            load_eight(x, line, gain, eight, v, part);
            store_eight(eight, v, factor);
        }
    }
    [[unroll]] for (uint i = 0; i < KEPT; ++i) {
        if (id + i * WORKGROUP < EIGHTS) {
            v[0] = kept[2 * i];
            v[1] = kept[2 * i + 1];
            store_eight(id + i * WORKGROUP, v, factor);
        }
    }
    if (id < TILE_STEPS * 8 - EIGHTS)
        x_line[EIGHTS + id] = uvec4(0);
    barrier();
}

void multiply_piece(uvec4 piece, uint scales, uint index) {
    [[unroll]] for (uint i = 0; i < BLOCKS_OF_PIECE; ++i) {
        Block block = block_of(piece, scales, i);
        uvec4 x = x_line[(index * BLOCKS_OF_PIECE + i) * 4 + (gl_SubgroupInvocationID & 3u)];
        // All columns of the second matrix are the same line.
        MatrixC sums = coopMatMulAdd(block.halves[0], matrix_b(x.x, x.y), MatrixC(0.0));
        sums = coopMatMulAdd(block.halves[1], matrix_b(x.z, x.w), sums);
        sum_low = fma(block.scales.x, sums[0], sum_low);
        sum_high = fma(block.scales.y, sums[2], sum_high);
    }
}

// Multiplies the subgroup's tile, number `tile` of the weight, and gives 16 sums for each tile of the
// workgroup to sum_of.
void multiply_line(uvec2 weight, uvec2 weight_scales, uint tile, uvec2 x, uint line, uvec2 gain,
                   float epsilon) {
    uint lane = gl_SubgroupInvocationID;
    const uint SHARE = (TILE_PIECES + SPLIT - 1) / SPLIT;
    uint begin = gl_SubgroupID % SPLIT * SHARE, end = min(begin + SHARE, TILE_PIECES);
    uint last = end - 1; // some pieces are loaded and multiplied for nothing, by scales of 0
    uint first = tile * TILE_PIECES * 32 + lane, first_scale = tile * TILE_PIECES * 8 + lane / 4;
    uvec4 pieces[DEEP];
    uint scales[DEEP];
    [[unroll]] for (uint i = 0; i < DEEP; ++i) {
        pieces[i] = Stream(weight).at[first + min(begin + i, last) * 32];
        scales[i] = Words(weight_scales).at[first_scale + min(begin + i, last) * 8];
    }
    round_line(x, line, gain, epsilon);
    sum_low = sum_high = 0;
    for (uint at = begin; at < end; at += DEEP) {
        [[unroll]] for (uint i = 0; i < DEEP; ++i) {
            uvec4 piece = pieces[i];
            uint own = at + i < end ? scales[i] : 0, next = min(at + i + DEEP, last);
            pieces[i] = Stream(weight).at[first + next * 32];
            scales[i] = Words(weight_scales).at[first_scale + next * 8];
            multiply_piece(piece, own, min(at + i, last));
        }
    }
    if ((lane & 3u) == 0) {
        tile_parts[gl_SubgroupID * 16 + lane / 4] = sum_low;
        tile_parts[gl_SubgroupID * 16 + lane / 4 + 8] = sum_high;
    }
    barrier();
}

float sum_of(uint tile, uint row) {
    float sum = 0;
    [[unroll]] for (uint i = 0; i < SPLIT; ++i)
        sum += tile_parts[(tile * SPLIT + i) * 16 + row];
    return undone(sum, x_factor);
}
