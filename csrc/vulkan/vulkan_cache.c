/* Keys and values of one sequence in device memory: [layer][keys,
 * values][head][capacity][head_dim]. The capacity grows with the sequence. Rows that sliding layers
 * no longer need stay. A cache of no layers takes no memory: of a part of a model without any. */
#include <string.h>

#include "platform/address_space.h"
#include "platform/allocator.h"
#include "status.h"
#include "vulkan/vulkan_backend.h"

#define MIN_CAPACITY 256

struct gptoss_cache {
    struct gptoss_vulkan_backend *backend;
    struct gptoss_cache_shape shape;
    struct gptoss_vulkan_memory memory;
    int64_t capacity, end; /* positions there is room for, and held */
    int64_t num_written;   /* that passes may have written, held or not yet */
    uint64_t row_bytes;
    struct gptoss_address_space
        copy; /* what views show: [layer][keys, values][head][max_context] */
};

/* Heads, of all layers, keys and values. */
static int64_t num_lines(const struct gptoss_cache *cache) {
    return 2 * (int64_t)cache->shape.num_layers * cache->shape.num_kv_heads;
}

enum gptoss_status gptoss_vulkan_cache_create(struct gptoss_backend *base,
                                              const struct gptoss_cache_shape *shape,
                                              struct gptoss_cache **cache_out,
                                              struct gptoss_error *error) {
    *cache_out = NULL;
    uint64_t row_bytes = (uint64_t)shape->head_dim * gptoss_dtype_bytes(shape->dtype), num_bytes;
    uint64_t lines = 2 * (uint64_t)shape->num_layers * (uint64_t)shape->num_kv_heads;
    if (__builtin_mul_overflow(row_bytes * (uint64_t)shape->max_context, lines, &num_bytes) ||
        num_bytes > PTRDIFF_MAX)
        return gptoss_error_set(error, GPTOSS_ERROR_MEMORY,
                                "a cache of %lld positions is beyond the address space",
                                (long long)shape->max_context);
    struct gptoss_cache *cache = gptoss_allocate(1, sizeof *cache);
    if (cache == NULL)
        return gptoss_error_memory(error, sizeof *cache, "the cache");
    *cache = (struct gptoss_cache){
        .backend = gptoss_vulkan_of(base), .shape = *shape, .row_bytes = row_bytes};
    *cache_out = cache;
    return GPTOSS_OK;
}

void gptoss_vulkan_cache_release(struct gptoss_backend *base, struct gptoss_cache *cache) {
    if (cache == NULL)
        return;
    (void)base;
    if (gptoss_vulkan_is_ours(cache->backend))
        gptoss_vulkan_memory_release(&cache->backend->device, &cache->memory);
    gptoss_address_space_release(&cache->copy);
    gptoss_free(cache);
}

/* Copies the first num_rows rows of every head. */
static enum gptoss_status copy_rows(struct gptoss_vulkan_queue *queue,
                                    const struct gptoss_vulkan_memory *from, int64_t from_capacity,
                                    const struct gptoss_vulkan_memory *to, int64_t to_capacity,
                                    const struct gptoss_cache *cache, int64_t num_rows,
                                    struct gptoss_error *error) {
    if (num_rows == 0)
        return GPTOSS_OK;
    uint64_t num_bytes = (uint64_t)num_rows * cache->row_bytes;
    for (int64_t line = 0; line < num_lines(cache); ++line)
        if (gptoss_vulkan_list_copy(queue, from,
                                    (uint64_t)(line * from_capacity) * cache->row_bytes, to,
                                    (uint64_t)(line * to_capacity) * cache->row_bytes, num_bytes,
                                    line > 0) != GPTOSS_OK)
            return gptoss_vulkan_list_refused(error);
    GPTOSS_TRY(gptoss_vulkan_start(queue, false, error));
    return gptoss_vulkan_wait(queue, NULL, NULL, error);
}

static enum gptoss_status move_to(struct gptoss_vulkan_backend *backend, struct gptoss_cache *cache,
                                  int64_t capacity, struct gptoss_error *error) {
    struct gptoss_vulkan_memory memory;
    GPTOSS_TRY(
        gptoss_vulkan_memory_create(&backend->device, GPTOSS_VULKAN_DEVICE,
                                    (uint64_t)(num_lines(cache) * capacity) * cache->row_bytes,
                                    "keys and values", &memory, error));
    enum gptoss_status status = copy_rows(&backend->queue, &cache->memory, cache->capacity, &memory,
                                          capacity, cache, cache->num_written, error);
    if (status != GPTOSS_OK) {
        gptoss_vulkan_memory_release(&backend->device, &memory);
        return status;
    }
    gptoss_vulkan_memory_release(&backend->device, &cache->memory);
    cache->memory = memory;
    cache->capacity = capacity;
    return GPTOSS_OK;
}

/* Room for a power of two of positions, so that growing and recordings last; if memory is short of
 * that, for few more than are asked for. */
static enum gptoss_status grow(struct gptoss_vulkan_backend *backend, struct gptoss_cache *cache,
                               int64_t num_positions, struct gptoss_error *error) {
    if (num_positions <= cache->capacity || num_lines(cache) == 0)
        return GPTOSS_OK;
    int64_t max_context = cache->shape.max_context, capacity = MIN_CAPACITY;
    int64_t least = gptoss_ceil_div(num_positions, MIN_CAPACITY) * MIN_CAPACITY;
    while (capacity < num_positions)
        capacity *= 2;
    capacity = capacity < max_context ? capacity : max_context;
    least = least < max_context ? least : max_context;
    enum gptoss_status status = move_to(backend, cache, capacity, error);
    if (status == GPTOSS_ERROR_MEMORY && least < capacity)
        status = move_to(backend, cache, least, error);
    return status;
}

enum gptoss_status gptoss_vulkan_cache_reserve(struct gptoss_vulkan_backend *backend,
                                               struct gptoss_cache *cache, int64_t num_positions) {
    GPTOSS_TRY(grow(backend, cache, num_positions, &backend->error));
    if (num_positions > cache->num_written)
        cache->num_written = num_positions;
    return GPTOSS_OK;
}

void gptoss_vulkan_cache_locate(const struct gptoss_cache *cache, struct gptoss_device_row *row) {
    row->cache = cache->memory.address;
    row->capacity = (uint32_t)cache->capacity;
    row->is_f32 = cache->shape.dtype == GPTOSS_DTYPE_F32;
}

int64_t gptoss_vulkan_cache_end(const struct gptoss_cache *cache) {
    return cache->end;
}

void gptoss_vulkan_cache_view(const struct gptoss_cache *cache, int32_t layer,
                              struct gptoss_kv_view *view_out) {
    uint64_t head_bytes = (uint64_t)cache->shape.max_context * cache->row_bytes;
    uint64_t plane_bytes = head_bytes * (uint64_t)cache->shape.num_kv_heads;
    const uint8_t *keys =
        cache->copy.base != NULL ? cache->copy.base + 2 * (uint64_t)layer * plane_bytes : NULL;
    *view_out = (struct gptoss_kv_view){
        .keys = keys,
        .values = keys != NULL ? keys + plane_bytes : NULL,
        .end_position = cache->end,
        .head_stride_bytes = head_bytes,
        .row_bytes = cache->row_bytes,
    };
}

/* A layer's rows, from the device to the host's copy. */
static enum gptoss_status fetch(struct gptoss_vulkan_backend *backend, struct gptoss_cache *cache,
                                int32_t layer, struct gptoss_error *error) {
    int64_t heads = 2 * (int64_t)cache->shape.num_kv_heads, first = layer * heads;
    uint64_t head_bytes = (uint64_t)cache->shape.max_context * cache->row_bytes;
    uint64_t num_bytes = (uint64_t)cache->end * cache->row_bytes;
    if (cache->copy.base == NULL &&
        !gptoss_address_space_reserve(head_bytes * (uint64_t)num_lines(cache), &cache->copy))
        return gptoss_error_memory(error, head_bytes * (uint64_t)num_lines(cache),
                                   "a copy of the cache (address space)");
    if (num_bytes == 0)
        return GPTOSS_OK;
    enum gptoss_status status =
        gptoss_vulkan_reserve_readback(backend, (uint64_t)heads * num_bytes);
    if (status != GPTOSS_OK) {
        if (error != NULL)
            *error = backend->error;
        return status;
    }
    for (int64_t head = 0; head < heads; ++head)
        if (gptoss_vulkan_list_copy(&backend->queue, &cache->memory,
                                    (uint64_t)((first + head) * cache->capacity) * cache->row_bytes,
                                    &backend->readback, (uint64_t)head * num_bytes, num_bytes,
                                    head > 0) != GPTOSS_OK)
            return gptoss_vulkan_list_refused(error);
    GPTOSS_TRY(gptoss_vulkan_start(&backend->queue, false, error));
    GPTOSS_TRY(gptoss_vulkan_wait(&backend->queue, NULL, NULL, error));
    for (int64_t head = 0; head < heads; ++head)
        memcpy(cache->copy.base + (uint64_t)(first + head) * head_bytes,
               (const uint8_t *)backend->readback.host + (uint64_t)head * num_bytes, num_bytes);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_vulkan_cache_fetch(struct gptoss_backend *base,
                                             struct gptoss_cache *cache, int32_t layer,
                                             struct gptoss_error *error) {
    GPTOSS_TRY(base->operations->begin(base, NULL, NULL, error));
    enum gptoss_status status = fetch(gptoss_vulkan_of(base), cache, layer, error);
    enum gptoss_status end = base->operations->end(base, status == GPTOSS_OK ? error : NULL);
    return status != GPTOSS_OK ? status : end;
}

void gptoss_vulkan_cache_hold(struct gptoss_cache *cache, int32_t layer, int64_t first_position,
                              int64_t end_position) {
    (void)layer; /* every layer holds the same rows */
    (void)first_position;
    cache->end = end_position;
}

enum gptoss_status gptoss_vulkan_cache_copy(struct gptoss_cache *to,
                                            const struct gptoss_cache *from,
                                            struct gptoss_error *error) {
    struct gptoss_vulkan_backend *backend = from->backend;
    GPTOSS_TRY(backend->base.operations->begin(&backend->base, NULL, NULL, error));
    enum gptoss_status status = grow(backend, to, from->end, error);
    if (status == GPTOSS_OK)
        status = copy_rows(&backend->queue, &from->memory, from->capacity, &to->memory,
                           to->capacity, from, from->end, error);
    to->end = to->num_written = from->end;
    enum gptoss_status end =
        backend->base.operations->end(&backend->base, status == GPTOSS_OK ? error : NULL);
    return status != GPTOSS_OK ? status : end;
}
