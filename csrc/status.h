/* Filling struct gptoss_error. Every function accepts error == NULL. */
#ifndef GPTOSS_STATUS_H
#define GPTOSS_STATUS_H

#include "gptoss.h"

/* Clears the error, sets status and message, returns status: `return gptoss_error_set(error,
 * STATUS, "...", ...);` */
enum gptoss_status gptoss_error_set(struct gptoss_error *error, enum gptoss_status status,
                                    const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Where the failure was found and what was there. NULL leaves a part as it is. */
void gptoss_error_where(struct gptoss_error *error, const char *file, const char *tensor,
                        int64_t offset);
void gptoss_error_expected(struct gptoss_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void gptoss_error_found(struct gptoss_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* GPTOSS_ERROR_MEMORY: "cannot allocate N bytes for WHAT". */
enum gptoss_status gptoss_error_memory(struct gptoss_error *error, uint64_t num_bytes,
                                       const char *what);

/* Returns from the function unless the expression is GPTOSS_OK. */
#define GPTOSS_TRY(expression)                                                                     \
    do {                                                                                           \
        enum gptoss_status gptoss_try_status = (expression);                                       \
        if (gptoss_try_status != GPTOSS_OK)                                                        \
            return gptoss_try_status;                                                              \
    } while (0)

#endif
