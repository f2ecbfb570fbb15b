#include "platform/allocator.h"
#include "python/binding.h"

struct gptoss_python_owner *gptoss_python_owner_create(struct gptoss_model *model,
                                                       struct gptoss_generator *generator,
                                                       struct gptoss_python_owner *parent) {
    struct gptoss_python_owner *owner = gptoss_allocate(1, sizeof *owner);
    if (owner == NULL) {
        gptoss_generator_release(generator);
        gptoss_model_release(model);
        gptoss_python_raise_as("OutOfMemoryError", "cannot allocate %zu bytes for a handle",
                               sizeof *owner);
        return NULL;
    }
    atomic_init(&owner->num_references, 1);
    atomic_init(&owner->num_views, 0);
    atomic_init(&owner->num_generators, 0);
    atomic_init(&owner->callback_thread, 0);
    owner->model = model;
    owner->generator = generator;
    if (parent != NULL) {
        owner->parent = gptoss_python_owner_retain(parent);
        atomic_fetch_add(&parent->num_generators, 1);
    }
    return owner;
}

struct gptoss_python_owner *gptoss_python_owner_retain(struct gptoss_python_owner *owner) {
    atomic_fetch_add(&owner->num_references, 1);
    return owner;
}

void gptoss_python_owner_release(struct gptoss_python_owner *owner) {
    if (owner == NULL || atomic_fetch_sub(&owner->num_references, 1) != 1)
        return;
    gptoss_generator_release(owner->generator);
    gptoss_model_release(owner->model);
    gptoss_checkpoint_release(owner->checkpoint);
    if (owner->parent != NULL) {
        atomic_fetch_sub(&owner->parent->num_generators, 1);
        gptoss_python_owner_release(owner->parent);
    }
    gptoss_free(owner);
}
