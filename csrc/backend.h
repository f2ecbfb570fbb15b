/* The hinge between the forward pass and the processor that runs it: a dozen fused operations over
 * a table of rows.
 *
 * A row is one token at one position of one sequence. Prefill, decode and batched decode differ
 * only in the table, which operations read from memory each time: a back end that records its work
 * (Vulkan) never bakes rows into a recording. Activations live in buffers of the back end, float32
 * unless said otherwise, row-major with one line a row of the table. Operations of one pass run in
 * the order they are called; a back end may run them at once or record them. All results are
 * defined to the bit by docs/numerics.md for the CPU.
 */
#ifndef GPTOSS_BACKEND_H
#define GPTOSS_BACKEND_H

#include "gptoss.h"

/* Weights as the checkpoint holds them: num_matrices (1, or one an expert) matrices of num_rows
 * outputs and num_columns inputs, matrix_bytes apart. transposed: stored [inputs][outputs].
 * num_stored: outputs of the transposed matrix that these are a slice of, 0: it is whole. scales:
 * of MXFP4 (not MXFP4_GGUF), MXFP6 and MXFP8, one byte a 32-column block. */
struct gptoss_low_rank;
struct gptoss_weight {
    enum gptoss_dtype dtype;
    bool transposed;
    int64_t num_matrices, num_rows, num_columns;
    int64_t num_stored;
    const uint8_t *data, *scales;
    uint64_t matrix_bytes, scale_matrix_bytes;
    /* Terms of adapters, or NULL: products of norm_linear, linear_residual, mlp_up and unembed with
     * this weight get them added, after the bias. Other operations take weights without. */
    const struct gptoss_low_rank *low_rank;
};

/* + factor * b (a x), then the next. a: [rank][num_columns], b: [num_rows][rank], F32, F16 or BF16.
 */
struct gptoss_low_rank {
    struct gptoss_weight a, b;
    float factor;
    const struct gptoss_low_rank *next;
};

/* num_vectors (1, or one an expert) vectors of num_elements; data NULL: absent, taken as nothing to
 * add. */
struct gptoss_vector {
    enum gptoss_dtype dtype;
    int64_t num_vectors, num_elements;
    const uint8_t *data;
};

struct gptoss_row {
    int32_t slot;  /* which cache of the table */
    int32_t token; /* or GPTOSS_TOKEN_GUESSED: what gptoss_guess found, in a table of one row */
    int64_t position;
};
#define GPTOSS_TOKEN_GUESSED (-1)

struct gptoss_buffer; /* memory of the back end */
struct gptoss_cache;  /* keys and values of one sequence */

/* The table of rows. Rows of a slot stand together in order of position. */
struct gptoss_row_table {
    const struct gptoss_row *rows;
    int64_t num_rows;
    struct gptoss_cache *const *caches;
    const float *cosine, *sine; /* [num_rows][num_angles], the rotation of each row's position */
    int64_t num_angles;         /* head_dim / 2, or 0 where nothing rotates */
};

struct gptoss_cache_shape {
    int32_t num_layers, num_kv_heads, head_dim;
    enum gptoss_dtype dtype; /* F16 or F32; keys and values are rounded to it before any use */
    int64_t max_context;
};

/* out = embedding[token], plus positions[position] where there are such. */
struct gptoss_embed {
    const struct gptoss_weight *embedding;
    const struct gptoss_weight *positions; /* [max_positions] rows, or NULL */
    struct gptoss_buffer *out;             /* [rows][hidden] */
};

/* norm(x) = rms_norm(x) * gain, or with a bias layer_norm(x) * gain + bias. */
struct gptoss_norm {
    const struct gptoss_vector *gain;
    const struct gptoss_vector *bias; /* NULL: RMSNorm; else LayerNorm */
    float epsilon;
};

/* Operations between embed and unembed name the layer they belong to.
 *
 * normed = norm(x); outs[i] = weights[i] normed + biases[i]. */
struct gptoss_norm_linear {
    int32_t layer;
    struct gptoss_buffer *x, *normed;
    struct gptoss_norm norm;
    int32_t num_outs; /* 1 .. 3 */
    const struct gptoss_weight *weights[3];
    const struct gptoss_vector *biases[3];
    struct gptoss_buffer *outs[3];
};

/* Which elements of a head turn together. */
enum gptoss_rotation {
    GPTOSS_ROTATE_HALVES,     /* i and i + head_dim / 2 */
    GPTOSS_ROTATE_NEIGHBOURS, /* 2 i and 2 i + 1 */
    GPTOSS_ROTATE_NOTHING
};

/* Rotates queries and keys in place; stores keys and values of rows the cache does not hold yet. */
struct gptoss_rope_append {
    int32_t layer, num_heads, num_kv_heads, head_dim;
    enum gptoss_rotation rotation;
    struct gptoss_buffer *queries, *keys, *values;
};

/* Attention over the cache, with one sink logit a head or without sinks. window 0: every earlier
 * key, else the last window keys. */
struct gptoss_attention {
    int32_t layer, num_heads, num_kv_heads, head_dim, window;
    float scale;
    const struct gptoss_vector *sinks; /* or NULL */
    struct gptoss_buffer *queries;
    struct gptoss_buffer *out;       /* [rows][num_heads * head_dim] */
    struct gptoss_buffer *sink_mass; /* [rows][num_heads], or NULL; NULL without sinks */
};

/* residual += weight x + bias. */
struct gptoss_linear_residual {
    int32_t layer;
    struct gptoss_buffer *x, *residual;
    const struct gptoss_weight *weight;
    const struct gptoss_vector *bias;
    struct gptoss_buffer *out; /* what is added, or NULL where nobody asks */
};

/* normed = norm(x); with up: out = silu(weight normed + bias) * (up normed + up_bias), without:
 * out = gelu(weight normed + bias). */
struct gptoss_mlp_up {
    int32_t layer;
    struct gptoss_buffer *x, *normed;
    struct gptoss_norm norm;
    const struct gptoss_weight *weight, *up; /* up: NULL, or of weight's shape */
    const struct gptoss_vector *bias, *up_bias;
    struct gptoss_buffer *out; /* [rows][intermediate] */
};

/* normed = norm(x); logits = weight normed + bias; the num_chosen largest, ties by lowest expert,
 * and the softmax over them. */
struct gptoss_route {
    int32_t layer;
    struct gptoss_buffer *x, *normed;
    struct gptoss_norm norm;
    const struct gptoss_weight *weight;
    const struct gptoss_vector *bias;
    int32_t num_chosen;
    struct gptoss_buffer *logits;  /* [rows][experts] */
    struct gptoss_buffer *experts; /* int32 [rows][num_chosen], in rank order */
    struct gptoss_buffer *weights; /* [rows][num_chosen] */
};

/* For every row and rank: out = swiglu(weight[expert] x + bias[expert]). Without up, rows of gate
 * and up are interleaved in weight and bias; with it, weight and bias are the gate's. */
struct gptoss_expert_gate_up {
    int32_t layer;
    struct gptoss_buffer *x, *experts;
    int32_t num_chosen;
    const struct gptoss_weight *weight, *up; /* up: NULL, or of weight's shape */
    const struct gptoss_vector *bias, *up_bias;
    float limit, alpha;
    struct gptoss_buffer *out; /* [rows][num_chosen][intermediate] */
};

/* outputs = weight[expert] x + bias[expert]; sum = the outputs weighted, in rank order; residual +=
 * sum. */
struct gptoss_expert_down {
    int32_t layer;
    struct gptoss_buffer *x, *experts, *weights;
    int32_t num_chosen;
    const struct gptoss_weight *weight;
    const struct gptoss_vector *bias;
    struct gptoss_buffer *outputs; /* [rows][num_chosen][hidden] */
    struct gptoss_buffer *sum, *residual;
};

/* For num_rows rows, those listed or, without a list, those from first_row on: normed = norm(x);
 * logits = weight normed. */
struct gptoss_unembed {
    struct gptoss_buffer *x, *normed; /* normed: [num_rows][hidden] */
    const int64_t *rows;              /* [num_rows], or NULL */
    int64_t first_row, num_rows;
    struct gptoss_norm norm;
    const struct gptoss_weight *weight; /* NULL: only the norm */
    float *logits;                      /* host memory, [num_rows][vocabulary] */
    bool is_deferred; /* logits are there when taken, or after `end`: where there is guess, one row
                       */
};

/* Deferred passes of one turn, at most. */
#define GPTOSS_MAX_DEFERRED 8

/* Guesses the token that will be drawn from the logits of the last unembed, which was deferred, for
 * the next pass: it runs without the host in between. A guess, since float32 sums decide; nothing
 * depends on it but time. */
struct gptoss_guess {
    float temperature; /* 0: the largest logit, the first of equal ones */
    float min_p;       /* tokens less likely than the likeliest by this factor are not drawn */
    uint64_t random;   /* uniform: which of them, in ascending order, by their shares */
    int32_t *token;    /* host memory, set with the logits */
};

#define GPTOSS_MAX_READS 4

/* One of the tasks of run_tasks, on any thread of the host. */
typedef void gptoss_host_task_fn(void *context, int64_t task, int thread);

struct gptoss_backend {
    const struct gptoss_backend_operations *operations;
};

/* The operations of a pass, in their order, for those who count or time each. */
#define GPTOSS_FOR_OPERATIONS(X)                                                                   \
    X(embed)                                                                                       \
    X(norm_linear)                                                                                 \
    X(rope_append)                                                                                 \
    X(attention)                                                                                   \
    X(linear_residual)                                                                             \
    X(mlp_up)                                                                                      \
    X(route)                                                                                       \
    X(expert_gate_up)                                                                              \
    X(expert_down)                                                                                 \
    X(unembed)

/* Every operation may return GPTOSS_ERROR_MEMORY, GPTOSS_ERROR_INTERRUPTED once the poll callback
 * asked to stop, and where there is explain other errors. */
struct gptoss_backend_operations {
    void (*release)(struct gptoss_backend *backend);
    uint64_t (*memory)(const struct gptoss_backend *backend); /* heap bytes held */
    /* Bytes held on devices with memory of their own, or NULL: none. */
    uint64_t (*device_memory)(const struct gptoss_backend *backend);

    /* Of back ends whose weights are in memory of their own, else NULL: operations between the two
     * only tell which weights they use; load_end brings those there. poll gets bytes. load_bytes:
     * of the weights told so far, as they lie on the device. load_begin forgets those told before,
     * unless load_end brought them. */
    void (*load_begin)(struct gptoss_backend *backend);
    uint64_t (*load_bytes)(const struct gptoss_backend *backend);
    /* Of a back end made of others, else NULL: after operations told all weights once, decides
     * which of the others hold which, with room for keys and values of up to max_positions; the
     * operations then tell them again. */
    enum gptoss_status (*place)(struct gptoss_backend *backend, int64_t max_positions,
                                struct gptoss_error *error);
    enum gptoss_status (*load_end)(struct gptoss_backend *backend, gptoss_poll_fn poll, void *user,
                                   struct gptoss_error *error);

    enum gptoss_status (*buffer_create)(struct gptoss_backend *backend, int64_t max_rows,
                                        uint64_t row_bytes, struct gptoss_buffer **buffer_out,
                                        struct gptoss_error *error);
    void (*buffer_release)(struct gptoss_backend *backend, struct gptoss_buffer *buffer);
    /* The first rows of num_buffers (1 .. GPTOSS_MAX_READS) buffers that the operations before have
     * written together, readable until the next operation. A failure is reported by the next
     * operation or end, too. */
    enum gptoss_status (*buffer_read)(struct gptoss_backend *backend,
                                      struct gptoss_buffer *const *buffers, int num_buffers,
                                      int64_t num_rows, const void **contents_out);
    /* Replaces the first rows. Only of back ends that others are made of. */
    enum gptoss_status (*buffer_write)(struct gptoss_backend *backend, struct gptoss_buffer *buffer,
                                       int64_t num_rows, const void *contents);

    enum gptoss_status (*cache_create)(struct gptoss_backend *backend,
                                       const struct gptoss_cache_shape *shape,
                                       struct gptoss_cache **cache_out, struct gptoss_error *error);
    void (*cache_release)(struct gptoss_backend *backend, struct gptoss_cache *cache);
    void (*cache_view)(const struct gptoss_cache *cache, int32_t layer,
                       struct gptoss_kv_view *view_out);
    /* Brings a layer's rows to where views show them; NULL where they are there. Not within a pass.
     */
    enum gptoss_status (*cache_fetch)(struct gptoss_backend *backend, struct gptoss_cache *cache,
                                      int32_t layer, struct gptoss_error *error);
    /* Declares which rows of a layer are held; rows outside are given back to the system where
     * whole pages allow. */
    void (*cache_hold)(struct gptoss_cache *cache, int32_t layer, int64_t first_position,
                       int64_t end_position);
    /* Copies the held rows of every layer; the shapes are equal. Not within a pass. */
    enum gptoss_status (*cache_copy)(struct gptoss_cache *to, const struct gptoss_cache *from,
                                     struct gptoss_error *error);

    /* Opens a pass: waits for its turn, since passes of one back end run one after another. */
    enum gptoss_status (*begin)(struct gptoss_backend *backend, gptoss_poll_fn poll, void *user,
                                struct gptoss_error *error);
    /* Announces the table of the operations that follow; NULL: they read it themselves. */
    enum gptoss_status (*take_rows)(struct gptoss_backend *backend,
                                    const struct gptoss_row_table *table);
    /* How far the whole work is, for the next polls. */
    void (*progress)(struct gptoss_backend *backend, uint64_t done, uint64_t total);
    /* Polls at once; whether the callback asked to stop. */
    bool (*poll)(struct gptoss_backend *backend, uint64_t done, uint64_t total);
    /* Closes it: all results are in memory afterwards. */
    enum gptoss_status (*end)(struct gptoss_backend *backend, struct gptoss_error *error);
    /* Whether the back end has a sentence for the status of an operation, and that. NULL: never. */
    bool (*explain)(struct gptoss_backend *backend, enum gptoss_status status,
                    struct gptoss_error *error);

    enum gptoss_status (*embed)(struct gptoss_backend *, const struct gptoss_row_table *,
                                const struct gptoss_embed *);
    enum gptoss_status (*norm_linear)(struct gptoss_backend *, const struct gptoss_row_table *,
                                      const struct gptoss_norm_linear *);
    enum gptoss_status (*rope_append)(struct gptoss_backend *, const struct gptoss_row_table *,
                                      const struct gptoss_rope_append *);
    enum gptoss_status (*attention)(struct gptoss_backend *, const struct gptoss_row_table *,
                                    const struct gptoss_attention *);
    enum gptoss_status (*linear_residual)(struct gptoss_backend *, const struct gptoss_row_table *,
                                          const struct gptoss_linear_residual *);
    enum gptoss_status (*mlp_up)(struct gptoss_backend *, const struct gptoss_row_table *,
                                 const struct gptoss_mlp_up *);
    enum gptoss_status (*route)(struct gptoss_backend *, const struct gptoss_row_table *,
                                const struct gptoss_route *);
    enum gptoss_status (*expert_gate_up)(struct gptoss_backend *, const struct gptoss_row_table *,
                                         const struct gptoss_expert_gate_up *);
    enum gptoss_status (*expert_down)(struct gptoss_backend *, const struct gptoss_row_table *,
                                      const struct gptoss_expert_down *);
    enum gptoss_status (*unembed)(struct gptoss_backend *, const struct gptoss_row_table *,
                                  const struct gptoss_unembed *);
    /* NULL: this back end does not guess. */
    enum gptoss_status (*guess)(struct gptoss_backend *, const struct gptoss_guess *);
    /* Waits for the deferred pass `index` of this turn, and has its logits and its guess where they
     * go: what it takes before `end`, which takes the rest. Where there is guess. */
    enum gptoss_status (*take_deferred)(struct gptoss_backend *, int32_t index);
    /* What a device that times its own work has spent on an operation of that name; NULL: the time
     * of the call is the operation's. */
    uint64_t (*operation_nanoseconds)(const struct gptoss_backend *, const char *name);
    /* Runs tasks 0 .. num_tasks-1 on the host's threads, after all operations before it: for work
     * on their results in host memory. */
    enum gptoss_status (*run_tasks)(struct gptoss_backend *, gptoss_host_task_fn *function,
                                    void *context, int64_t num_tasks);
};

#endif
