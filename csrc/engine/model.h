/* What a model holds. Immutable after gptoss_model_open, but for the back end's own turn-taking and
 * the workspace, which a pass owns while it has its turn. */
#ifndef GPTOSS_ENGINE_MODEL_H
#define GPTOSS_ENGINE_MODEL_H

#include <stdatomic.h>

#include "backend.h"
#include "checkpoint/checkpoint.h"
#include "engine/adapters.h"
#include "engine/dense.h"
#include "engine/families.h"
#include "engine/gpt_oss.h"
#include "engine/profiler.h"
#include "engine/rope.h"

struct gptoss_model {
    atomic_int references;
    struct gptoss_checkpoint *checkpoint;
    const struct gptoss_config *config;
    struct gptoss_backend *backend;
    struct gptoss_profiler *profiler;   /* in front of the back end, which owns it; or NULL */
    const struct gptoss_backend *split; /* the back end, if several devices share the model */
    const char *device, *isa, *precision;
    char devices[512]; /* their names, where device is of several */
    int num_threads;
    const struct gptoss_family *family; /* NULL until the configuration is read */
    struct gptoss_vector rope_divisors; /* [head_dim / 2] of a file that has them */
    struct gptoss_rope rope;
    float attention_scale; /* 1 / sqrt(head_dim) */
    union {
        struct gptoss_gpt_oss gpt_oss;
        struct gptoss_dense dense;
    } weights;                            /* the family's */
    struct gptoss_open_adapter *adapters; /* [num_adapters] */
    size_t num_adapters;
    struct gptoss_workspace workspace;
    float *batch_logits; /* [max_batch_logits][vocab_size] */
    int64_t max_batch_logits;
};

/* Memory for the logits of num_rows rows, for the caller while it has the back end's turn. */
enum gptoss_status gptoss_model_batch_logits(struct gptoss_model *model, int64_t num_rows,
                                             float **logits_out, struct gptoss_error *error);

#endif
