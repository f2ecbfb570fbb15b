#include "platform/turn.h"

#include <time.h>

#include "status.h"

/* Ctrl-C is to work within 100 ms. */
#define POLL_NANOSECONDS 50000000

enum gptoss_status gptoss_turn_take(pthread_mutex_t *turn, gptoss_poll_fn poll, void *user,
                                    struct gptoss_error *error) {
    if (poll == NULL) {
        pthread_mutex_lock(turn);
        return GPTOSS_OK;
    }
    for (;;) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += POLL_NANOSECONDS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (pthread_mutex_timedlock(turn, &until) == 0)
            return GPTOSS_OK;
        if (poll(user, 0, 0) != 0)
            return gptoss_error_set(error, GPTOSS_ERROR_INTERRUPTED,
                                    "interrupted while waiting for the model");
    }
}
