/* The Vulkan back end, as the engine sees it. */
#ifndef GPTOSS_VULKAN_VULKAN_H
#define GPTOSS_VULKAN_VULKAN_H

#include "backend.h"

/* which: NULL or "" for the first discrete GPU or else the first device, an index, or part of a
 * name in any case. precision: "fp32", or "fp16" where the device multiplies such matrices, which
 * NULL then is. num_threads: of the host. memory_limit: bytes of the device's memory that it may
 * hold, or 0. profile: count and time what runs. GPTOSS_ERROR_UNSUPPORTED: no loader, no such
 * device, or one that lacks what is needed. */
enum gptoss_status gptoss_vulkan_backend_create(const char *which, const char *precision,
                                                int num_threads, uint64_t memory_limit,
                                                bool profile, struct gptoss_backend **backend_out,
                                                struct gptoss_error *error);
const char *gptoss_vulkan_backend_precision(const struct gptoss_backend *backend);
/* Its name. */
const char *gptoss_vulkan_backend_device(const struct gptoss_backend *backend);
/* Bytes of its own largest memory. */
uint64_t gptoss_vulkan_backend_device_bytes(const struct gptoss_backend *backend);

#endif
