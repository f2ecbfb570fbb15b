// Products of SUMS rows of a weight, straight from the packed memory, with one line of x. SPLIT subgroups
// share the rows, a part of the columns each. The shader has the constants SUMS, SPLIT, HAS_NORM, and
// tells by source_of where the rows are.

// The line of x, times the norm's gain, if it is short enough: there invocations side by side find their
// pieces in different banks, while in other memory each would read from lines of its own.
const uint FOURS = PIECE / 4, STRIDE = FOURS | 1; // of a piece
const uint STAGED = PIECES * STRIDE;
const bool IS_STAGED = COLUMNS % 32 == 0 && STAGED <= 1536;
const uint STAGE = IS_STAGED ? STAGED : 1;
shared vec4 stage[STAGE];
shared float parts[WORKGROUP / SUBGROUP * (SUMS + 1)];

struct Source {
    uvec2 codes, scales;
    uint row;
};
Source source_of(uint i);

Piece weights[SUMS];
float sums[SUMS], squares; // of x

void load_weights(uint piece) {
    [[unroll]] for (uint i = 0; i < SUMS; ++i) {
        Source source = source_of(i);
        weights[i] = load_weight(source.codes, source.scales, source.row, piece);
    }
}

void stage_x(uvec2 x, uint line, uvec2 gain) {
    for (uint i = gl_LocalInvocationID.x; i < COLUMNS / 4; i += WORKGROUP) {
        vec4 four = Vectors(x).at[line * (COLUMNS / 4) + i];
        if (HAS_NORM) {
            squares += dot(four, four);
            four *= Vectors(gain).at[i];
        }
        stage[i / FOURS * STRIDE + i % FOURS] = four;
    }
    if (HAS_NORM)
        squares = workgroup_sum(squares); // with a barrier
    else
        barrier();
}

// STEP elements of x from a step of a piece on, times the gain.
void load_scaled(uvec2 x, uint line, uvec2 gain, uint piece, uint step, out float v[16]) {
    if (IS_STAGED) {
        [[unroll]] for (uint i = 0; i < STEP / 4; ++i) {
            vec4 four = stage[piece * STRIDE + step * (STEP / 4) + i];
            [[unroll]] for (uint j = 0; j < 4; ++j)
                v[4 * i + j] = four[j];
        }
        return;
    }
    load_step(x, line, piece, step, v);
    if (HAS_NORM) {
        float gains[16];
        load_step(gain, 0, piece, step, gains);
        [[unroll]] for (uint i = 0; i < STEP; ++i) {
            squares = fma(v[i], v[i], squares);
            v[i] *= gains[i];
        }
    }
}

// Adds what the subgroups that share rows have, for the first of them: false for the others.
bool join_parts() {
    uint part = gl_SubgroupID % SPLIT, to = gl_SubgroupID * (SUMS + 1);
    if (subgroupElect()) {
        [[unroll]] for (uint i = 0; i < SUMS; ++i)
            parts[to + i] = sums[i];
        parts[to + SUMS] = squares;
    }
    barrier();
    for (uint other = 1; part == 0 && other < SPLIT; ++other) {
        uint from = to + other * (SUMS + 1);
        [[unroll]] for (uint i = 0; i < SUMS; ++i)
            sums[i] += parts[from + i];
        if (!IS_STAGED)
            squares += parts[from + SUMS];
    }
    return part == 0;
}

// Fills sums and, with a norm, squares. False for subgroups that have nothing more to do.
bool multiply(uvec2 x, uint line, uvec2 gain) {
    squares = 0;
    [[unroll]] for (uint i = 0; i < SUMS; ++i)
        sums[i] = 0;
    // Invocations go through the loop together, those beyond the end with the last piece, for nothing.
    uint start = gl_SubgroupID % SPLIT * SUBGROUP, lane = gl_SubgroupInvocationID;
    load_weights(min(start + lane, PIECES - 1));
    if (IS_STAGED)
        stage_x(x, line, gain);
    while (start < PIECES) {
        uint piece = min(start + lane, PIECES - 1);
        float products[SUMS], own = squares;
        [[unroll]] for (uint i = 0; i < SUMS; ++i)
            products[i] = 0;
        [[unroll]] for (uint s = 0; s < STEPS_OF_PIECE; ++s) {
            float v[16];
            load_scaled(x, line, gain, piece, s, v);
            [[unroll]] for (uint i = 0; i < SUMS; ++i)
                products[i] = dot_step(weights[i].codes, s, v, products[i]);
        }
        bool is_inside = start + lane < PIECES;
        squares = is_inside ? squares : own;
        [[unroll]] for (uint i = 0; i < SUMS; ++i)
            sums[i] = is_inside ? fma(weights[i].scale, products[i], sums[i]) : sums[i];
        start += SPLIT * SUBGROUP;
        if (start < PIECES)
            load_weights(min(start + lane, PIECES - 1));
    }
    // Not by subgroupAdd, a function that is called, and waited for, once a sum.
    [[unroll]] for (uint distance = SUBGROUP / 2; distance > 0; distance /= 2) {
        [[unroll]] for (uint i = 0; i < SUMS; ++i)
            sums[i] += subgroupShuffleXor(sums[i], distance);
        if (HAS_NORM && !IS_STAGED)
            squares += subgroupShuffleXor(squares, distance);
    }
    return SPLIT == 1 || join_parts();
}
