#include "vulkan/vulkan_pipeline.h"

#include <string.h>

#include "platform/allocator.h"
#include "status.h"

enum gptoss_status gptoss_vulkan_pipelines_open(const struct gptoss_vulkan_device *device,
                                                struct gptoss_vulkan_pipelines *pipelines,
                                                struct gptoss_error *error) {
    *pipelines = (struct gptoss_vulkan_pipelines){0};
    const VkPushConstantRange range = {
        .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT,
        .size = GPTOSS_PUSH_BYTES,
    };
    const VkPipelineLayoutCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
        .pushConstantRangeCount = 1,
        .pPushConstantRanges = &range,
    };
    VkResult result =
        device->run.CreatePipelineLayout(device->handle, &info, NULL, &pipelines->layout);
    if (result == VK_SUCCESS)
        return GPTOSS_OK;
    pipelines->layout = VK_NULL_HANDLE;
    return gptoss_vulkan_error(error, result, "making a pipeline layout");
}

void gptoss_vulkan_pipelines_close(const struct gptoss_vulkan_device *device,
                                   struct gptoss_vulkan_pipelines *pipelines) {
    for (size_t i = 0; i < pipelines->count; ++i)
        device->run.DestroyPipeline(device->handle, pipelines->entries[i].pipeline, NULL);
    for (size_t i = 0; i < GPTOSS_NUM_SHADERS; ++i)
        if (pipelines->modules[i] != VK_NULL_HANDLE)
            device->run.DestroyShaderModule(device->handle, pipelines->modules[i], NULL);
    if (pipelines->layout != VK_NULL_HANDLE)
        device->run.DestroyPipelineLayout(device->handle, pipelines->layout, NULL);
    gptoss_free(pipelines->entries);
    *pipelines = (struct gptoss_vulkan_pipelines){0};
}

static enum gptoss_status load_module(const struct gptoss_vulkan_device *device,
                                      struct gptoss_vulkan_pipelines *pipelines,
                                      enum gptoss_shader shader, struct gptoss_error *error) {
    if (pipelines->modules[shader] != VK_NULL_HANDLE)
        return GPTOSS_OK;
    const struct gptoss_shader_code code = gptoss_shader_code(shader);
    const VkShaderModuleCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
        .codeSize = code.num_bytes,
        .pCode = code.words,
    };
    VkResult result =
        device->run.CreateShaderModule(device->handle, &info, NULL, &pipelines->modules[shader]);
    if (result == VK_SUCCESS)
        return GPTOSS_OK;
    pipelines->modules[shader] = VK_NULL_HANDLE;
    return gptoss_vulkan_error(error, result, code.name);
}

static enum gptoss_status create(const struct gptoss_vulkan_device *device,
                                 struct gptoss_vulkan_pipelines *pipelines,
                                 const struct gptoss_pipeline_key *key, VkPipeline *pipeline_out,
                                 struct gptoss_error *error) {
    GPTOSS_TRY(load_module(device, pipelines, key->shader, error));
    VkSpecializationMapEntry entries[GPTOSS_MAX_CONSTANTS];
    for (uint32_t i = 0; i < GPTOSS_MAX_CONSTANTS; ++i)
        entries[i] =
            (VkSpecializationMapEntry){i, i * (uint32_t)sizeof(uint32_t), sizeof(uint32_t)};
    const VkSpecializationInfo constants = {
        .mapEntryCount = GPTOSS_MAX_CONSTANTS,
        .pMapEntries = entries,
        .dataSize = sizeof key->constants,
        .pData = key->constants,
    };
    const VkPipelineShaderStageRequiredSubgroupSizeCreateInfoEXT size = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO_EXT,
        .requiredSubgroupSize = device->subgroup_size,
    };
    const VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage =
            {
                .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                .pNext = device->can_set_subgroup_size ? &size : NULL,
                .flags = device->can_set_subgroup_size
                             ? VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT_EXT
                             : 0,
                .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                .module = pipelines->modules[key->shader],
                .pName = "main",
                .pSpecializationInfo = &constants,
            },
        .layout = pipelines->layout,
    };
    VkResult result = device->run.CreateComputePipelines(device->handle, VK_NULL_HANDLE, 1, &info,
                                                         NULL, pipeline_out);
    if (result == VK_SUCCESS)
        return GPTOSS_OK;
    return gptoss_vulkan_error(error, result, gptoss_shader_code(key->shader).name);
}

enum gptoss_status gptoss_vulkan_pipeline(const struct gptoss_vulkan_device *device,
                                          struct gptoss_vulkan_pipelines *pipelines,
                                          const struct gptoss_pipeline_key *key,
                                          VkPipeline *pipeline_out, struct gptoss_error *error) {
    for (size_t i = 0; i < pipelines->count; ++i) {
        if (memcmp(&pipelines->entries[i].key, key, sizeof *key) == 0) {
            *pipeline_out = pipelines->entries[i].pipeline;
            return GPTOSS_OK;
        }
    }
    if (pipelines->count == pipelines->capacity) {
        size_t capacity = pipelines->capacity > 0 ? 2 * pipelines->capacity : 32;
        struct gptoss_pipeline_entry *entries = gptoss_allocate(capacity, sizeof *entries);
        if (entries == NULL)
            return gptoss_error_memory(error, capacity * sizeof *entries, "pipelines");
        if (pipelines->count > 0)
            memcpy(entries, pipelines->entries, pipelines->count * sizeof *entries);
        gptoss_free(pipelines->entries);
        pipelines->entries = entries;
        pipelines->capacity = capacity;
    }
    GPTOSS_TRY(create(device, pipelines, key, pipeline_out, error));
    pipelines->entries[pipelines->count++] =
        (struct gptoss_pipeline_entry){.key = *key, .pipeline = *pipeline_out};
    return GPTOSS_OK;
}
