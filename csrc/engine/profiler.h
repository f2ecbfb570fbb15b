/* Counts and times the operations of a back end that runs them when they are called: a back end
 * itself, which forwards every operation to another one. */
#ifndef GPTOSS_ENGINE_PROFILER_H
#define GPTOSS_ENGINE_PROFILER_H

#include "backend.h"

struct gptoss_profiler;

/* Puts a profiler in front of *backend, which it then owns: *backend becomes the profiler's own,
 * whose release releases both. On failure *backend stays as it is. */
enum gptoss_status gptoss_profiler_create(int32_t num_experts, struct gptoss_backend **backend,
                                          struct gptoss_profiler **profiler_out,
                                          struct gptoss_error *error);

/* These may be called while another thread runs a pass: every number read is one that was right at
 * some time. */
size_t gptoss_profiler_num_entries(const struct gptoss_profiler *profiler);
void gptoss_profiler_entry(const struct gptoss_profiler *profiler, size_t index,
                           struct gptoss_profile_entry *entry_out);
void gptoss_profiler_reset(struct gptoss_profiler *profiler);

#endif
