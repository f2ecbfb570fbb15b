// The experts of rows by their logits: the largest, ties by lowest expert, and the softmax over them.
// For route.comp and route_panel.comp, of which each has ROWS rows in shared memory.
shared float logits[ROWS * EXPERTS], weights[ROWS * EXPERTS];
shared uint keys[ROWS * EXPERTS];

// Floats in order as integers. NaN ranks above all numbers, so that it reaches the logits, where it
// is reported. 0: none.
uint rank_key(float value) {
    uint bits = floatBitsToUint(value);
    return isnan(value) ? 0xFFFFFFFFu : value == 0 ? 0x80000000u : (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// By a subgroup: the largest of its lanes' largest, again and again. slot: the row's in shared memory.
void choose(uint row, uint slot) {
    uint base = slot * EXPERTS;
    for (uint expert = gl_SubgroupInvocationID; expert < EXPERTS; expert += gl_SubgroupSize)
        keys[base + expert] = rank_key(logits[base + expert]);
    float first = 0, sum = 0;
    for (uint rank = 0; rank < push.num_chosen; ++rank) {
        uint key = 0, index = EXPERTS;
        for (uint expert = gl_SubgroupInvocationID; expert < EXPERTS; expert += gl_SubgroupSize) {
            if (keys[base + expert] > key) {
                key = keys[base + expert];
                index = expert;
            }
        }
        uint most = subgroupMax(key);
        index = subgroupMin(key == most ? index : EXPERTS);
        float value = logits[base + index];
        first = rank == 0 ? value : first;
        float weight = exp(value - first);
        sum += weight;
        if (index % gl_SubgroupSize == gl_SubgroupInvocationID) {
            keys[base + index] = 0; // which only this lane looks at
            Words(push.experts).at[row * push.num_chosen + rank] = index;
            weights[base + rank] = weight;
        }
    }
    subgroupMemoryBarrierShared();
    subgroupBarrier();
    for (uint rank = gl_SubgroupInvocationID; rank < push.num_chosen; rank += gl_SubgroupSize)
        Floats(push.weights).at[row * push.num_chosen + rank] = weights[base + rank] / sum;
}
