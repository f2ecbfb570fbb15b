#include "engine/model.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cpu/bf16_units.h"
#include "engine/placement.h"
#include "numeric/dtype.h"
#include "platform/allocator.h"
#include "split/split.h"
#include "status.h"
#include "vulkan/vulkan.h"

#define MAX_THREADS 1024

const char *gptoss_version(void) {
    return GPTOSS_VERSION;
}

/* ---- opening ---- */

/* other: NULL for a single choice. */
static enum gptoss_status check_choice(const char *what, const char *value, const char *supported,
                                       const char *other, struct gptoss_error *error) {
    if (value == NULL || strcmp(value, supported) == 0 ||
        (other != NULL && strcmp(value, other) == 0))
        return GPTOSS_OK;
    const char *separator = other != NULL ? ", " : "";
    other = other != NULL ? other : "";
    gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                     "%s '%s' is not available in this build; supported: %s%s%s", what, value,
                     supported, separator, other);
    gptoss_error_expected(error, "%s%s%s", supported, separator, other);
    gptoss_error_found(error, "%s", value);
    return GPTOSS_ERROR_UNSUPPORTED;
}

/* The names of the instruction sets that this machine has, or of all: "avx2, avx512". */
struct isa_list {
    char names[128];
};

static struct isa_list list_isas(bool bf16, bool all) {
    struct isa_list list = {""};
    size_t count = bf16 ? gptoss_num_bf16_isas() : gptoss_num_isas();
    for (size_t i = 0; i < count; ++i) {
        if (!all && !(bf16 ? gptoss_bf16_isa_available(i) : gptoss_isa_available(i)))
            continue;
        size_t length = strlen(list.names);
        snprintf(list.names + length, sizeof list.names - length, "%s%s", length > 0 ? ", " : "",
                 bf16 ? gptoss_bf16_isa_name(i) : gptoss_isa_name(i));
    }
    return list;
}

static bool is_bf16_isa(const char *isa) {
    for (size_t i = 0; isa != NULL && i < gptoss_num_bf16_isas(); ++i)
        if (strcmp(isa, gptoss_bf16_isa_name(i)) == 0)
            return true;
    return false;
}

static enum gptoss_status choose_fp32(struct gptoss_model *model, const char *isa,
                                      const struct gptoss_kernels **kernels_out,
                                      struct gptoss_error *error) {
    *kernels_out = gptoss_kernels_select(isa);
    if (*kernels_out != NULL) {
        model->isa = (*kernels_out)->isa;
        model->precision = "fp32";
        return GPTOSS_OK;
    }
    struct isa_list available = list_isas(false, false);
    if (is_bf16_isa(isa))
        gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                         "instruction set '%s' computes with precision 'bf16' only: ask for that, "
                         "or for one of %s",
                         isa, available.names);
    else
        gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                         "instruction set '%s' is unknown or this processor lacks it; available: "
                         "%s",
                         isa != NULL ? isa : "any", available.names);
    gptoss_error_expected(error, "%s", available.names);
    gptoss_error_found(error, "%s", isa != NULL ? isa : "none");
    return GPTOSS_ERROR_UNSUPPORTED;
}

static enum gptoss_status choose_bf16(struct gptoss_model *model, const char *isa,
                                      const struct gptoss_bf16_unit **unit_out,
                                      const struct gptoss_kernels **kernels_out,
                                      struct gptoss_error *error) {
    *unit_out = gptoss_bf16_unit_select(isa, kernels_out);
    if (*unit_out != NULL) {
        model->isa = (*unit_out)->isa;
        model->precision = "bf16";
        return GPTOSS_OK;
    }
    struct isa_list all = list_isas(true, true), available = list_isas(true, false);
    const char *here = available.names[0] != '\0' ? available.names : "none of them";
    if (all.names[0] == '\0')
        gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                         "precision 'bf16' is not available on this kind of processor; use "
                         "precision 'fp32'");
    else
        gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                         "precision 'bf16' needs one of the instruction sets %s%s%s, and this "
                         "machine has %s; use precision 'fp32'",
                         all.names, isa != NULL ? ", not " : "", isa != NULL ? isa : "", here);
    gptoss_error_expected(error, "%s", all.names);
    gptoss_error_found(error, "%s", isa != NULL ? isa : here);
    return GPTOSS_ERROR_UNSUPPORTED;
}

/* What no GPU does. */
static enum gptoss_status check_gpu_options(const struct gptoss_model_options *options,
                                            struct gptoss_error *error) {
    if (options->isa != NULL)
        return gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                                "isa '%s' is for device='cpu'; a GPU has no choice of it",
                                options->isa);
    return GPTOSS_OK;
}

static enum gptoss_status create_vulkan_backend(struct gptoss_model *model,
                                                const struct gptoss_model_options *options,
                                                const char *which, struct gptoss_error *error) {
    GPTOSS_TRY(check_gpu_options(options, error));
    GPTOSS_TRY(gptoss_vulkan_backend_create(which, options->precision, model->num_threads, 0,
                                            options->profile && !options->profile_counts,
                                            &model->backend, error));
    model->device = gptoss_vulkan_backend_device(model->backend);
    model->isa = "vulkan";
    model->precision = gptoss_vulkan_backend_precision(model->backend);
    return GPTOSS_OK;
}

static enum gptoss_status create_cpu_backend(struct gptoss_model *model,
                                             const struct gptoss_model_options *options,
                                             struct gptoss_error *error) {
    enum gptoss_status status =
        check_choice("precision", options->precision, "fp32", "bf16", error);
    const struct gptoss_kernels *kernels = NULL;
    const struct gptoss_bf16_unit *unit = NULL;
    bool is_bf16 = options->precision != NULL && strcmp(options->precision, "bf16") == 0;
    if (status == GPTOSS_OK && is_bf16)
        status = choose_bf16(model, options->isa, &unit, &kernels, error);
    else if (status == GPTOSS_OK)
        status = choose_fp32(model, options->isa, &kernels, error);
    if (status != GPTOSS_OK)
        return status;
    model->device = "cpu";
    return gptoss_cpu_backend_create(kernels, unit, model->num_threads, &model->backend, error);
}

static enum gptoss_status create_backend(struct gptoss_model *model,
                                         const struct gptoss_model_options *options,
                                         struct gptoss_error *error) {
    if (options->num_threads < 0 || options->num_threads > MAX_THREADS) {
        gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                         "the number of threads must be 1 to %d, or 0 for all, not %d", MAX_THREADS,
                         options->num_threads);
        gptoss_error_expected(error, "0 .. %d", MAX_THREADS);
        gptoss_error_found(error, "%d", options->num_threads);
        return GPTOSS_ERROR_ARGUMENT;
    }
    model->num_threads = options->num_threads > 0 ? options->num_threads : gptoss_usable_cores();
    if (gptoss_placement_is_asked(options)) {
        GPTOSS_TRY(check_gpu_options(options, error));
        return gptoss_placement_open(model, options, error);
    }
    if (options->device == NULL || strcmp(options->device, "cpu") == 0)
        return create_cpu_backend(model, options, error);
    if (strcmp(options->device, "vulkan") == 0)
        return create_vulkan_backend(model, options, "", error);
    if (strncmp(options->device, "vulkan:", 7) == 0)
        return create_vulkan_backend(model, options, options->device + 7, error);
    return check_choice("device", options->device, "cpu", "vulkan", error);
}

/* Known once the weights are placed: a device that got none is not among them. */
static void name_devices(struct gptoss_model *model) {
    size_t length = 0, size = sizeof model->devices;
    for (int i = 0; i < gptoss_split_num_shares(model->split) && length < size; ++i) {
        struct gptoss_share share;
        gptoss_split_share(model->split, i, &share);
        length += (size_t)snprintf(model->devices + length, size - length, "%s%s",
                                   i > 0 ? " + " : "", share.device);
    }
    model->device = model->devices;
}

enum gptoss_status gptoss_model_open(const char *path, const struct gptoss_model_options *options,
                                     struct gptoss_model **model_out, struct gptoss_error *error) {
    static const struct gptoss_model_options defaults = {0};
    if (options == NULL)
        options = &defaults;
    *model_out = NULL;
    struct gptoss_model *model = gptoss_allocate(1, sizeof *model);
    if (model == NULL)
        return gptoss_error_memory(error, sizeof *model, "the model");
    atomic_init(&model->references, 1);
    enum gptoss_status status = create_backend(model, options, error);
    if (status != GPTOSS_OK)
        goto cleanup;
    status = gptoss_checkpoint_open(path, options->read_files, options->poll, options->poll_user,
                                    &model->checkpoint, error);
    if (status != GPTOSS_OK)
        goto cleanup;
    model->config = gptoss_checkpoint_config(model->checkpoint);
    model->attention_scale = (float)(1.0 / sqrt((double)model->config->head_dim));
    model->family = gptoss_family_find(model->config);
    status = model->family->bind(model, error);
    if (status != GPTOSS_OK)
        goto cleanup;
    status = gptoss_adapters_open(model, options, error);
    if (status != GPTOSS_OK)
        goto cleanup;
    status = gptoss_rope_init(&model->rope, model->config, &model->rope_divisors, error);
    if (status != GPTOSS_OK)
        goto cleanup;
    status = gptoss_pass_load(model, options->poll, options->poll_user, error);
    if (status != GPTOSS_OK)
        goto cleanup;
    if (model->split != NULL)
        name_devices(model);
    if (options->profile)
        status = gptoss_profiler_create(model->config->num_experts, &model->backend,
                                        &model->profiler, error);
    if (status != GPTOSS_OK)
        goto cleanup;
    *model_out = model;
    return GPTOSS_OK;
cleanup:
    gptoss_model_release(model);
    return status;
}

struct gptoss_model *gptoss_model_retain(struct gptoss_model *model) {
    atomic_fetch_add_explicit(&model->references, 1, memory_order_relaxed);
    return model;
}

void gptoss_model_release(struct gptoss_model *model) {
    if (model == NULL ||
        atomic_fetch_sub_explicit(&model->references, 1, memory_order_acq_rel) != 1)
        return;
    if (model->backend != NULL) {
        gptoss_workspace_clear(model->backend, &model->workspace);
        model->backend->operations->release(model->backend);
    }
    gptoss_free(model->batch_logits);
    if (model->family != NULL)
        model->family->clear(model);
    gptoss_adapters_clear(model);
    gptoss_rope_clear(&model->rope);
    gptoss_checkpoint_release(model->checkpoint);
    gptoss_free(model);
}

enum gptoss_status gptoss_model_batch_logits(struct gptoss_model *model, int64_t num_rows,
                                             float **logits_out, struct gptoss_error *error) {
    if (num_rows > model->max_batch_logits) {
        uint64_t row_bytes = (uint64_t)model->config->vocab_size * sizeof(float);
        gptoss_free(model->batch_logits);
        model->max_batch_logits = 0;
        model->batch_logits = gptoss_allocate((size_t)num_rows, row_bytes);
        if (model->batch_logits == NULL)
            return gptoss_error_memory(error, (uint64_t)num_rows * row_bytes, "a batch's logits");
        model->max_batch_logits = num_rows;
    }
    *logits_out = model->batch_logits;
    return GPTOSS_OK;
}

/* ---- what it is ---- */

const struct gptoss_config *gptoss_model_config(const struct gptoss_model *model) {
    return model->config;
}
const char *gptoss_model_device(const struct gptoss_model *model) {
    return model->device;
}
size_t gptoss_model_num_shares(const struct gptoss_model *model) {
    return model->split != NULL ? (size_t)gptoss_split_num_shares(model->split) : 1;
}
void gptoss_model_share(const struct gptoss_model *model, size_t index,
                        struct gptoss_share *share_out) {
    if (model->split != NULL) {
        gptoss_split_share(model->split, (int)index, share_out);
        return;
    }
    const struct gptoss_backend_operations *operations = model->backend->operations;
    *share_out = (struct gptoss_share){.device = model->device, .holds = "the whole model"};
    if (operations->load_bytes != NULL)
        share_out->weight_bytes = operations->load_bytes(model->backend);
}
const char *gptoss_model_isa(const struct gptoss_model *model) {
    return model->isa;
}
const char *gptoss_model_precision(const struct gptoss_model *model) {
    return model->precision;
}
int gptoss_model_num_threads(const struct gptoss_model *model) {
    return model->num_threads;
}

size_t gptoss_model_num_tensors(const struct gptoss_model *model) {
    return gptoss_checkpoint_num_tensors(model->checkpoint);
}
const struct gptoss_tensor *gptoss_model_tensor(const struct gptoss_model *model, size_t index) {
    return gptoss_checkpoint_tensor(model->checkpoint, index);
}
const struct gptoss_tensor *gptoss_model_find_tensor(const struct gptoss_model *model,
                                                     const char *name) {
    return gptoss_checkpoint_find(model->checkpoint, name);
}

const struct gptoss_checkpoint *gptoss_model_checkpoint(const struct gptoss_model *model) {
    return model->checkpoint;
}

size_t gptoss_model_num_taps(const struct gptoss_model *model) {
    return gptoss_final_norm_tap(model->config) + 1;
}
void gptoss_model_tap(const struct gptoss_model *model, size_t index, struct gptoss_tap *tap_out) {
    gptoss_tap_describe(model->config, index, tap_out);
}

void gptoss_model_memory(const struct gptoss_model *model, struct gptoss_model_memory *memory_out) {
    gptoss_checkpoint_memory(model->checkpoint, memory_out);
    gptoss_adapters_memory(model, memory_out);
    memory_out->heap_bytes += sizeof *model + model->workspace.num_bytes;
    memory_out->heap_bytes +=
        (uint64_t)model->max_batch_logits * (uint64_t)model->config->vocab_size * sizeof(float);
    memory_out->heap_bytes += model->backend->operations->memory(model->backend);
    if (model->backend->operations->device_memory != NULL)
        memory_out->device_bytes = model->backend->operations->device_memory(model->backend);
}

size_t gptoss_model_num_profile_entries(const struct gptoss_model *model) {
    return model->profiler != NULL ? gptoss_profiler_num_entries(model->profiler) : 0;
}
void gptoss_model_profile_entry(const struct gptoss_model *model, size_t index,
                                struct gptoss_profile_entry *entry_out) {
    gptoss_profiler_entry(model->profiler, index, entry_out);
}
void gptoss_model_reset_profile(struct gptoss_model *model) {
    if (model->profiler != NULL)
        gptoss_profiler_reset(model->profiler);
}

enum gptoss_status gptoss_model_verify(struct gptoss_model *model, gptoss_poll_fn poll, void *user,
                                       struct gptoss_error *error) {
    return gptoss_checkpoint_verify(model->checkpoint, poll, user, error);
}

/* ---- one expert ---- */

static void decode_row(const struct gptoss_weight *weight, int64_t matrix, int64_t row,
                       float *out) {
    uint64_t columns = (uint64_t)weight->num_columns;
    const uint8_t *data = weight->data + (uint64_t)matrix * weight->matrix_bytes;
    if (!weight->transposed) {
        const uint8_t *scales = NULL;
        if (gptoss_dtype_has_planes(weight->dtype))
            scales = weight->scales + (uint64_t)matrix * weight->scale_matrix_bytes +
                     (uint64_t)row * columns / 32;
        gptoss_decode_row(weight->dtype,
                          data + (uint64_t)row * gptoss_dtype_row_bytes(weight->dtype, columns),
                          scales, columns, out);
        return;
    }
    size_t element = gptoss_dtype_bytes(weight->dtype);
    for (uint64_t column = 0; column < columns; ++column)
        gptoss_decode_elements(
            weight->dtype, data + (column * (uint64_t)weight->num_rows + (uint64_t)row) * element,
            1, out + column);
}

/* Rows first, first + step, ... of one expert, num_rows of them. */
static void decode_rows(const struct gptoss_weight *weight, int64_t expert, int64_t first,
                        int64_t step, int64_t num_rows, float *out) {
    for (int64_t row = 0; out != NULL && row < num_rows; ++row)
        decode_row(weight, expert, first + row * step, out + row * weight->num_columns);
}

static void decode_bias(const struct gptoss_vector *bias, int64_t expert, int64_t first,
                        int64_t step, int64_t num_elements, float *out) {
    size_t element = gptoss_dtype_bytes(bias->dtype);
    const uint8_t *data = bias->data + (uint64_t)(expert * bias->num_elements) * element;
    for (int64_t i = 0; out != NULL && i < num_elements; ++i)
        gptoss_decode_elements(bias->dtype, data + (uint64_t)(first + i * step) * element, 1,
                               out + i);
}

enum gptoss_status gptoss_model_decode_expert(const struct gptoss_model *model, int32_t layer,
                                              int32_t expert, const struct gptoss_expert_out *out,
                                              struct gptoss_error *error) {
    const struct gptoss_config *config = model->config;
    if (config->num_experts == 0)
        return gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                                "a model of the %s family has no experts", config->architecture);
    if (layer < 0 || layer >= config->num_layers || expert < 0 || expert >= config->num_experts) {
        gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                         "there is no expert %" PRId32 " in layer %" PRId32
                         "; the model has %" PRId32 " layers of %" PRId32 " experts",
                         expert, layer, config->num_layers, config->num_experts);
        gptoss_error_expected(error, "layer below %" PRId32 ", expert below %" PRId32,
                              config->num_layers, config->num_experts);
        gptoss_error_found(error, "layer %" PRId32 ", expert %" PRId32, layer, expert);
        return GPTOSS_ERROR_ARGUMENT;
    }
    const struct gptoss_gpt_oss_layer *weights = &model->weights.gpt_oss.layers[layer];
    int64_t intermediate = config->intermediate_size, hidden = config->hidden_size;
    bool split = weights->up.data != NULL;
    int64_t step = split ? 1 : 2, first_up = split ? 0 : 1;
    const struct gptoss_weight *up = split ? &weights->up : &weights->gate_up;
    const struct gptoss_vector *up_bias = split ? &weights->up_bias : &weights->gate_up_bias;
    decode_rows(&weights->gate_up, expert, 0, step, intermediate, out->gate);
    decode_rows(up, expert, first_up, step, intermediate, out->up);
    decode_rows(&weights->down, expert, 0, 1, hidden, out->down);
    decode_bias(&weights->gate_up_bias, expert, 0, step, intermediate, out->gate_bias);
    decode_bias(up_bias, expert, first_up, step, intermediate, out->up_bias);
    decode_bias(&weights->down_bias, expert, 0, 1, hidden, out->down_bias);
    return GPTOSS_OK;
}
