/* libvulkan, opened when a device is first asked for. Headers are needed only to build. */
#ifndef GPTOSS_VULKAN_VULKAN_LOADER_H
#define GPTOSS_VULKAN_VULKAN_LOADER_H

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

#include "gptoss.h"

/* Headers older than 1.3.255 lack it. */
#ifndef VK_KHR_cooperative_matrix
#define VK_KHR_cooperative_matrix 1
#define VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME "VK_KHR_cooperative_matrix"
#define VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR                          \
    ((VkStructureType)1000506000)
#define VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR ((VkStructureType)1000506001)
typedef struct VkPhysicalDeviceCooperativeMatrixFeaturesKHR {
    VkStructureType sType;
    void *pNext;
    VkBool32 cooperativeMatrix;
    VkBool32 cooperativeMatrixRobustBufferAccess;
} VkPhysicalDeviceCooperativeMatrixFeaturesKHR;
typedef struct VkCooperativeMatrixPropertiesKHR {
    VkStructureType sType;
    void *pNext;
    uint32_t MSize, NSize, KSize;
    int32_t AType, BType, CType, ResultType; /* 0: float16, 1: float32 */
    VkBool32 saturatingAccumulation;
    int32_t scope; /* 3: subgroup */
} VkCooperativeMatrixPropertiesKHR;
typedef VkResult(VKAPI_PTR *PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)(
    VkPhysicalDevice, uint32_t *, VkCooperativeMatrixPropertiesKHR *);
#endif

#define GPTOSS_FOR_INSTANCE_FUNCTIONS(X)                                                           \
    X(DestroyInstance)                                                                             \
    X(EnumeratePhysicalDevices)                                                                    \
    X(EnumerateDeviceExtensionProperties)                                                          \
    X(GetPhysicalDeviceProperties2)                                                                \
    X(GetPhysicalDeviceFeatures2)                                                                  \
    X(GetPhysicalDeviceMemoryProperties2)                                                          \
    X(GetPhysicalDeviceQueueFamilyProperties)                                                      \
    X(CreateDevice)                                                                                \
    X(GetDeviceProcAddr)
#define GPTOSS_FOR_DEVICE_FUNCTIONS(X)                                                             \
    X(DestroyDevice)                                                                               \
    X(GetDeviceQueue)                                                                              \
    X(DeviceWaitIdle)                                                                              \
    X(AllocateMemory)                                                                              \
    X(FreeMemory)                                                                                  \
    X(MapMemory)                                                                                   \
    X(CreateBuffer)                                                                                \
    X(DestroyBuffer)                                                                               \
    X(GetBufferMemoryRequirements)                                                                 \
    X(BindBufferMemory)                                                                            \
    X(GetBufferDeviceAddress)                                                                      \
    X(CreateShaderModule)                                                                          \
    X(DestroyShaderModule)                                                                         \
    X(CreatePipelineLayout)                                                                        \
    X(DestroyPipelineLayout)                                                                       \
    X(CreateComputePipelines)                                                                      \
    X(DestroyPipeline)                                                                             \
    X(CreateCommandPool)                                                                           \
    X(DestroyCommandPool)                                                                          \
    X(AllocateCommandBuffers)                                                                      \
    X(FreeCommandBuffers)                                                                          \
    X(BeginCommandBuffer)                                                                          \
    X(EndCommandBuffer)                                                                            \
    X(CmdBindPipeline)                                                                             \
    X(CmdPushConstants)                                                                            \
    X(CmdDispatch)                                                                                 \
    X(CmdPipelineBarrier)                                                                          \
    X(CmdCopyBuffer)                                                                               \
    X(CmdFillBuffer)                                                                               \
    X(CmdResetQueryPool)                                                                           \
    X(CmdWriteTimestamp)                                                                           \
    X(CreateQueryPool)                                                                             \
    X(DestroyQueryPool)                                                                            \
    X(GetQueryPoolResults)                                                                         \
    X(CreateFence)                                                                                 \
    X(DestroyFence)                                                                                \
    X(GetFenceStatus)                                                                              \
    X(ResetFences)                                                                                 \
    X(WaitForFences)                                                                               \
    X(QueueSubmit)

#define GPTOSS_DECLARE_FUNCTION(name) PFN_vk##name name;

/* An instance and its functions. */
struct gptoss_vulkan_loader {
    void *library;
    VkInstance instance;
    GPTOSS_FOR_INSTANCE_FUNCTIONS(GPTOSS_DECLARE_FUNCTION)
    PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR
        GetPhysicalDeviceCooperativeMatrixPropertiesKHR; /* or NULL */
};

struct gptoss_vulkan_functions {
    GPTOSS_FOR_DEVICE_FUNCTIONS(GPTOSS_DECLARE_FUNCTION)
};

/* Opens libvulkan.so.1 and makes an instance of Vulkan 1.2. GPTOSS_ERROR_UNSUPPORTED: no loader, or
 * one that makes no instance. */
enum gptoss_status gptoss_vulkan_loader_open(struct gptoss_vulkan_loader *loader,
                                             struct gptoss_error *error);
void gptoss_vulkan_loader_close(struct gptoss_vulkan_loader *loader);

enum gptoss_status gptoss_vulkan_load_device_functions(const struct gptoss_vulkan_loader *loader,
                                                       VkDevice device,
                                                       struct gptoss_vulkan_functions *functions,
                                                       struct gptoss_error *error);

/* "VK_ERROR_DEVICE_LOST", ... */
const char *gptoss_vulkan_result_name(VkResult result);
/* The error of a call that failed while doing `what`: GPTOSS_ERROR_MEMORY where memory was refused,
 * else GPTOSS_ERROR_DEVICE. */
enum gptoss_status gptoss_vulkan_error(struct gptoss_error *error, VkResult result,
                                       const char *what);

#endif
