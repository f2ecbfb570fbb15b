/* Turns of threads, one after another, waiting for which can be interrupted. */
#ifndef GPTOSS_PLATFORM_TURN_H
#define GPTOSS_PLATFORM_TURN_H

#include <pthread.h>

#include "gptoss.h"

/* Locks the mutex, asking poll, unless NULL, while another holds it: GPTOSS_ERROR_INTERRUPTED once
 * that asks to stop. */
enum gptoss_status gptoss_turn_take(pthread_mutex_t *turn, gptoss_poll_fn poll, void *user,
                                    struct gptoss_error *error);

#endif
