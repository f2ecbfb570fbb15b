/* Low-rank adapters: pairs of matrices from files, added to what the model's own matrices give. */
#ifndef GPTOSS_ENGINE_ADAPTERS_H
#define GPTOSS_ENGINE_ADAPTERS_H

#include "backend.h"
#include "checkpoint/tensor_table.h"
#include "platform/mapped_file.h"

struct gptoss_model;

/* One that is open. Weights of the model point to its terms. */
struct gptoss_open_adapter {
    struct gptoss_file file;
    struct gptoss_tensor_table contents;
    struct gptoss_low_rank *terms;
    size_t num_terms;
    uint8_t **copies; /* matrices whose rows had to be brought into the model's order */
    size_t num_copies;
    uint64_t copied_bytes;
};

/* Opens the adapters of the options behind a model whose weights are bound, and adds their terms to
 * these in order. What is held on failure goes with clear. */
enum gptoss_status gptoss_adapters_open(struct gptoss_model *model,
                                        const struct gptoss_model_options *options,
                                        struct gptoss_error *error);
void gptoss_adapters_clear(struct gptoss_model *model);
/* Adds their bytes. */
void gptoss_adapters_memory(const struct gptoss_model *model, struct gptoss_model_memory *memory);

#endif
