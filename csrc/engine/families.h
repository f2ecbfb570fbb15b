/* The families of models there are: how each finds its weights and computes. A new one is a file
 * beside llama.c and a line in families.c. */
#ifndef GPTOSS_ENGINE_FAMILIES_H
#define GPTOSS_ENGINE_FAMILIES_H

#include "engine/pass.h"

struct gptoss_family {
    const char *architecture; /* of gptoss_config */
    /* Fills the model's weights from its checkpoint; what is held on failure goes with clear. */
    enum gptoss_status (*bind)(struct gptoss_model *model, struct gptoss_error *error);
    void (*clear)(struct gptoss_model *model);
    enum gptoss_status (*forward)(struct gptoss_model *model, const struct gptoss_pass *pass,
                                  const struct gptoss_row_table *table);
};

/* The family of a configuration that was read. */
const struct gptoss_family *gptoss_family_find(const struct gptoss_config *config);

#endif
