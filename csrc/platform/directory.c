#include "platform/directory.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "platform/allocator.h"
#include "status.h"

enum gptoss_path_kind gptoss_path_kind(const char *path) {
    struct stat status;
    if (stat(path, &status) != 0)
        return GPTOSS_PATH_NONE;
    return S_ISDIR(status.st_mode) ? GPTOSS_PATH_DIRECTORY : GPTOSS_PATH_OTHER;
}

enum gptoss_status gptoss_directory_visit(const char *path,
                                          void (*visit)(void *user, const char *name), void *user,
                                          struct gptoss_error *error) {
    errno = ENOMEM;
    DIR *directory = gptoss_allocation_permitted() ? opendir(path) : NULL;
    int number = errno;
    if (directory != NULL) {
        const struct dirent *entry;
        while (errno = 0, (entry = readdir(directory)) != NULL) {
            if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
                visit(user, entry->d_name);
        }
        number = errno;
        closedir(directory);
        if (number == 0)
            return GPTOSS_OK;
    }
    if (number == ENOMEM)
        return gptoss_error_memory(error, sizeof(struct dirent), "a directory listing");
    gptoss_error_set(error, GPTOSS_ERROR_IO, "cannot list %s: %s", path, strerror(number));
    gptoss_error_where(error, path, NULL, -1);
    if (error != NULL)
        error->system_errno = number;
    return GPTOSS_ERROR_IO;
}
