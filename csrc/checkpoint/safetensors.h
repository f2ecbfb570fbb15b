/* The safetensors format: a length (u64, little-endian), a JSON header of that length, the data.
 * The header maps names to {"dtype", "shape", "data_offsets": [begin, end]}, offsets counted from
 * the end of the header. */
#ifndef GPTOSS_CHECKPOINT_SAFETENSORS_H
#define GPTOSS_CHECKPOINT_SAFETENSORS_H

#include "gptoss.h"
#include "platform/mapped_file.h"

/* Tensors of one file, sorted by where their data begins; they point into the file and into names.
 */
struct gptoss_safetensors {
    struct gptoss_tensor *tensors;
    size_t num_tensors;
    char *names;
    uint64_t names_bytes;
};

/* Reads the header of a mapped or read file. Checked as the format demands: the tensors fill the
 * data without overlap and without holes. Refused with GPTOSS_ERROR_FORMAT, besides damage: dtypes
 * that enum gptoss_dtype lacks, more than GPTOSS_MAX_DIMS dimensions, names that are not printable
 * ASCII. Names may still repeat. On failure nothing is held. */
enum gptoss_status gptoss_safetensors_parse(const struct gptoss_file *file,
                                            struct gptoss_safetensors *contents_out,
                                            struct gptoss_error *error);
void gptoss_safetensors_free(struct gptoss_safetensors *contents);

/* "[2, 3]" into text; "[]" for a scalar. */
void gptoss_shape_describe(const int64_t *shape, int32_t num_dims, char *text, size_t num_bytes);

#endif
