/* Memory of a device: buffers with an address. */
#ifndef GPTOSS_VULKAN_VULKAN_MEMORY_H
#define GPTOSS_VULKAN_VULKAN_MEMORY_H

#include "vulkan/vulkan_device.h"

/* One allocation with one buffer over it. */
struct gptoss_vulkan_memory {
    VkBuffer buffer;
    VkDeviceMemory memory;
    uint64_t address, num_bytes;
    void *host;          /* mapped, coherent; NULL: device only */
    uint64_t held_bytes; /* those that count as the device's */
};

enum gptoss_vulkan_place {
    GPTOSS_VULKAN_DEVICE, /* the device's own */
    GPTOSS_VULKAN_INPUT,  /* the host writes it, the device reads it: near the device if possible */
    GPTOSS_VULKAN_READBACK /* the device writes it, the host reads it: cached by the host, whose
                              memory it is, so that it does not count as the device's */
};

/* num_bytes >= 1. GPTOSS_ERROR_MEMORY names `what` and how much was asked for; beyond the device's
 * limit, that too. */
enum gptoss_status gptoss_vulkan_memory_create(struct gptoss_vulkan_device *device,
                                               enum gptoss_vulkan_place place, uint64_t num_bytes,
                                               const char *what, struct gptoss_vulkan_memory *out,
                                               struct gptoss_error *error);
/* Where the host finds what is at an address of mapped memory. */
static inline void *gptoss_vulkan_at(const struct gptoss_vulkan_memory *memory, uint64_t address) {
    return (uint8_t *)memory->host + (address - memory->address);
}
void gptoss_vulkan_memory_release(struct gptoss_vulkan_device *device,
                                  struct gptoss_vulkan_memory *memory);

#endif
