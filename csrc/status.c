#include "status.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *gptoss_status_name(enum gptoss_status status) {
    switch (status) {
    case GPTOSS_OK: return "ok";
    case GPTOSS_ERROR_ARGUMENT: return "argument";
    case GPTOSS_ERROR_MEMORY: return "memory";
    case GPTOSS_ERROR_IO: return "io";
    case GPTOSS_ERROR_FORMAT: return "format";
    case GPTOSS_ERROR_UNSUPPORTED: return "unsupported";
    case GPTOSS_ERROR_CONTEXT: return "context";
    case GPTOSS_ERROR_INTERRUPTED: return "interrupted";
    case GPTOSS_ERROR_NUMERIC: return "numeric";
    case GPTOSS_ERROR_STATE: return "state";
    case GPTOSS_ERROR_DEVICE: return "device";
    }
    return "unknown";
}

/* Text from files may hold anything; a sentence is one line without control characters. */
static void make_printable(char *text) {
    for (; *text != '\0'; ++text)
        if ((unsigned char)*text < 0x20 || *text == 0x7F)
            *text = '?';
}

enum gptoss_status gptoss_error_set(struct gptoss_error *error, enum gptoss_status status,
                                    const char *format, ...) {
    if (error == NULL)
        return status;
    memset(error, 0, sizeof *error);
    error->status = status;
    error->offset = error->limit = error->requested = -1;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    make_printable(error->message);
    return status;
}

void gptoss_error_where(struct gptoss_error *error, const char *file, const char *tensor,
                        int64_t offset) {
    if (error == NULL)
        return;
    if (file != NULL)
        snprintf(error->file, sizeof error->file, "%s", file);
    if (tensor != NULL)
        snprintf(error->tensor, sizeof error->tensor, "%s", tensor);
    if (offset >= 0)
        error->offset = offset;
}

void gptoss_error_expected(struct gptoss_error *error, const char *format, ...) {
    if (error == NULL)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->expected, sizeof error->expected, format, arguments);
    va_end(arguments);
    make_printable(error->expected);
}

void gptoss_error_found(struct gptoss_error *error, const char *format, ...) {
    if (error == NULL)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->found, sizeof error->found, format, arguments);
    va_end(arguments);
    make_printable(error->found);
}

enum gptoss_status gptoss_error_memory(struct gptoss_error *error, uint64_t num_bytes,
                                       const char *what) {
    return gptoss_error_set(error, GPTOSS_ERROR_MEMORY, "cannot allocate %" PRIu64 " bytes for %s",
                            num_bytes, what);
}
