/* GGUF files that are split into parts: what the keys split.no, split.count and split.tensors.count
 * of each part must say. */
#ifndef GPTOSS_CHECKPOINT_GGUF_PARTS_H
#define GPTOSS_CHECKPOINT_GGUF_PARTS_H

#include "checkpoint/gguf.h"

/* Holds part `index` (from 0) of num_parts, as the names say, to its keys. A file of one part may
 * lack them. num_tensors: what the parts before stated as the tensors of all parts, negative before
 * the first; updated. */
enum gptoss_status gptoss_gguf_check_part(const struct gptoss_file *file,
                                          const struct gptoss_gguf *gguf, size_t index,
                                          size_t num_parts, int64_t *num_tensors,
                                          struct gptoss_error *error);

#endif
