/* Rotary positions, the cache's new rows, and attention with sinks. */
#include <math.h>
#include <string.h>

#include "cpu/cpu_backend.h"
#include "numeric/dtype.h"
#include "numeric/float_math.h"

/* Queries that share one conversion of a tile of keys. */
#define MAX_BLOCK_QUERIES 128

/* ---- rope and append ---- */

struct rope_append {
    const struct gptoss_kernels *kernels;
    const struct gptoss_row_table *table;
    const struct gptoss_rope_append *operation;
};

static void store_head(const struct gptoss_kernels *kernels, enum gptoss_dtype dtype,
                       const float *x, int64_t n, void *out) {
    if (dtype == GPTOSS_DTYPE_F16)
        kernels->convert_f32_f16(x, n, out);
    else
        memcpy(out, x, (size_t)n * sizeof *x);
}

static void rope_append_task(void *context, int64_t row, int thread) {
    (void)thread;
    const struct rope_append *work = context;
    const struct gptoss_rope_append *operation = work->operation;
    const struct gptoss_row_table *table = work->table;
    int64_t head_dim = operation->head_dim, half = head_dim / 2,
            num_kv_heads = operation->num_kv_heads;
    float *queries =
        gptoss_buffer_floats(operation->queries) + row * operation->num_heads * head_dim;
    float *keys = gptoss_buffer_floats(operation->keys) + row * num_kv_heads * head_dim;
    const float *values = gptoss_buffer_floats(operation->values) + row * num_kv_heads * head_dim;
    const float *cosine = table->cosine + row * half, *sine = table->sine + row * half;
    work->kernels->rope(queries, cosine, sine, half, operation->num_heads);
    work->kernels->rope(keys, cosine, sine, half, num_kv_heads);

    int64_t position = table->rows[row].position;
    const struct gptoss_cache *cache = table->caches[table->rows[row].slot];
    enum gptoss_dtype dtype = gptoss_cpu_cache_shape(cache)->dtype;
    struct gptoss_kv_view view;
    gptoss_cpu_cache_view(cache, operation->layer, &view);
    /* A row that is held already has the right bits; a replay may arrive here with a row it does
     * not know enough for. */
    if (position >= view.first_position && position < view.end_position)
        return;
    for (int64_t head = 0; head < num_kv_heads; ++head) {
        uint64_t at = (uint64_t)head * view.head_stride_bytes + (uint64_t)position * view.row_bytes;
        store_head(work->kernels, dtype, keys + head * head_dim, head_dim,
                   (uint8_t *)view.keys + at);
        store_head(work->kernels, dtype, values + head * head_dim, head_dim,
                   (uint8_t *)view.values + at);
    }
}

enum gptoss_status gptoss_cpu_rope_append(struct gptoss_backend *base,
                                          const struct gptoss_row_table *table,
                                          const struct gptoss_rope_append *operation) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    struct rope_append work = {backend->kernels, table, operation};
    return gptoss_cpu_run_rows(backend, rope_append_task, &work, table->num_rows, table->num_rows);
}

/* ---- attention ---- */

/* A task is one KV head and a block of rows of one slot, whose queries go through the tiles of keys
 * together. */
struct block {
    int64_t first_row, num_rows;
};

struct attention {
    struct gptoss_cpu_backend *backend;
    const struct gptoss_row_table *table;
    const struct gptoss_attention *operation;
    const struct block *blocks;
    const float *sinks;
    int64_t group;       /* query heads of a KV head */
    int64_t max_queries; /* of a block */
};

/* One thread's memory for one block. */
struct block_memory {
    float *queries, *value, *tile_value, *maximum, *sum, *tile_maximum, *tile_sum, *kernel;
    int32_t *first_key, *end_key;
};

static uint64_t block_memory_floats(int64_t max_queries, int64_t head_dim) {
    return (uint64_t)(max_queries * (3 * head_dim + 6) + GPTOSS_ATTENTION_SCRATCH(head_dim));
}

static struct block_memory block_memory_at(float *memory, int64_t max_queries, int64_t head_dim) {
    struct block_memory block;
    block.kernel = memory;
    block.queries = block.kernel + GPTOSS_ATTENTION_SCRATCH(head_dim);
    block.value = block.queries + max_queries * head_dim;
    block.tile_value = block.value + max_queries * head_dim;
    block.maximum = block.tile_value + max_queries * head_dim;
    block.sum = block.maximum + max_queries;
    block.tile_maximum = block.sum + max_queries;
    block.tile_sum = block.tile_maximum + max_queries;
    block.first_key = (int32_t *)(block.tile_sum + max_queries);
    block.end_key = block.first_key + max_queries;
    return block;
}

static int64_t first_visible(int64_t position, int32_t window) {
    return window > 0 && position >= window ? position - window + 1 : 0;
}

static int32_t clamp_to_tile(int64_t key) {
    return key < 0 ? 0 : key > GPTOSS_ATTENTION_TILE ? GPTOSS_ATTENTION_TILE : (int32_t)key;
}

/* Queries of the block in rows of their own, state (maximum, sum, value) = (sink, 1, 0). */
static void begin_block(const struct attention *work, const struct block *block, int64_t kv_head,
                        struct block_memory *memory) {
    const struct gptoss_attention *operation = work->operation;
    int64_t head_dim = operation->head_dim, group = work->group;
    const float *queries = gptoss_buffer_floats(operation->queries);
    for (int64_t r = 0; r < block->num_rows; ++r) {
        const float *from =
            queries + ((block->first_row + r) * operation->num_heads + kv_head * group) * head_dim;
        memcpy(memory->queries + r * group * head_dim, from,
               (size_t)(group * head_dim) * sizeof *from);
        for (int64_t g = 0; g < group; ++g) {
            memory->maximum[r * group + g] = work->sinks[kv_head * group + g];
            memory->sum[r * group + g] = 1.0f;
        }
    }
    memset(memory->value, 0, (size_t)(block->num_rows * group * head_dim) * sizeof *memory->value);
}

static void attend_tile(const struct attention *work, const struct block *block, int64_t kv_head,
                        int64_t tile_start, struct block_memory *memory) {
    const struct gptoss_attention *operation = work->operation;
    const struct gptoss_kernels *kernels = work->backend->kernels;
    const struct gptoss_row *rows = work->table->rows + block->first_row;
    int64_t head_dim = operation->head_dim, group = work->group,
            num_queries = block->num_rows * group;
    for (int64_t i = 0; i < num_queries; ++i) {
        int64_t position = rows[i / group].position;
        memory->first_key[i] =
            clamp_to_tile(first_visible(position, operation->window) - tile_start);
        memory->end_key[i] = clamp_to_tile(position + 1 - tile_start);
    }
    const struct gptoss_cache *cache = work->table->caches[rows[0].slot];
    struct gptoss_kv_view view;
    gptoss_cpu_cache_view(cache, operation->layer, &view);
    uint64_t at =
        (uint64_t)kv_head * view.head_stride_bytes + (uint64_t)tile_start * view.row_bytes;
    struct gptoss_attention_tile tile = {
        .keys = (const uint8_t *)view.keys + at,
        .values = (const uint8_t *)view.values + at,
        .row_bytes = (int64_t)view.row_bytes,
        .head_dim = operation->head_dim,
        .num_queries = (int32_t)num_queries,
        .scale = operation->scale,
        .queries = memory->queries,
        .query_stride = head_dim,
        .first_key = memory->first_key,
        .end_key = memory->end_key,
        .maximum = memory->tile_maximum,
        .sum = memory->tile_sum,
        .value = memory->tile_value,
    };
    bool f16 = gptoss_cpu_cache_shape(cache)->dtype == GPTOSS_DTYPE_F16;
    (f16 ? kernels->attention_tile_f16 : kernels->attention_tile_f32)(&tile, memory->kernel);
    for (int64_t i = 0; i < num_queries; ++i)
        if (memory->end_key[i] > memory->first_key[i])
            kernels->attention_merge(&memory->maximum[i], &memory->sum[i],
                                     memory->value + i * head_dim, memory->tile_maximum[i],
                                     memory->tile_sum[i], memory->tile_value + i * head_dim,
                                     head_dim);
}

static void attention_task(void *context, int64_t task, int thread) {
    const struct attention *work = context;
    const struct gptoss_attention *operation = work->operation;
    const struct block *block = &work->blocks[task / operation->num_kv_heads];
    int64_t kv_head = task % operation->num_kv_heads, head_dim = operation->head_dim,
            group = work->group;
    struct block_memory memory =
        block_memory_at(work->backend->thread_scratch[thread].memory, work->max_queries, head_dim);
    begin_block(work, block, kv_head, &memory);
    const struct gptoss_row *rows = work->table->rows + block->first_row;
    int64_t first = first_visible(rows[0].position, operation->window) / GPTOSS_ATTENTION_TILE;
    int64_t last = rows[block->num_rows - 1].position / GPTOSS_ATTENTION_TILE;
    for (int64_t tile = first; tile <= last; ++tile)
        attend_tile(work, block, kv_head, tile * GPTOSS_ATTENTION_TILE, &memory);

    float *out = gptoss_buffer_floats(operation->out);
    float *sink_mass =
        operation->sink_mass != NULL ? gptoss_buffer_floats(operation->sink_mass) : NULL;
    for (int64_t i = 0; i < block->num_rows * group; ++i) {
        int64_t head = kv_head * group + i % group;
        int64_t line = (block->first_row + i / group) * operation->num_heads + head;
        work->backend->kernels->divide(memory.value + i * head_dim, memory.sum[i], head_dim,
                                       out + line * head_dim);
        if (sink_mass != NULL)
            sink_mass[line] = gptoss_expf(work->sinks[head] - memory.maximum[i]) / memory.sum[i];
    }
}

/* Cuts the table into blocks: at slot changes, and every max_rows rows. */
static int64_t cut_blocks(const struct gptoss_row_table *table, int64_t max_rows,
                          struct block *blocks) {
    int64_t num_blocks = 0;
    for (int64_t row = 0; row < table->num_rows; ++row) {
        struct block *last = num_blocks > 0 ? &blocks[num_blocks - 1] : NULL;
        if (last != NULL && last->num_rows < max_rows &&
            table->rows[row].slot == table->rows[row - 1].slot)
            ++last->num_rows;
        else
            blocks[num_blocks++] = (struct block){row, 1};
    }
    return num_blocks;
}

enum gptoss_status gptoss_cpu_attention(struct gptoss_backend *base,
                                        const struct gptoss_row_table *table,
                                        const struct gptoss_attention *operation) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    int64_t group = operation->num_heads / operation->num_kv_heads;
    int64_t max_rows = group < MAX_BLOCK_QUERIES ? MAX_BLOCK_QUERIES / group : 1;
    if (max_rows > table->num_rows)
        max_rows = table->num_rows;
    uint64_t sink_bytes = (uint64_t)operation->num_heads * sizeof(float);
    enum gptoss_status status = gptoss_scratch_reserve(&backend->decoded, sink_bytes);
    if (status == GPTOSS_OK)
        status = gptoss_scratch_reserve(&backend->grouping,
                                        (uint64_t)table->num_rows * sizeof(struct block));
    if (status == GPTOSS_OK)
        status = gptoss_thread_scratch_reserve(
            backend, block_memory_floats(max_rows * group, operation->head_dim) * sizeof(float));
    if (status != GPTOSS_OK)
        return status;
    gptoss_decode_elements(operation->sinks->dtype, operation->sinks->data,
                           (size_t)operation->num_heads, backend->decoded.memory);
    int64_t num_blocks = cut_blocks(table, max_rows, backend->grouping.memory);
    struct attention work = {
        .backend = backend,
        .table = table,
        .operation = operation,
        .blocks = backend->grouping.memory,
        .sinks = backend->decoded.memory,
        .group = group,
        .max_queries = max_rows * group,
    };
    return gptoss_cpu_run(backend, attention_task, &work, num_blocks * operation->num_kv_heads);
}
