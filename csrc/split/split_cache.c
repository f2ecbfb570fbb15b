/* Keys and values of one sequence: each member holds those of its layers. */
#include "platform/allocator.h"
#include "split/split_backend.h"
#include "status.h"

struct gptoss_cache {
    struct gptoss_split *split;
    struct gptoss_cache *parts[GPTOSS_MAX_MEMBERS];
};

enum gptoss_status gptoss_split_cache_create(struct gptoss_backend *base,
                                             const struct gptoss_cache_shape *shape,
                                             struct gptoss_cache **cache_out,
                                             struct gptoss_error *error) {
    struct gptoss_split *split = gptoss_split_of(base);
    *cache_out = NULL;
    struct gptoss_cache *cache = gptoss_allocate(1, sizeof *cache);
    if (cache == NULL)
        return gptoss_error_memory(error, sizeof *cache, "the cache");
    cache->split = split;
    for (int i = 0; i < split->num_members; ++i) {
        struct gptoss_backend *member = split->members[i].backend;
        struct gptoss_cache_shape part = *shape;
        part.num_layers = split->parts[i].end_layer - split->parts[i].first_layer;
        /* Who is told tables of rows finds caches in them, of layers or not. */
        if (part.num_layers == 0 && member->operations->take_rows == NULL)
            continue;
        enum gptoss_status status =
            member->operations->cache_create(member, &part, &cache->parts[i], error);
        if (status != GPTOSS_OK) {
            gptoss_split_cache_release(base, cache);
            return status;
        }
    }
    *cache_out = cache;
    return GPTOSS_OK;
}

void gptoss_split_cache_release(struct gptoss_backend *base, struct gptoss_cache *cache) {
    if (cache == NULL)
        return;
    struct gptoss_split *split = gptoss_split_of(base);
    for (int i = 0; i < split->num_members; ++i) {
        struct gptoss_backend *member = split->members[i].backend;
        member->operations->cache_release(member, cache->parts[i]);
    }
    gptoss_free(cache);
}

struct gptoss_cache *gptoss_split_cache_part(const struct gptoss_cache *cache, int member) {
    return cache->parts[member];
}

/* The member that holds a layer, which becomes one of its own. */
static int find_layer(const struct gptoss_cache *cache, int32_t *layer) {
    int member = cache->split->plan.layers[*layer];
    *layer -= cache->split->parts[member].first_layer;
    return member;
}

void gptoss_split_cache_view(const struct gptoss_cache *cache, int32_t layer,
                             struct gptoss_kv_view *view_out) {
    int member = find_layer(cache, &layer);
    cache->split->members[member].backend->operations->cache_view(cache->parts[member], layer,
                                                                  view_out);
}

enum gptoss_status gptoss_split_cache_fetch(struct gptoss_backend *base, struct gptoss_cache *cache,
                                            int32_t layer, struct gptoss_error *error) {
    int index = find_layer(cache, &layer);
    struct gptoss_backend *member = gptoss_split_of(base)->members[index].backend;
    if (member->operations->cache_fetch == NULL)
        return GPTOSS_OK;
    return member->operations->cache_fetch(member, cache->parts[index], layer, error);
}

void gptoss_split_cache_hold(struct gptoss_cache *cache, int32_t layer, int64_t first_position,
                             int64_t end_position) {
    int member = find_layer(cache, &layer);
    cache->split->members[member].backend->operations->cache_hold(cache->parts[member], layer,
                                                                  first_position, end_position);
}

enum gptoss_status gptoss_split_cache_copy(struct gptoss_cache *to, const struct gptoss_cache *from,
                                           struct gptoss_error *error) {
    const struct gptoss_split *split = from->split;
    for (int i = 0; i < split->num_members; ++i)
        if (split->parts[i].end_layer > split->parts[i].first_layer)
            GPTOSS_TRY(split->members[i].backend->operations->cache_copy(to->parts[i],
                                                                         from->parts[i], error));
    return GPTOSS_OK;
}
