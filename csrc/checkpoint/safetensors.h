/* The safetensors format: a length (u64, little-endian), a JSON header of that length, the data.
 * The header maps names to {"dtype", "shape", "data_offsets": [begin, end]}, offsets counted from
 * the end of the header. */
#ifndef GPTOSS_CHECKPOINT_SAFETENSORS_H
#define GPTOSS_CHECKPOINT_SAFETENSORS_H

#include "checkpoint/tensor_table.h"
#include "platform/mapped_file.h"

/* Reads the header of a mapped or read file. Checked as the format demands: the tensors fill the
 * data without overlap and without holes. Refused with GPTOSS_ERROR_FORMAT, besides damage: dtypes
 * that enum gptoss_dtype lacks, more than GPTOSS_MAX_DIMS dimensions, names that are not printable
 * ASCII. Names may still repeat. On failure nothing is held. */
enum gptoss_status gptoss_safetensors_parse(const struct gptoss_file *file,
                                            struct gptoss_tensor_table *contents_out,
                                            struct gptoss_error *error);

#endif
