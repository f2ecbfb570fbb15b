#include "platform/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "platform/allocator.h"
#include "status.h"

/* Small enough to answer Ctrl-C within 100 ms from a slow disk, large enough for its full rate. */
static const uint64_t read_chunk_bytes = 4 << 20;

enum gptoss_status gptoss_progress_add(struct gptoss_progress *progress, uint64_t num_bytes,
                                       struct gptoss_error *error) {
    progress->done += num_bytes;
    if (progress->poll == NULL ||
        progress->poll(progress->user, progress->done, progress->total) == 0) {
        return GPTOSS_OK;
    }
    return gptoss_error_set(error, GPTOSS_ERROR_INTERRUPTED, "interrupted after %llu of %llu bytes",
                            (unsigned long long)progress->done,
                            (unsigned long long)progress->total);
}

static enum gptoss_status io_error(struct gptoss_error *error, const char *verb, const char *path,
                                   int number) {
    gptoss_error_set(error, GPTOSS_ERROR_IO, "cannot %s %s: %s", verb, path, strerror(number));
    gptoss_error_where(error, path, NULL, -1);
    if (error != NULL)
        error->system_errno = number;
    return GPTOSS_ERROR_IO;
}

static enum gptoss_status check_kind(const struct stat *status, const char *path,
                                     struct gptoss_error *error) {
    const char *found = S_ISDIR(status->st_mode)    ? "a directory"
                        : !S_ISREG(status->st_mode) ? "a pipe, a socket or a device"
                        : status->st_size <= 0      ? "an empty file"
                                                    : NULL;
    if (found == NULL)
        return GPTOSS_OK;
    const char *expected = "a regular file that is not empty";
    gptoss_error_set(error, GPTOSS_ERROR_FORMAT, "%s: expected %s, found %s", path, expected,
                     found);
    gptoss_error_where(error, path, NULL, -1);
    gptoss_error_expected(error, "%s", expected);
    gptoss_error_found(error, "%s", found);
    return GPTOSS_ERROR_FORMAT;
}

static void close_descriptor(struct gptoss_file *file) {
    if (file->descriptor >= 0)
        close(file->descriptor);
    file->descriptor = -1;
}

enum gptoss_status gptoss_file_open(const char *path, struct gptoss_file *file_out,
                                    struct gptoss_error *error) {
    struct gptoss_file file = {.descriptor = -1};
    struct stat status;
    enum gptoss_status result;

    file.path = gptoss_duplicate_string(path);
    if (file.path == NULL)
        return gptoss_error_memory(error, strlen(path) + 1, "a path");
    /* Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever. */
    do {
        file.descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    } while (file.descriptor < 0 && errno == EINTR);
    if (file.descriptor < 0 || fstat(file.descriptor, &status) != 0) {
        result = io_error(error, "open", path, errno);
    } else {
        result = check_kind(&status, path, error);
    }
    if (result != GPTOSS_OK) {
        gptoss_file_close(&file);
        return result;
    }
    file.num_bytes = (uint64_t)status.st_size;
    *file_out = file;
    return GPTOSS_OK;
}

/* Address space for the whole file: of the file itself, or anonymous. */
static void *map_pages(const struct gptoss_file *file, int protection, int flags, int descriptor) {
    if (file->num_bytes > PTRDIFF_MAX || !gptoss_allocation_permitted())
        return NULL;
    void *data = mmap(NULL, (size_t)file->num_bytes, protection, flags, descriptor, 0);
    if (data == MAP_FAILED)
        return NULL;
    /* Fewer TLB misses where the kernel has huge pages for this memory; else the hint is ignored.
     * There is no hint about access order: routing decides which experts are read, and read-ahead
     * helps within each. */
    (void)madvise(data, (size_t)file->num_bytes, MADV_HUGEPAGE);
    return data;
}

enum gptoss_status gptoss_file_map(struct gptoss_file *file, struct gptoss_error *error) {
    errno = ENOMEM;
    void *data = map_pages(file, PROT_READ, MAP_SHARED, file->descriptor);
    int number = errno;
    close_descriptor(file);
    if (data == NULL && number != ENOMEM)
        return io_error(error, "map", file->path, number);
    if (data == NULL)
        return gptoss_error_memory(error, file->num_bytes, "a map of a file");
    file->data = data;
    file->is_mapped = true;
    return GPTOSS_OK;
}

static enum gptoss_status read_all(const struct gptoss_file *file, uint8_t *data,
                                   struct gptoss_progress *progress, struct gptoss_error *error) {
    uint64_t done = 0;
    while (done < file->num_bytes) {
        uint64_t wanted = file->num_bytes - done;
        if (wanted > read_chunk_bytes)
            wanted = read_chunk_bytes;
        ssize_t got = read(file->descriptor, data + done, (size_t)wanted);
        if (got < 0 && errno != EINTR)
            return io_error(error, "read", file->path, errno);
        if (got == 0) {
            gptoss_error_set(error, GPTOSS_ERROR_IO, "%s became shorter while it was read",
                             file->path);
            gptoss_error_where(error, file->path, NULL, (int64_t)done);
            return GPTOSS_ERROR_IO;
        }
        if (got < 0)
            got = 0;
        done += (uint64_t)got;
        enum gptoss_status status = gptoss_progress_add(progress, (uint64_t)got, error);
        if (status != GPTOSS_OK)
            return status;
    }
    return GPTOSS_OK;
}

enum gptoss_status gptoss_file_read(struct gptoss_file *file, struct gptoss_progress *progress,
                                    struct gptoss_error *error) {
    /* Fresh pages rather than the heap: they come zeroed by the kernel on first touch, so nothing
     * is written twice. */
    void *data = map_pages(file, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    enum gptoss_status status;
    if (data == NULL) {
        status = gptoss_error_memory(error, file->num_bytes, "the contents of a file");
    } else {
        file->data = data;
        status = read_all(file, data, progress, error);
        (void)mprotect(data, (size_t)file->num_bytes, PROT_READ);
    }
    close_descriptor(file);
    return status;
}

void gptoss_file_close(struct gptoss_file *file) {
    /* A zero-initialised file has descriptor 0, which is not ours: only one with a path holds
     * anything. */
    if (file->path == NULL)
        return;
    close_descriptor(file);
    if (file->data != NULL)
        munmap((void *)file->data, (size_t)file->num_bytes);
    gptoss_free(file->path);
    *file = (struct gptoss_file){.descriptor = -1};
}
