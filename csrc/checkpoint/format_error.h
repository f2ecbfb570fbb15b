/* One sentence for everything that a file may have wrong. */
#ifndef GPTOSS_CHECKPOINT_FORMAT_ERROR_H
#define GPTOSS_CHECKPOINT_FORMAT_ERROR_H

#include "gptoss.h"

/* Where in a file: parts that say nothing are NULL, offset -1. */
struct gptoss_place {
    const char *file;
    const char *tensor;
    const char *
        subject; /* what of the tensor or of the file, as "data_offsets" or "rope_scaling.factor" */
    int64_t offset;
};

/* GPTOSS_ERROR_FORMAT: "FILE: tensor 'T': SUBJECT: expected E, found F", with all parts filled. */
enum gptoss_status gptoss_format_error(struct gptoss_error *error, const struct gptoss_place *place,
                                       const char *expected, const char *found, ...)
    __attribute__((format(printf, 4, 5)));

#endif
