#include "split/split_backend.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "platform/allocator.h"
#include "status.h"

static const struct gptoss_backend_operations *operations_of(const struct gptoss_split *split,
                                                             int member) {
    return split->members[member].backend->operations;
}

/* ---- buffers ---- */

static enum gptoss_status split_buffer_create(struct gptoss_backend *base, int64_t max_rows,
                                              uint64_t row_bytes, struct gptoss_buffer **buffer_out,
                                              struct gptoss_error *error) {
    struct gptoss_split *split = gptoss_split_of(base);
    *buffer_out = NULL;
    struct gptoss_buffer *buffer = gptoss_allocate(1, sizeof *buffer);
    if (buffer == NULL)
        return gptoss_error_memory(error, sizeof *buffer, "activations");
    buffer->max_rows = max_rows;
    buffer->row_bytes = row_bytes;
    if (split->state == GPTOSS_SPLIT_PLANNING) {
        split->sizes.row_bytes += row_bytes;
        if (row_bytes > split->sizes.max_row_bytes)
            split->sizes.max_row_bytes = row_bytes;
    }
    *buffer_out = buffer;
    return GPTOSS_OK;
}

static void split_buffer_release(struct gptoss_backend *base, struct gptoss_buffer *buffer) {
    struct gptoss_split *split = gptoss_split_of(base);
    if (buffer == NULL)
        return;
    for (int i = 0; i < split->num_members; ++i)
        operations_of(split, i)->buffer_release(split->members[i].backend, buffer->copies[i]);
    gptoss_free(buffer);
}

enum gptoss_status gptoss_split_copy(struct gptoss_split *split, int member,
                                     struct gptoss_buffer *buffer,
                                     struct gptoss_buffer **copy_out) {
    if (buffer->copies[member] == NULL)
        GPTOSS_TRY(operations_of(split, member)
                       ->buffer_create(split->members[member].backend, buffer->max_rows,
                                       buffer->row_bytes, &buffer->copies[member], &split->error));
    *copy_out = buffer->copies[member];
    return GPTOSS_OK;
}

/* From one member to another, through the host's memory. Buffers: of equally many rows. */
static enum gptoss_status transfer(struct gptoss_split *split, int from, int to,
                                   struct gptoss_buffer *const *buffers, int num_buffers) {
    struct gptoss_buffer *sources[GPTOSS_MAX_READS], *targets[GPTOSS_MAX_READS];
    const void *contents[GPTOSS_MAX_READS];
    int64_t num_rows = buffers[0]->num_rows;
    for (int i = 0; i < num_buffers; ++i) {
        sources[i] = buffers[i]->copies[from];
        GPTOSS_TRY(gptoss_split_copy(split, to, buffers[i], &targets[i]));
    }
    GPTOSS_TRY(
        operations_of(split, from)
            ->buffer_read(split->members[from].backend, sources, num_buffers, num_rows, contents));
    for (int i = 0; i < num_buffers; ++i) {
        GPTOSS_TRY(operations_of(split, to)->buffer_write(split->members[to].backend, targets[i],
                                                          num_rows, contents[i]));
        buffers[i]->current |= 1u << to;
    }
    return GPTOSS_OK;
}

enum gptoss_status gptoss_split_bring(struct gptoss_split *split, int member,
                                      struct gptoss_buffer *const *buffers, int num_buffers) {
    for (int first = 0; first < num_buffers; ++first) {
        if ((buffers[first]->current >> member & 1) != 0)
            continue;
        assert(buffers[first]->current != 0);
        int from = __builtin_ctz(buffers[first]->current), count = 1;
        struct gptoss_buffer *together[GPTOSS_MAX_READS] = {buffers[first]};
        for (int i = first + 1; i < num_buffers && count < GPTOSS_MAX_READS; ++i)
            if ((buffers[i]->current >> member & 1) == 0 &&
                (buffers[i]->current >> from & 1) != 0 &&
                buffers[i]->num_rows == buffers[first]->num_rows)
                together[count++] = buffers[i];
        GPTOSS_TRY(transfer(split, from, member, together, count));
    }
    return GPTOSS_OK;
}

static enum gptoss_status split_buffer_read(struct gptoss_backend *base,
                                            struct gptoss_buffer *const *buffers, int num_buffers,
                                            int64_t num_rows, const void **contents_out) {
    struct gptoss_split *split = gptoss_split_of(base);
    uint32_t current = UINT32_MAX;
    struct gptoss_buffer *copies[GPTOSS_MAX_READS];
    for (int i = 0; i < num_buffers; ++i)
        current &= buffers[i]->current;
    assert(current != 0);
    int member = 31 - __builtin_clz(current); /* the CPU, if it is one of them */
    for (int i = 0; i < num_buffers; ++i)
        copies[i] = buffers[i]->copies[member];
    return operations_of(split, member)
        ->buffer_read(split->members[member].backend, copies, num_buffers, num_rows, contents_out);
}

/* ---- passes ---- */

/* A GPU polls through the CPU, which lets the callback run in the host's floating-point
 * environment. */
static int poll_by_cpu(void *user, uint64_t done, uint64_t total) {
    const struct gptoss_split *split = user;
    int cpu = split->num_members - 1;
    return operations_of(split, cpu)->poll(split->members[cpu].backend, done, total);
}

/* Of the members from `first` on. */
static enum gptoss_status end_members(struct gptoss_split *split, int first,
                                      struct gptoss_error *error) {
    enum gptoss_status status = GPTOSS_OK;
    for (int i = first; i < split->num_members; ++i) {
        enum gptoss_status ended = operations_of(split, i)->end(split->members[i].backend,
                                                                status == GPTOSS_OK ? error : NULL);
        status = status != GPTOSS_OK ? status : ended;
    }
    return status;
}

static enum gptoss_status split_begin(struct gptoss_backend *base, gptoss_poll_fn poll, void *user,
                                      struct gptoss_error *error) {
    struct gptoss_split *split = gptoss_split_of(base);
    /* A CPU, the last one, begins before those that poll by it. */
    for (int i = split->num_members - 1; i >= 0; --i) {
        bool by_cpu = poll != NULL && split->has_cpu && !gptoss_split_is_cpu(split, i);
        enum gptoss_status status = operations_of(split, i)->begin(
            split->members[i].backend, by_cpu ? poll_by_cpu : poll, by_cpu ? split : user, error);
        if (status != GPTOSS_OK) {
            end_members(split, i + 1, NULL);
            return status;
        }
    }
    split->error.status = GPTOSS_OK;
    return GPTOSS_OK;
}

static enum gptoss_status split_end(struct gptoss_backend *base, struct gptoss_error *error) {
    return end_members(gptoss_split_of(base), 0, error);
}

/* Has each member's table of parts of caches hold num_slots of them. */
static enum gptoss_status reserve_slots(struct gptoss_split *split, size_t num_slots) {
    for (int i = 0; i < split->num_members; ++i) {
        if (num_slots <= split->parts[i].max_slots)
            continue;
        struct gptoss_cache **caches = gptoss_allocate(num_slots, sizeof(struct gptoss_cache *));
        if (caches == NULL)
            return GPTOSS_ERROR_MEMORY;
        gptoss_free(split->parts[i].caches);
        split->parts[i].caches = caches;
        split->parts[i].max_slots = num_slots;
    }
    return GPTOSS_OK;
}

static enum gptoss_status split_take_rows(struct gptoss_backend *base,
                                          const struct gptoss_row_table *table) {
    struct gptoss_split *split = gptoss_split_of(base);
    if (split->state != GPTOSS_SPLIT_RUNNING)
        return GPTOSS_OK;
    int32_t last_slot = 0;
    for (int64_t row = 0; row < table->num_rows; ++row)
        last_slot = table->rows[row].slot > last_slot ? table->rows[row].slot : last_slot;
    GPTOSS_TRY(reserve_slots(split, (size_t)last_slot + 1));
    for (int i = 0; i < split->num_members; ++i) {
        for (int64_t row = 0; row < table->num_rows; ++row) {
            int32_t slot = table->rows[row].slot;
            split->parts[i].caches[slot] = gptoss_split_cache_part(table->caches[slot], i);
        }
        struct gptoss_row_table own = *table;
        own.caches = split->parts[i].caches;
        if (operations_of(split, i)->take_rows != NULL)
            GPTOSS_TRY(operations_of(split, i)->take_rows(split->members[i].backend, &own));
    }
    return GPTOSS_OK;
}

static void split_progress(struct gptoss_backend *base, uint64_t done, uint64_t total) {
    const struct gptoss_split *split = gptoss_split_of(base);
    for (int i = split->num_members - 1; i >= 0; --i)
        operations_of(split, i)->progress(split->members[i].backend, done, total);
}

static bool split_poll(struct gptoss_backend *base, uint64_t done, uint64_t total) {
    const struct gptoss_split *split = gptoss_split_of(base);
    int last = split->num_members - 1;
    return operations_of(split, last)->poll(split->members[last].backend, done, total);
}

static bool split_explain(struct gptoss_backend *base, enum gptoss_status status,
                          struct gptoss_error *error) {
    const struct gptoss_split *split = gptoss_split_of(base);
    if (split->error.status == status) {
        if (error != NULL)
            *error = split->error;
        return true;
    }
    for (int i = 0; i < split->num_members; ++i)
        if (operations_of(split, i)->explain != NULL &&
            operations_of(split, i)->explain(split->members[i].backend, status, error))
            return true;
    return false;
}

static uint64_t split_operation_nanoseconds(const struct gptoss_backend *base, const char *name) {
    static const char *const names[] = {
#define NAME(name) #name,
        GPTOSS_FOR_OPERATIONS(NAME)
#undef NAME
    };
    const struct gptoss_split *split = (const struct gptoss_split *)base;
    uint64_t sum = 0;
    for (int i = 0; i < GPTOSS_NUM_SPLIT_TIMERS; ++i)
        if (strcmp(name, names[i]) == 0)
            sum += split->nanoseconds[i];
    for (int i = 0; i < split->num_members; ++i)
        if (operations_of(split, i)->operation_nanoseconds != NULL)
            sum += operations_of(split, i)->operation_nanoseconds(split->members[i].backend, name);
    return sum;
}

/* Their work is on logits. */
static enum gptoss_status split_run_tasks(struct gptoss_backend *base,
                                          gptoss_host_task_fn *function, void *context,
                                          int64_t num_tasks) {
    const struct gptoss_split *split = gptoss_split_of(base);
    int member = split->plan.unembedding;
    return operations_of(split, member)
        ->run_tasks(split->members[member].backend, function, context, num_tasks);
}

/* ---- weights ---- */

static void split_load_begin(struct gptoss_backend *base) {
    struct gptoss_split *split = gptoss_split_of(base);
    split->state = GPTOSS_SPLIT_PLANNING;
    split->sizes = (struct gptoss_split_sizes){0};
    split->told_bytes = 0;
    operations_of(split, 0)->load_begin(split->members[0].backend);
}

/* Appends "WHAT layers 0-11, 14" for the layers of a member, if there are any. */
static void tell_layers(const uint8_t *members, int member, int32_t num_layers, const char *what,
                        char *text, size_t size) {
    char label[64];
    int32_t count = 0;
    for (int32_t layer = 0; layer < num_layers; ++layer)
        count += members[layer] == member;
    snprintf(label, sizeof label, "%slayer%s ", what, count > 1 ? "s" : "");
    bool is_first = true;
    for (int32_t layer = 0, end; layer < num_layers; layer = end) {
        for (end = layer + 1; end < num_layers && members[end] == members[layer];)
            ++end;
        if (members[layer] != member)
            continue;
        size_t length = strlen(text);
        const char *separator = length > 0 ? ", " : "";
        int written = snprintf(text + length, size - length, "%s%s%d", separator,
                               is_first ? label : "", (int)layer);
        if (end - layer > 1 && written > 0 && (size_t)written < size - length)
            snprintf(text + length + written, size - length - (size_t)written, "-%d",
                     (int)(end - 1));
        is_first = false;
    }
}

/* "embedding, layers 0-5, experts of layers 6-11, unembedding" */
static void tell_part(struct gptoss_split *split, int member) {
    const struct gptoss_split_plan *plan = &split->plan;
    uint8_t whole[GPTOSS_MAX_LAYERS], attention[GPTOSS_MAX_LAYERS], experts[GPTOSS_MAX_LAYERS];
    const uint8_t nowhere = GPTOSS_MAX_MEMBERS;
    int32_t num_layers = split->sizes.num_layers;
    for (int32_t i = 0; i < num_layers; ++i) {
        bool is_whole = plan->layers[i] == plan->experts[i];
        whole[i] = is_whole ? plan->layers[i] : nowhere;
        attention[i] = is_whole ? nowhere : plan->layers[i];
        experts[i] = is_whole ? nowhere : plan->experts[i];
    }
    char *text = split->parts[member].holds;
    size_t size = sizeof split->parts[member].holds;
    snprintf(text, size, "%s", plan->embedding == member ? "embedding" : "");
    tell_layers(whole, member, num_layers, "", text, size);
    tell_layers(attention, member, num_layers, "attention of ", text, size);
    tell_layers(experts, member, num_layers, "experts of ", text, size);
    size_t length = strlen(text);
    if (plan->unembedding == member)
        snprintf(text + length, size - length, "%sunembedding", length > 0 ? ", " : "");
}

static void find_layers(struct gptoss_split *split, int member) {
    int32_t first = 0, end = split->sizes.num_layers;
    while (first < end && split->plan.layers[first] != member)
        ++first;
    while (end > first && split->plan.layers[end - 1] != member)
        --end;
    split->parts[member].first_layer = first;
    split->parts[member].end_layer = end;
}

/* Members that hold nothing go; the others move together, here and in the plan. */
static void drop_unused(struct gptoss_split *split) {
    struct gptoss_split_plan *plan = &split->plan;
    int map[GPTOSS_MAX_MEMBERS], count = 0;
    bool has_cpu = false;
    for (int i = 0; i < split->num_members; ++i) {
        bool is_used = plan->embedding == i || plan->unembedding == i;
        for (int32_t layer = 0; layer < split->sizes.num_layers; ++layer)
            is_used = is_used || plan->layers[layer] == i || plan->experts[layer] == i;
        if (!is_used) {
            operations_of(split, i)->release(split->members[i].backend);
            continue;
        }
        has_cpu = has_cpu || gptoss_split_is_cpu(split, i);
        map[i] = count;
        split->members[count] = split->members[i];
        plan->weight_bytes[count] = plan->weight_bytes[i];
        plan->cache_bytes[count++] = plan->cache_bytes[i];
    }
    plan->embedding = map[plan->embedding];
    plan->unembedding = map[plan->unembedding];
    for (int32_t layer = 0; layer < split->sizes.num_layers; ++layer) {
        plan->layers[layer] = (uint8_t)map[plan->layers[layer]];
        plan->experts[layer] = (uint8_t)map[plan->experts[layer]];
    }
    split->num_members = count;
    split->has_cpu = has_cpu;
}

static enum gptoss_status split_place(struct gptoss_backend *base, int64_t max_positions,
                                      struct gptoss_error *error) {
    struct gptoss_split *split = gptoss_split_of(base);
    split->sizes.num_positions = max_positions;
    GPTOSS_TRY(gptoss_split_make_plan(&split->sizes, split->members, split->num_members,
                                      split->has_cpu, &split->plan, error));
    drop_unused(split);
    for (int i = 0; i < split->num_members; ++i) {
        find_layers(split, i);
        tell_part(split, i);
        if (!gptoss_split_is_cpu(split, i))
            operations_of(split, i)->load_begin(split->members[i].backend);
    }
    split->state = GPTOSS_SPLIT_LOADING;
    return GPTOSS_OK;
}

/* The bytes of one member among those of all. */
struct loading {
    gptoss_poll_fn poll;
    void *user;
    uint64_t done, total;
};

static int poll_loading(void *user, uint64_t done, uint64_t total) {
    const struct loading *loading = user;
    (void)total;
    return loading->poll(loading->user, loading->done + done, loading->total);
}

static enum gptoss_status split_load_end(struct gptoss_backend *base, gptoss_poll_fn poll,
                                         void *user, struct gptoss_error *error) {
    struct gptoss_split *split = gptoss_split_of(base);
    struct loading loading = {.poll = poll, .user = user};
    int num_gpus = split->num_members - split->has_cpu;
    for (int i = 0; i < num_gpus; ++i)
        loading.total += operations_of(split, i)->load_bytes(split->members[i].backend);
    for (int i = 0; i < num_gpus; ++i) {
        GPTOSS_TRY(operations_of(split, i)->load_end(
            split->members[i].backend, poll != NULL ? poll_loading : NULL, &loading, error));
        loading.done += operations_of(split, i)->load_bytes(split->members[i].backend);
    }
    split->state = GPTOSS_SPLIT_RUNNING;
    return GPTOSS_OK;
}

/* ---- life ---- */

static void split_release(struct gptoss_backend *base) {
    struct gptoss_split *split = gptoss_split_of(base);
    for (int i = 0; i < split->num_members; ++i)
        operations_of(split, i)->release(split->members[i].backend);
    for (int i = 0; i < GPTOSS_MAX_MEMBERS; ++i)
        gptoss_free(split->parts[i].caches);
    gptoss_free(split);
}

static uint64_t split_memory(const struct gptoss_backend *base) {
    const struct gptoss_split *split = (const struct gptoss_split *)base;
    uint64_t sum = sizeof *split;
    for (int i = 0; i < split->num_members; ++i) {
        sum += split->parts[i].max_slots * sizeof(struct gptoss_cache *);
        sum += operations_of(split, i)->memory(split->members[i].backend);
    }
    return sum;
}

static uint64_t split_device_memory(const struct gptoss_backend *base) {
    const struct gptoss_split *split = (const struct gptoss_split *)base;
    uint64_t sum = 0;
    for (int i = 0; i < split->num_members; ++i)
        if (operations_of(split, i)->device_memory != NULL)
            sum += operations_of(split, i)->device_memory(split->members[i].backend);
    return sum;
}

static const struct gptoss_backend_operations split_operations = {
    .release = split_release,
    .memory = split_memory,
    .device_memory = split_device_memory,
    .load_begin = split_load_begin,
    .place = split_place,
    .load_end = split_load_end,
    .buffer_create = split_buffer_create,
    .buffer_release = split_buffer_release,
    .buffer_read = split_buffer_read,
    .cache_create = gptoss_split_cache_create,
    .cache_release = gptoss_split_cache_release,
    .cache_view = gptoss_split_cache_view,
    .cache_fetch = gptoss_split_cache_fetch,
    .cache_hold = gptoss_split_cache_hold,
    .cache_copy = gptoss_split_cache_copy,
    .begin = split_begin,
    .take_rows = split_take_rows,
    .progress = split_progress,
    .poll = split_poll,
    .end = split_end,
    .explain = split_explain,
    .embed = gptoss_split_embed,
    .norm_linear = gptoss_split_norm_linear,
    .rope_append = gptoss_split_rope_append,
    .attention = gptoss_split_attention,
    .linear_residual = gptoss_split_linear_residual,
    .mlp_up = gptoss_split_mlp_up,
    .route = gptoss_split_route,
    .expert_gate_up = gptoss_split_expert_gate_up,
    .expert_down = gptoss_split_expert_down,
    .unembed = gptoss_split_unembed,
    .operation_nanoseconds = split_operation_nanoseconds,
    .run_tasks = split_run_tasks,
};

enum gptoss_status gptoss_split_create(const struct gptoss_split_member *members, int num_members,
                                       struct gptoss_backend **backend_out,
                                       struct gptoss_error *error) {
    *backend_out = NULL;
    struct gptoss_split *split = gptoss_allocate(1, sizeof *split);
    if (split == NULL) {
        for (int i = 0; i < num_members; ++i)
            members[i].backend->operations->release(members[i].backend);
        return gptoss_error_memory(error, sizeof *split, "the split back end");
    }
    split->base.operations = &split_operations;
    split->num_members = num_members;
    memcpy(split->members, members, (size_t)num_members * sizeof *members);
    split->has_cpu = operations_of(split, num_members - 1)->load_begin == NULL;
    *backend_out = &split->base;
    return GPTOSS_OK;
}

int gptoss_split_num_shares(const struct gptoss_backend *backend) {
    return ((const struct gptoss_split *)backend)->num_members;
}

void gptoss_split_share(const struct gptoss_backend *backend, int index,
                        struct gptoss_share *share_out) {
    const struct gptoss_split *split = (const struct gptoss_split *)backend;
    bool is_cpu = gptoss_split_is_cpu(split, index);
    *share_out = (struct gptoss_share){
        .device = split->members[index].name,
        .holds = split->parts[index].holds,
        .weight_bytes = split->plan.weight_bytes[index],
        .cache_bytes = split->plan.cache_bytes[index],
        .activation_bytes = is_cpu ? 0 : split->plan.activation_bytes,
    };
}
