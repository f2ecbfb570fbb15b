/* Weights in device memory. They are named first, one by one, and then brought there together. */
#ifndef GPTOSS_VULKAN_VULKAN_WEIGHTS_H
#define GPTOSS_VULKAN_VULKAN_WEIGHTS_H

#include "backend.h"
#include "cpu/thread_pool.h"
#include "vulkan/shaders/push_constants.h"
#include "vulkan/vulkan_command.h"
#include "vulkan/vulkan_tiles.h"

/* The forms that a weight may be asked for in. Tiles only where the format has such a layout and
 * the device multiplies it, rows else. */
enum gptoss_device_form {
    GPTOSS_FORM_ROWS,
    GPTOSS_FORM_FLOAT32, /* rows, whatever the format */
    GPTOSS_FORM_TILES,
    GPTOSS_FORM_PAIR_TILES /* rows are pairs: tiles of 16 first ones, each before that of the others
                            */
};

/* See push_constants.h. data 0: absent. */
struct gptoss_device_weight {
    uint64_t data, scales;
    uint32_t layout, num_columns;
    bool fits_f16;                         /* the largest element is between 2^-8 and 2^14 */
    struct gptoss_scale_range scale_range; /* of MXFP4 in tiles */
};

struct gptoss_vulkan_weights {
    struct gptoss_weight_entry *entries; /* open addressing, capacity a power of two */
    size_t count, capacity;
    struct gptoss_vulkan_memory *blocks;
    size_t num_blocks;
    uint64_t num_bytes;
    bool has_tiles; /* the device multiplies them */
};

/* Where a weight or a vector (float32 on the device) is; before the loading, that it is needed.
 * GPTOSS_ERROR_MEMORY only before. */
enum gptoss_status gptoss_vulkan_weight(struct gptoss_vulkan_weights *weights,
                                        const struct gptoss_weight *weight,
                                        enum gptoss_device_form form,
                                        struct gptoss_device_weight *out);
enum gptoss_status gptoss_vulkan_vector(struct gptoss_vulkan_weights *weights,
                                        const struct gptoss_vector *vector, uint64_t *address_out);

/* Brings all to the device. poll: with bytes done and all bytes. */
enum gptoss_status gptoss_vulkan_weights_load(struct gptoss_vulkan_weights *weights,
                                              struct gptoss_vulkan_queue *queue,
                                              struct gptoss_thread_pool *pool, gptoss_poll_fn poll,
                                              void *user, struct gptoss_error *error);
static inline bool gptoss_is_in_tiles(const struct gptoss_device_weight *weight) {
    return weight->layout == GPTOSS_DEVICE_MXFP4_TILES || weight->layout == GPTOSS_DEVICE_Q8_TILES;
}
void gptoss_vulkan_weights_release(struct gptoss_vulkan_weights *weights,
                                   struct gptoss_vulkan_device *device);

#endif
