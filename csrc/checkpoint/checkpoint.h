/* A checkpoint: a configuration and a table of named tensors, whatever the files were. Nothing here
 * knows how a model computes. Every offset, size and count that comes from a file is checked before
 * it is used. */
#ifndef GPTOSS_CHECKPOINT_CHECKPOINT_H
#define GPTOSS_CHECKPOINT_CHECKPOINT_H

#include "gptoss.h"

/* path, read_files: see gptoss_model_open. */
enum gptoss_status gptoss_checkpoint_open(const char *path, bool read_files, gptoss_poll_fn poll,
                                          void *poll_user,
                                          struct gptoss_checkpoint **checkpoint_out,
                                          struct gptoss_error *error);

/* Whether the tensors have the names and the formats of llama.cpp's files. */
bool gptoss_checkpoint_is_gguf(const struct gptoss_checkpoint *checkpoint);
const struct gptoss_config *gptoss_checkpoint_config(const struct gptoss_checkpoint *checkpoint);
/* The file the configuration came from, for error messages. */
const char *gptoss_checkpoint_config_file(const struct gptoss_checkpoint *checkpoint);
const struct gptoss_tensor *gptoss_checkpoint_find(const struct gptoss_checkpoint *checkpoint,
                                                   const char *name);
void gptoss_checkpoint_memory(const struct gptoss_checkpoint *checkpoint,
                              struct gptoss_model_memory *memory_out);

/* The tensor called name, or GPTOSS_ERROR_FORMAT ("... is missing") naming the checkpoint, or one
 * whose dtype or shape differs from what is demanded (num_dims, shape). dtype_mask: bit (1 <<
 * dtype) for each dtype allowed. */
enum gptoss_status gptoss_checkpoint_require(const struct gptoss_checkpoint *checkpoint,
                                             const char *name, uint32_t dtype_mask,
                                             int32_t num_dims, const int64_t *shape,
                                             const struct gptoss_tensor **tensor_out,
                                             struct gptoss_error *error);

/* Reads every float tensor, every scale of a block format and MXFP8 codes once. NaN, an infinity or
 * an MX scale of 0xFF: GPTOSS_ERROR_FORMAT with the tensor, the byte and the bits. poll counts
 * bytes. */
enum gptoss_status gptoss_checkpoint_verify(const struct gptoss_checkpoint *checkpoint,
                                            gptoss_poll_fn poll, void *user,
                                            struct gptoss_error *error);

#endif
