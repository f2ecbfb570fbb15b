/* Cores by what sysfs tells of them. */
#ifndef GPTOSS_PLATFORM_CPU_CORES_H
#define GPTOSS_PLATFORM_CPU_CORES_H

#include <stdint.h>

#define GPTOSS_MAX_CPUS 1024

/* Physical cores among the CPUs with usable[cpu] != 0 (num_cpus <= GPTOSS_MAX_CPUS): threads of one
 * core count once, slow cores (outside Intel's cpu_core, or below half the greatest cpu_capacity)
 * only if there are no others; their marks are cleared. root: "/sys/devices", or a tree like it. A
 * CPU that root tells nothing of is a core. */
int gptoss_count_cores(const char *root, uint8_t *usable, int num_cpus);

#endif
