/* The Vulkan back end: lists the commands of operations when they are called and replays the
 * recording of a pass that had the same ones. Shared by the vulkan_*.c files. */
#ifndef GPTOSS_VULKAN_VULKAN_BACKEND_H
#define GPTOSS_VULKAN_VULKAN_BACKEND_H

#include <pthread.h>

#include "backend.h"
#include "cpu/thread_pool.h"
#include "vulkan/shaders/push_constants.h"
#include "vulkan/vulkan.h"
#include "vulkan/vulkan_command.h"
#include "vulkan/vulkan_weights.h"

/* Memory that grows to the largest use and stays. */
enum gptoss_scratch_use {
    GPTOSS_SCRATCH_LOGITS,
    GPTOSS_SCRATCH_ATTENTION, /* parts */
    GPTOSS_SCRATCH_COUNTERS,  /* of parts; zero between passes */
    GPTOSS_SCRATCH_GROUPS,    /* routes and tiles */
    GPTOSS_SCRATCH_ROUNDED,   /* lines of x in float16, and their scales */
    GPTOSS_SCRATCH_GUESS,     /* maxima and sums of the logits' parts */
    GPTOSS_SCRATCH_LOW_RANK,  /* a x of adapters' terms */
    GPTOSS_SCRATCH_UP,        /* of an MLP whose gate and up are multiplied apart */
    GPTOSS_NUM_SCRATCHES
};

/* What timings count: the operations, and copies and clearing. */
#define GPTOSS_FOR_TIMERS(X) X(other) GPTOSS_FOR_OPERATIONS(X)
enum gptoss_vulkan_timer {
#define GPTOSS_TIMER_ID(name) GPTOSS_TIMER_##name,
    GPTOSS_FOR_TIMERS(GPTOSS_TIMER_ID)
#undef GPTOSS_TIMER_ID
};

/* Rows and rotations of a pass, where the device finds them. */
struct gptoss_vulkan_table {
    struct gptoss_vulkan_memory memory;
    int64_t max_rows, max_angles;              /* that there is room for */
    uint64_t rows, cosine, sine, list, random; /* addresses in it */
};

struct gptoss_vulkan_backend {
    struct gptoss_backend base;
    struct gptoss_vulkan_device device;
    struct gptoss_vulkan_pipelines pipelines;
    struct gptoss_vulkan_queue queue;
    struct gptoss_vulkan_weights weights;
    bool is_loading; /* operations only tell which weights they use */

    enum gptoss_vulkan_timer timer; /* of the operation that lists commands now */

    int owner; /* the process that opened the device: none of this survives fork() */
    int num_threads;
    pthread_mutex_t turn;
    struct gptoss_thread_pool *pool; /* for tasks on the host */
    gptoss_poll_fn poll;
    void *poll_user;
    uint64_t done, total, last_poll;
    struct gptoss_error error; /* of the operation that failed last */
    enum gptoss_status failed; /* of a buffer_read or progress of this pass, which cannot tell
                                  themselves: what comes next does */

    /* One for each pass of a turn that may be waiting when the next is listed. */
    struct gptoss_vulkan_table tables[GPTOSS_MAX_DEFERRED];
    int32_t num_guesses; /* of this turn: which table is the pass's */
    struct {
        float *logits;
        int32_t *token;              /* guessed from them, or NULL */
    } deferred[GPTOSS_MAX_DEFERRED]; /* where results go in the end */
    int32_t num_deferred, num_taken; /* of those, in their order, what take_deferred had */
    uint64_t deferred_bytes;         /* of a row of logits */
    struct gptoss_vulkan_memory deferred_results; /* the logits' rows, then the tokens */
    int64_t num_rows;                             /* of the pass */
    int64_t end_position;                         /* the largest of the pass, plus one */
    bool is_one_run; /* whether its rows follow each other in one cache */
    bool has_f32;    /* whether any of its caches is float32 */

    struct gptoss_vulkan_memory scratch[GPTOSS_NUM_SCRATCHES];
    struct gptoss_vulkan_memory readback;
    struct gptoss_vulkan_memory upload; /* what buffer_write gets, until the list has run */
    uint64_t upload_used;
    bool is_f16; /* precision: many tokens are multiplied by cooperative matrices */
    struct {
        uint64_t x;
        int64_t first_line, num_lines;
        uint32_t num_columns;
        bool interleaves;
    } rounded; /* what is in GPTOSS_SCRATCH_ROUNDED, within an operation */
    const struct gptoss_buffer *norm_of; /* normed: not computed yet, see vulkan_operations.c */
    struct gptoss_norm_push pending_norm;
};

struct gptoss_buffer {
    struct gptoss_vulkan_memory memory;
    uint64_t row_bytes;
};

/* False after fork(): the device is the parent's, and nothing of it may be touched. */
bool gptoss_vulkan_is_ours(const struct gptoss_vulkan_backend *backend);
/* At least num_bytes of a scratch memory, whose contents do not survive; zeroed when it grows. */
enum gptoss_status gptoss_vulkan_scratch(struct gptoss_vulkan_backend *backend,
                                         enum gptoss_scratch_use use, uint64_t num_bytes,
                                         uint64_t *address_out);
/* Waits for a pass that was started behind others, asking the poll function meanwhile. */
enum gptoss_status gptoss_vulkan_wait_as_asked(struct gptoss_vulkan_backend *backend,
                                               uint32_t index);
/* Starts what is listed and waits for it. */
enum gptoss_status gptoss_vulkan_flush(struct gptoss_vulkan_backend *backend);
/* At least num_bytes that the host can read. */
enum gptoss_status gptoss_vulkan_reserve_readback(struct gptoss_vulkan_backend *backend,
                                                  uint64_t num_bytes);

/* ---- vulkan_operations.c ---- */

enum gptoss_status gptoss_vulkan_take_rows(struct gptoss_backend *,
                                           const struct gptoss_row_table *);
enum gptoss_status gptoss_vulkan_embed(struct gptoss_backend *, const struct gptoss_row_table *,
                                       const struct gptoss_embed *);
enum gptoss_status gptoss_vulkan_norm_linear(struct gptoss_backend *,
                                             const struct gptoss_row_table *,
                                             const struct gptoss_norm_linear *);
enum gptoss_status gptoss_vulkan_linear_residual(struct gptoss_backend *,
                                                 const struct gptoss_row_table *,
                                                 const struct gptoss_linear_residual *);
enum gptoss_status gptoss_vulkan_mlp_up(struct gptoss_backend *, const struct gptoss_row_table *,
                                        const struct gptoss_mlp_up *);
enum gptoss_status gptoss_vulkan_unembed(struct gptoss_backend *, const struct gptoss_row_table *,
                                         const struct gptoss_unembed *);
/* Lists a product of a few lines with a weight. push: complete. */
struct gptoss_rows_product {
    struct gptoss_device_weight weight;
    struct gptoss_product_push push;
    uint32_t mode;
    int64_t num_lines;
    bool joins_previous;
};
enum gptoss_status gptoss_vulkan_rows(struct gptoss_vulkan_backend *backend,
                                      const struct gptoss_rows_product *product);
/* Lists a product of many lines with a weight: on cooperative matrices where the precision, and the
 * range of the weight, allow. push is complete but for x's lines in float16. num_lines: of x;
 * tiles: of tokens; pairs: of rows; mode and experts: constants of the shaders. */
struct gptoss_panel {
    struct gptoss_device_weight weight, up;
    struct gptoss_product_push push;
    int64_t num_lines, num_tiles;
    uint32_t mode;
    bool is_pair, has_experts, joins_previous;
};
enum gptoss_status gptoss_vulkan_panel(struct gptoss_vulkan_backend *backend,
                                       struct gptoss_panel *panel);
/* A product with a dense weight. push: x with its norm and first line, and what the mode writes. */
struct gptoss_dense_product {
    const struct gptoss_weight *weight, *up; /* up: NULL but for pairs in two matrices */
    const struct gptoss_vector *bias, *up_bias;
    uint32_t mode;
    bool joins_previous, in_rows; /* in_rows: the weight is, for another operation's sake */
    struct gptoss_product_push push;
};
/* Lists it without the terms of adapters. While loading it only names the weights. */
enum gptoss_status gptoss_vulkan_product(struct gptoss_vulkan_backend *backend,
                                         const struct gptoss_dense_product *product,
                                         int64_t num_tokens);
/* Lists the norm that a product did without, if `buffer` is what it would have filled. */
enum gptoss_status gptoss_vulkan_settle_norm(struct gptoss_vulkan_backend *backend,
                                             const struct gptoss_buffer *buffer);

/* Reserves the table that num_guesses tells. */
enum gptoss_status gptoss_vulkan_reserve_table(struct gptoss_vulkan_backend *backend,
                                               int64_t num_rows, int64_t num_angles);

/* ---- vulkan_guess.c ---- */

/* Lists the way of a row of logits, in GPTOSS_SCRATCH_LOGITS, to where they wait for the end. */
enum gptoss_status gptoss_vulkan_defer_logits(struct gptoss_vulkan_backend *backend,
                                              const struct gptoss_unembed *operation);
enum gptoss_status gptoss_vulkan_guess(struct gptoss_backend *, const struct gptoss_guess *);
enum gptoss_status gptoss_vulkan_take_deferred(struct gptoss_backend *, int32_t index);
/* Hands the rest of what was deferred to those who wait for it. */
void gptoss_vulkan_collect(struct gptoss_vulkan_backend *backend);

/* ---- vulkan_low_rank.c ---- */

/* Lists products that need nothing of each other, and then what the terms of adapters add to them:
 * those with terms store or join the residual. */
enum gptoss_status gptoss_vulkan_multiply_dense(struct gptoss_vulkan_backend *backend,
                                                const struct gptoss_dense_product *products,
                                                int32_t num_products, int64_t num_tokens);

/* ---- vulkan_experts.c ---- */

enum gptoss_status gptoss_vulkan_route(struct gptoss_backend *, const struct gptoss_row_table *,
                                       const struct gptoss_route *);
enum gptoss_status gptoss_vulkan_expert_gate_up(struct gptoss_backend *,
                                                const struct gptoss_row_table *,
                                                const struct gptoss_expert_gate_up *);
enum gptoss_status gptoss_vulkan_expert_down(struct gptoss_backend *,
                                             const struct gptoss_row_table *,
                                             const struct gptoss_expert_down *);

/* ---- vulkan_attention.c ---- */

enum gptoss_status gptoss_vulkan_rope_append(struct gptoss_backend *,
                                             const struct gptoss_row_table *,
                                             const struct gptoss_rope_append *);
enum gptoss_status gptoss_vulkan_attention(struct gptoss_backend *, const struct gptoss_row_table *,
                                           const struct gptoss_attention *);

/* ---- vulkan_cache.c ---- */

enum gptoss_status gptoss_vulkan_cache_create(struct gptoss_backend *,
                                              const struct gptoss_cache_shape *,
                                              struct gptoss_cache **, struct gptoss_error *);
void gptoss_vulkan_cache_release(struct gptoss_backend *, struct gptoss_cache *);
void gptoss_vulkan_cache_view(const struct gptoss_cache *, int32_t, struct gptoss_kv_view *);
enum gptoss_status gptoss_vulkan_cache_fetch(struct gptoss_backend *, struct gptoss_cache *,
                                             int32_t, struct gptoss_error *);
void gptoss_vulkan_cache_hold(struct gptoss_cache *, int32_t, int64_t, int64_t);
enum gptoss_status gptoss_vulkan_cache_copy(struct gptoss_cache *, const struct gptoss_cache *,
                                            struct gptoss_error *);
/* Room for num_positions, which may move the rows; and where the device finds it. */
enum gptoss_status gptoss_vulkan_cache_reserve(struct gptoss_vulkan_backend *backend,
                                               struct gptoss_cache *cache, int64_t num_positions);
void gptoss_vulkan_cache_locate(const struct gptoss_cache *cache, struct gptoss_device_row *row);
int64_t gptoss_vulkan_cache_end(const struct gptoss_cache *cache);

/* ---- how commands are listed ---- */

struct gptoss_dispatch {
    struct gptoss_pipeline_key key;
    const void *push;
    uint32_t push_bytes;
    int64_t groups[3];
    bool joins_previous;
};
enum gptoss_status gptoss_vulkan_dispatch(struct gptoss_vulkan_backend *backend,
                                          const struct gptoss_dispatch *dispatch);

static inline struct gptoss_vulkan_backend *gptoss_vulkan_of(struct gptoss_backend *base) {
    return (struct gptoss_vulkan_backend *)base;
}
static inline const struct gptoss_vulkan_table *
gptoss_vulkan_table(const struct gptoss_vulkan_backend *backend) {
    return &backend->tables[backend->num_guesses];
}
static inline uint64_t gptoss_address_of(const struct gptoss_buffer *buffer) {
    return buffer != NULL ? buffer->memory.address : 0;
}
static inline int64_t gptoss_ceil_div(int64_t count, int64_t size) {
    return (count + size - 1) / size;
}

#endif
