/* Spreads matrix products over the threads: packs their inputs once, then a task a few rows. */
#include "cpu/cpu_multiply.h"

#include <assert.h>
#include <string.h>

#include "cpu/bf16_units.h"
#include "numeric/dtype.h"
#include "status.h"

/* Up to this many tokens the vector kernels are faster than expanding a panel (AVX2, Zen 3, 2880
 * columns: MXFP4 up to 8, bf16 and Q8_0 up to 12 or more; transposed storage, whose panels need no
 * transposition, 1). */
#define MAX_VECTOR_TOKENS 8
#define MAX_VECTOR_TOKENS_TRANSPOSED 1
#define MAX_VECTOR_TOKENS_BF16 3
/* Tasks a thread if a matrix with few rows is cut by tokens. */
#define TOKEN_TASKS 2
/* Packed bytes from which packing is worth the threads' waking. */
#define MIN_SHARED_PACK_BYTES 65536

struct multiplication {
    struct gptoss_cpu_backend *backend;
    struct gptoss_product *products;
    int32_t num_products;
};

static const struct gptoss_product_form *choose_form(const struct gptoss_bf16_unit *unit,
                                                     const struct gptoss_product *product) {
    enum gptoss_layout layout = product->matrix.layout;
    if (unit != NULL && gptoss_bf16_has_layout(layout))
        return product->num_tokens <= MAX_VECTOR_TOKENS_BF16 ? unit->vector_form : unit->panel_form;
    int64_t most =
        gptoss_layout_is_transposed(layout) ? MAX_VECTOR_TOKENS_TRANSPOSED : MAX_VECTOR_TOKENS;
    return product->num_tokens <= most ? &gptoss_vector_form : &gptoss_panel_form;
}

/* Short tasks end together: with as few rows as bring a thread's reading up to speed, none waits
 * long for the last. A stored row of a transposed matrix is one input of all outputs: its tasks
 * are as wide as they can be. */
static int64_t rows_of_task(const struct gptoss_product *product) {
    const struct gptoss_product_form *form = product->form;
    if (form->task_bytes == 0 || gptoss_layout_is_transposed(product->matrix.layout))
        return form->task_rows;
    int64_t rows = form->task_bytes / product->matrix.row_bytes / 8 * 8;
    return rows < 8 ? 8 : rows < form->task_rows ? rows : form->task_rows;
}

static int64_t num_row_parts(const struct gptoss_product *product) {
    return (product->matrix.num_rows + product->task_rows - 1) / product->task_rows;
}

static int64_t num_tasks(const struct gptoss_product *product) {
    return num_row_parts(product) *
           ((product->num_tokens + product->task_tokens - 1) / product->task_tokens);
}

/* All, but where the matrix has too few rows for the threads, as a router has. */
static int64_t tokens_of_task(const struct gptoss_product *product, int num_threads) {
    int64_t wanted = TOKEN_TASKS * num_threads / num_row_parts(product);
    if (num_row_parts(product) >= num_threads)
        return product->num_tokens;
    int64_t tokens = (product->num_tokens + wanted - 1) / wanted;
    return (tokens + GPTOSS_PART_TOKENS - 1) / GPTOSS_PART_TOKENS * GPTOSS_PART_TOKENS;
}

/* Rows vary fastest: neighbours share their tokens. */
static struct gptoss_product_part part_of(const struct gptoss_product *product, int64_t task) {
    int64_t first_row = task % num_row_parts(product) * product->task_rows,
            first_token = task / num_row_parts(product) * product->task_tokens,
            rows = product->matrix.num_rows - first_row, tokens = product->num_tokens - first_token;
    return (struct gptoss_product_part){
        .first_row = first_row,
        .num_rows = rows < product->task_rows ? rows : product->task_rows,
        .first_token = first_token,
        .end_token = first_token + (tokens < product->task_tokens ? tokens : product->task_tokens),
    };
}

/* ---- packing ---- */

/* Decode brings one row to several experts: lists of one line each. */
static bool same_lines(const struct gptoss_product *a, const struct gptoss_product *b) {
    if (a->num_tokens == 1)
        return gptoss_product_input(a, 0) == gptoss_product_input(b, 0);
    return a->x_lines == b->x_lines && a->x == b->x && a->x_stride == b->x_stride;
}

static bool same_input(const struct gptoss_product *a, const struct gptoss_product *b) {
    return a->form == b->form && a->num_tokens == b->num_tokens &&
           a->matrix.num_columns == b->matrix.num_columns &&
           a->form->layouts_share_input(a->matrix.layout, b->matrix.layout) && same_lines(a, b);
}

/* Float32 forms at precision bf16 take inputs that bf16 can hold. */
static void round_to_bf16(float *x, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        x[i] = gptoss_round_to_bf16(x[i]);
}

static void pack_task(void *context, int64_t task, int thread) {
    (void)thread;
    struct multiplication *work = context;
    for (int32_t p = 0; p < work->num_products; ++p) {
        const struct gptoss_product *product = &work->products[p];
        if (p > 0 && product->packed == product[-1].packed)
            continue;
        if (task >= gptoss_product_num_pieces(product)) {
            task -= gptoss_product_num_pieces(product);
            continue;
        }
        int64_t piece_bytes = product->form->piece_bytes(product);
        void *piece = (uint8_t *)product->packed + task * piece_bytes;
        product->form->pack(product, task, piece);
        if (work->backend->bf16_unit != NULL && !gptoss_bf16_has_layout(product->matrix.layout))
            round_to_bf16(piece, piece_bytes / (int64_t)sizeof(float));
        return;
    }
}

static enum gptoss_status pack(struct multiplication *work) {
    struct gptoss_cpu_backend *backend = work->backend;
    int64_t packed_bytes = 0, num_tasks = 0;
    for (int32_t p = 0; p < work->num_products; ++p) {
        struct gptoss_product *product = &work->products[p];
        if (p > 0 && same_input(product, product - 1))
            continue;
        int64_t num_pieces = gptoss_product_num_pieces(product);
        packed_bytes += num_pieces * product->form->piece_bytes(product);
        num_tasks += num_pieces;
    }
    GPTOSS_TRY(gptoss_scratch_reserve(&backend->packed, (uint64_t)packed_bytes));
    uint8_t *at = backend->packed.memory;
    for (int32_t p = 0; p < work->num_products; ++p) {
        struct gptoss_product *product = &work->products[p];
        if (p > 0 && same_input(product, product - 1)) {
            product->packed = product[-1].packed;
            continue;
        }
        product->packed = at;
        at += gptoss_product_num_pieces(product) * product->form->piece_bytes(product);
    }
    if (packed_bytes >= MIN_SHARED_PACK_BYTES)
        return gptoss_cpu_run(backend, pack_task, work, num_tasks);
    for (int64_t task = 0; task < num_tasks; ++task)
        pack_task(work, task, 0);
    return GPTOSS_OK;
}

/* ---- multiplying ---- */

/* Gate and up in turn, as the kernel takes them. */
static void join_gate_and_up(const struct gptoss_kernels *kernels,
                             const struct gptoss_product *product, const float *up,
                             int64_t num_rows, float *gate) {
    float pairs[2 * GPTOSS_MAX_TASK_ROWS];
    for (int64_t r = 0; r < num_rows; ++r) {
        pairs[2 * r] = gate[r];
        pairs[2 * r + 1] = up[r];
    }
    kernels->swiglu(pairs, num_rows, product->limit, product->alpha, gate);
}

void gptoss_product_finish(const struct gptoss_kernels *kernels,
                           const struct gptoss_product *product,
                           const struct gptoss_product_part *part, int64_t token, float *results,
                           const float *bias) {
    int64_t first_row = part->first_row, num_rows = part->num_rows;
    int64_t line = product->out_lines == NULL ? token : product->out_lines[token];
    float *out = product->out + line * product->out_stride;
    if (bias != NULL)
        kernels->add(results, bias, num_rows);
    for (int32_t i = 0; i < product->num_addends; ++i)
        kernels->multiply_add(
            results, product->addends[i].factor,
            product->addends[i].values + token * product->matrix.num_rows + first_row, num_rows);
    switch (product->end) {
    case GPTOSS_PRODUCT_STORE:
        memcpy(out + first_row, results, (size_t)num_rows * sizeof *out);
        break;
    case GPTOSS_PRODUCT_ADD: kernels->add(out + first_row, results, num_rows); break;
    case GPTOSS_PRODUCT_SWIGLU:
        kernels->swiglu(results, num_rows / 2, product->limit, product->alpha, out + first_row / 2);
        break;
    case GPTOSS_PRODUCT_SWIGLU_UP:
        join_gate_and_up(kernels, product, results, num_rows, out + first_row);
        break;
    case GPTOSS_PRODUCT_SILU_UP: kernels->silu_multiply(out + first_row, results, num_rows); break;
    case GPTOSS_PRODUCT_GELU: kernels->gelu(results, num_rows, out + first_row); break;
    }
}

static void multiply_part(struct gptoss_cpu_backend *backend, const struct gptoss_product *product,
                          const struct gptoss_product_part *part, int thread) {
    float decoded[GPTOSS_MAX_TASK_ROWS];
    const float *bias = NULL;
    if (product->bias != NULL) {
        gptoss_decode_elements(product->bias_dtype,
                               product->bias + (uint64_t)part->first_row *
                                                   gptoss_dtype_bytes(product->bias_dtype),
                               (size_t)part->num_rows, decoded);
        bias = decoded;
    }
    product->form->multiply(backend->kernels, product, part, bias,
                            backend->thread_scratch[thread].memory);
}

static void multiply_task(void *context, int64_t task, int thread) {
    struct multiplication *work = context;
    const struct gptoss_product *product = work->products;
    while (task >= num_tasks(product))
        task -= num_tasks(product++);
    struct gptoss_product_part part = part_of(product, task);
    if (product->up.data == NULL) {
        multiply_part(work->backend, product, &part, thread);
        return;
    }
    /* The gate's results wait in out, so that one panel is in cache at a time. */
    struct gptoss_product half = *product;
    half.end = GPTOSS_PRODUCT_STORE;
    multiply_part(work->backend, &half, &part, thread);
    half.end = product->end;
    half.matrix = product->up;
    half.bias = product->up_bias;
    half.addends = product->up_addends;
    half.num_addends = product->num_up_addends;
    multiply_part(work->backend, &half, &part, thread);
}

enum gptoss_status gptoss_cpu_multiply(struct gptoss_cpu_backend *backend,
                                       struct gptoss_product *products, int32_t num_products) {
    struct multiplication work = {
        .backend = backend, .products = products, .num_products = num_products};
    int64_t all_tasks = 0;
    uint64_t scratch_bytes = 0;
    for (int32_t p = 0; p < num_products; ++p) {
        struct gptoss_product *product = &products[p];
        assert(product->end != GPTOSS_PRODUCT_SWIGLU || product->matrix.num_rows % 2 == 0);
        product->form = choose_form(backend->bf16_unit, product);
        product->task_rows = rows_of_task(product);
        product->task_tokens = tokens_of_task(product, backend->num_threads);
        all_tasks += num_tasks(product);
        uint64_t needed = product->form->scratch_bytes(product);
        scratch_bytes = needed > scratch_bytes ? needed : scratch_bytes;
    }
    GPTOSS_TRY(gptoss_thread_scratch_reserve(backend, scratch_bytes));
    GPTOSS_TRY(pack(&work));
    return gptoss_cpu_run(backend, multiply_task, &work, all_tasks);
}
