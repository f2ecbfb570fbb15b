/* Low-rank terms of dense products: factor * b (a x). Both products are carried out like any other,
 * before the one that they are added to. */
#include "cpu/cpu_multiply.h"
#include "status.h"

/* All terms of an operation, in the order of the products, those of the matrix before those of
 * `up`. */
struct terms {
    int32_t count;
    struct gptoss_product *down, *up; /* [count]: by a, by b */
    struct gptoss_addend *addends;    /* [count] */
    float *values;                    /* of what comes next */
};

static void measure(const struct gptoss_product *product, const struct gptoss_low_rank *term,
                    int32_t *count, uint64_t *num_floats) {
    for (; term != NULL; term = term->next) {
        ++*count;
        *num_floats +=
            (uint64_t)product->num_tokens * (uint64_t)(term->a.num_rows + term->b.num_rows);
    }
}

static struct gptoss_product product_of(const struct gptoss_weight *weight, const float *x,
                                        int64_t x_stride, int64_t num_tokens, float *out) {
    return (struct gptoss_product){
        .matrix = gptoss_matrix_at(weight, 0),
        .num_tokens = num_tokens,
        .x = x,
        .x_stride = x_stride,
        .out = out,
        .out_stride = weight->num_rows,
    };
}

/* Plans the terms of one matrix; how many there are. */
static int32_t add_terms(struct terms *terms, const struct gptoss_product *product,
                         const struct gptoss_low_rank *term) {
    int32_t first = terms->count;
    for (; term != NULL; term = term->next) {
        int32_t i = terms->count++;
        int64_t num_tokens = product->num_tokens, rank = term->a.num_rows;
        float *narrow = terms->values, *wide = narrow + num_tokens * rank;
        terms->values = wide + num_tokens * term->b.num_rows;
        terms->down[i] = product_of(&term->a, product->x, product->x_stride, num_tokens, narrow);
        terms->up[i] = product_of(&term->b, narrow, rank, num_tokens, wide);
        terms->addends[i] = (struct gptoss_addend){wide, term->factor};
    }
    return terms->count - first;
}

enum gptoss_status gptoss_cpu_multiply_dense(struct gptoss_cpu_backend *backend,
                                             struct gptoss_product *products,
                                             int32_t num_products) {
    int32_t count = 0;
    uint64_t num_floats = 0;
    for (int32_t p = 0; p < num_products; ++p) {
        measure(&products[p], products[p].low_rank, &count, &num_floats);
        measure(&products[p], products[p].up_low_rank, &count, &num_floats);
    }
    if (count == 0)
        return gptoss_cpu_multiply(backend, products, num_products);
    uint64_t entry_bytes = 2 * sizeof(struct gptoss_product) + sizeof(struct gptoss_addend);
    GPTOSS_TRY(gptoss_scratch_reserve(&backend->low_rank,
                                      (uint64_t)count * entry_bytes + num_floats * sizeof(float)));
    struct terms terms = {.down = backend->low_rank.memory};
    terms.up = terms.down + count;
    terms.addends = (struct gptoss_addend *)(terms.up + count);
    terms.values = (float *)(terms.addends + count);
    for (int32_t p = 0; p < num_products; ++p) {
        struct gptoss_product *product = &products[p];
        product->addends = terms.addends + terms.count;
        product->num_addends = add_terms(&terms, product, product->low_rank);
        product->up_addends = terms.addends + terms.count;
        product->num_up_addends = add_terms(&terms, product, product->up_low_rank);
    }
    GPTOSS_TRY(gptoss_cpu_multiply(backend, terms.down, count));
    GPTOSS_TRY(gptoss_cpu_multiply(backend, terms.up, count));
    return gptoss_cpu_multiply(backend, products, num_products);
}
