/* Keys and values of one sequence: [layer][keys, values][head][position][head_dim], in address
 * space reserved once for max_context positions, so that views never move and memory is used only
 * where rows are held. */
#include <string.h>

#include "cpu/cpu_backend.h"
#include "platform/address_space.h"
#include "platform/allocator.h"
#include "status.h"

struct held_range {
    int64_t first, end;
};

struct gptoss_cache {
    struct gptoss_cache_shape shape;
    struct gptoss_address_space space;
    uint64_t row_bytes, head_stride_bytes,
        plane_bytes;         /* a plane: the keys or the values of a layer */
    struct held_range *held; /* [num_layers] */
};

enum gptoss_status gptoss_cpu_cache_create(struct gptoss_backend *backend,
                                           const struct gptoss_cache_shape *shape,
                                           struct gptoss_cache **cache_out,
                                           struct gptoss_error *error) {
    (void)backend;
    *cache_out = NULL;
    uint64_t page = gptoss_address_space_page_bytes(), num_bytes;
    uint64_t row_bytes = (uint64_t)shape->head_dim * gptoss_dtype_bytes(shape->dtype);
    uint64_t num_planes = 2 * (uint64_t)shape->num_layers, head_stride_bytes, plane_bytes;
    bool too_large =
        __builtin_mul_overflow((uint64_t)shape->max_context, row_bytes, &head_stride_bytes) ||
        __builtin_add_overflow(head_stride_bytes, page - 1, &head_stride_bytes);
    head_stride_bytes = head_stride_bytes / page * page;
    too_large =
        too_large ||
        __builtin_mul_overflow(head_stride_bytes, (uint64_t)shape->num_kv_heads, &plane_bytes) ||
        __builtin_mul_overflow(plane_bytes, num_planes, &num_bytes) || num_bytes > PTRDIFF_MAX;
    if (too_large)
        return gptoss_error_set(error, GPTOSS_ERROR_MEMORY,
                                "a cache of %lld positions is beyond the address space",
                                (long long)shape->max_context);
    struct gptoss_cache *cache = gptoss_allocate(1, sizeof *cache);
    if (cache == NULL)
        return gptoss_error_memory(error, sizeof *cache, "the cache");
    *cache = (struct gptoss_cache){.shape = *shape,
                                   .row_bytes = row_bytes,
                                   .head_stride_bytes = head_stride_bytes,
                                   .plane_bytes = plane_bytes};
    cache->held = gptoss_allocate((size_t)shape->num_layers, sizeof *cache->held);
    if (cache->held == NULL || !gptoss_address_space_reserve(num_bytes, &cache->space)) {
        gptoss_cpu_cache_release(backend, cache);
        return gptoss_error_memory(error, num_bytes,
                                   "the cache (address space; ask for a smaller max_context)");
    }
    *cache_out = cache;
    return GPTOSS_OK;
}

void gptoss_cpu_cache_release(struct gptoss_backend *backend, struct gptoss_cache *cache) {
    (void)backend;
    if (cache == NULL)
        return;
    gptoss_address_space_release(&cache->space);
    gptoss_free(cache->held);
    gptoss_free(cache);
}

const struct gptoss_cache_shape *gptoss_cpu_cache_shape(const struct gptoss_cache *cache) {
    return &cache->shape;
}

void gptoss_cpu_cache_view(const struct gptoss_cache *cache, int32_t layer,
                           struct gptoss_kv_view *view_out) {
    const uint8_t *keys = cache->space.base + 2 * (uint64_t)layer * cache->plane_bytes;
    *view_out = (struct gptoss_kv_view){
        .keys = keys,
        .values = keys + cache->plane_bytes,
        .first_position = cache->held[layer].first,
        .end_position = cache->held[layer].end,
        .head_stride_bytes = cache->head_stride_bytes,
        .row_bytes = cache->row_bytes,
    };
}

/* Gives rows [begin, end) of every head back. */
static void discard_rows(struct gptoss_cache *cache, int32_t layer, int64_t begin, int64_t end) {
    if (begin >= end)
        return;
    uint64_t start = 2 * (uint64_t)layer * cache->plane_bytes;
    for (int32_t head = 0; head < 2 * cache->shape.num_kv_heads;
         ++head, start += cache->head_stride_bytes)
        gptoss_address_space_discard(&cache->space, start + (uint64_t)begin * cache->row_bytes,
                                     start + (uint64_t)end * cache->row_bytes);
}

void gptoss_cpu_cache_hold(struct gptoss_cache *cache, int32_t layer, int64_t first_position,
                           int64_t end_position) {
    struct held_range *held = &cache->held[layer];
    /* From the start of the rows' first page: earlier calls may have left part of it. */
    if (first_position > held->first) {
        int64_t rows_a_page = (int64_t)(gptoss_address_space_page_bytes() / cache->row_bytes) + 1;
        int64_t begin = held->first > rows_a_page ? held->first - rows_a_page : 0;
        discard_rows(cache, layer, begin, first_position);
    }
    if (end_position < held->end)
        discard_rows(cache, layer, end_position, held->end);
    *held = (struct held_range){first_position, end_position};
}

enum gptoss_status gptoss_cpu_cache_copy(struct gptoss_cache *to, const struct gptoss_cache *from,
                                         struct gptoss_error *error) {
    (void)error;
    for (int32_t layer = 0; layer < from->shape.num_layers; ++layer) {
        int64_t first = from->held[layer].first, end = from->held[layer].end;
        uint64_t start =
            2 * (uint64_t)layer * from->plane_bytes + (uint64_t)first * from->row_bytes;
        for (int32_t head = 0; head < 2 * from->shape.num_kv_heads;
             ++head, start += from->head_stride_bytes)
            memcpy(to->space.base + start, from->space.base + start,
                   (uint64_t)(end - first) * from->row_bytes);
        to->held[layer] = from->held[layer];
    }
    return GPTOSS_OK;
}
