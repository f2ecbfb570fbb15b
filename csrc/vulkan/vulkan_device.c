#include "vulkan/vulkan_device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "status.h"
#include "vulkan/shaders/push_constants.h"

#define MAX_DEVICES 32

/* ---- choosing ---- */

struct device_list {
    uint32_t count;
    VkPhysicalDevice devices[MAX_DEVICES];
    VkPhysicalDeviceProperties properties[MAX_DEVICES];
};

static enum gptoss_status list_devices(const struct gptoss_vulkan_loader *loader,
                                       struct device_list *list, struct gptoss_error *error) {
    list->count = MAX_DEVICES;
    VkResult result =
        loader->EnumeratePhysicalDevices(loader->instance, &list->count, list->devices);
    if (result != VK_SUCCESS && result != VK_INCOMPLETE)
        return gptoss_vulkan_error(error, result, "looking for Vulkan devices");
    for (uint32_t i = 0; i < list->count; ++i) {
        VkPhysicalDeviceProperties2 properties = {
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
        loader->GetPhysicalDeviceProperties2(list->devices[i], &properties);
        list->properties[i] = properties.properties;
    }
    return GPTOSS_OK;
}

static bool contains(const char *text, const char *part) {
    size_t length = strlen(part);
    for (; *text != '\0'; ++text)
        if (strncasecmp(text, part, length) == 0)
            return true;
    return false;
}

/* The index of the device asked for, or -1. */
static int find_device(const struct device_list *list, const char *which) {
    if (which == NULL || which[0] == '\0') {
        for (uint32_t i = 0; i < list->count; ++i)
            if (list->properties[i].deviceType == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU)
                return (int)i;
        return list->count > 0 ? 0 : -1;
    }
    char *end;
    long index = strtol(which, &end, 10);
    if (*end == '\0')
        return index >= 0 && index < (long)list->count ? (int)index : -1;
    for (uint32_t i = 0; i < list->count; ++i)
        if (contains(list->properties[i].deviceName, which))
            return (int)i;
    return -1;
}

static enum gptoss_status refuse_choice(const struct device_list *list, const char *which,
                                        struct gptoss_error *error) {
    char names[400] = "";
    for (uint32_t i = 0; i < list->count; ++i) {
        size_t length = strlen(names);
        snprintf(names + length, sizeof names - length, "%s%u: %s", i > 0 ? ", " : "", i,
                 list->properties[i].deviceName);
    }
    if (list->count == 0)
        gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                         "there is no Vulkan device: install the driver of the GPU (or "
                         "mesa-vulkan-drivers, which also has one in software), or use "
                         "device='cpu'");
    else
        gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                         "there is no Vulkan device '%s'; available: %s", which, names);
    gptoss_error_expected(error, "%s", names);
    gptoss_error_found(error, "%s", which != NULL ? which : "none");
    return GPTOSS_ERROR_UNSUPPORTED;
}

/* ---- what is needed ---- */

static enum gptoss_status lacks(const struct gptoss_vulkan_device *device, const char *what,
                                struct gptoss_error *error) {
    gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                     "the Vulkan device '%s' lacks %s: choose another device, update its driver, "
                     "or use device='cpu'",
                     device->name, what);
    gptoss_error_expected(error, "%s", what);
    return GPTOSS_ERROR_UNSUPPORTED;
}

static enum gptoss_status read_properties(struct gptoss_vulkan_device *device,
                                          struct gptoss_error *error) {
    VkPhysicalDeviceMaintenance3Properties maintenance = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES};
    VkPhysicalDeviceSubgroupProperties subgroup = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES, .pNext = &maintenance};
    VkPhysicalDeviceFloatControlsProperties floats = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FLOAT_CONTROLS_PROPERTIES, .pNext = &subgroup};
    VkPhysicalDeviceProperties2 properties = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &floats};
    device->loader.GetPhysicalDeviceProperties2(device->physical, &properties);
    const VkPhysicalDeviceLimits *limits = &properties.properties.limits;
    memcpy(device->name, properties.properties.deviceName, sizeof device->name);
    device->max_allocation_bytes = maintenance.maxMemoryAllocationSize;
    device->is_software = properties.properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
    device->subgroup_size = subgroup.subgroupSize;
    device->has_votes = (subgroup.supportedOperations & VK_SUBGROUP_FEATURE_VOTE_BIT) != 0;
    device->keeps_subnormal_halves = floats.shaderDenormPreserveFloat16;
    device->max_workgroup = limits->maxComputeWorkGroupInvocations;
    device->max_shared_bytes = limits->maxComputeSharedMemorySize;
    device->max_groups = limits->maxComputeWorkGroupCount[1];
    device->timestamp_nanoseconds = limits->timestampPeriod;
    if (properties.properties.apiVersion < VK_API_VERSION_1_2)
        return lacks(device, "Vulkan 1.2", error);
    const VkSubgroupFeatureFlags needed = VK_SUBGROUP_FEATURE_ARITHMETIC_BIT |
                                          VK_SUBGROUP_FEATURE_BALLOT_BIT |
                                          VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
    if ((subgroup.supportedOperations & needed) != needed ||
        !(subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT))
        return lacks(device, "sums, ballots and shuffles over subgroups in compute shaders", error);
    if (device->max_workgroup < 256 || device->max_shared_bytes < 32768)
        return lacks(device, "workgroups of 256 with 32 KiB of shared memory", error);

    VkPhysicalDeviceMemoryProperties2 memory = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
    device->loader.GetPhysicalDeviceMemoryProperties2(device->physical, &memory);
    device->memory = memory.memoryProperties;
    return GPTOSS_OK;
}

static enum gptoss_status find_queue(struct gptoss_vulkan_device *device,
                                     struct gptoss_error *error) {
    VkQueueFamilyProperties families[64];
    uint32_t count = 64;
    device->loader.GetPhysicalDeviceQueueFamilyProperties(device->physical, &count, families);
    for (uint32_t i = 0; i < count; ++i) {
        if (!(families[i].queueFlags & VK_QUEUE_COMPUTE_BIT))
            continue;
        device->queue_family = i;
        if (families[i].timestampValidBits == 0)
            device->timestamp_nanoseconds = 0;
        return GPTOSS_OK;
    }
    return lacks(device, "a queue for compute shaders", error);
}

static bool has_extension(const struct gptoss_vulkan_device *device, const char *name) {
    static const uint32_t max_count = 512;
    VkExtensionProperties extensions[512];
    uint32_t count = max_count;
    VkResult result = device->loader.EnumerateDeviceExtensionProperties(device->physical, NULL,
                                                                        &count, extensions);
    if (result != VK_SUCCESS && result != VK_INCOMPLETE)
        return false;
    for (uint32_t i = 0; i < count; ++i)
        if (strcmp(extensions[i].extensionName, name) == 0)
            return true;
    return false;
}

/* Whether the device multiplies 16 x 16 with 16 x columns of float16. sums: 0: in float16, 1: in
 * float32. */
static bool has_matrix_shape(const struct gptoss_vulkan_device *device, uint32_t columns,
                             int32_t sums) {
    VkCooperativeMatrixPropertiesKHR shapes[64];
    uint32_t count = 64;
    for (uint32_t i = 0; i < count; ++i)
        shapes[i] = (VkCooperativeMatrixPropertiesKHR){
            .sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR};
    VkResult result = device->loader.GetPhysicalDeviceCooperativeMatrixPropertiesKHR(
        device->physical, &count, shapes);
    for (uint32_t i = 0; (result == VK_SUCCESS || result == VK_INCOMPLETE) && i < count; ++i) {
        const VkCooperativeMatrixPropertiesKHR *shape = &shapes[i];
        if (shape->MSize == 16 && shape->NSize == columns && shape->KSize == 16 &&
            shape->AType == 0 && shape->BType == 0 && shape->CType == sums &&
            shape->ResultType == sums && shape->scope == 3)
            return true;
    }
    return false;
}

/* Cooperative matrices, and what the shaders that use them need besides. */
static bool find_matrices(const struct gptoss_vulkan_device *device) {
    if (!has_extension(device, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME) ||
        device->loader.GetPhysicalDeviceCooperativeMatrixPropertiesKHR == NULL ||
        !device->keeps_subnormal_halves || !device->has_votes || device->subgroup_size != 32 ||
        device->max_shared_bytes < 48 * 1024)
        return false;
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrices = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR};
    VkPhysicalDeviceVulkan12Features features12 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES, .pNext = &matrices};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                          .pNext = &features12};
    device->loader.GetPhysicalDeviceFeatures2(device->physical, &features);
    return matrices.cooperativeMatrix && features12.shaderFloat16 && features12.vulkanMemoryModel &&
           has_matrix_shape(device, 16, 1) && has_matrix_shape(device, 16, 0);
}

static bool has_narrow_matrices(const struct gptoss_vulkan_device *device) {
    return device->max_workgroup >= GPTOSS_SCALED_WORKGROUP && has_matrix_shape(device, 8, 1);
}

static enum gptoss_status create_device(struct gptoss_vulkan_device *device,
                                        struct gptoss_error *error) {
    VkPhysicalDeviceSubgroupSizeControlFeaturesEXT size_control = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES_EXT};
    VkPhysicalDeviceVulkan12Features features12 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                          .pNext = &features12};
    const char *extensions[4];
    uint32_t num_extensions = 0;
    if (has_extension(device, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME)) {
        extensions[num_extensions++] = VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME;
        features12.pNext = &size_control;
    }
    device->loader.GetPhysicalDeviceFeatures2(device->physical, &features);
    if (!features12.bufferDeviceAddress)
        return lacks(device, "addresses of buffers (bufferDeviceAddress)", error);
    device->can_set_subgroup_size =
        size_control.subgroupSizeControl && size_control.computeFullSubgroups;

    device->has_matrices = find_matrices(device);
    device->has_narrow_matrices = device->has_matrices && has_narrow_matrices(device);
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrices = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR,
        .pNext = device->can_set_subgroup_size ? &size_control : NULL,
        .cooperativeMatrix = VK_TRUE,
    };
    if (device->has_matrices)
        extensions[num_extensions++] = VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME;
    VkPhysicalDeviceVulkan12Features wanted12 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
        .pNext = device->has_matrices ? &matrices : matrices.pNext,
        .bufferDeviceAddress = VK_TRUE,
        .shaderFloat16 = device->has_matrices,
        .vulkanMemoryModel = device->has_matrices,
    };
    VkPhysicalDeviceFeatures2 wanted = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                        .pNext = &wanted12};
    const float priority = 1;
    const VkDeviceQueueCreateInfo queue = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
        .queueFamilyIndex = device->queue_family,
        .queueCount = 1,
        .pQueuePriorities = &priority,
    };
    const VkDeviceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
        .pNext = &wanted,
        .queueCreateInfoCount = 1,
        .pQueueCreateInfos = &queue,
        .enabledExtensionCount = num_extensions,
        .ppEnabledExtensionNames = extensions,
    };
    VkResult result = device->loader.CreateDevice(device->physical, &info, NULL, &device->handle);
    if (result != VK_SUCCESS)
        return gptoss_vulkan_error(error, result, "opening the Vulkan device");
    return GPTOSS_OK;
}

/* ---- what there is ---- */

static const char *kind_of(VkPhysicalDeviceType type) {
    switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return "discrete";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return "integrated";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return "virtual";
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return "software";
    default: return "other";
    }
}

static uint64_t largest_heap(const VkPhysicalDeviceMemoryProperties *memory) {
    uint64_t largest = 0;
    for (uint32_t i = 0; i < memory->memoryHeapCount; ++i)
        if ((memory->memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) != 0 &&
            memory->memoryHeaps[i].size > largest)
            largest = memory->memoryHeaps[i].size;
    return largest;
}

uint64_t gptoss_vulkan_device_memory(const struct gptoss_vulkan_device *device) {
    return largest_heap(&device->memory);
}

enum gptoss_status gptoss_list_vulkan_devices(struct gptoss_vulkan_device_info *devices,
                                              size_t max_devices, size_t *num_out,
                                              struct gptoss_error *error) {
    struct gptoss_vulkan_loader loader;
    struct device_list list;
    GPTOSS_TRY(gptoss_vulkan_loader_open(&loader, error));
    enum gptoss_status status = list_devices(&loader, &list, error);
    for (uint32_t i = 0; status == GPTOSS_OK && i < list.count && i < max_devices; ++i) {
        VkPhysicalDeviceMemoryProperties2 memory = {
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
        loader.GetPhysicalDeviceMemoryProperties2(list.devices[i], &memory);
        snprintf(devices[i].name, sizeof devices[i].name, "%s", list.properties[i].deviceName);
        devices[i].kind = kind_of(list.properties[i].deviceType);
        devices[i].memory_bytes = largest_heap(&memory.memoryProperties);
    }
    if (status == GPTOSS_OK)
        *num_out = list.count < max_devices ? list.count : max_devices;
    gptoss_vulkan_loader_close(&loader);
    return status;
}

/* ---- life ---- */

static enum gptoss_status choose_and_create(const char *which, struct gptoss_vulkan_device *device,
                                            struct gptoss_error *error) {
    struct device_list list;
    GPTOSS_TRY(list_devices(&device->loader, &list, error));
    int index = find_device(&list, which);
    if (index < 0)
        return refuse_choice(&list, which, error);
    device->physical = list.devices[index];
    GPTOSS_TRY(read_properties(device, error));
    GPTOSS_TRY(find_queue(device, error));
    GPTOSS_TRY(create_device(device, error));
    GPTOSS_TRY(
        gptoss_vulkan_load_device_functions(&device->loader, device->handle, &device->run, error));
    device->run.GetDeviceQueue(device->handle, device->queue_family, 0, &device->queue);
    return GPTOSS_OK;
}

enum gptoss_status gptoss_vulkan_device_open(const char *which, struct gptoss_vulkan_device *device,
                                             struct gptoss_error *error) {
    *device = (struct gptoss_vulkan_device){0};
    enum gptoss_status status = gptoss_vulkan_loader_open(&device->loader, error);
    if (status == GPTOSS_OK)
        status = choose_and_create(which, device, error);
    if (status != GPTOSS_OK)
        gptoss_vulkan_device_close(device);
    return status;
}

void gptoss_vulkan_device_close(struct gptoss_vulkan_device *device) {
    if (device->handle != VK_NULL_HANDLE && device->run.DestroyDevice != NULL)
        device->run.DestroyDevice(device->handle, NULL);
    gptoss_vulkan_loader_close(&device->loader);
    *device = (struct gptoss_vulkan_device){0};
}
