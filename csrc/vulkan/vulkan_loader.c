#include "vulkan/vulkan_loader.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "status.h"

static enum gptoss_status refuse(struct gptoss_error *error, const char *found) {
    gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                     "Vulkan is not available: %s. Install the Vulkan loader (libvulkan1 on Debian "
                     "and Ubuntu, vulkan-loader on Fedora) and a driver, or use device='cpu'",
                     found);
    gptoss_error_expected(error, "libvulkan.so.1 with Vulkan 1.2");
    gptoss_error_found(error, "%s", found);
    return GPTOSS_ERROR_UNSUPPORTED;
}

static bool load_instance_functions(struct gptoss_vulkan_loader *loader,
                                    PFN_vkGetInstanceProcAddr get) {
    bool all = true;
#define LOAD(name)                                                                                 \
    loader->name = (PFN_vk##name)get(loader->instance, "vk" #name);                                \
    all = all && loader->name != NULL;
    GPTOSS_FOR_INSTANCE_FUNCTIONS(LOAD)
#undef LOAD
    loader->GetPhysicalDeviceCooperativeMatrixPropertiesKHR =
        (PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)get(
            loader->instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
    return all;
}

enum gptoss_status gptoss_vulkan_loader_open(struct gptoss_vulkan_loader *loader,
                                             struct gptoss_error *error) {
    *loader = (struct gptoss_vulkan_loader){0};
    /* Drivers leave threads and keys behind: once loaded, the library stays. */
    loader->library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (loader->library == NULL)
        return refuse(error, "libvulkan.so.1 cannot be opened");
    PFN_vkGetInstanceProcAddr get;
    *(void **)&get = dlsym(loader->library, "vkGetInstanceProcAddr");
    PFN_vkCreateInstance create =
        get != NULL ? (PFN_vkCreateInstance)get(NULL, "vkCreateInstance") : NULL;
    if (create == NULL) {
        gptoss_vulkan_loader_close(loader);
        return refuse(error, "libvulkan.so.1 has no vkCreateInstance");
    }
    const VkApplicationInfo application = {
        .sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
        .pApplicationName = "gptoss",
        .pEngineName = "gptoss",
        .apiVersion = VK_API_VERSION_1_2,
    };
    const VkInstanceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
        .pApplicationInfo = &application,
    };
    /* NVIDIA's driver cannot be loaded more than some thirty times in a process, and the loader
     * drops it with the last instance: one more stays. */
    static atomic_bool is_kept;
    VkInstance kept;
    if (!atomic_exchange(&is_kept, true) && create(&info, NULL, &kept) != VK_SUCCESS)
        atomic_store(&is_kept, false);
    VkResult result = create(&info, NULL, &loader->instance);
    if (result != VK_SUCCESS) {
        loader->instance = VK_NULL_HANDLE;
        gptoss_vulkan_loader_close(loader);
        return refuse(error, result == VK_ERROR_INCOMPATIBLE_DRIVER
                                 ? "no driver was found"
                                 : gptoss_vulkan_result_name(result));
    }
    if (!load_instance_functions(loader, get)) {
        gptoss_vulkan_loader_close(loader);
        return refuse(error, "the loader is older than Vulkan 1.2");
    }
    return GPTOSS_OK;
}

void gptoss_vulkan_loader_close(struct gptoss_vulkan_loader *loader) {
    if (loader->instance != VK_NULL_HANDLE && loader->DestroyInstance != NULL)
        loader->DestroyInstance(loader->instance, NULL);
    if (loader->library != NULL)
        dlclose(loader->library);
    *loader = (struct gptoss_vulkan_loader){0};
}

enum gptoss_status gptoss_vulkan_load_device_functions(const struct gptoss_vulkan_loader *loader,
                                                       VkDevice device,
                                                       struct gptoss_vulkan_functions *functions,
                                                       struct gptoss_error *error) {
    bool all = true;
#define LOAD(name)                                                                                 \
    functions->name = (PFN_vk##name)loader->GetDeviceProcAddr(device, "vk" #name);                 \
    all = all && functions->name != NULL;
    GPTOSS_FOR_DEVICE_FUNCTIONS(LOAD)
#undef LOAD
    return all ? GPTOSS_OK : refuse(error, "the driver lacks functions of Vulkan 1.2");
}

const char *gptoss_vulkan_result_name(VkResult result) {
    switch (result) {
    case VK_SUCCESS: return "VK_SUCCESS";
    case VK_TIMEOUT: return "VK_TIMEOUT";
    case VK_ERROR_OUT_OF_HOST_MEMORY: return "VK_ERROR_OUT_OF_HOST_MEMORY";
    case VK_ERROR_OUT_OF_DEVICE_MEMORY: return "VK_ERROR_OUT_OF_DEVICE_MEMORY";
    case VK_ERROR_INITIALIZATION_FAILED: return "VK_ERROR_INITIALIZATION_FAILED";
    case VK_ERROR_DEVICE_LOST: return "VK_ERROR_DEVICE_LOST";
    case VK_ERROR_MEMORY_MAP_FAILED: return "VK_ERROR_MEMORY_MAP_FAILED";
    case VK_ERROR_LAYER_NOT_PRESENT: return "VK_ERROR_LAYER_NOT_PRESENT";
    case VK_ERROR_EXTENSION_NOT_PRESENT: return "VK_ERROR_EXTENSION_NOT_PRESENT";
    case VK_ERROR_FEATURE_NOT_PRESENT: return "VK_ERROR_FEATURE_NOT_PRESENT";
    case VK_ERROR_INCOMPATIBLE_DRIVER: return "VK_ERROR_INCOMPATIBLE_DRIVER";
    case VK_ERROR_TOO_MANY_OBJECTS: return "VK_ERROR_TOO_MANY_OBJECTS";
    default: return "an error that Vulkan 1.2 does not name";
    }
}

enum gptoss_status gptoss_vulkan_error(struct gptoss_error *error, VkResult result,
                                       const char *what) {
    const char *name = gptoss_vulkan_result_name(result);
    bool memory = result == VK_ERROR_OUT_OF_HOST_MEMORY ||
                  result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_TOO_MANY_OBJECTS;
    const char *advice = memory ? "use a smaller model or max_context, or device='cpu'"
                         : result == VK_ERROR_DEVICE_LOST
                             ? "the GPU was reset or its driver failed; open the model again"
                             : "the driver refused";
    enum gptoss_status status = memory ? GPTOSS_ERROR_MEMORY : GPTOSS_ERROR_DEVICE;
    gptoss_error_set(error, status, "%s: %s (%s)", what, name, advice);
    gptoss_error_found(error, "%s", name);
    return status;
}
