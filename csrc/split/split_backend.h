/* The split back end. Shared by the split_*.c files. */
#ifndef GPTOSS_SPLIT_SPLIT_BACKEND_H
#define GPTOSS_SPLIT_SPLIT_BACKEND_H

#include "split/split_plan.h"

enum gptoss_split_timer {
#define GPTOSS_TIMER_ID(name) GPTOSS_SPLIT_TIMER_##name,
    GPTOSS_FOR_OPERATIONS(GPTOSS_TIMER_ID)
#undef GPTOSS_TIMER_ID
        GPTOSS_NUM_SPLIT_TIMERS
};

enum gptoss_split_state {
    GPTOSS_SPLIT_PLANNING, /* operations tell the first GPU their weights, which are measured */
    GPTOSS_SPLIT_LOADING,  /* operations tell each GPU the weights that it will hold */
    GPTOSS_SPLIT_RUNNING
};

struct gptoss_split {
    struct gptoss_backend base;
    enum gptoss_split_state state;
    int num_members;
    bool has_cpu; /* the last member is one */
    struct gptoss_split_member members[GPTOSS_MAX_MEMBERS];
    struct {
        int32_t first_layer, end_layer;
        struct gptoss_cache **caches; /* [max_slots], its parts of those in the table of rows */
        size_t max_slots;
        char holds[256];
    } parts[GPTOSS_MAX_MEMBERS];
    struct gptoss_split_sizes sizes;
    uint64_t told_bytes; /* while planning, by the operations so far */
    struct gptoss_split_plan plan;
    struct gptoss_error error; /* of what a member could not keep itself */
    /* Of CPUs, which do not time their own work. */
    _Atomic uint64_t nanoseconds[GPTOSS_NUM_SPLIT_TIMERS];
};

/* Contents lie in one member or several. */
struct gptoss_buffer {
    int64_t max_rows, num_rows; /* num_rows: of the operation that wrote it last */
    uint64_t row_bytes;
    uint32_t current;                                 /* members whose copy has the contents */
    struct gptoss_buffer *copies[GPTOSS_MAX_MEMBERS]; /* NULL until first used */
};

/* Has the contents of buffers in a member's copies. */
enum gptoss_status gptoss_split_bring(struct gptoss_split *split, int member,
                                      struct gptoss_buffer *const *buffers, int num_buffers);
/* The member's copy, made at its first use. */
enum gptoss_status gptoss_split_copy(struct gptoss_split *split, int member,
                                     struct gptoss_buffer *buffer, struct gptoss_buffer **copy_out);

/* ---- split_operations.c ---- */

enum gptoss_status gptoss_split_embed(struct gptoss_backend *, const struct gptoss_row_table *,
                                      const struct gptoss_embed *);
enum gptoss_status gptoss_split_norm_linear(struct gptoss_backend *,
                                            const struct gptoss_row_table *,
                                            const struct gptoss_norm_linear *);
enum gptoss_status gptoss_split_rope_append(struct gptoss_backend *,
                                            const struct gptoss_row_table *,
                                            const struct gptoss_rope_append *);
enum gptoss_status gptoss_split_attention(struct gptoss_backend *, const struct gptoss_row_table *,
                                          const struct gptoss_attention *);
enum gptoss_status gptoss_split_linear_residual(struct gptoss_backend *,
                                                const struct gptoss_row_table *,
                                                const struct gptoss_linear_residual *);
enum gptoss_status gptoss_split_mlp_up(struct gptoss_backend *, const struct gptoss_row_table *,
                                       const struct gptoss_mlp_up *);
enum gptoss_status gptoss_split_route(struct gptoss_backend *, const struct gptoss_row_table *,
                                      const struct gptoss_route *);
enum gptoss_status gptoss_split_expert_gate_up(struct gptoss_backend *,
                                               const struct gptoss_row_table *,
                                               const struct gptoss_expert_gate_up *);
enum gptoss_status gptoss_split_expert_down(struct gptoss_backend *,
                                            const struct gptoss_row_table *,
                                            const struct gptoss_expert_down *);
enum gptoss_status gptoss_split_unembed(struct gptoss_backend *, const struct gptoss_row_table *,
                                        const struct gptoss_unembed *);

/* ---- split_cache.c ---- */

enum gptoss_status gptoss_split_cache_create(struct gptoss_backend *,
                                             const struct gptoss_cache_shape *,
                                             struct gptoss_cache **, struct gptoss_error *);
void gptoss_split_cache_release(struct gptoss_backend *, struct gptoss_cache *);
void gptoss_split_cache_view(const struct gptoss_cache *, int32_t, struct gptoss_kv_view *);
enum gptoss_status gptoss_split_cache_fetch(struct gptoss_backend *, struct gptoss_cache *, int32_t,
                                            struct gptoss_error *);
void gptoss_split_cache_hold(struct gptoss_cache *, int32_t, int64_t, int64_t);
enum gptoss_status gptoss_split_cache_copy(struct gptoss_cache *, const struct gptoss_cache *,
                                           struct gptoss_error *);
/* The member's part, or NULL. */
struct gptoss_cache *gptoss_split_cache_part(const struct gptoss_cache *cache, int member);

static inline struct gptoss_split *gptoss_split_of(struct gptoss_backend *base) {
    return (struct gptoss_split *)base;
}
static inline bool gptoss_split_is_cpu(const struct gptoss_split *split, int member) {
    return split->has_cpu && member == split->num_members - 1;
}

#endif
