/* A back end made of others, its members: each operation runs on the one that holds its weights,
 * and activations move when the next operation is another's. Which member holds what is decided
 * while a model is loaded. */
#ifndef GPTOSS_SPLIT_SPLIT_H
#define GPTOSS_SPLIT_SPLIT_H

#include "backend.h"

#define GPTOSS_MAX_MEMBERS 9 /* eight GPUs and a CPU */

struct gptoss_split_member {
    struct gptoss_backend *backend;
    const char *name; /* lives as long as the back end */
    uint64_t bytes;   /* of memory that the model may take there; of a CPU nothing */
};

/* members: 1 .. GPTOSS_MAX_MEMBERS, all GPUs or all but the last, which is a CPU and gets what does
 * not fit. Without one the layers are divided in proportion to `bytes`, whether they fit or not.
 * Owns the members' back ends from now on, on failure, too. */
enum gptoss_status gptoss_split_create(const struct gptoss_split_member *members, int num_members,
                                       struct gptoss_backend **backend_out,
                                       struct gptoss_error *error);

/* The members that hold something. */
int gptoss_split_num_shares(const struct gptoss_backend *backend);
void gptoss_split_share(const struct gptoss_backend *backend, int index,
                        struct gptoss_share *share_out);

#endif
