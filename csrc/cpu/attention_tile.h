/* What the attention kernels share. */
#ifndef GPTOSS_CPU_ATTENTION_TILE_H
#define GPTOSS_CPU_ATTENTION_TILE_H

#include "cpu/kernels.h"

/* Bit j: some query sees key j. */
static inline uint64_t gptoss_attention_keys_seen(const struct gptoss_attention_tile *tile) {
    uint64_t seen = 0;
    for (int64_t i = 0; i < tile->num_queries; ++i) {
        int first = tile->first_key[i], count = tile->end_key[i] - first;
        if (count > 0)
            seen |= UINT64_MAX >> (64 - count) << first;
    }
    return seen;
}

#endif
