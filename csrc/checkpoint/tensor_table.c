#include "checkpoint/tensor_table.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/format_error.h"
#include "numeric/dtype.h"
#include "platform/allocator.h"
#include "status.h"

enum gptoss_status gptoss_tensor_table_allocate(struct gptoss_tensor_table *table,
                                                size_t num_tensors, uint64_t names_bytes,
                                                struct gptoss_error *error) {
    table->tensors = gptoss_allocate(num_tensors, sizeof *table->tensors);
    table->names = gptoss_allocate(names_bytes, 1);
    table->names_bytes = names_bytes;
    if (table->tensors != NULL && table->names != NULL)
        return GPTOSS_OK;
    return gptoss_error_memory(error, num_tensors * sizeof *table->tensors + names_bytes,
                               "a table of tensors");
}

static int compare_places(const void *left, const void *right) {
    const struct gptoss_tensor *a = left, *b = right;
    if (a->file_offset != b->file_offset)
        return a->file_offset < b->file_offset ? -1 : 1;
    if (a->num_bytes != b->num_bytes)
        return a->num_bytes < b->num_bytes ? -1 : 1;
    return strcmp(a->name, b->name);
}

void gptoss_tensor_table_sort(struct gptoss_tensor_table *table) {
    qsort(table->tensors, table->num_tensors, sizeof *table->tensors, compare_places);
}

void gptoss_tensor_table_free(struct gptoss_tensor_table *table) {
    gptoss_free(table->tensors);
    gptoss_free(table->names);
    *table = (struct gptoss_tensor_table){0};
}

enum gptoss_status gptoss_name_check(const char *file, const char *subject, const char *name,
                                     uint64_t length, int64_t offset, struct gptoss_error *error) {
    struct gptoss_place place = {.file = file, .subject = subject, .offset = offset};
    for (uint64_t i = 0; i < length; ++i) {
        if (name[i] < 0x20 || name[i] > 0x7E)
            return gptoss_format_error(error, &place, "printable ASCII", "byte 0x%02X",
                                       (unsigned char)name[i]);
    }
    if (length > 0)
        return GPTOSS_OK;
    return gptoss_format_error(error, &place, "printable ASCII", "nothing");
}

void gptoss_shape_describe(const int64_t *shape, int32_t num_dims, char *text, size_t num_bytes) {
    int length = snprintf(text, num_bytes, "[");
    for (int32_t i = 0; i < num_dims && (size_t)length < num_bytes; ++i) {
        length += snprintf(text + length, num_bytes - (size_t)length, "%s%" PRId64,
                           i == 0 ? "" : ", ", shape[i]);
    }
    if ((size_t)length < num_bytes)
        snprintf(text + length, num_bytes - (size_t)length, "]");
}

bool gptoss_shape_bytes(enum gptoss_dtype dtype, const int64_t *shape, int32_t num_dims,
                        uint64_t *num_bytes_out) {
    bool is_block = gptoss_dtype_bytes(dtype) == 0, overflows = false, is_empty = false;
    uint64_t block = gptoss_dtype_block(dtype), num_bytes = gptoss_dtype_row_bytes(dtype, block);
    for (int32_t i = 0; i < num_dims; ++i) {
        uint64_t size = (uint64_t)shape[i];
        if (is_block && i == num_dims - 1) {
            if (size % block != 0)
                return false;
            size /= block;
        }
        is_empty |= size == 0;
        overflows |= __builtin_mul_overflow(num_bytes, size, &num_bytes);
    }
    if ((overflows && !is_empty) || (is_block && num_dims == 0))
        return false;
    *num_bytes_out = is_empty ? 0 : num_bytes;
    return true;
}
