/* What a generator holds, for the files that move it: generator.c (life, going back), feed.c (one
 * sequence), batch.c (many), look_ahead.c. */
#ifndef GPTOSS_ENGINE_GENERATOR_H
#define GPTOSS_ENGINE_GENERATOR_H

#include <stdatomic.h>

#include "engine/model.h"
#include "engine/taps.h"

/* Rows computed ahead of being fed: their keys and values lie in the cache behind the rows it
 * holds. They stand for a text until it goes on otherwise or anything else changes the generator;
 * nothing but time tells whether they are there. */
struct gptoss_ahead {
    int64_t num_rows, next; /* rows computed, and those of them that were fed since */
    int64_t max_rows, num_drawn;
    int32_t *tokens;               /* [max_rows] */
    int32_t *drawn;                /* [max_rows], tokens from the rows of run_ahead */
    float *logprobs;               /* [max_rows], theirs */
    struct gptoss_row *rows;       /* [max_rows] */
    float *logits;                 /* [max_rows][vocab_size] */
    struct gptoss_capture capture; /* mask: the generator's own */
};

struct gptoss_generator {
    atomic_int references;
    struct gptoss_model *model; /* retained */
    struct gptoss_cache *cache;
    int64_t max_context, position, token_capacity;
    enum gptoss_dtype kv_dtype;
    int32_t block_size;
    int32_t *tokens;         /* [position] */
    struct gptoss_row *rows; /* [block_size], the table of the current block */
    float *logits;           /* [vocab_size] */
    bool has_logits;
    struct gptoss_capture capture;
    struct gptoss_ahead ahead;
};

/* ---- feed.c ---- */

/* Whether tokens are of the vocabulary, at least one, and fit the context. */
enum gptoss_status gptoss_generator_check_tokens(const struct gptoss_generator *generator,
                                                 const int32_t *tokens, size_t num_tokens,
                                                 struct gptoss_error *error);
/* Room for num_tokens tokens from position 0 on. */
enum gptoss_status gptoss_generator_reserve_tokens(struct gptoss_generator *generator,
                                                   int64_t num_tokens, struct gptoss_error *error);
/* Rows of the slot for tokens at consecutive positions. */
void gptoss_fill_rows(struct gptoss_row *rows, int32_t slot, const int32_t *tokens,
                      int64_t first_position, int64_t num_rows);
/* GPTOSS_ERROR_NUMERIC for a row of logits with NaN. */
enum gptoss_status gptoss_check_logits(const float *logits, int64_t vocab_size,
                                       struct gptoss_error *error);
/* Computes a block of the next tokens, which does not count yet. The last block of a call leaves
 * logits; with all_logits, [num_rows][vocab_size], every block leaves its rows'. progress: how far
 * the whole work is. */
enum gptoss_status gptoss_generator_run_block(struct gptoss_generator *generator,
                                              const int32_t *tokens, int64_t num_rows, bool last,
                                              float *all_logits, const struct gptoss_pass *progress,
                                              struct gptoss_error *error);
/* Rows of the next num_tokens tokens are complete: they count from now on. */
void gptoss_generator_commit_tokens(struct gptoss_generator *generator, const int32_t *tokens,
                                    int64_t num_tokens);
/* The rows before position are complete, and no others. */
void gptoss_generator_commit(struct gptoss_generator *generator, int64_t position);

/* ---- look_ahead.c ---- */

/* Whether token was looked ahead at as the next one. */
bool gptoss_generator_is_ahead(const struct gptoss_generator *generator, int32_t token);
/* Feeds that token. */
enum gptoss_status gptoss_generator_take_ahead(struct gptoss_generator *generator,
                                               struct gptoss_error *error);
void gptoss_generator_drop_ahead(struct gptoss_generator *generator);
void gptoss_generator_free_ahead(struct gptoss_generator *generator);

#endif
