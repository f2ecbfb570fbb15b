/* Models whose layers and experts lie on several devices. */
#ifndef GPTOSS_ENGINE_PLACEMENT_H
#define GPTOSS_ENGINE_PLACEMENT_H

#include "gptoss.h"

/* Whether the options name several devices, or a limit for one. */
bool gptoss_placement_is_asked(const struct gptoss_model_options *options);
/* The back end over them: GPUs and, with a limit or where the CPU is named, that. Sets the model's
 * backend, split, device, isa and precision. */
enum gptoss_status gptoss_placement_open(struct gptoss_model *model,
                                         const struct gptoss_model_options *options,
                                         struct gptoss_error *error);

#endif
