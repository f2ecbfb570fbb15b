#include "cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#include "platform/allocator.h"
#include "platform/fp_environment.h"
#include "status.h"

/* Decode runs about 150 short stages a token: a thread that slept between them would cost more than
 * the work. Past the spinning it sleeps, so that idle threads take no time from others. */
#define NUM_SPINS 4000
#define NUM_YIELDS 8

/* The state of the current run: its number, whether it still takes workers, and how many are in it.
 * The caller waits only for workers that entered: one that the system has not woken yet, on a busy
 * machine or with more threads than processors, misses the run instead of delaying it. */
#define RUN_NUMBER(state) ((state) >> 32)
#define RUN_CLOSED (UINT64_C(1) << 31)
#define RUN_WORKERS(state) ((state) & (RUN_CLOSED - 1))

struct share {
    _Alignas(64) atomic_int_fast64_t next;
    int64_t end;
};

struct gptoss_thread_pool {
    int num_threads, num_started;
    struct share *shares;
    struct worker *workers;

    atomic_uint_fast64_t run;
    atomic_bool cancelled, closing;
    gptoss_task_fn *function;
    void *context;

    pthread_mutex_t mutex;
    pthread_cond_t begun, finished;
};

struct worker {
    struct gptoss_thread_pool *pool;
    pthread_t thread;
    int index;
};

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Runs tasks until none is left: first this thread's share, then the others'. */
static void work(struct gptoss_thread_pool *pool, int thread, bool (*poll)(void *),
                 void *poll_user) {
    for (int i = 0; i < pool->num_threads; ++i) {
        struct share *share = &pool->shares[(thread + i) % pool->num_threads];
        while (!atomic_load_explicit(&pool->cancelled, memory_order_relaxed)) {
            int64_t task = atomic_fetch_add_explicit(&share->next, 1, memory_order_relaxed);
            if (task >= share->end)
                break;
            pool->function(pool->context, task, thread);
            if (poll != NULL && poll(poll_user))
                atomic_store_explicit(&pool->cancelled, true, memory_order_relaxed);
        }
    }
}

/* Waits for a run other than number `seen` and enters it if it still takes workers. Returns its
 * number. */
static uint64_t enter_run(struct gptoss_thread_pool *pool, uint64_t seen, bool *entered_out) {
    uint64_t run = atomic_load_explicit(&pool->run, memory_order_acquire);
    for (int i = 0; i < NUM_SPINS + NUM_YIELDS && RUN_NUMBER(run) == seen; ++i) {
        if (i < NUM_SPINS)
            relax();
        else
            sched_yield();
        run = atomic_load_explicit(&pool->run, memory_order_acquire);
    }
    if (RUN_NUMBER(run) == seen) {
        pthread_mutex_lock(&pool->mutex);
        while (run = atomic_load_explicit(&pool->run, memory_order_acquire),
               RUN_NUMBER(run) == seen)
            pthread_cond_wait(&pool->begun, &pool->mutex);
        pthread_mutex_unlock(&pool->mutex);
    }
    *entered_out = false;
    while (!(run & RUN_CLOSED) && !*entered_out)
        *entered_out = atomic_compare_exchange_weak_explicit(
            &pool->run, &run, run + 1, memory_order_acquire, memory_order_acquire);
    return RUN_NUMBER(run);
}

static void leave_run(struct gptoss_thread_pool *pool) {
    uint64_t run = atomic_fetch_sub_explicit(&pool->run, 1, memory_order_acq_rel) - 1;
    if (!(run & RUN_CLOSED) || RUN_WORKERS(run) != 0)
        return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_signal(&pool->finished);
    pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *argument) {
    struct worker *worker = argument;
    struct gptoss_thread_pool *pool = worker->pool;
    gptoss_fp_environment_set_default();
    uint64_t seen = 0;
    for (;;) {
        bool entered;
        seen = enter_run(pool, seen, &entered);
        if (atomic_load_explicit(&pool->closing, memory_order_acquire))
            return NULL;
        if (!entered)
            continue;
        work(pool, worker->index, NULL, NULL);
        leave_run(pool);
    }
}

static void open_run(struct gptoss_thread_pool *pool) {
    uint64_t run = atomic_load_explicit(&pool->run, memory_order_relaxed);
    pthread_mutex_lock(&pool->mutex);
    atomic_store_explicit(&pool->run, ((RUN_NUMBER(run) + 1) & UINT32_MAX) << 32,
                          memory_order_release);
    pthread_cond_broadcast(&pool->begun);
    pthread_mutex_unlock(&pool->mutex);
}

static void close_run(struct gptoss_thread_pool *pool) {
    uint64_t run = atomic_fetch_or_explicit(&pool->run, RUN_CLOSED, memory_order_acq_rel);
    for (int i = 0; i < NUM_SPINS && RUN_WORKERS(run) != 0; ++i) {
        relax();
        run = atomic_load_explicit(&pool->run, memory_order_acquire);
    }
    if (RUN_WORKERS(run) == 0)
        return;
    pthread_mutex_lock(&pool->mutex);
    while (RUN_WORKERS(atomic_load_explicit(&pool->run, memory_order_acquire)) != 0)
        pthread_cond_wait(&pool->finished, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

bool gptoss_thread_pool_run(struct gptoss_thread_pool *pool, gptoss_task_fn *function,
                            void *context, int64_t num_tasks, bool (*poll)(void *user),
                            void *poll_user) {
    int num_threads = pool->num_threads;
    pool->function = function;
    pool->context = context;
    atomic_store_explicit(&pool->cancelled, false, memory_order_relaxed);
    for (int i = 0; i < num_threads; ++i) {
        int64_t begin = num_tasks * i / num_threads;
        atomic_store_explicit(&pool->shares[i].next, begin, memory_order_relaxed);
        pool->shares[i].end = num_tasks * (i + 1) / num_threads;
    }
    bool shared = num_threads > 1 && num_tasks > 1;
    if (shared)
        open_run(pool);
    work(pool, 0, poll, poll_user);
    if (shared)
        close_run(pool);
    return !atomic_load_explicit(&pool->cancelled, memory_order_relaxed);
}

static enum gptoss_status start_threads(struct gptoss_thread_pool *pool,
                                        struct gptoss_error *error) {
    /* Signals go to the host's own threads, where their handlers expect to run. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = 0;
    for (int i = 1; i < pool->num_threads && failure == 0; ++i) {
        struct worker *worker = &pool->workers[i];
        *worker = (struct worker){.pool = pool, .index = i};
        failure = gptoss_allocation_permitted()
                      ? pthread_create(&worker->thread, NULL, worker_main, worker)
                      : 1;
        if (failure == 0)
            ++pool->num_started;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure == 0)
        return GPTOSS_OK;
    return gptoss_error_set(error, GPTOSS_ERROR_MEMORY,
                            "cannot start thread %d of %d; ask for fewer threads",
                            pool->num_started + 2, pool->num_threads);
}

enum gptoss_status gptoss_thread_pool_create(int num_threads, struct gptoss_thread_pool **pool_out,
                                             struct gptoss_error *error) {
    *pool_out = NULL;
    enum gptoss_status status;
    struct gptoss_thread_pool *pool = gptoss_allocate(1, sizeof *pool);
    if (pool == NULL)
        return gptoss_error_memory(error, sizeof *pool, "the thread pool");
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->begun, NULL);
    pthread_cond_init(&pool->finished, NULL);
    pool->num_threads = num_threads;
    atomic_init(&pool->run, RUN_CLOSED);
    pool->shares = gptoss_allocate((size_t)num_threads, sizeof *pool->shares);
    pool->workers = gptoss_allocate((size_t)num_threads, sizeof *pool->workers);
    if (pool->shares == NULL || pool->workers == NULL) {
        status = gptoss_error_memory(error, (uint64_t)num_threads * sizeof *pool->workers,
                                     "the thread pool");
        goto cleanup;
    }
    status = start_threads(pool, error);
    if (status != GPTOSS_OK)
        goto cleanup;
    *pool_out = pool;
    return GPTOSS_OK;
cleanup:
    gptoss_thread_pool_release(pool);
    return status;
}

void gptoss_thread_pool_abandon(struct gptoss_thread_pool *pool) {
    if (pool == NULL)
        return;
    gptoss_free(pool->shares);
    gptoss_free(pool->workers);
    gptoss_free(pool);
}

void gptoss_thread_pool_release(struct gptoss_thread_pool *pool) {
    if (pool == NULL)
        return;
    atomic_store_explicit(&pool->closing, true, memory_order_release);
    open_run(pool);
    for (int i = 1; i <= pool->num_started; ++i)
        pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->begun);
    pthread_cond_destroy(&pool->finished);
    pthread_mutex_destroy(&pool->mutex);
    gptoss_thread_pool_abandon(pool);
}
