/* Weights in device memory. They are named first, one by one, and then brought there together. */
#ifndef GPTOSS_VULKAN_VULKAN_WEIGHTS_H
#define GPTOSS_VULKAN_VULKAN_WEIGHTS_H

#include "backend.h"
#include "cpu/thread_pool.h"
#include "vulkan/vulkan_command.h"

/* See push_constants.h. data 0: absent. */
struct gptoss_device_weight {
    uint64_t data, scales;
    uint32_t layout, num_columns;
    bool fits_f16; /* the largest element is between 2^-8 and 2^14 */
};

struct gptoss_vulkan_weights {
    struct gptoss_weight_entry *entries; /* open addressing, capacity a power of two */
    size_t count, capacity;
    struct gptoss_vulkan_memory *blocks;
    size_t num_blocks;
    uint64_t num_bytes;
};

/* Where a weight or a vector (float32 on the device) is; before the loading, that it is needed.
 * wide: as float32, whatever its format. GPTOSS_ERROR_MEMORY only before. */
enum gptoss_status gptoss_vulkan_weight(struct gptoss_vulkan_weights *weights,
                                        const struct gptoss_weight *weight, bool wide,
                                        struct gptoss_device_weight *out);
enum gptoss_status gptoss_vulkan_vector(struct gptoss_vulkan_weights *weights,
                                        const struct gptoss_vector *vector, uint64_t *address_out);

/* Brings all to the device. poll: with bytes done and all bytes. */
enum gptoss_status gptoss_vulkan_weights_load(struct gptoss_vulkan_weights *weights,
                                              struct gptoss_vulkan_queue *queue,
                                              struct gptoss_thread_pool *pool, gptoss_poll_fn poll,
                                              void *user, struct gptoss_error *error);
void gptoss_vulkan_weights_release(struct gptoss_vulkan_weights *weights,
                                   struct gptoss_vulkan_device *device);

#endif
