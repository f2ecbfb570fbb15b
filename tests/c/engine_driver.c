/* Drives the engine without CPython, for sanitizers: engine_driver MODEL MODE...
 *
 *   threads    generators in several threads on one model give the bits of a single-threaded run
 *   interrupt  a prefill, a rewind, a batch, a look ahead or a score stopped at any poll can be
 *              continued and gives the same bits
 *   memory     every allocation refused in turn: clean statuses, no leak, and a retry succeeds
 *
 * Exits with 0, or with 1 and a line on stderr at the first failure. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gptoss.h"

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)
#define CHECK_OK(call) check_status((call), #call, __LINE__)

enum { NUM_TOKENS = 900, NUM_THREADS = 4, NUM_MARKS = 8 };

static int32_t tokens[NUM_TOKENS];
static _Thread_local struct gptoss_error error; /* of the last call of this thread that failed */

static void check_status(enum gptoss_status status, const char *call, int line) {
    CHECK(status == GPTOSS_OK, "(line %d) %s: %s: %s", line, call, gptoss_status_name(status),
          error.message);
}

static struct gptoss_model *open_model(const char *path, bool read_files, int num_threads) {
    struct gptoss_model_options options = {
        .num_threads = num_threads, .read_files = read_files, .profile = num_threads > 1};
    struct gptoss_model *model = NULL;
    CHECK_OK(gptoss_model_open(path, &options, &model, &error));
    return model;
}

static struct gptoss_generator *create_generator(struct gptoss_model *model, int32_t block_size) {
    struct gptoss_generator_options options = {
        .max_context = NUM_TOKENS, .kv_dtype = GPTOSS_DTYPE_F16, .block_size = block_size};
    struct gptoss_generator *generator = NULL;
    CHECK_OK(gptoss_generator_create(model, &options, &generator, &error));
    return generator;
}

/* Feeds tokens[position .. end-1]. */
static void feed_until(struct gptoss_generator *generator, int64_t end) {
    int64_t position = gptoss_generator_position(generator);
    CHECK_OK(gptoss_generator_prefill(generator, tokens + position, (size_t)(end - position), NULL,
                                      NULL, NULL, &error));
}

static size_t vocab_size(const struct gptoss_model *model) {
    return (size_t)gptoss_model_config(model)->vocab_size;
}

static void fill_tokens(const struct gptoss_model *model) {
    uint32_t state = 1;
    for (size_t i = 0; i < NUM_TOKENS; i++) {
        state = state * 1664525u + 1013904223u;
        tokens[i] = (int32_t)((state >> 8) % vocab_size(model));
    }
}

/* ---- threads ---- */

struct worker {
    struct gptoss_model *model;
    float *marks; /* [NUM_MARKS][vocab_size] */
};

/* Returns where the next logits go. */
static float *keep_logits(float *mark, const struct gptoss_generator *generator) {
    size_t num_logits = vocab_size(gptoss_generator_model(generator));
    memcpy(mark, gptoss_generator_logits(generator), num_logits * sizeof(float));
    return mark + num_logits;
}

/* Feeds the next counts[i] tokens to each of two generators as one batch. */
static enum gptoss_status forward_both(struct gptoss_generator *first,
                                       struct gptoss_generator *second, const size_t counts[2],
                                       gptoss_poll_fn poll, void *user) {
    struct gptoss_generator *generators[] = {first, second};
    int32_t both[64];
    CHECK(counts[0] + counts[1] <= 64, "too many tokens");
    memcpy(both, tokens + gptoss_generator_position(first), counts[0] * sizeof *both);
    memcpy(both + counts[0], tokens + gptoss_generator_position(second), counts[1] * sizeof *both);
    return gptoss_forward(generators, 2, both, counts, poll, user, &error);
}

/* Sequences through prefill, steps, a fork, a rewind, a batch and a look ahead; logits kept at each
 * mark. */
static void *run_sequence(void *argument) {
    struct worker *worker = argument;
    float *mark = worker->marks;
    struct gptoss_generator *generator = create_generator(worker->model, 32);
    struct gptoss_generator *fork = NULL;

    feed_until(generator, 72);
    mark = keep_logits(mark, generator);
    feed_until(generator, 73);
    CHECK_OK(gptoss_generator_fork(generator, &fork, &error));
    feed_until(generator, 74);
    mark = keep_logits(mark, generator);
    CHECK_OK(gptoss_generator_prefill(fork, tokens, 1, NULL, NULL, NULL, &error));
    mark = keep_logits(mark, fork);
    CHECK_OK(gptoss_generator_rewind(generator, 50, NULL, NULL, &error));
    feed_until(generator, 72);
    mark = keep_logits(mark, generator);
    gptoss_generator_reset(generator);
    feed_until(generator, 10);
    mark = keep_logits(mark, generator);
    CHECK_OK(gptoss_generator_rewind(fork, 9, NULL, NULL, &error));
    CHECK_OK(gptoss_generator_look_ahead(fork, tokens + 9, 6, NULL, NULL, &error));
    feed_until(fork, 10);
    mark = keep_logits(mark, fork);
    CHECK_OK(forward_both(generator, fork, (size_t[]){1, 3}, NULL, NULL));
    mark = keep_logits(mark, generator);
    feed_until(generator, 13);
    mark = keep_logits(mark, fork);
    CHECK(memcmp(gptoss_generator_logits(generator), gptoss_generator_logits(fork),
                 vocab_size(worker->model) * sizeof(float)) == 0,
          "logits of a batch differ");
    gptoss_generator_release(fork);
    gptoss_generator_release(generator);
    return NULL;
}

static void test_threads(const char *path) {
    struct gptoss_model *single = open_model(path, false, 1);
    struct gptoss_model *shared = open_model(path, false, 3);
    size_t bytes = NUM_MARKS * vocab_size(single) * sizeof(float);
    struct worker reference = {single, malloc(bytes)};
    struct worker workers[NUM_THREADS];
    pthread_t threads[NUM_THREADS];

    run_sequence(&reference);
    CHECK(memcmp(reference.marks, reference.marks + 3 * vocab_size(single),
                 vocab_size(single) * sizeof(float)) == 0,
          "rewound logits differ");
    CHECK(memcmp(reference.marks + 4 * vocab_size(single), reference.marks + 5 * vocab_size(single),
                 vocab_size(single) * sizeof(float)) == 0,
          "logits looked ahead at differ");
    for (int i = 0; i < NUM_THREADS; i++) {
        workers[i] = (struct worker){gptoss_model_retain(shared), malloc(bytes)};
        CHECK(pthread_create(&threads[i], NULL, run_sequence, &workers[i]) == 0, "no thread");
    }
    for (int i = 0; i < NUM_THREADS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(memcmp(workers[i].marks, reference.marks, bytes) == 0, "thread %d: logits differ", i);
        free(workers[i].marks);
        gptoss_model_release(shared);
    }
    free(reference.marks);
    gptoss_model_release(shared);
    gptoss_model_release(single);
}

/* ---- interrupt ---- */

struct countdown {
    uint64_t calls_left;
};

static int stop_at_zero(void *user, uint64_t done, uint64_t total) {
    struct countdown *countdown = user;
    CHECK(done <= total, "progress %llu of %llu", (unsigned long long)done,
          (unsigned long long)total);
    return countdown->calls_left-- == 0;
}

/* Stops a prefill at its poll number `poll` and goes on; false if there are no so many polls. */
static bool interrupt_prefill(struct gptoss_model *model, uint64_t poll, const float *expected) {
    enum { END = 48, BLOCK = 8 };
    struct gptoss_generator *generator = create_generator(model, BLOCK);
    struct countdown countdown = {poll};
    enum gptoss_status status =
        gptoss_generator_prefill(generator, tokens, END, NULL, stop_at_zero, &countdown, &error);
    if (status != GPTOSS_OK) {
        int64_t position = gptoss_generator_position(generator);
        CHECK(status == GPTOSS_ERROR_INTERRUPTED, "prefill: %s", error.message);
        CHECK(position % BLOCK == 0 || position == END, "stands at %lld", (long long)position);
        if (position < END)
            feed_until(generator, END);
    }
    CHECK(memcmp(gptoss_generator_logits(generator), expected, vocab_size(model) * sizeof(float)) ==
              0,
          "prefill stopped at poll %llu: logits differ", (unsigned long long)poll);
    gptoss_generator_release(generator);
    return status != GPTOSS_OK;
}

/* The same for a rewind from `full` to position 48, whose sliding rows are gone and computed
 * again. */
static bool interrupt_rewind(const struct gptoss_generator *full, uint64_t poll,
                             const float *expected) {
    enum { TARGET = 48 };
    struct gptoss_generator *generator = NULL;
    struct countdown countdown = {poll};
    CHECK_OK(gptoss_generator_fork(full, &generator, &error));
    enum gptoss_status status =
        gptoss_generator_rewind(generator, TARGET, stop_at_zero, &countdown, &error);
    CHECK(status == GPTOSS_OK || status == GPTOSS_ERROR_INTERRUPTED, "rewind: %s", error.message);
    if (gptoss_generator_position(generator) > TARGET)
        CHECK_OK(gptoss_generator_rewind(generator, TARGET, NULL, NULL, &error));
    feed_until(generator, TARGET + 1);
    size_t bytes = vocab_size(gptoss_generator_model(generator)) * sizeof(float);
    CHECK(memcmp(gptoss_generator_logits(generator), expected, bytes) == 0,
          "rewind stopped at poll %llu: logits differ", (unsigned long long)poll);
    gptoss_generator_release(generator);
    return status != GPTOSS_OK;
}

/* The same for a batch: its one block counts for both generators or for none. */
static bool interrupt_forward(struct gptoss_model *model, uint64_t poll, const float *expected) {
    enum { START = 32, END = 48 };
    struct gptoss_generator *first = create_generator(model, 0), *second = NULL;
    struct countdown countdown = {poll};
    feed_until(first, START);
    CHECK_OK(gptoss_generator_fork(first, &second, &error));
    const size_t counts[] = {END - START, END - START - 1};
    enum gptoss_status status = forward_both(first, second, counts, stop_at_zero, &countdown);
    CHECK(status == GPTOSS_OK || status == GPTOSS_ERROR_INTERRUPTED, "batch: %s", error.message);
    CHECK(gptoss_generator_position(first) % (END - START) == 0 &&
              (gptoss_generator_position(first) == START) ==
                  (gptoss_generator_position(second) == START),
          "half of a block counts");
    if (gptoss_generator_position(first) < END)
        CHECK_OK(forward_both(first, second, counts, NULL, NULL));
    feed_until(second, END);
    size_t bytes = vocab_size(model) * sizeof(float);
    CHECK(memcmp(gptoss_generator_logits(first), expected, bytes) == 0 &&
              memcmp(gptoss_generator_logits(second), expected, bytes) == 0,
          "batch stopped at poll %llu: logits differ", (unsigned long long)poll);
    gptoss_generator_release(second);
    gptoss_generator_release(first);
    return status != GPTOSS_OK;
}

/* The same for a look ahead, which leaves nothing behind. */
static bool interrupt_look_ahead(struct gptoss_model *model, uint64_t poll, const float *expected) {
    enum { START = 40, END = 48 };
    struct gptoss_generator *generator = create_generator(model, 0);
    const int32_t *ahead;
    struct countdown countdown = {poll};
    feed_until(generator, START);
    enum gptoss_status status = gptoss_generator_look_ahead(generator, tokens + START, END - START,
                                                            stop_at_zero, &countdown, &error);
    CHECK(status == GPTOSS_OK || status == GPTOSS_ERROR_INTERRUPTED, "ahead: %s", error.message);
    CHECK(gptoss_generator_position(generator) == START, "looking ahead moves");
    CHECK((gptoss_generator_ahead(generator, &ahead) == 0) == (status != GPTOSS_OK), "rows ahead");
    for (int64_t end = START + 1; end <= END; end++)
        feed_until(generator, end);
    CHECK(memcmp(gptoss_generator_logits(generator), expected, vocab_size(model) * sizeof(float)) ==
              0,
          "look ahead stopped at poll %llu: logits differ", (unsigned long long)poll);
    gptoss_generator_release(generator);
    return status != GPTOSS_OK;
}

/* The same for a score beside a reference, which stand after the same block. */
static bool interrupt_score(struct gptoss_model *model, struct gptoss_model *other, uint64_t poll,
                            const float *expected) {
    enum { END = 48, BLOCK = 16 };
    struct gptoss_generator *generator = create_generator(model, BLOCK);
    struct gptoss_generator *reference = create_generator(other, BLOCK);
    struct countdown countdown = {poll};
    double divergences[END] = {0};
    struct gptoss_scores scores = {.divergences = divergences};
    enum gptoss_status status = gptoss_generator_score(generator, reference, tokens, END, NULL,
                                                       &scores, stop_at_zero, &countdown, &error);
    int64_t position = gptoss_generator_position(generator);
    CHECK(status == GPTOSS_OK || status == GPTOSS_ERROR_INTERRUPTED, "score: %s", error.message);
    CHECK(position % BLOCK == 0 && position == gptoss_generator_position(reference),
          "stand at %lld", (long long)position);
    scores.divergences += position;
    if (position < END)
        CHECK_OK(gptoss_generator_score(generator, reference, tokens + position,
                                        (size_t)(END - position), NULL, &scores, NULL, NULL,
                                        &error));
    CHECK(memcmp(gptoss_generator_logits(generator), expected, vocab_size(model) * sizeof(float)) ==
              0,
          "score stopped at poll %llu: logits differ", (unsigned long long)poll);
    for (int i = 0; i < END - 1; i++)
        CHECK(divergences[i] == 0, "one model apart from itself at %d", i);
    gptoss_generator_release(reference);
    gptoss_generator_release(generator);
    return status != GPTOSS_OK;
}

static void test_interrupt(const char *path) {
    struct gptoss_model *model = open_model(path, false, 2), *other = open_model(path, true, 1);
    struct gptoss_generator *reference = create_generator(model, 0);
    struct gptoss_generator *full = create_generator(model, 0);
    uint64_t poll = 0;

    feed_until(reference, 48);
    while (interrupt_prefill(model, poll, gptoss_generator_logits(reference)))
        poll += 1 + poll;
    CHECK(poll > 0, "prefill never polls");
    for (poll = 0; interrupt_forward(model, poll, gptoss_generator_logits(reference));)
        poll += 1 + poll;
    CHECK(poll > 0, "a batch never polls");
    for (poll = 0; interrupt_look_ahead(model, poll, gptoss_generator_logits(reference));)
        poll += 1 + poll;
    CHECK(poll > 0, "a look ahead never polls");
    for (poll = 0; interrupt_score(model, other, poll, gptoss_generator_logits(reference));)
        poll += 1 + poll;
    CHECK(poll > 0, "a score never polls");
    feed_until(reference, 49);
    feed_until(full, NUM_TOKENS);
    for (poll = 0; interrupt_rewind(full, poll, gptoss_generator_logits(reference));)
        poll += 1 + poll;
    CHECK(poll > 0, "a rewind to rows that are gone never polls");
    gptoss_generator_release(full);
    gptoss_generator_release(reference);
    gptoss_model_release(other);
    gptoss_model_release(model);
}

/* ---- memory ---- */

static uint64_t num_refused;

/* Whether a call must be made again because memory was refused. */
static bool refused(enum gptoss_status status) {
    if (status == GPTOSS_OK)
        return false;
    CHECK(status == GPTOSS_ERROR_MEMORY && error.status == status && error.message[0] != '\0',
          "refused memory gives %s: %s", gptoss_status_name(status), error.message);
    num_refused++;
    return true;
}

/* Makes the call, and once more if memory was refused: only one allocation is made to fail. */
#define RETRY(call)                                                                                \
    do {                                                                                           \
        if (refused(call))                                                                         \
            CHECK_OK(call);                                                                        \
    } while (0)

static struct gptoss_model *open_refused(const char *path, bool read_files) {
    struct gptoss_model_options options = {
        .num_threads = 2, .read_files = read_files, .profile = read_files};
    struct gptoss_model *model = NULL;
    if (refused(gptoss_model_open(path, &options, &model, &error))) {
        CHECK(model == NULL, "a model in spite of %s", error.message);
        CHECK_OK(gptoss_model_open(path, &options, &model, &error));
    }
    return model;
}

static struct gptoss_generator *create_refused(struct gptoss_model *model) {
    struct gptoss_generator_options options = {
        .max_context = 64, .kv_dtype = GPTOSS_DTYPE_F32, .block_size = 8};
    struct gptoss_generator *generator = NULL;
    if (refused(gptoss_generator_create(model, &options, &generator, &error))) {
        CHECK(generator == NULL, "a generator in spite of %s", error.message);
        CHECK_OK(gptoss_generator_create(model, &options, &generator, &error));
    }
    return generator;
}

static void prefill_refused(struct gptoss_generator *generator, int64_t end) {
    int64_t position = gptoss_generator_position(generator);
    if (refused(gptoss_generator_prefill(generator, tokens + position, (size_t)(end - position),
                                         NULL, NULL, NULL, &error)))
        feed_until(generator, end);
}

static void take_taps(struct gptoss_generator *generator, size_t num_taps, int64_t num_rows) {
    for (size_t tap = 0; tap < num_taps; tap++) {
        int64_t rows = 0;
        void *data = gptoss_generator_take_tap(generator, tap, &rows);
        CHECK(data != NULL && rows == num_rows, "tap %zu: %lld rows", tap, (long long)rows);
        gptoss_free(data);
    }
}

/* A little of everything; the logits at the end. */
static void run_refused(const char *path, float *logits_out) {
    struct gptoss_model *model = open_refused(path, false);
    struct gptoss_generator *generator = create_refused(model), *fork = NULL;
    size_t num_taps = gptoss_model_num_taps(model), num_logits = vocab_size(model);
    uint8_t *mask = malloc(num_taps);
    struct gptoss_sampling sampling = {.temperature = 1,
                                       .top_k = 40,
                                       .top_p = 0.9f,
                                       .min_p = 0.01f,
                                       .repetition_penalty = 1.1f,
                                       .presence_penalty = 0.1f};
    int32_t token, top_tokens[5];
    float logprob, top_logprobs[5];

    gptoss_model_release(open_refused(path, true));
    memset(mask, 1, num_taps);
    RETRY(gptoss_generator_capture(generator, mask, &error));
    prefill_refused(generator, 20);
    RETRY(gptoss_generator_look_ahead(generator, tokens + 20, 3, NULL, NULL, &error));
    prefill_refused(generator, 21);
    prefill_refused(generator, 22);
    RETRY(gptoss_generator_capture(generator, NULL, &error));
    RETRY(gptoss_generator_rewind(generator, 19, NULL, NULL, &error));
    prefill_refused(generator, 20);
    RETRY(gptoss_sample(gptoss_generator_logits(generator), num_logits, &sampling, tokens, 20,
                        &token, &logprob, &error));
    RETRY(gptoss_top_logprobs(gptoss_generator_logits(generator), num_logits, 5, top_tokens,
                              top_logprobs, &error));
    RETRY(gptoss_generator_fork(generator, &fork, &error));
    prefill_refused(fork, 21);
    RETRY(gptoss_generator_rewind(fork, 5, NULL, NULL, &error));
    prefill_refused(fork, 28);
    RETRY(forward_both(generator, fork, (size_t[]){5, 2}, NULL, NULL));
    double entropies[2];
    struct gptoss_scores scores = {.entropies = entropies};
    RETRY(gptoss_generator_score(fork, NULL, tokens, 2, NULL, &scores, NULL, NULL, &error));
    RETRY(gptoss_model_verify(model, NULL, NULL, &error));
    memcpy(logits_out, gptoss_generator_logits(fork), num_logits * sizeof(float));
    free(mask);
    gptoss_generator_release(fork);
    gptoss_generator_release(generator);
    gptoss_model_release(model);
}

/* Outside the refusals: what a capture of everything hands over. */
static void test_taps(const char *path) {
    struct gptoss_model *model = open_model(path, false, 2);
    struct gptoss_generator *generator = create_generator(model, 8);
    size_t num_taps = gptoss_model_num_taps(model);
    uint8_t *mask = malloc(num_taps);
    memset(mask, 1, num_taps);
    CHECK_OK(gptoss_generator_capture(generator, mask, &error));
    feed_until(generator, 20);
    take_taps(generator, num_taps, 20);
    CHECK_OK(gptoss_generator_look_ahead(generator, tokens + 20, 3, NULL, NULL, &error));
    feed_until(generator, 21);
    take_taps(generator, num_taps, 1);
    free(mask);
    gptoss_generator_release(generator);
    gptoss_model_release(model);
}

/* Under AddressSanitizer, where the whole takes many minutes, every third allocation, another third
 * each time. */
#ifdef __SANITIZE_ADDRESS__
enum { REFUSAL_STEP = 3 };
#else
enum { REFUSAL_STEP = 1 };
#endif

static void test_memory(const char *path) {
    struct gptoss_model *model = open_model(path, false, 1);
    size_t bytes = vocab_size(model) * sizeof(float);
    float *expected = malloc(bytes), *logits = malloc(bytes);
    uint64_t n = 1 + (uint64_t)time(NULL) % REFUSAL_STEP, num_allocations, num_turns = 0;

    gptoss_model_release(model);
    test_taps(path);
    run_refused(path, expected);
    CHECK(num_refused == 0, "memory refused without being asked to");
    do {
        num_refused = 0;
        gptoss_allocator_fail_at(n);
        run_refused(path, logits);
        num_allocations = gptoss_allocator_fail_at(0);
        CHECK(n > num_allocations || num_refused == 1, "allocation %llu: refused %llu times",
              (unsigned long long)n, (unsigned long long)num_refused);
        CHECK(memcmp(logits, expected, bytes) == 0, "allocation %llu: logits differ",
              (unsigned long long)n);
        ++num_turns;
        n += REFUSAL_STEP;
    } while (n - REFUSAL_STEP <= num_allocations);
    printf("%llu allocations refused in turn\n", (unsigned long long)(num_turns - 1));
    free(expected);
    free(logits);
}

int main(int num_arguments, char **arguments) {
    static const struct {
        const char *name;
        void (*run)(const char *path);
    } modes[] = {{"threads", test_threads}, {"interrupt", test_interrupt}, {"memory", test_memory}};

    CHECK(num_arguments > 2, "usage: engine_driver MODEL MODE...");
    struct gptoss_model *model = open_model(arguments[1], false, 1);
    fill_tokens(model);
    gptoss_model_release(model);
    for (int i = 2; i < num_arguments; i++) {
        bool known = false;
        for (size_t mode = 0; mode < sizeof modes / sizeof modes[0]; mode++) {
            if (strcmp(arguments[i], modes[mode].name) == 0) {
                modes[mode].run(arguments[1]);
                known = true;
            }
        }
        CHECK(known, "no mode %s", arguments[i]);
        printf("%s: ok\n", arguments[i]);
    }
    return 0;
}
