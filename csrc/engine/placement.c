#include "engine/placement.h"

#include <stdio.h>
#include <string.h>

#include "cpu/cpu_backend.h"
#include "engine/model.h"
#include "split/split.h"
#include "status.h"
#include "vulkan/vulkan.h"

#define MAX_GPUS (GPTOSS_MAX_MEMBERS - 1)

/* The devices that options name. */
struct device_list {
    char text[512];             /* of the names, each ended */
    const char *gpus[MAX_GPUS]; /* behind "vulkan:", or "" */
    int num_gpus;
    bool has_cpu;
};

bool gptoss_placement_is_asked(const struct gptoss_model_options *options) {
    return options->num_gpu_memory > 0 ||
           (options->device != NULL && strchr(options->device, ',') != NULL);
}

/* ---- what is asked for ---- */

static enum gptoss_status refuse_device(const char *name, const char *why,
                                        struct gptoss_error *error) {
    gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                     "device '%s' %s: a list is of vulkan devices, at most %d, and cpu may be the "
                     "last",
                     name, why, MAX_GPUS);
    gptoss_error_expected(error, "vulkan:0,vulkan:1,cpu");
    gptoss_error_found(error, "%s", name);
    return GPTOSS_ERROR_ARGUMENT;
}

static enum gptoss_status add_device(struct device_list *list, const char *name,
                                     struct gptoss_error *error) {
    bool is_any = strcmp(name, "vulkan") == 0;
    if (list->has_cpu)
        return refuse_device(name, "stands behind cpu", error);
    if (strcmp(name, "cpu") == 0) {
        list->has_cpu = true;
        return GPTOSS_OK;
    }
    if (!is_any && strncmp(name, "vulkan:", 7) != 0)
        return refuse_device(name, "is not available in a list", error);
    if (list->num_gpus == MAX_GPUS)
        return refuse_device(name, "is one too many", error);
    list->gpus[list->num_gpus++] = is_any ? "" : name + 7;
    return GPTOSS_OK;
}

static enum gptoss_status read_list(const struct gptoss_model_options *options,
                                    struct device_list *list, struct gptoss_error *error) {
    const char *devices = options->device != NULL ? options->device : "cpu";
    *list = (struct device_list){.num_gpus = 0};
    if (strlen(devices) >= sizeof list->text)
        return refuse_device("...", "is too long", error);
    strcpy(list->text, devices);
    for (char *name = list->text, *end; name != NULL; name = end) {
        end = strchr(name, ',');
        if (end != NULL)
            *end++ = '\0';
        GPTOSS_TRY(add_device(list, name, error));
    }
    if (list->num_gpus == 0 && options->num_gpu_memory > 0)
        return gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                                "gpu_memory is for Vulkan devices, and device is '%s'", devices);
    if (list->num_gpus == 0)
        return refuse_device(devices, "names no GPU", error);
    return GPTOSS_OK;
}

static enum gptoss_status check_limits(const struct gptoss_model_options *options,
                                       const struct device_list *list, struct gptoss_error *error) {
    if (options->num_gpu_memory > 1 && options->num_gpu_memory != (size_t)list->num_gpus)
        return gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                                "gpu_memory has %zu numbers for %d GPUs: give one for each, or one "
                                "for all",
                                options->num_gpu_memory, list->num_gpus);
    for (size_t i = 0; i < options->num_gpu_memory; ++i)
        if (options->gpu_memory[i] == 0)
            return gptoss_error_set(error, GPTOSS_ERROR_ARGUMENT,
                                    "gpu_memory must be at least 1 byte, not 0");
    return GPTOSS_OK;
}

/* ---- the members ---- */

static uint64_t limit_of(const struct gptoss_model_options *options, int gpu) {
    if (options->num_gpu_memory == 0)
        return 0;
    return options->gpu_memory[options->num_gpu_memory > 1 ? gpu : 0];
}

static enum gptoss_status open_gpu(const struct gptoss_model *model,
                                   const struct gptoss_model_options *options, const char *which,
                                   uint64_t limit, struct gptoss_split_member *member,
                                   struct gptoss_error *error) {
    struct gptoss_backend *backend;
    GPTOSS_TRY(gptoss_vulkan_backend_create(which, options->precision, model->num_threads, limit,
                                            options->profile && !options->profile_counts, &backend,
                                            error));
    /* Without a limit something is left to others, the desktop and the driver. */
    uint64_t bytes = gptoss_vulkan_backend_device_bytes(backend);
    bytes -= bytes / 8;
    *member = (struct gptoss_split_member){
        .backend = backend,
        .name = gptoss_vulkan_backend_device(backend),
        .bytes = limit > 0 && limit < bytes ? limit : bytes,
    };
    return GPTOSS_OK;
}

static enum gptoss_status open_cpu(const struct gptoss_model *model,
                                   struct gptoss_split_member *member, struct gptoss_error *error) {
    *member = (struct gptoss_split_member){.name = "cpu"};
    return gptoss_cpu_backend_create(gptoss_kernels_select(NULL), NULL, model->num_threads,
                                     &member->backend, error);
}

/* GPUs that choose their precision choose the same. */
static enum gptoss_status check_precisions(const struct gptoss_split_member *gpus, int num_gpus,
                                           struct gptoss_error *error) {
    const char *first = gptoss_vulkan_backend_precision(gpus[0].backend);
    for (int i = 1; i < num_gpus; ++i) {
        const char *other = gptoss_vulkan_backend_precision(gpus[i].backend);
        if (strcmp(first, other) != 0)
            return gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                                    "'%s' computes with precision %s and '%s' with %s; ask for "
                                    "precision 'fp32', which both have",
                                    gpus[0].name, first, gpus[i].name, other);
    }
    return GPTOSS_OK;
}

static enum gptoss_status open_members(const struct gptoss_model *model,
                                       const struct gptoss_model_options *options,
                                       const struct device_list *list,
                                       struct gptoss_split_member *members, int *num_members,
                                       struct gptoss_error *error) {
    for (int i = 0; i < list->num_gpus; ++i, ++*num_members)
        GPTOSS_TRY(open_gpu(model, options, list->gpus[i], limit_of(options, i),
                            &members[*num_members], error));
    GPTOSS_TRY(check_precisions(members, list->num_gpus, error));
    if (!list->has_cpu && options->num_gpu_memory == 0)
        return GPTOSS_OK;
    GPTOSS_TRY(open_cpu(model, &members[*num_members], error));
    ++*num_members;
    return GPTOSS_OK;
}

enum gptoss_status gptoss_placement_open(struct gptoss_model *model,
                                         const struct gptoss_model_options *options,
                                         struct gptoss_error *error) {
    struct device_list list;
    struct gptoss_split_member members[GPTOSS_MAX_MEMBERS];
    int num_members = 0;
    GPTOSS_TRY(read_list(options, &list, error));
    GPTOSS_TRY(check_limits(options, &list, error));
    enum gptoss_status status = open_members(model, options, &list, members, &num_members, error);
    if (status != GPTOSS_OK) {
        for (int i = 0; i < num_members; ++i)
            members[i].backend->operations->release(members[i].backend);
        return status;
    }
    GPTOSS_TRY(gptoss_split_create(members, num_members, &model->backend, error));
    model->split = model->backend;
    model->isa = "vulkan";
    model->precision = gptoss_vulkan_backend_precision(members[0].backend);
    return GPTOSS_OK;
}
