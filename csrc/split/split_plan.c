#include "split/split_plan.h"

#include "status.h"

/* What is kept free beside the weights: activations of so many rows, and keys and values of so many
 * positions, with half as many again for the time in which a cache that doubles is copied. */
#define PLANNED_ROWS 2048
#define PLANNED_POSITIONS 8192
/* What the Vulkan back end takes besides for a pass: keys of a part of attention, rows that are
 * attended in parts, rows of logits at a time; tables and lists of a row, at most. */
#define PART_KEYS 256
#define MAX_PART_ROWS 32
#define MAX_LOGITS_ROWS 64
#define TABLE_ROW_BYTES 1024

struct planning {
    const struct gptoss_split_sizes *sizes;
    const struct gptoss_split_member *members;
    int num_gpus;
    bool has_cpu;
    struct gptoss_split_plan *plan;
};

/* What is to lie on GPUs: the first layers, and which parts besides. */
struct demand {
    int32_t num_layers;
    bool embedding, experts, unembedding;
};

static int64_t planned_positions(const struct gptoss_split_sizes *sizes) {
    return sizes->num_positions < PLANNED_POSITIONS ? sizes->num_positions : PLANNED_POSITIONS;
}

static uint64_t count_activations(const struct gptoss_split_sizes *sizes) {
    uint64_t parts = 1, positions = (uint64_t)planned_positions(sizes);
    while (parts * PART_KEYS < positions)
        parts *= 2;
    return PLANNED_ROWS * (sizes->row_bytes + sizes->max_row_bytes + TABLE_ROW_BYTES) +
           MAX_PART_ROWS * parts * sizes->part_bytes + MAX_LOGITS_ROWS * sizes->logits_bytes;
}

static uint64_t count_cache(const struct gptoss_split_sizes *sizes) {
    return sizes->kv_bytes * (uint64_t)planned_positions(sizes) * 3 / 2;
}

/* For weights and caches. */
static uint64_t room_of(const struct planning *planning, int gpu) {
    uint64_t bytes = planning->members[gpu].bytes;
    uint64_t kept = planning->has_cpu ? planning->plan->activation_bytes : 0;
    return bytes > kept ? bytes - kept : 0;
}

/* Fills the GPUs one after another up to a share of their room. */
static bool fill(const struct planning *planning, const struct demand *demand, double share) {
    const struct gptoss_split_sizes *sizes = planning->sizes;
    int gpu = 0, last = planning->num_gpus - 1;
    uint64_t used = demand->embedding ? sizes->embedding : 0, cache = count_cache(sizes);
    if ((double)used > share * (double)room_of(planning, 0))
        return false;
    for (int32_t layer = 0; layer < demand->num_layers; ++layer) {
        uint64_t size = sizes->layers[layer] + cache;
        size += demand->experts ? sizes->experts[layer] : 0;
        while ((double)(used + size) > share * (double)room_of(planning, gpu)) {
            if (gpu++ == last)
                return false;
            used = 0;
        }
        planning->plan->layers[layer] = (uint8_t)gpu;
        used += size;
    }
    if (!demand->unembedding)
        return true;
    used = gpu == last ? used : 0;
    used += sizes->unembedding - (demand->embedding && last == 0 ? sizes->shared : 0);
    return (double)used <= share * (double)room_of(planning, last);
}

/* Divides what is demanded among the GPUs so that the fullest is as empty as possible, measured by
 * its room. False: it does not fit. */
static bool divide(const struct planning *planning, const struct demand *demand) {
    double low = 0, high = 1;
    if (planning->has_cpu && !fill(planning, demand, high))
        return false;
    while (!fill(planning, demand, high))
        high *= 2;
    for (int i = 0; i < 40; ++i) {
        double middle = (low + high) / 2;
        if (fill(planning, demand, middle))
            high = middle;
        else
            low = middle;
    }
    return fill(planning, demand, high);
}

/* The rest of the plan for layers that are divided. Experts that were not demanded go beside their
 * layers while there is room, from each GPU's first layer on. */
static void complete(const struct planning *planning, const struct demand *demand) {
    const struct gptoss_split_sizes *sizes = planning->sizes;
    struct gptoss_split_plan *plan = planning->plan;
    int cpu = planning->num_gpus, last = planning->num_gpus - 1;
    bool is_full[GPTOSS_MAX_MEMBERS] = {false};
    plan->embedding = demand->embedding ? 0 : cpu;
    plan->unembedding = demand->unembedding ? last : cpu;
    if (demand->embedding)
        plan->weight_bytes[0] += sizes->embedding;
    if (demand->unembedding)
        plan->weight_bytes[last] +=
            sizes->unembedding - (demand->embedding && last == 0 ? sizes->shared : 0);
    for (int32_t layer = 0; layer < sizes->num_layers; ++layer) {
        int gpu = layer < demand->num_layers ? plan->layers[layer] : cpu;
        plan->layers[layer] = plan->experts[layer] = (uint8_t)gpu;
        if (gpu == cpu)
            continue;
        plan->weight_bytes[gpu] += sizes->layers[layer];
        plan->cache_bytes[gpu] += count_cache(sizes);
    }
    for (int32_t layer = 0; layer < demand->num_layers; ++layer) {
        int gpu = plan->layers[layer];
        uint64_t used = plan->weight_bytes[gpu] + plan->cache_bytes[gpu] + sizes->experts[layer];
        is_full[gpu] = is_full[gpu] || (!demand->experts && used > room_of(planning, gpu));
        if (!is_full[gpu])
            plan->weight_bytes[gpu] += sizes->experts[layer];
        else if (sizes->experts[layer] > 0)
            plan->experts[layer] = (uint8_t)cpu;
    }
}

static enum gptoss_status refuse(const struct planning *planning, struct gptoss_error *error) {
    const struct gptoss_split_sizes *sizes = planning->sizes;
    unsigned long long activations = planning->plan->activation_bytes, found = 0;
    unsigned long long needed = activations + sizes->layers[0] + count_cache(sizes);
    for (int gpu = 0; gpu < planning->num_gpus; ++gpu)
        found = planning->members[gpu].bytes > found ? planning->members[gpu].bytes : found;
    gptoss_error_set(error, GPTOSS_ERROR_MEMORY,
                     "%llu bytes of a GPU have no room for one layer without its experts: %llu are "
                     "needed, of which %llu are kept free for activations of %d tokens and %llu "
                     "for keys and values of %lld positions; give a larger gpu_memory, or use "
                     "device='cpu'",
                     found, needed, activations, PLANNED_ROWS,
                     (unsigned long long)count_cache(sizes), (long long)planned_positions(sizes));
    gptoss_error_expected(error, "%llu bytes", needed);
    gptoss_error_found(error, "%llu bytes", found);
    return GPTOSS_ERROR_MEMORY;
}

/* What a CPU takes off the GPUs, in this order: the embedding, of which a pass reads a line a row;
 * experts, of which it reads few; whole layers, the last ones first, and the unembedding. */
enum gptoss_status gptoss_split_make_plan(const struct gptoss_split_sizes *sizes,
                                          const struct gptoss_split_member *members,
                                          int num_members, bool has_cpu,
                                          struct gptoss_split_plan *plan,
                                          struct gptoss_error *error) {
    *plan = (struct gptoss_split_plan){.activation_bytes = count_activations(sizes)};
    const struct planning planning = {sizes, members, num_members - has_cpu, has_cpu, plan};
    int32_t num_layers = sizes->num_layers;
    bool is_tied = sizes->shared > 0 && planning.num_gpus == 1; /* its embedding takes no room */
    struct demand demands[] = {
        {num_layers, true, true, true},
        {num_layers, is_tied, true, true},
        {num_layers, is_tied, false, true},
    };
    for (size_t i = 0; i < sizeof demands / sizeof demands[0]; ++i) {
        if (divide(&planning, &demands[i])) {
            complete(&planning, &demands[i]);
            return GPTOSS_OK;
        }
    }
    for (struct demand demand = {.num_layers = num_layers}; demand.num_layers > 0;
         --demand.num_layers) {
        if (divide(&planning, &demand)) {
            complete(&planning, &demand);
            return GPTOSS_OK;
        }
    }
    return refuse(&planning, error);
}
