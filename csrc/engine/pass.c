#include "engine/pass.h"

#include <string.h>

#include "engine/model.h"
#include "engine/rope.h"
#include "platform/allocator.h"
#include "status.h"

/* ---- workspace ---- */

void gptoss_workspace_clear(struct gptoss_backend *backend, struct gptoss_workspace *workspace) {
    struct gptoss_buffer *buffers[] = {
        workspace->residual,       workspace->normed,         workspace->queries,
        workspace->keys,           workspace->values,         workspace->attention,
        workspace->sink_mass,      workspace->router_logits,  workspace->experts,
        workspace->activated,      workspace->expert_outputs, workspace->mlp_output,
        workspace->expert_weights,
    };
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; ++i)
        backend->operations->buffer_release(backend, buffers[i]);
    gptoss_free(workspace->cosine);
    gptoss_free(workspace->sine);
    *workspace = (struct gptoss_workspace){0};
}

static enum gptoss_status workspace_reserve(struct gptoss_model *model, int64_t num_rows,
                                            struct gptoss_error *error) {
    struct gptoss_workspace *workspace = &model->workspace;
    if (num_rows <= workspace->max_rows)
        return GPTOSS_OK;
    struct gptoss_backend *backend = model->backend;
    const struct gptoss_config *config = model->config;
    gptoss_workspace_clear(backend, workspace);
    int64_t hidden = config->hidden_size, chosen = config->experts_per_token;
    int64_t sinks = config->num_experts > 0 ? config->num_heads : 0;
    int64_t activated = (chosen > 0 ? chosen : 1) * config->intermediate_size;
    int64_t query_size = (int64_t)config->num_heads * config->head_dim;
    int64_t key_size = (int64_t)config->num_kv_heads * config->head_dim;
    const struct {
        struct gptoss_buffer **buffer;
        int64_t row_size;
    } buffers[] = {
        {&workspace->residual, hidden},     {&workspace->normed, hidden},
        {&workspace->queries, query_size},  {&workspace->keys, key_size},
        {&workspace->values, key_size},     {&workspace->attention, query_size},
        {&workspace->sink_mass, sinks},     {&workspace->router_logits, config->num_experts},
        {&workspace->experts, chosen},      {&workspace->expert_weights, chosen},
        {&workspace->activated, activated}, {&workspace->expert_outputs, chosen * hidden},
        {&workspace->mlp_output, hidden},
    };
    enum gptoss_status status = GPTOSS_OK;
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0] && status == GPTOSS_OK; ++i) {
        uint64_t row_bytes = (uint64_t)buffers[i].row_size * sizeof(float);
        status = backend->operations->buffer_create(backend, num_rows, row_bytes, buffers[i].buffer,
                                                    error);
    }
    size_t num_angles = (size_t)(num_rows * model->rope.half);
    workspace->cosine = gptoss_allocate(num_angles, sizeof(float));
    workspace->sine = gptoss_allocate(num_angles, sizeof(float));
    if (status == GPTOSS_OK && (workspace->cosine == NULL || workspace->sine == NULL))
        status = gptoss_error_memory(error, num_angles * sizeof(float), "rotary positions");
    if (status != GPTOSS_OK) {
        gptoss_workspace_clear(backend, workspace);
        return status;
    }
    workspace->max_rows = num_rows;
    workspace->num_bytes = 2 * num_angles * sizeof(float);
    return GPTOSS_OK;
}

/* ---- taps ---- */

/* Whether any slot's generator keeps a tap. */
static bool is_wanted(const struct gptoss_pass *pass, size_t index) {
    for (int32_t slot = 0; pass->captures != NULL && slot < pass->num_slots; ++slot)
        if (gptoss_capture_wants(pass->captures[slot], index))
            return true;
    return false;
}

static void keep_index(struct gptoss_model *model, const struct gptoss_pass *pass, size_t index,
                       struct gptoss_buffer *buffer) {
    if (!is_wanted(pass, index))
        return;
    struct gptoss_tap tap;
    gptoss_tap_describe(model->config, index, &tap);
    uint64_t row_bytes = gptoss_tap_row_bytes(&tap);
    const void *contents;
    if (model->backend->operations->buffer_read(model->backend, &buffer, 1, pass->num_rows,
                                                &contents) != GPTOSS_OK)
        return;
    const uint8_t *from = contents;
    for (int64_t row = 0, end; row < pass->num_rows; row = end) {
        int32_t slot = pass->rows[row].slot;
        for (end = row + 1; end < pass->num_rows && pass->rows[end].slot == slot;)
            ++end;
        void *to = gptoss_capture_rows(pass->captures[slot], model->config, index);
        if (to != NULL)
            memcpy(to, from + (uint64_t)row * row_bytes, (uint64_t)(end - row) * row_bytes);
    }
}

bool gptoss_pass_wants(const struct gptoss_model *model, const struct gptoss_pass *pass,
                       int32_t layer, enum gptoss_layer_tap tap) {
    return is_wanted(pass, gptoss_layer_tap_index(model->config, layer, tap));
}

void gptoss_pass_keep(struct gptoss_model *model, const struct gptoss_pass *pass, int32_t layer,
                      enum gptoss_layer_tap tap, struct gptoss_buffer *buffer) {
    keep_index(model, pass, gptoss_layer_tap_index(model->config, layer, tap), buffer);
}

struct gptoss_norm gptoss_pass_norm(const struct gptoss_config *config,
                                    const struct gptoss_vector *gain,
                                    const struct gptoss_vector *bias) {
    if (bias->data == NULL)
        return (struct gptoss_norm){.gain = gain, .epsilon = config->rms_norm_eps};
    return (struct gptoss_norm){.gain = gain, .bias = bias, .epsilon = config->layer_norm_eps};
}

/* ---- what all families begin and end with ---- */

enum gptoss_status gptoss_pass_embed(struct gptoss_model *model, const struct gptoss_pass *pass,
                                     const struct gptoss_row_table *table,
                                     const struct gptoss_weight *embedding,
                                     const struct gptoss_weight *positions) {
    struct gptoss_workspace *work = &model->workspace;
    GPTOSS_TRY(model->backend->operations->embed(model->backend, table,
                                                 &(struct gptoss_embed){
                                                     .embedding = embedding,
                                                     .positions = positions,
                                                     .out = work->residual,
                                                 }));
    keep_index(model, pass, gptoss_embedding_tap(), work->residual);
    return GPTOSS_OK;
}

void gptoss_pass_progress(struct gptoss_model *model, const struct gptoss_pass *pass,
                          int32_t layer) {
    uint64_t done = (uint64_t)(pass->num_rows * layer / model->config->num_layers);
    model->backend->operations->progress(model->backend, pass->progress_done + done,
                                         pass->progress_total);
}

/* The final norm of rows and, with logits_out, their logits. rows, first_row: as in the operation.
 */
static enum gptoss_status unembed(struct gptoss_model *model, const struct gptoss_row_table *table,
                                  const int64_t *rows, int64_t first_row, int64_t num_rows,
                                  float *logits_out, bool is_deferred) {
    struct gptoss_workspace *work = &model->workspace;
    return model->backend->operations->unembed(
        model->backend, table,
        &(struct gptoss_unembed){
            .x = work->residual,
            .normed = work->normed,
            .rows = rows,
            .first_row = first_row,
            .num_rows = num_rows,
            .norm = work->final_norm,
            .weight = logits_out != NULL ? work->unembedding : NULL,
            .logits = logits_out,
            .is_deferred = is_deferred,
        });
}

enum gptoss_status gptoss_pass_unembed(struct gptoss_model *model, const struct gptoss_pass *pass,
                                       const struct gptoss_row_table *table,
                                       struct gptoss_norm norm,
                                       const struct gptoss_weight *weight) {
    struct gptoss_workspace *work = &model->workspace;
    work->final_norm = norm;
    work->unembedding = weight;
    size_t tap = gptoss_final_norm_tap(model->config);
    if (is_wanted(pass, tap)) {
        GPTOSS_TRY(unembed(model, table, NULL, 0, pass->num_rows, NULL, false));
        keep_index(model, pass, tap, work->normed);
    }
    if (pass->num_logits_rows == 0)
        return GPTOSS_OK;
    return unembed(model, table, pass->logits_rows, pass->first_logits_row, pass->num_logits_rows,
                   pass->logits_out, pass->is_deferred);
}

/* The sentence for a status of operations over num_rows rows. */
static enum gptoss_status explain(struct gptoss_model *model, enum gptoss_status status,
                                  int64_t num_rows, struct gptoss_error *error) {
    if (status == GPTOSS_ERROR_INTERRUPTED)
        return gptoss_error_set(error, status, "interrupted");
    const struct gptoss_backend_operations *operations = model->backend->operations;
    if (status != GPTOSS_OK && operations->explain != NULL &&
        operations->explain(model->backend, status, error))
        return status;
    if (status == GPTOSS_ERROR_MEMORY)
        return gptoss_error_set(error, status,
                                "cannot allocate the scratch memory of a pass over %lld rows",
                                (long long)num_rows);
    return status;
}

enum gptoss_status gptoss_pass_logits(struct gptoss_model *model, const int64_t *rows,
                                      int64_t first_row, int64_t num_rows, float *logits_out,
                                      struct gptoss_error *error) {
    const struct gptoss_row_table none = {0};
    return explain(model, unembed(model, &none, rows, first_row, num_rows, logits_out, false),
                   num_rows, error);
}

enum gptoss_status gptoss_pass_guess(struct gptoss_model *model, const struct gptoss_guess *guess,
                                     struct gptoss_error *error) {
    return explain(model, model->backend->operations->guess(model->backend, guess), 1, error);
}

enum gptoss_status gptoss_pass_take(struct gptoss_model *model, int32_t index,
                                    struct gptoss_error *error) {
    return explain(model, model->backend->operations->take_deferred(model->backend, index), 1,
                   error);
}

enum gptoss_status gptoss_pass_run(struct gptoss_model *model, const struct gptoss_pass *pass,
                                   struct gptoss_error *error) {
    GPTOSS_TRY(workspace_reserve(model, pass->num_rows, error));
    struct gptoss_workspace *work = &model->workspace;
    for (int64_t row = 0; row < pass->num_rows; ++row)
        gptoss_rope_fill(&model->rope, pass->rows[row].position,
                         work->cosine + row * model->rope.half,
                         work->sine + row * model->rope.half);
    struct gptoss_row_table table = {pass->rows,   pass->num_rows, pass->caches,
                                     work->cosine, work->sine,     model->rope.half};
    const struct gptoss_backend_operations *operations = model->backend->operations;
    enum gptoss_status status = GPTOSS_OK;
    if (operations->take_rows != NULL)
        status = operations->take_rows(model->backend, &table);
    if (status == GPTOSS_OK)
        status = model->family->forward(model, pass, &table);
    status = explain(model, status, pass->num_rows, error);
    /* Buffers that are made at their first use may have taken all there was: fewer rows have room
     * again. */
    if (status == GPTOSS_ERROR_MEMORY)
        gptoss_workspace_clear(model->backend, work);
    return status;
}

enum gptoss_status gptoss_pass_load(struct gptoss_model *model, gptoss_poll_fn poll, void *user,
                                    struct gptoss_error *error) {
    const struct gptoss_backend_operations *operations = model->backend->operations;
    if (operations->load_begin == NULL)
        return GPTOSS_OK;
    /* A pass that is not run tells which weights there will be used, and how. */
    const struct gptoss_row row = {0};
    float unused;
    const struct gptoss_pass pass = {
        .rows = &row, .num_rows = 1, .num_slots = 1, .num_logits_rows = 1, .logits_out = &unused};
    operations->load_begin(model->backend);
    GPTOSS_TRY(gptoss_pass_run(model, &pass, error));
    if (operations->place != NULL) {
        GPTOSS_TRY(operations->place(model->backend, model->config->max_positions, error));
        GPTOSS_TRY(gptoss_pass_run(model, &pass, error));
    }
    return operations->load_end(model->backend, poll, user, error);
}
