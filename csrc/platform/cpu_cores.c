/* How many physical cores this process may keep busy. The second thread of a core shares its
 * multiply units and its share of the memory bus, and a slow core of a hybrid processor is still at
 * work when the others wait at the next barrier: neither counts. Linux tells by sysfs. */
#include "platform/cpu_cores.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "gptoss.h"

/* The first number of a file, -1 if there is none. */
static long read_number(const char *path) {
    long number;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return -1;
    if (fscanf(file, "%ld", &number) != 1)
        number = -1;
    fclose(file);
    return number;
}

/* Marks the CPUs of a list such as "0-3,8,10-11" (sysfs's form). Returns how many. */
static int read_list(const char *path, uint8_t *marked, int num_cpus) {
    FILE *file = fopen(path, "re");
    int first, last, count = 0;
    if (file == NULL)
        return 0;
    while (fscanf(file, "%d", &first) == 1) {
        last = first;
        int separator = fgetc(file);
        if (separator == '-') {
            if (fscanf(file, "%d", &last) != 1)
                break;
            separator = fgetc(file);
        }
        for (int cpu = first < 0 ? 0 : first; cpu <= last && cpu < num_cpus; ++cpu, ++count)
            marked[cpu] = 1;
        if (separator != ',')
            break;
    }
    fclose(file);
    return count;
}

/* Takes the slow cores out of usable, unless nothing else is left. */
static void drop_slow_cores(const char *root, uint8_t *usable, int num_cpus) {
    char path[256];
    uint8_t fast[GPTOSS_MAX_CPUS] = {0};
    long capacity[GPTOSS_MAX_CPUS], most = -1;
    int num_fast = 0;
    snprintf(path, sizeof path, "%s/cpu_core/cpus", root); /* Intel's hybrid processors */
    bool listed = read_list(path, fast, num_cpus) > 0;
    for (int cpu = 0; cpu < num_cpus; ++cpu) {
        snprintf(path, sizeof path, "%s/system/cpu/cpu%d/cpu_capacity", root, cpu);
        capacity[cpu] = usable[cpu] && !listed ? read_number(path) : -1;
        most = capacity[cpu] > most ? capacity[cpu] : most;
    }
    for (int cpu = 0; cpu < num_cpus; ++cpu) {
        if (!listed)
            fast[cpu] = capacity[cpu] < 0 || capacity[cpu] >= most - capacity[cpu];
        num_fast += usable[cpu] && fast[cpu];
    }
    for (int cpu = 0; num_fast > 0 && cpu < num_cpus; ++cpu)
        usable[cpu] = usable[cpu] && fast[cpu];
}

int gptoss_count_cores(const char *root, uint8_t *usable, int num_cpus) {
    char path[256];
    uint8_t counted[GPTOSS_MAX_CPUS] = {0};
    int num_cores = 0;
    drop_slow_cores(root, usable, num_cpus);
    for (int cpu = 0; cpu < num_cpus; ++cpu) {
        if (!usable[cpu])
            continue;
        snprintf(path, sizeof path, "%s/system/cpu/cpu%d/topology/thread_siblings_list", root, cpu);
        long core = read_number(path);
        if (core < 0 || core >= num_cpus)
            core = cpu;
        num_cores += !counted[core];
        counted[core] = 1;
    }
    return num_cores;
}

int gptoss_usable_cores(void) {
    int cpus = gptoss_usable_cpus(), cores = 0;
#ifdef CPU_SETSIZE
    cpu_set_t set;
    uint8_t usable[GPTOSS_MAX_CPUS] = {0};
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        for (int cpu = 0; cpu < GPTOSS_MAX_CPUS && cpu < CPU_SETSIZE; ++cpu)
            usable[cpu] = CPU_ISSET(cpu, &set) != 0;
        cores = gptoss_count_cores("/sys/devices", usable, GPTOSS_MAX_CPUS);
    }
#endif
    return cores > 0 && cores < cpus ? cores : cpus;
}
