/* What lies at a path, and what a directory holds. */
#ifndef GPTOSS_PLATFORM_DIRECTORY_H
#define GPTOSS_PLATFORM_DIRECTORY_H

#include "gptoss.h"

enum gptoss_path_kind {
    GPTOSS_PATH_NONE, /* nothing there, or no permission to look */
    GPTOSS_PATH_DIRECTORY,
    GPTOSS_PATH_OTHER
};

/* Follows symbolic links. errno says why there is nothing. */
enum gptoss_path_kind gptoss_path_kind(const char *path);

/* Calls visit with the name of each entry but "." and "..", in the system's order; the name is
 * valid in the call. */
enum gptoss_status gptoss_directory_visit(const char *path,
                                          void (*visit)(void *user, const char *name), void *user,
                                          struct gptoss_error *error);

#endif
