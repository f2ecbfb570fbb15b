/* The operations, each handed to the member that holds its weights. */
#include "platform/clock.h"
#include "split/split_backend.h"
#include "status.h"

/* A buffer of an operation, and what it is for. */
struct use {
    struct gptoss_buffer **field;
    bool is_read, is_written;
};

#define MAX_USES 8

/* Has a member's copies of the buffers in the operation's fields: with their contents where it
 * reads them, and from then on only there where it writes num_rows rows of them. */
static enum gptoss_status take_buffers(struct gptoss_split *split, int member, int64_t num_rows,
                                       const struct use *uses, size_t num_uses) {
    struct gptoss_buffer *read[MAX_USES] = {NULL};
    int num_read = 0;
    for (size_t i = 0; i < num_uses; ++i) {
        if (split->state != GPTOSS_SPLIT_RUNNING)
            *uses[i].field = NULL; /* nothing is computed */
        else if (uses[i].is_read)
            read[num_read++] = *uses[i].field;
    }
    GPTOSS_TRY(gptoss_split_bring(split, member, read, num_read));
    for (size_t i = 0; i < num_uses; ++i) {
        struct gptoss_buffer *buffer = *uses[i].field;
        if (buffer == NULL)
            continue;
        GPTOSS_TRY(gptoss_split_copy(split, member, buffer, uses[i].field));
        if (uses[i].is_written) {
            buffer->current = 1u << member;
            buffer->num_rows = num_rows;
        }
    }
    return GPTOSS_OK;
}

/* The table as a member knows it. */
static struct gptoss_row_table table_of(const struct gptoss_split *split, int member,
                                        const struct gptoss_row_table *table) {
    struct gptoss_row_table own = *table;
    own.caches = split->parts[member].caches;
    return own;
}

/* After an operation: counts its time, or what its weights take. */
static void count(struct gptoss_split *split, int index, enum gptoss_split_timer timer,
                  uint64_t start, uint64_t *size) {
    struct gptoss_backend *member = split->members[index].backend;
    if (split->state == GPTOSS_SPLIT_PLANNING) {
        uint64_t told_bytes = member->operations->load_bytes(member);
        *size += told_bytes - split->told_bytes;
        split->told_bytes = told_bytes;
    } else if (gptoss_split_is_cpu(split, index)) {
        split->nanoseconds[timer] += gptoss_clock_nanoseconds() - start;
    }
}

/* Runs `own`, a copy of an operation whose buffers `uses` tells, on a member. size: where what its
 * weights take is added. */
#define RUN(name, member, num_rows, size)                                                          \
    do {                                                                                           \
        int index = split->state != GPTOSS_SPLIT_PLANNING ? (member) : 0;                          \
        struct gptoss_backend *runner = split->members[index].backend;                             \
        GPTOSS_TRY(take_buffers(split, index, num_rows, uses, sizeof uses / sizeof uses[0]));      \
        struct gptoss_row_table rows = table_of(split, index, table);                              \
        uint64_t start = gptoss_clock_nanoseconds();                                               \
        if (split->state == GPTOSS_SPLIT_RUNNING || !gptoss_split_is_cpu(split, index))            \
            GPTOSS_TRY(runner->operations->name(runner, &rows, &own));                             \
        count(split, index, GPTOSS_SPLIT_TIMER_##name, start, size);                               \
    } while (0)

enum gptoss_status gptoss_split_embed(struct gptoss_backend *base,
                                      const struct gptoss_row_table *table,
                                      const struct gptoss_embed *operation) {
    struct gptoss_split *split = gptoss_split_of(base);
    struct gptoss_embed own = *operation;
    const struct use uses[] = {{&own.out, false, true}};
    RUN(embed, split->plan.embedding, table->num_rows, &split->sizes.embedding);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_split_norm_linear(struct gptoss_backend *base,
                                            const struct gptoss_row_table *table,
                                            const struct gptoss_norm_linear *operation) {
    struct gptoss_split *split = gptoss_split_of(base);
    struct gptoss_norm_linear own = *operation;
    const struct use uses[] = {
        {&own.x, true, false},       {&own.normed, false, true},  {&own.outs[0], false, true},
        {&own.outs[1], false, true}, {&own.outs[2], false, true},
    };
    RUN(norm_linear, split->plan.layers[own.layer], table->num_rows,
        &split->sizes.layers[own.layer]);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_split_rope_append(struct gptoss_backend *base,
                                            const struct gptoss_row_table *table,
                                            const struct gptoss_rope_append *operation) {
    struct gptoss_split *split = gptoss_split_of(base);
    struct gptoss_rope_append own = *operation;
    int member = split->plan.layers[own.layer];
    const struct use uses[] = {
        {&own.queries, true, true}, {&own.keys, true, true}, {&own.values, true, true}};
    if (split->state == GPTOSS_SPLIT_PLANNING) {
        uint64_t dim = (uint64_t)own.head_dim;
        split->sizes.num_layers = own.layer + 1;
        split->sizes.kv_bytes = 2 * (uint64_t)own.num_kv_heads * dim * sizeof(uint16_t);
        split->sizes.part_bytes = (uint64_t)own.num_heads * (dim + 2) * sizeof(float);
    }
    own.layer -= split->parts[member].first_layer;
    RUN(rope_append, member, table->num_rows, &split->sizes.layers[operation->layer]);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_split_attention(struct gptoss_backend *base,
                                          const struct gptoss_row_table *table,
                                          const struct gptoss_attention *operation) {
    struct gptoss_split *split = gptoss_split_of(base);
    struct gptoss_attention own = *operation;
    int member = split->plan.layers[own.layer];
    const struct use uses[] = {
        {&own.queries, true, false}, {&own.out, false, true}, {&own.sink_mass, false, true}};
    own.layer -= split->parts[member].first_layer;
    RUN(attention, member, table->num_rows, &split->sizes.layers[operation->layer]);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_split_linear_residual(struct gptoss_backend *base,
                                                const struct gptoss_row_table *table,
                                                const struct gptoss_linear_residual *operation) {
    struct gptoss_split *split = gptoss_split_of(base);
    struct gptoss_linear_residual own = *operation;
    const struct use uses[] = {
        {&own.x, true, false}, {&own.residual, true, true}, {&own.out, false, true}};
    RUN(linear_residual, split->plan.layers[own.layer], table->num_rows,
        &split->sizes.layers[own.layer]);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_split_mlp_up(struct gptoss_backend *base,
                                       const struct gptoss_row_table *table,
                                       const struct gptoss_mlp_up *operation) {
    struct gptoss_split *split = gptoss_split_of(base);
    struct gptoss_mlp_up own = *operation;
    const struct use uses[] = {
        {&own.x, true, false}, {&own.normed, false, true}, {&own.out, false, true}};
    RUN(mlp_up, split->plan.layers[own.layer], table->num_rows, &split->sizes.layers[own.layer]);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_split_route(struct gptoss_backend *base,
                                      const struct gptoss_row_table *table,
                                      const struct gptoss_route *operation) {
    struct gptoss_split *split = gptoss_split_of(base);
    struct gptoss_route own = *operation;
    const struct use uses[] = {{&own.x, true, false},
                               {&own.normed, false, true},
                               {&own.logits, false, true},
                               {&own.experts, false, true},
                               {&own.weights, false, true}};
    RUN(route, split->plan.layers[own.layer], table->num_rows, &split->sizes.layers[own.layer]);
    if (split->state != GPTOSS_SPLIT_RUNNING)
        return GPTOSS_OK;
    /* All that the experts need goes together, where they are elsewhere. */
    struct gptoss_buffer *const needed[] = {operation->normed, operation->experts,
                                            operation->weights, operation->x};
    return gptoss_split_bring(split, split->plan.experts[own.layer], needed, 4);
}

enum gptoss_status gptoss_split_expert_gate_up(struct gptoss_backend *base,
                                               const struct gptoss_row_table *table,
                                               const struct gptoss_expert_gate_up *operation) {
    struct gptoss_split *split = gptoss_split_of(base);
    struct gptoss_expert_gate_up own = *operation;
    const struct use uses[] = {
        {&own.x, true, false}, {&own.experts, true, false}, {&own.out, false, true}};
    RUN(expert_gate_up, split->plan.experts[own.layer], table->num_rows,
        &split->sizes.experts[own.layer]);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_split_expert_down(struct gptoss_backend *base,
                                            const struct gptoss_row_table *table,
                                            const struct gptoss_expert_down *operation) {
    struct gptoss_split *split = gptoss_split_of(base);
    struct gptoss_expert_down own = *operation;
    const struct use uses[] = {
        {&own.x, true, false},       {&own.experts, true, false}, {&own.weights, true, false},
        {&own.outputs, false, true}, {&own.sum, false, true},     {&own.residual, true, true},
    };
    RUN(expert_down, split->plan.experts[own.layer], table->num_rows,
        &split->sizes.experts[own.layer]);
    return GPTOSS_OK;
}

/* What the unembedding takes beside the embedding, and what alone. */
static enum gptoss_status measure_unembedding(struct gptoss_split *split,
                                              const struct gptoss_row_table *table,
                                              struct gptoss_unembed own) {
    struct gptoss_backend *backend = split->members[0].backend;
    const struct use uses[] = {{&own.x, true, false}, {&own.normed, false, true}};
    uint64_t beside = 0, *alone = &split->sizes.unembedding;
    RUN(unembed, 0, 0, &beside);
    backend->operations->load_begin(backend);
    split->told_bytes = 0;
    RUN(unembed, 0, 0, alone);
    split->sizes.shared = *alone - beside;
    split->sizes.logits_bytes = (uint64_t)own.weight->num_rows * sizeof(float);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_split_unembed(struct gptoss_backend *base,
                                        const struct gptoss_row_table *table,
                                        const struct gptoss_unembed *operation) {
    struct gptoss_split *split = gptoss_split_of(base);
    if (split->state == GPTOSS_SPLIT_PLANNING)
        return measure_unembedding(split, table, *operation);
    struct gptoss_unembed own = *operation;
    const struct use uses[] = {{&own.x, true, false}, {&own.normed, false, true}};
    RUN(unembed, split->plan.unembedding, own.num_rows, &split->sizes.unembedding);
    return GPTOSS_OK;
}
