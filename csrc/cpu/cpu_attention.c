/* Rotary positions, the cache's new rows, and attention. */
#include <math.h>
#include <string.h>

#include "cpu/bf16_units.h"
#include "numeric/dtype.h"
#include "numeric/float_math.h"
#include "status.h"

/* Queries that share one conversion of a tile of keys. */
#define MAX_BLOCK_QUERIES 128
/* Parts of blocks: about so many tasks a thread, of no fewer tiles. */
#define PART_TASKS 4
#define MIN_PART_TILES 4
#define MAX_KEPT_BYTES (UINT64_C(64) << 20)

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

static void rotate(const struct rope_append *work, int64_t row, float *queries, float *keys) {
    const struct gptoss_rope_append *operation = work->operation;
    if (operation->rotation == GPTOSS_ROTATE_NOTHING)
        return;
    int64_t half = operation->head_dim / 2;
    const float *cosine = work->table->cosine + row * half, *sine = work->table->sine + row * half;
    __typeof__(work->kernels->rope) rope = operation->rotation == GPTOSS_ROTATE_NEIGHBOURS
                                               ? work->kernels->rope_neighbours
                                               : work->kernels->rope;
    rope(queries, cosine, sine, half, operation->num_heads);
    rope(keys, cosine, sine, half, operation->num_kv_heads);
}

static void rope_append_task(void *context, int64_t row, int thread) {
    (void)thread;
    const struct rope_append *work = context;
    const struct gptoss_rope_append *operation = work->operation;
    const struct gptoss_row_table *table = work->table;
    int64_t head_dim = operation->head_dim, num_kv_heads = operation->num_kv_heads;
    float *queries =
        gptoss_buffer_floats(operation->queries) + row * operation->num_heads * head_dim;
    float *keys = gptoss_buffer_floats(operation->keys) + row * num_kv_heads * head_dim;
    const float *values = gptoss_buffer_floats(operation->values) + row * num_kv_heads * head_dim;
    rotate(work, row, queries, keys);

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

/* Rows of one slot, whose queries go through the tiles of keys together. A task is a block with one
 * KV head. Where these are too few for the threads, as when one row decodes a long context, a task
 * is a part of the tiles; every tile's result is kept and joined afterwards in the order of the
 * tiles, so that the bits are the same. */
struct block {
    int64_t first_row, num_rows;
    int64_t first_tile, num_tiles;
};

struct attention {
    struct gptoss_cpu_backend *backend;
    const struct gptoss_row_table *table;
    const struct gptoss_attention *operation;
    const struct block *blocks;
    int64_t num_blocks;
    const float *sinks;  /* [num_heads], or NULL */
    int64_t group;       /* query heads of a KV head */
    int64_t max_queries; /* of a block */
    int64_t max_tiles;   /* of a block */
    int64_t num_parts;   /* of a block's tiles */
    float *kept;         /* [block][KV head][max_tiles] results of tiles, if there are parts */
};

/* What the kernel gives for a tile, or the running state after some. */
struct results {
    float *maximum, *sum; /* [queries] */
    float *value;         /* [queries][head_dim] */
};

/* One thread's memory for one block. */
struct block_memory {
    float *kernel, *queries;
    struct results state, tile;
    int32_t *first_key, *end_key;
};

static int64_t results_floats(int64_t max_queries, int64_t head_dim) {
    return max_queries * (head_dim + 2);
}

static struct results results_at(float *memory, int64_t max_queries) {
    return (struct results){memory, memory + max_queries, memory + 2 * max_queries};
}

static uint64_t block_memory_floats(int64_t max_queries, int64_t head_dim) {
    return (uint64_t)(GPTOSS_ATTENTION_SCRATCH(head_dim) + max_queries * (head_dim + 2) +
                      2 * results_floats(max_queries, head_dim));
}

static struct block_memory block_memory_at(const struct attention *work, int thread) {
    int64_t head_dim = work->operation->head_dim, max_queries = work->max_queries;
    float *memory = work->backend->thread_scratch[thread].memory;
    struct block_memory block = {.kernel = memory};
    block.queries = block.kernel + GPTOSS_ATTENTION_SCRATCH(head_dim);
    float *state = block.queries + max_queries * head_dim;
    float *tile = state + results_floats(max_queries, head_dim);
    block.state = results_at(state, max_queries);
    block.tile = results_at(tile, max_queries);
    block.first_key = (int32_t *)(tile + results_floats(max_queries, head_dim));
    block.end_key = block.first_key + max_queries;
    return block;
}

static int64_t first_visible(int64_t position, int32_t window) {
    return window > 0 && position >= window ? position - window + 1 : 0;
}

static int32_t clamp_to_tile(int64_t key) {
    return key < 0 ? 0 : key > GPTOSS_ATTENTION_TILE ? GPTOSS_ATTENTION_TILE : (int32_t)key;
}

/* Which keys of a tile a row of the block sees; returns whether any. */
static bool see_keys(const struct attention *work, const struct block *block, int64_t tile,
                     int64_t row, int32_t *first, int32_t *end) {
    int64_t position = work->table->rows[block->first_row + row].position;
    int64_t start = tile * GPTOSS_ATTENTION_TILE;
    *first = clamp_to_tile(first_visible(position, work->operation->window) - start);
    *end = clamp_to_tile(position + 1 - start);
    return *end > *first;
}

/* The queries of the block, each in a row of its own. */
static void gather_queries(const struct attention *work, const struct block *block, int64_t kv_head,
                           struct block_memory *memory) {
    const struct gptoss_attention *operation = work->operation;
    int64_t head_dim = operation->head_dim, group = work->group;
    const float *queries = gptoss_buffer_floats(operation->queries);
    for (int64_t r = 0; r < block->num_rows; ++r) {
        const float *from =
            queries + ((block->first_row + r) * operation->num_heads + kv_head * group) * head_dim;
        memcpy(memory->queries + r * group * head_dim, from,
               (size_t)(group * head_dim) * sizeof *from);
    }
}

static void attend_tile(const struct attention *work, const struct block *block, int64_t kv_head,
                        int64_t tile_index, struct block_memory *memory,
                        const struct results *out) {
    const struct gptoss_attention *operation = work->operation;
    const struct gptoss_cache *cache =
        work->table->caches[work->table->rows[block->first_row].slot];
    struct gptoss_kv_view view;
    gptoss_cpu_cache_view(cache, operation->layer, &view);
    uint64_t at = (uint64_t)kv_head * view.head_stride_bytes +
                  (uint64_t)(tile_index * GPTOSS_ATTENTION_TILE) * view.row_bytes;
    int64_t num_queries = block->num_rows * work->group;
    for (int64_t i = 0; i < num_queries;) {
        int32_t first, end;
        see_keys(work, block, tile_index, i / work->group, &first, &end);
        for (int64_t row_end = i + work->group; i < row_end; ++i) {
            memory->first_key[i] = first;
            memory->end_key[i] = end;
        }
    }
    struct gptoss_attention_tile tile = {
        .keys = (const uint8_t *)view.keys + at,
        .values = (const uint8_t *)view.values + at,
        .row_bytes = (int64_t)view.row_bytes,
        .head_dim = operation->head_dim,
        .num_queries = (int32_t)num_queries,
        .scale = operation->scale,
        .queries = memory->queries,
        .query_stride = operation->head_dim,
        .first_key = memory->first_key,
        .end_key = memory->end_key,
        .maximum = out->maximum,
        .sum = out->sum,
        .value = out->value,
    };
    bool f16 = gptoss_cpu_cache_shape(cache)->dtype == GPTOSS_DTYPE_F16;
    gptoss_attention_tile_select(work->backend->kernels, work->backend->bf16_unit,
                                 f16)(&tile, memory->kernel);
}

/* A query's state begins as (maximum, sum, value) = (sink, 1, 0), without sinks as (-infinity, 0,
 * 0). */
static void begin_query(const struct attention *work, int64_t kv_head, int64_t query,
                        const struct results *state) {
    int64_t head_dim = work->operation->head_dim;
    bool has_sink = work->sinks != NULL;
    state->maximum[query] =
        has_sink ? work->sinks[kv_head * work->group + query % work->group] : -INFINITY;
    state->sum[query] = has_sink ? 1.0f : 0.0f;
    memset(state->value + query * head_dim, 0, (size_t)head_dim * sizeof *state->value);
}

static void join_tile(const struct attention *work, int64_t query, int64_t num_queries,
                      const struct results *tile, const struct results *state) {
    int64_t head_dim = work->operation->head_dim;
    work->backend->kernels->attention_merge(&state->maximum[query], &state->sum[query],
                                            state->value + query * head_dim, &tile->maximum[query],
                                            &tile->sum[query], tile->value + query * head_dim,
                                            num_queries, head_dim);
}

/* The queries that see some of the tile. */
static void join_queries(const struct attention *work, int64_t num_queries,
                         const struct block_memory *memory) {
    for (int64_t i = 0; i < num_queries;) {
        int64_t first = i;
        while (i < num_queries && memory->end_key[i] > memory->first_key[i])
            ++i;
        if (i > first)
            join_tile(work, first, i - first, &memory->tile, &memory->state);
        else
            ++i;
    }
}

static void end_query(const struct attention *work, const struct block *block, int64_t kv_head,
                      int64_t query, const struct results *state) {
    const struct gptoss_attention *operation = work->operation;
    int64_t head_dim = operation->head_dim;
    int64_t head = kv_head * work->group + query % work->group;
    int64_t line = (block->first_row + query / work->group) * operation->num_heads + head;
    work->backend->kernels->divide(state->value + query * head_dim, state->sum[query], head_dim,
                                   gptoss_buffer_floats(operation->out) + line * head_dim);
    if (operation->sink_mass != NULL)
        gptoss_buffer_floats(operation->sink_mass)[line] =
            gptoss_expf(work->sinks[head] - state->maximum[query]) / state->sum[query];
}

/* ---- whole blocks ---- */

static void block_task(void *context, int64_t task, int thread) {
    const struct attention *work = context;
    const struct block *block = &work->blocks[task / work->operation->num_kv_heads];
    int64_t kv_head = task % work->operation->num_kv_heads;
    int64_t num_queries = block->num_rows * work->group;
    struct block_memory memory = block_memory_at(work, thread);
    gather_queries(work, block, kv_head, &memory);
    for (int64_t i = 0; i < num_queries; ++i)
        begin_query(work, kv_head, i, &memory.state);
    for (int64_t tile = block->first_tile; tile < block->first_tile + block->num_tiles; ++tile) {
        attend_tile(work, block, kv_head, tile, &memory, &memory.tile);
        join_queries(work, num_queries, &memory);
    }
    for (int64_t i = 0; i < num_queries; ++i)
        end_query(work, block, kv_head, i, &memory.state);
}

/* ---- parts of blocks ---- */

/* Where the results of tile number `tile` of a block are kept. */
static struct results kept_results(const struct attention *work, int64_t block, int64_t kv_head,
                                   int64_t tile) {
    int64_t index = (block * work->operation->num_kv_heads + kv_head) * work->max_tiles + tile;
    int64_t num_floats = results_floats(work->max_queries, work->operation->head_dim);
    return results_at(work->kept + index * num_floats, work->max_queries);
}

static void part_task(void *context, int64_t task, int thread) {
    const struct attention *work = context;
    int64_t num_kv_heads = work->operation->num_kv_heads;
    int64_t part = task % work->num_parts, kv_head = task / work->num_parts % num_kv_heads;
    int64_t index = task / work->num_parts / num_kv_heads;
    const struct block *block = &work->blocks[index];
    struct block_memory memory = block_memory_at(work, thread);
    gather_queries(work, block, kv_head, &memory);
    int64_t end = block->num_tiles * (part + 1) / work->num_parts;
    for (int64_t tile = block->num_tiles * part / work->num_parts; tile < end; ++tile) {
        struct results kept = kept_results(work, index, kv_head, tile);
        attend_tile(work, block, kv_head, block->first_tile + tile, &memory, &kept);
    }
}

/* Joins the kept tiles of one query. */
static void join_task(void *context, int64_t task, int thread) {
    const struct attention *work = context;
    int64_t num_kv_heads = work->operation->num_kv_heads;
    int64_t query = task % work->max_queries, kv_head = task / work->max_queries % num_kv_heads;
    int64_t index = task / work->max_queries / num_kv_heads;
    const struct block *block = &work->blocks[index];
    if (query >= block->num_rows * work->group)
        return;
    struct block_memory memory = block_memory_at(work, thread);
    begin_query(work, kv_head, query, &memory.state);
    for (int64_t tile = 0; tile < block->num_tiles; ++tile) {
        struct results kept = kept_results(work, index, kv_head, tile);
        int32_t first, end;
        if (see_keys(work, block, block->first_tile + tile, query / work->group, &first, &end))
            join_tile(work, query, 1, &kept, &memory.state);
    }
    end_query(work, block, kv_head, query, &memory.state);
}

/* ---- the operation ---- */

/* Cuts the table into blocks: at slot changes, and every max_rows rows. */
static void cut_blocks(struct attention *work, int64_t max_rows, struct block *blocks) {
    const struct gptoss_row *rows = work->table->rows;
    for (int64_t row = 0; row < work->table->num_rows; ++row) {
        struct block *last = work->num_blocks > 0 ? &blocks[work->num_blocks - 1] : NULL;
        if (last == NULL || last->num_rows == max_rows || rows[row].slot != rows[row - 1].slot) {
            last = &blocks[work->num_blocks++];
            *last = (struct block){.first_row = row};
            last->first_tile =
                first_visible(rows[row].position, work->operation->window) / GPTOSS_ATTENTION_TILE;
        }
        ++last->num_rows;
        last->num_tiles = rows[row].position / GPTOSS_ATTENTION_TILE + 1 - last->first_tile;
        if (last->num_tiles > work->max_tiles)
            work->max_tiles = last->num_tiles;
    }
    work->blocks = blocks;
}

/* Cuts the tiles into parts if whole blocks would leave threads idle. */
static enum gptoss_status cut_parts(struct attention *work) {
    struct gptoss_cpu_backend *backend = work->backend;
    int64_t num_tasks = work->num_blocks * work->operation->num_kv_heads;
    work->num_parts = 1;
    if (backend->num_threads == 1 || num_tasks >= 2 * (int64_t)backend->num_threads)
        return GPTOSS_OK;
    int64_t wanted = (PART_TASKS * (int64_t)backend->num_threads + num_tasks - 1) / num_tasks;
    int64_t possible = work->max_tiles / MIN_PART_TILES;
    if (possible < 2)
        return GPTOSS_OK;
    uint64_t kept_bytes = (uint64_t)(num_tasks * work->max_tiles *
                                     results_floats(work->max_queries, work->operation->head_dim)) *
                          sizeof(float);
    if (kept_bytes > MAX_KEPT_BYTES)
        return GPTOSS_OK;
    GPTOSS_TRY(gptoss_scratch_reserve(&backend->packed, kept_bytes));
    work->num_parts = wanted < possible ? wanted : possible;
    work->kept = backend->packed.memory;
    return GPTOSS_OK;
}

enum gptoss_status gptoss_cpu_attention(struct gptoss_backend *base,
                                        const struct gptoss_row_table *table,
                                        const struct gptoss_attention *operation) {
    struct gptoss_cpu_backend *backend = (struct gptoss_cpu_backend *)base;
    int64_t group = operation->num_heads / operation->num_kv_heads;
    int64_t max_rows = group < MAX_BLOCK_QUERIES ? MAX_BLOCK_QUERIES / group : 1;
    if (max_rows > table->num_rows)
        max_rows = table->num_rows;
    if (operation->sinks != NULL)
        GPTOSS_TRY(gptoss_scratch_reserve(&backend->decoded,
                                          (uint64_t)operation->num_heads * sizeof(float)));
    GPTOSS_TRY(gptoss_scratch_reserve(&backend->grouping,
                                      (uint64_t)table->num_rows * sizeof(struct block)));
    GPTOSS_TRY(gptoss_thread_scratch_reserve(
        backend, block_memory_floats(max_rows * group, operation->head_dim) * sizeof(float)));
    if (operation->sinks != NULL)
        gptoss_decode_elements(operation->sinks->dtype, operation->sinks->data,
                               (size_t)operation->num_heads, backend->decoded.memory);
    struct attention work = {
        .backend = backend,
        .table = table,
        .operation = operation,
        .sinks = operation->sinks != NULL ? backend->decoded.memory : NULL,
        .group = group,
        .max_queries = max_rows * group,
    };
    cut_blocks(&work, max_rows, backend->grouping.memory);
    GPTOSS_TRY(cut_parts(&work));
    int64_t num_tasks = work.num_blocks * operation->num_kv_heads;
    if (work.num_parts == 1)
        return gptoss_cpu_run(backend, block_task, &work, num_tasks);
    GPTOSS_TRY(gptoss_cpu_run(backend, part_task, &work, num_tasks * work.num_parts));
    return gptoss_cpu_run(backend, join_task, &work, num_tasks * work.max_queries);
}
