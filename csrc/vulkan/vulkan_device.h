/* One GPU: how it is chosen, what it can do, its queue and its memory types. */
#ifndef GPTOSS_VULKAN_VULKAN_DEVICE_H
#define GPTOSS_VULKAN_VULKAN_DEVICE_H

#include <pthread.h>

#include "vulkan/vulkan_loader.h"

struct gptoss_vulkan_device {
    struct gptoss_vulkan_loader loader;
    struct gptoss_vulkan_functions run;
    VkPhysicalDevice physical;
    VkDevice handle;
    VkQueue queue;
    uint32_t queue_family;
    char name[VK_MAX_PHYSICAL_DEVICE_NAME_SIZE];
    VkPhysicalDeviceMemoryProperties memory;
    uint64_t max_allocation_bytes;
    uint32_t subgroup_size, max_workgroup, max_shared_bytes, max_groups;
    bool can_set_subgroup_size, is_software;
    bool keeps_subnormal_halves, has_votes;
    bool has_matrices; /* of float16, 16 x 16 x 16, sums in float32 or float16, subgroups of 32 */
    bool has_narrow_matrices; /* besides those 16 x 16 times 16 x 8, sums in float32, and large
                                 workgroups */
    float timestamp_nanoseconds;
    /* Of the device's memory: what this handle may take, 0 for all there is, and what it has. */
    uint64_t memory_limit;
    _Atomic uint64_t held_bytes;
};

/* which: NULL or "" for the first discrete GPU or else the first device, an index, or part of the
 * name in any case. GPTOSS_ERROR_UNSUPPORTED if there is none such, naming those there are, or if
 * it lacks what is needed. */
enum gptoss_status gptoss_vulkan_device_open(const char *which, struct gptoss_vulkan_device *device,
                                             struct gptoss_error *error);
/* Of its own largest memory. */
uint64_t gptoss_vulkan_device_memory(const struct gptoss_vulkan_device *device);
void gptoss_vulkan_device_close(struct gptoss_vulkan_device *device);

#endif
