/* How many processors this process may keep busy. Containers limit by affinity or by quota, and
 * threads beyond either only take time from each other. */
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "gptoss.h"

/* CPUs of a cgroup's quota, rounded up, read from "QUOTA PERIOD" (v2's cpu.max) or from two files
 * (v1); 0: no limit. */
static int quota_from(const char *quota_path, const char *period_path) {
    long long quota = 0, period = 0;
    FILE *file = fopen(quota_path, "re");
    if (file == NULL)
        return 0;
    int num_read = fscanf(file, "%lld %lld", &quota, &period);
    fclose(file);
    if (period_path != NULL && num_read >= 1) {
        file = fopen(period_path, "re");
        if (file == NULL)
            return 0;
        num_read += fscanf(file, "%lld", &period) == 1;
        fclose(file);
    }
    if (num_read < 2 || quota <= 0 || period <= 0)
        return 0;
    long long cpus = (quota + period - 1) / period;
    return cpus > INT_MAX ? INT_MAX : (int)cpus;
}

/* The tightest quota of this process's cgroup and its parents (v2). */
static int quota_of_cgroup(void) {
    char line[512], path[1024], group[512] = "";
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (file == NULL)
        return 0;
    while (fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, "0::/", 4) == 0)
            snprintf(group, sizeof group, "%.*s", (int)strcspn(line + 3, "\n"), line + 3);
    fclose(file);
    int least = 0;
    for (;;) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
        int cpus = quota_from(path, NULL);
        if (cpus > 0 && (least == 0 || cpus < least))
            least = cpus;
        char *slash = strrchr(group, '/');
        if (slash == NULL)
            return least;
        *slash = '\0';
    }
}

int gptoss_usable_cpus(void) {
    int cpus = 0;
#ifdef CPU_SETSIZE
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        cpus = CPU_COUNT(&set);
#endif
    if (cpus <= 0)
        cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
    int quota = quota_of_cgroup();
    if (quota == 0)
        quota = quota_from("/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
                           "/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    if (quota > 0 && quota < cpus)
        cpus = quota;
    return cpus < 1 ? 1 : cpus;
}
