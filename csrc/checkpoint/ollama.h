/* GGUF files of gpt-oss from Ollama's own converter, general.architecture "gptoss": other names,
 * early ones with query, key and value as one tensor, gate and up as one with alternating rows, and
 * MXFP4 in the order of Hugging Face's nibbles. */
#ifndef GPTOSS_CHECKPOINT_OLLAMA_H
#define GPTOSS_CHECKPOINT_OLLAMA_H

#include "checkpoint/gguf.h"
#include "platform/address_space.h"

/* Turns the table of such a file, or of a part whose first is gguf, into what llama.cpp's converter
 * would have written, and leaves any other alone. What cannot be used in place is copied into
 * *copies_out, empty if nothing is and on failure; file and offset of a tensor stay those of what
 * it was made from. Counts the copied bytes as progress. */
enum gptoss_status gptoss_ollama_convert(const struct gptoss_gguf *gguf,
                                         struct gptoss_tensor_table *table,
                                         struct gptoss_progress *progress,
                                         struct gptoss_address_space *copies_out,
                                         struct gptoss_error *error);

#endif
