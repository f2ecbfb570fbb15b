/* What multiplies matrices at precision bf16: inputs rounded to bf16 (to nearest even), weights
 * exact, sums in float32. Only some processors have the instructions. Each unit sums in an order of
 * its own (docs/numerics.md), so bits are equal within a unit, not between them. */
#ifndef GPTOSS_CPU_BF16_UNITS_H
#define GPTOSS_CPU_BF16_UNITS_H

#include "cpu/cpu_multiply.h"

struct gptoss_bf16_unit {
    const char *isa;
    const struct gptoss_product_form *vector_form, *panel_form; /* for few tokens, for more */
    /* By the type of the cache; NULL: attention stays in float32. */
    gptoss_attention_tile_fn *attention_tile_f32, *attention_tile_f16;
};

/* What attends to a tile; unit: NULL at precision fp32. */
static inline gptoss_attention_tile_fn *
gptoss_attention_tile_select(const struct gptoss_kernels *kernels,
                             const struct gptoss_bf16_unit *unit, bool is_f16) {
    if (unit != NULL && unit->attention_tile_f16 != NULL)
        return is_f16 ? unit->attention_tile_f16 : unit->attention_tile_f32;
    return is_f16 ? kernels->attention_tile_f16 : kernels->attention_tile_f32;
}

/* The layouts that units multiply. Products of the others are float32 products of inputs that were
 * rounded to bf16. */
static inline bool gptoss_bf16_has_layout(enum gptoss_layout layout) {
    return layout == GPTOSS_LAYOUT_BF16 || gptoss_layout_is_scaled(layout);
}
static inline bool gptoss_bf16_layouts_share_input(enum gptoss_layout a, enum gptoss_layout b) {
    return (a == GPTOSS_LAYOUT_MXFP4_GGUF) == (b == GPTOSS_LAYOUT_MXFP4_GGUF);
}

/* The unit of that name if this machine can run it, NULL isa: the best one. NULL if there is none.
 * kernels_out: what does everything else. */
const struct gptoss_bf16_unit *gptoss_bf16_unit_select(const char *isa,
                                                       const struct gptoss_kernels **kernels_out);

#endif
