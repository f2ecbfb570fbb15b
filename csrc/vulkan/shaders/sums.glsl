// Sums over a subgroup by shuffles, where the device has them: what subgroupAdd becomes may be a function
// that is called, and waited for, once a sum.
layout(constant_id = 9) const bool SHUFFLES = false;

float subgroup_sum(float value) {
    if (!SHUFFLES)
        return subgroupAdd(value);
    [[unroll]] for (uint distance = SUBGROUP / 2; distance > 0; distance /= 2)
        value += subgroupShuffleXor(value, distance);
    return value;
}

#define subgroup_sums(values, count)                                              \
    if (SHUFFLES) {                                                               \
        [[unroll]] for (uint distance = SUBGROUP / 2; distance > 0; distance /= 2) \
            [[unroll]] for (uint i = 0; i < count; ++i)                           \
                values[i] += subgroupShuffleXor(values[i], distance);             \
    } else {                                                                      \
        [[unroll]] for (uint i = 0; i < count; ++i)                               \
            values[i] = subgroupAdd(values[i]);                                   \
    }
