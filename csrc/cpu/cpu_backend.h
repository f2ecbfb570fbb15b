/* The CPU back end: runs every operation when it is called, on the threads of its pool. Shared by
 * the cpu_*.c files. */
#ifndef GPTOSS_CPU_CPU_BACKEND_H
#define GPTOSS_CPU_CPU_BACKEND_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "backend.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"
#include "platform/fp_environment.h"

struct gptoss_bf16_unit;

/* Memory that grows to the largest use and stays. */
struct gptoss_scratch {
    void *memory;
    uint64_t num_bytes;
};

struct gptoss_cpu_backend {
    struct gptoss_backend base;
    const struct gptoss_kernels *kernels;
    const struct gptoss_bf16_unit *bf16_unit; /* NULL: precision fp32 */
    int num_threads;

    /* One pass at a time. A forked child has neither the threads nor, perhaps, an unlocked mutex:
     * it makes its own. */
    atomic_int owner;
    pthread_mutex_t turn;
    struct gptoss_thread_pool *pool;

    uint64_t caller_environment; /* floating-point modes of the calling thread */
    gptoss_poll_fn poll;
    void *poll_user;
    uint64_t done, total, last_poll;

    struct gptoss_scratch *thread_scratch; /* one a thread */
    struct gptoss_scratch packed;          /* inputs of matrix products in lane order */
    struct gptoss_scratch decoded;         /* a norm's gain and bias in float32 */
    struct gptoss_scratch grouping;        /* tokens by expert */
    struct gptoss_scratch low_rank;        /* terms of adapters */
    _Atomic uint64_t buffer_bytes;
};

struct gptoss_buffer {
    void *memory;
    uint64_t num_bytes, row_bytes;
};

static inline float *gptoss_buffer_floats(const struct gptoss_buffer *buffer) {
    return buffer->memory;
}
static inline int32_t *gptoss_buffer_ints(const struct gptoss_buffer *buffer) {
    return buffer->memory;
}

/* num_threads >= 1. bf16_unit: see cpu/bf16_units.h, NULL for precision fp32. */
enum gptoss_status gptoss_cpu_backend_create(const struct gptoss_kernels *kernels,
                                             const struct gptoss_bf16_unit *bf16_unit,
                                             int num_threads, struct gptoss_backend **backend_out,
                                             struct gptoss_error *error);

/* Runs tasks on the pool; GPTOSS_ERROR_INTERRUPTED once the caller's poll asked to stop. */
enum gptoss_status gptoss_cpu_run(struct gptoss_cpu_backend *backend, gptoss_task_fn *function,
                                  void *context, int64_t num_tasks);
/* The same for light tasks of num_rows rows: few rows are not worth waking the threads for. */
enum gptoss_status gptoss_cpu_run_rows(struct gptoss_cpu_backend *backend, gptoss_task_fn *function,
                                       void *context, int64_t num_tasks, int64_t num_rows);
/* At least num_bytes in the scratch; contents are lost when it grows. */
enum gptoss_status gptoss_scratch_reserve(struct gptoss_scratch *scratch, uint64_t num_bytes);
/* The same for every thread's. */
enum gptoss_status gptoss_thread_scratch_reserve(struct gptoss_cpu_backend *backend,
                                                 uint64_t num_bytes);
/* Elements of one vector (of one expert) as stored; NULL if the vector is absent. */
const uint8_t *gptoss_vector_at(const struct gptoss_vector *vector, int64_t index);
/* One matrix (of one expert) as the kernels take it. */
struct gptoss_matrix gptoss_matrix_at(const struct gptoss_weight *weight, int64_t index);

/* The operations, by file: cpu_linear.c, cpu_attention.c, cpu_experts.c, cpu_cache.c. */
enum gptoss_status gptoss_cpu_embed(struct gptoss_backend *, const struct gptoss_row_table *,
                                    const struct gptoss_embed *);
enum gptoss_status gptoss_cpu_norm_linear(struct gptoss_backend *, const struct gptoss_row_table *,
                                          const struct gptoss_norm_linear *);
enum gptoss_status gptoss_cpu_linear_residual(struct gptoss_backend *,
                                              const struct gptoss_row_table *,
                                              const struct gptoss_linear_residual *);
enum gptoss_status gptoss_cpu_mlp_up(struct gptoss_backend *, const struct gptoss_row_table *,
                                     const struct gptoss_mlp_up *);
enum gptoss_status gptoss_cpu_unembed(struct gptoss_backend *, const struct gptoss_row_table *,
                                      const struct gptoss_unembed *);
enum gptoss_status gptoss_cpu_rope_append(struct gptoss_backend *, const struct gptoss_row_table *,
                                          const struct gptoss_rope_append *);
enum gptoss_status gptoss_cpu_attention(struct gptoss_backend *, const struct gptoss_row_table *,
                                        const struct gptoss_attention *);
enum gptoss_status gptoss_cpu_route(struct gptoss_backend *, const struct gptoss_row_table *,
                                    const struct gptoss_route *);
enum gptoss_status gptoss_cpu_expert_gate_up(struct gptoss_backend *,
                                             const struct gptoss_row_table *,
                                             const struct gptoss_expert_gate_up *);
enum gptoss_status gptoss_cpu_expert_down(struct gptoss_backend *, const struct gptoss_row_table *,
                                          const struct gptoss_expert_down *);

enum gptoss_status gptoss_cpu_cache_create(struct gptoss_backend *,
                                           const struct gptoss_cache_shape *,
                                           struct gptoss_cache **, struct gptoss_error *);
void gptoss_cpu_cache_release(struct gptoss_backend *, struct gptoss_cache *);
void gptoss_cpu_cache_view(const struct gptoss_cache *, int32_t layer, struct gptoss_kv_view *);
void gptoss_cpu_cache_hold(struct gptoss_cache *, int32_t layer, int64_t first_position,
                           int64_t end_position);
enum gptoss_status gptoss_cpu_cache_copy(struct gptoss_cache *to, const struct gptoss_cache *from,
                                         struct gptoss_error *error);
const struct gptoss_cache_shape *gptoss_cpu_cache_shape(const struct gptoss_cache *cache);

#endif
