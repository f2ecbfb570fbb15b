#include "checkpoint/format_error.h"

#include <stdarg.h>
#include <stdio.h>

#include "status.h"

enum gptoss_status gptoss_format_error(struct gptoss_error *error, const struct gptoss_place *place,
                                       const char *expected, const char *found, ...) {
    char found_text[sizeof error->found];
    char tensor_text[sizeof error->tensor + 16] = "";
    va_list arguments;
    va_start(arguments, found);
    vsnprintf(found_text, sizeof found_text, found, arguments);
    va_end(arguments);
    if (place->tensor != NULL) {
        snprintf(tensor_text, sizeof tensor_text, "tensor '%.*s': ", (int)sizeof error->tensor - 1,
                 place->tensor);
    }
    gptoss_error_set(error, GPTOSS_ERROR_FORMAT, "%s: %s%s%sexpected %s, found %s", place->file,
                     tensor_text, place->subject == NULL ? "" : place->subject,
                     place->subject == NULL ? "" : ": ", expected, found_text);
    gptoss_error_where(error, place->file, place->tensor, place->offset);
    gptoss_error_expected(error, "%s", expected);
    gptoss_error_found(error, "%s", found_text);
    return GPTOSS_ERROR_FORMAT;
}
