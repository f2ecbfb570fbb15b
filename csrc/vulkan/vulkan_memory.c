#include "vulkan/vulkan_memory.h"

#include "platform/allocator.h"
#include "status.h"

/* The first memory type among those allowed that has the flags, or -1. */
static int find_type(const VkPhysicalDeviceMemoryProperties *memory, uint32_t allowed,
                     VkMemoryPropertyFlags flags, uint64_t num_bytes) {
    for (uint32_t i = 0; i < memory->memoryTypeCount; ++i)
        if ((allowed >> i & 1) != 0 && (memory->memoryTypes[i].propertyFlags & flags) == flags &&
            memory->memoryHeaps[memory->memoryTypes[i].heapIndex].size >= num_bytes)
            return (int)i;
    return -1;
}

static int choose_type(const VkPhysicalDeviceMemoryProperties *memory, uint32_t allowed,
                       enum gptoss_vulkan_place place, uint64_t num_bytes) {
    const VkMemoryPropertyFlags host =
        VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    const VkMemoryPropertyFlags wanted[3] = {
        [GPTOSS_VULKAN_DEVICE] = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
        [GPTOSS_VULKAN_INPUT] = host | VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
        [GPTOSS_VULKAN_READBACK] = host | VK_MEMORY_PROPERTY_HOST_CACHED_BIT,
    };
    int type = find_type(memory, allowed, wanted[place], num_bytes);
    if (type >= 0)
        return type;
    return find_type(memory, allowed, place == GPTOSS_VULKAN_DEVICE ? 0 : host, num_bytes);
}

static enum gptoss_status refuse(const struct gptoss_vulkan_device *device, VkResult result,
                                 uint64_t num_bytes, const char *what, struct gptoss_error *error) {
    if (result != VK_ERROR_OUT_OF_DEVICE_MEMORY && result != VK_ERROR_OUT_OF_HOST_MEMORY)
        return gptoss_vulkan_error(error, result, what);
    gptoss_error_set(error, GPTOSS_ERROR_MEMORY,
                     "'%s' has no room for %llu bytes of %s: close other models, ask for a smaller "
                     "max_context, or use device='cpu'",
                     device->name, (unsigned long long)num_bytes, what);
    gptoss_error_found(error, "%s", gptoss_vulkan_result_name(result));
    return GPTOSS_ERROR_MEMORY;
}

static enum gptoss_status refuse_limit(const struct gptoss_vulkan_device *device,
                                       uint64_t num_bytes, const char *what,
                                       struct gptoss_error *error) {
    unsigned long long held = device->held_bytes, limit = device->memory_limit;
    gptoss_error_set(
        error, GPTOSS_ERROR_MEMORY,
        "gpu_memory has no room for %llu bytes of %s: the model holds %llu of the %llu "
        "bytes that it may take of '%s'; close generators, ask for a smaller "
        "max_context or block_size, or open it with a larger gpu_memory",
        (unsigned long long)num_bytes, what, held, limit, device->name);
    gptoss_error_expected(error, "%llu bytes or less", limit > held ? limit - held : 0);
    gptoss_error_found(error, "%llu bytes", (unsigned long long)num_bytes);
    return GPTOSS_ERROR_MEMORY;
}

static VkResult bind(const struct gptoss_vulkan_device *device, enum gptoss_vulkan_place place,
                     struct gptoss_vulkan_memory *out) {
    const struct gptoss_vulkan_functions *run = &device->run;
    VkMemoryRequirements needs;
    run->GetBufferMemoryRequirements(device->handle, out->buffer, &needs);
    int type = choose_type(&device->memory, needs.memoryTypeBits, place, needs.size);
    if (type < 0)
        return VK_ERROR_OUT_OF_DEVICE_MEMORY;
    const VkMemoryAllocateFlagsInfo flags = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
        .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT,
    };
    const VkMemoryAllocateInfo info = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
        .pNext = &flags,
        .allocationSize = needs.size,
        .memoryTypeIndex = (uint32_t)type,
    };
    VkResult result = run->AllocateMemory(device->handle, &info, NULL, &out->memory);
    if (result != VK_SUCCESS) {
        out->memory = VK_NULL_HANDLE;
        return result;
    }
    result = run->BindBufferMemory(device->handle, out->buffer, out->memory, 0);
    if (result == VK_SUCCESS && place != GPTOSS_VULKAN_DEVICE)
        result = run->MapMemory(device->handle, out->memory, 0, VK_WHOLE_SIZE, 0, &out->host);
    return result;
}

enum gptoss_status gptoss_vulkan_memory_create(struct gptoss_vulkan_device *device,
                                               enum gptoss_vulkan_place place, uint64_t num_bytes,
                                               const char *what, struct gptoss_vulkan_memory *out,
                                               struct gptoss_error *error) {
    *out = (struct gptoss_vulkan_memory){0};
    if (!gptoss_allocation_permitted() || num_bytes > device->max_allocation_bytes)
        return refuse(device, VK_ERROR_OUT_OF_DEVICE_MEMORY, num_bytes, what, error);
    uint64_t counted = place != GPTOSS_VULKAN_READBACK ? num_bytes : 0;
    if (counted > 0 && device->memory_limit > 0 &&
        (num_bytes > device->memory_limit || device->held_bytes > device->memory_limit - num_bytes))
        return refuse_limit(device, num_bytes, what, error);
    const VkBufferCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
        .size = num_bytes,
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT |
                 VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT,
    };
    VkResult result = device->run.CreateBuffer(device->handle, &info, NULL, &out->buffer);
    if (result != VK_SUCCESS)
        out->buffer = VK_NULL_HANDLE;
    else
        result = bind(device, place, out);
    if (result != VK_SUCCESS) {
        gptoss_vulkan_memory_release(device, out);
        return refuse(device, result, num_bytes, what, error);
    }
    const VkBufferDeviceAddressInfo address = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO,
        .buffer = out->buffer,
    };
    out->address = device->run.GetBufferDeviceAddress(device->handle, &address);
    out->num_bytes = num_bytes;
    out->held_bytes = counted;
    device->held_bytes += counted;
    return GPTOSS_OK;
}

void gptoss_vulkan_memory_release(struct gptoss_vulkan_device *device,
                                  struct gptoss_vulkan_memory *memory) {
    if (memory->buffer != VK_NULL_HANDLE)
        device->run.DestroyBuffer(device->handle, memory->buffer, NULL);
    if (memory->memory != VK_NULL_HANDLE)
        device->run.FreeMemory(device->handle, memory->memory, NULL);
    device->held_bytes -= memory->held_bytes;
    *memory = (struct gptoss_vulkan_memory){0};
}
