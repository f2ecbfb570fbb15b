/* Threads of one model. The calling thread works too, and alone runs callbacks.
 *
 * A run hands tasks 0 .. num_tasks-1 to the threads: each begins in a contiguous share of its own,
 * so that it reads a contiguous part of the weights, and helps the others when it is done. Which
 * thread runs a task never matters to results.
 */
#ifndef GPTOSS_CPU_THREAD_POOL_H
#define GPTOSS_CPU_THREAD_POOL_H

#include "gptoss.h"

struct gptoss_thread_pool;

/* num_threads >= 1 counts the caller. Threads start here and block all signals. */
enum gptoss_status gptoss_thread_pool_create(int num_threads, struct gptoss_thread_pool **pool_out,
                                             struct gptoss_error *error);
/* Joins the threads. In a forked child, where they do not exist, use abandon: it frees without
 * joining. */
void gptoss_thread_pool_release(struct gptoss_thread_pool *pool);
void gptoss_thread_pool_abandon(struct gptoss_thread_pool *pool);

/* thread: 0 .. num_threads-1, 0 being the caller; for scratch memory. */
typedef void gptoss_task_fn(void *context, int64_t task, int thread);

/* poll, if not NULL, is called by the calling thread between tasks, at most every few milliseconds;
 * nonzero makes all threads drop the tasks not begun. Returns whether all tasks ran. */
bool gptoss_thread_pool_run(struct gptoss_thread_pool *pool, gptoss_task_fn *function,
                            void *context, int64_t num_tasks, bool (*poll)(void *user),
                            void *poll_user);

#endif
