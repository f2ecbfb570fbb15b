#include "checkpoint/gguf_parts.h"

#include <inttypes.h>
#include <stdio.h>

#include "checkpoint/format_error.h"
#include "checkpoint/json.h"
#include "status.h"

enum gptoss_status gptoss_gguf_check_part(const struct gptoss_file *file,
                                          const struct gptoss_gguf *gguf, size_t index,
                                          size_t num_parts, int64_t *num_tensors,
                                          struct gptoss_error *error) {
    const int64_t wanted[] = {(int64_t)num_parts, (int64_t)index, *num_tensors};
    static const char *const keys[] = {"count", "no", "tensors.count"};
    const char *const reasons[] = {
        num_parts == 1 ? ", since its name does not end in -00001-of-0000N.gguf; parts keep the "
                         "names they were made with"
                       : ", as its name says",
        ", as its name says", *num_tensors < 0 ? " or more" : ", as the parts before it say"};
    cJSON *split = NULL;
    GPTOSS_TRY(gptoss_gguf_json(gguf, "split.", &split, error));
    enum gptoss_status status = GPTOSS_OK;
    for (int i = 0; i < 3 && status == GPTOSS_OK; ++i) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(split, keys[i]);
        int64_t minimum = wanted[i] < 0 ? 0 : wanted[i], maximum = wanted[i], number;
        if (wanted[i] < 0)
            maximum = INT32_MAX;
        if ((num_parts == 1 && item == NULL) ||
            gptoss_json_integer(item, minimum, maximum, &number)) {
            if (i == 2 && item != NULL)
                *num_tensors = number;
            continue;
        }
        char subject[64], expected[160], found[128];
        struct gptoss_place place = {.file = file->path, .subject = subject, .offset = -1};
        snprintf(subject, sizeof subject, "key 'split.%s'", keys[i]);
        snprintf(expected, sizeof expected, "%" PRId64 "%s", minimum, reasons[i]);
        gptoss_json_describe(item, found, sizeof found);
        status = gptoss_format_error(error, &place, expected, "%s", found);
    }
    cJSON_Delete(split);
    return status;
}
