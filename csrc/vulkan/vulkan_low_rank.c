/* Low-rank terms of dense products: factor * b (a x). The products by a share x with those that
 * they are added to, and need no barrier beside them. */
#include "status.h"
#include "vulkan/vulkan_backend.h"

static const struct gptoss_low_rank *term_of(const struct gptoss_dense_product *product,
                                             int32_t index) {
    const struct gptoss_low_rank *term = product->weight->low_rank;
    while (term != NULL && index-- > 0)
        term = term->next;
    return term;
}

/* What a x of a term takes; shaders read vectors of 16 bytes. */
static uint64_t narrow_bytes(const struct gptoss_low_rank *term, int64_t num_tokens) {
    return ((uint64_t)(num_tokens * term->a.num_rows) * sizeof(float) + 15) / 16 * 16;
}

/* Room for a x of all terms, made before anything is listed; how many a product has at most. */
static enum gptoss_status reserve(struct gptoss_vulkan_backend *backend,
                                  const struct gptoss_dense_product *products, int32_t num_products,
                                  int64_t num_tokens, int32_t *max_terms_out,
                                  uint64_t *address_out) {
    uint64_t num_bytes = 0;
    *max_terms_out = 0;
    *address_out = 0;
    for (int32_t p = 0; p < num_products; ++p) {
        const struct gptoss_low_rank *term;
        int32_t count = 0;
        for (; (term = term_of(&products[p], count)) != NULL; ++count)
            num_bytes += narrow_bytes(term, num_tokens);
        *max_terms_out = count > *max_terms_out ? count : *max_terms_out;
    }
    if (num_bytes == 0 || backend->is_loading)
        return GPTOSS_OK;
    return gptoss_vulkan_scratch(backend, GPTOSS_SCRATCH_LOW_RANK, num_bytes, address_out);
}

/* narrow = a x */
static enum gptoss_status list_narrow(struct gptoss_vulkan_backend *backend,
                                      const struct gptoss_dense_product *product,
                                      const struct gptoss_low_rank *term, int64_t num_tokens,
                                      uint64_t narrow) {
    return gptoss_vulkan_product(backend,
                                 &(struct gptoss_dense_product){
                                     .weight = &term->a,
                                     .mode = GPTOSS_PRODUCT_STORE,
                                     .joins_previous = true,
                                     .push =
                                         {
                                             .x = product->push.x,
                                             .gain = product->push.gain,
                                             .epsilon = product->push.epsilon,
                                             .first_token = product->push.first_token,
                                             .result = narrow,
                                         },
                                 },
                                 num_tokens);
}

/* to += factor * b narrow */
static enum gptoss_status list_wide(struct gptoss_vulkan_backend *backend,
                                    const struct gptoss_low_rank *term, int64_t num_tokens,
                                    uint64_t narrow, uint64_t to, bool joins_previous) {
    return gptoss_vulkan_product(backend,
                                 &(struct gptoss_dense_product){
                                     .weight = &term->b,
                                     .mode = GPTOSS_PRODUCT_ADD,
                                     .joins_previous = joins_previous,
                                     .push = {.x = narrow, .result = to, .alpha = term->factor},
                                 },
                                 num_tokens);
}

/* Adds a term to all that its product wrote. */
static enum gptoss_status add_term(struct gptoss_vulkan_backend *backend,
                                   const struct gptoss_dense_product *product,
                                   const struct gptoss_low_rank *term, int64_t num_tokens,
                                   uint64_t narrow, bool joins_previous) {
    if (product->mode == GPTOSS_PRODUCT_RESIDUAL) {
        GPTOSS_TRY(
            list_wide(backend, term, num_tokens, narrow, product->push.extra, joins_previous));
        if (product->push.result == 0)
            return GPTOSS_OK;
        joins_previous = true;
    }
    return list_wide(backend, term, num_tokens, narrow, product->push.result, joins_previous);
}

enum gptoss_status gptoss_vulkan_multiply_dense(struct gptoss_vulkan_backend *backend,
                                                const struct gptoss_dense_product *products,
                                                int32_t num_products, int64_t num_tokens) {
    int32_t max_terms;
    uint64_t narrow, first;
    GPTOSS_TRY(reserve(backend, products, num_products, num_tokens, &max_terms, &first));
    for (int32_t p = 0; p < num_products; ++p)
        GPTOSS_TRY(gptoss_vulkan_product(backend, &products[p], num_tokens));
    const struct gptoss_low_rank *term;
    narrow = first;
    for (int32_t i = 0; i < max_terms; ++i) {
        for (int32_t p = 0; p < num_products; ++p) {
            if ((term = term_of(&products[p], i)) == NULL)
                continue;
            GPTOSS_TRY(list_narrow(backend, &products[p], term, num_tokens, narrow));
            narrow += narrow_bytes(term, num_tokens);
        }
    }
    if (max_terms > 0)
        backend->rounded.x = 0; /* the last a x there may be of other lines */
    narrow = first;
    for (int32_t i = 0; i < max_terms; ++i) {
        bool joins_previous = false; /* nothing waits but for the terms before */
        for (int32_t p = 0; p < num_products; ++p) {
            if ((term = term_of(&products[p], i)) == NULL)
                continue;
            GPTOSS_TRY(add_term(backend, &products[p], term, num_tokens, narrow, joins_previous));
            narrow += narrow_bytes(term, num_tokens);
            joins_previous = true;
        }
    }
    return GPTOSS_OK;
}
