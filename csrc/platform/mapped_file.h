/* Read-only files, mapped or read whole. The weights of a model are used in place in these bytes.
 */
#ifndef GPTOSS_PLATFORM_MAPPED_FILE_H
#define GPTOSS_PLATFORM_MAPPED_FILE_H

#include "gptoss.h"

/* Zero-initialised means closed. */
struct gptoss_file {
    char *path;
    int descriptor; /* only between open and map or read; -1 otherwise */
    bool is_mapped; /* shares the page cache; false after gptoss_file_read */
    const uint8_t *data;
    uint64_t num_bytes;
};

/* Bytes of long work, told to a poll callback. */
struct gptoss_progress {
    gptoss_poll_fn poll; /* may be NULL */
    void *user;
    uint64_t done, total;
};

/* Adds to the bytes done and polls; GPTOSS_ERROR_INTERRUPTED if the callback asks to stop. */
enum gptoss_status gptoss_progress_add(struct gptoss_progress *progress, uint64_t num_bytes,
                                       struct gptoss_error *error);

/* Opens a regular file that is not empty (anything else: GPTOSS_ERROR_FORMAT) and learns its size.
 * Never blocks on a pipe or a device. On failure the file is closed. */
enum gptoss_status gptoss_file_open(const char *path, struct gptoss_file *file_out,
                                    struct gptoss_error *error);

/* Maps an opened file: reads nothing now, shares pages with every process that does the same. If
 * the file is truncated while it is mapped, touching the lost pages raises SIGBUS. data is aligned
 * to a page. */
enum gptoss_status gptoss_file_map(struct gptoss_file *file, struct gptoss_error *error);

/* Reads an opened file into private read-only memory instead, polling every few MB. data is aligned
 * to a page. */
enum gptoss_status gptoss_file_read(struct gptoss_file *file, struct gptoss_progress *progress,
                                    struct gptoss_error *error);

/* Gives up the bytes and the path; accepts a closed file. */
void gptoss_file_close(struct gptoss_file *file);

#endif
