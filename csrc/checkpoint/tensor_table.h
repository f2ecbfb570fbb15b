/* The tensors of one file, whatever its format. */
#ifndef GPTOSS_CHECKPOINT_TENSOR_TABLE_H
#define GPTOSS_CHECKPOINT_TENSOR_TABLE_H

#include "gptoss.h"

/* Sorted by where their data begins; they point into the file and into names. */
struct gptoss_tensor_table {
    struct gptoss_tensor *tensors;
    size_t num_tensors;
    char *names;
    uint64_t names_bytes;
};

/* Zeroed room for num_tensors entries (num_tensors is left 0) and names_bytes of names. On failure
 * what was allocated stays, for gptoss_tensor_table_free. */
enum gptoss_status gptoss_tensor_table_allocate(struct gptoss_tensor_table *table,
                                                size_t num_tensors, uint64_t names_bytes,
                                                struct gptoss_error *error);
void gptoss_tensor_table_sort(struct gptoss_tensor_table *table);
void gptoss_tensor_table_free(struct gptoss_tensor_table *table);

/* A name of a tensor or a key is printable ASCII and not empty; what is wrong with it otherwise, as
 * a GPTOSS_ERROR_FORMAT that says it of subject ("name of a tensor"). */
enum gptoss_status gptoss_name_check(const char *file, const char *subject, const char *name,
                                     uint64_t length, int64_t offset, struct gptoss_error *error);

/* "[2, 3]" into text; "[]" for a scalar. */
void gptoss_shape_describe(const int64_t *shape, int32_t num_dims, char *text, size_t num_bytes);

/* Bytes of a tensor; false if they do not fit 64 bits, or if a row of a block format is not whole
 * blocks. */
bool gptoss_shape_bytes(enum gptoss_dtype dtype, const int64_t *shape, int32_t num_dims,
                        uint64_t *num_bytes_out);

#endif
