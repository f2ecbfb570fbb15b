/* Compute pipelines, made when first asked for: one for each shader and set of specialisation
 * constants. */
#ifndef GPTOSS_VULKAN_VULKAN_PIPELINE_H
#define GPTOSS_VULKAN_VULKAN_PIPELINE_H

#include "vulkan/shaders.h"
#include "vulkan/vulkan_device.h"

#define GPTOSS_MAX_CONSTANTS 9
#define GPTOSS_PUSH_BYTES 128 /* what every device has */

/* The constants of ids 0, 1, ...; the first is the workgroup's size, the last two whether the
 * device keeps subnormal halves and the size of its subgroups. */
struct gptoss_pipeline_key {
    enum gptoss_shader shader;
    uint32_t constants[GPTOSS_MAX_CONSTANTS];
};

struct gptoss_vulkan_pipelines {
    VkPipelineLayout layout;
    VkShaderModule modules[GPTOSS_NUM_SHADERS];
    struct gptoss_pipeline_entry {
        struct gptoss_pipeline_key key;
        VkPipeline pipeline;
    } *entries;
    size_t count, capacity;
};

enum gptoss_status gptoss_vulkan_pipelines_open(const struct gptoss_vulkan_device *device,
                                                struct gptoss_vulkan_pipelines *pipelines,
                                                struct gptoss_error *error);
void gptoss_vulkan_pipelines_close(const struct gptoss_vulkan_device *device,
                                   struct gptoss_vulkan_pipelines *pipelines);
/* Valid until the pipelines are closed. */
enum gptoss_status gptoss_vulkan_pipeline(const struct gptoss_vulkan_device *device,
                                          struct gptoss_vulkan_pipelines *pipelines,
                                          const struct gptoss_pipeline_key *key,
                                          VkPipeline *pipeline_out, struct gptoss_error *error);

#endif
