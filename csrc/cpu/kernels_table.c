/* The table of one instruction-set level, GPTOSS_ISA. */
#include "cpu/kernels.h"
#include "numeric/block_formats.h"

#define STRING2(name) #name
#define STRING(name) STRING2(name)

gptoss_matvec_fn GPTOSS_KERNEL(matvec_f32), GPTOSS_KERNEL(matvec_f16), GPTOSS_KERNEL(matvec_bf16),
    GPTOSS_KERNEL(matvec_f32_transposed), GPTOSS_KERNEL(matvec_f16_transposed),
    GPTOSS_KERNEL(matvec_bf16_transposed), GPTOSS_KERNEL(matvec_mxfp4),
    GPTOSS_KERNEL(matvec_mxfp4_gguf), GPTOSS_KERNEL(matvec_q8_0);
gptoss_expand_panel_fn GPTOSS_KERNEL(expand_panel_f32), GPTOSS_KERNEL(expand_panel_f16),
    GPTOSS_KERNEL(expand_panel_bf16), GPTOSS_KERNEL(expand_panel_f32_transposed),
    GPTOSS_KERNEL(expand_panel_f16_transposed), GPTOSS_KERNEL(expand_panel_bf16_transposed),
    GPTOSS_KERNEL(expand_panel_mxfp4), GPTOSS_KERNEL(expand_panel_mxfp4_gguf),
    GPTOSS_KERNEL(expand_panel_q8_0);
#define DECLARE_BLOCKS(name, ...)                                                                  \
    gptoss_matvec_fn GPTOSS_KERNEL(matvec_##name);                                                 \
    gptoss_expand_panel_fn GPTOSS_KERNEL(expand_panel_##name);
GPTOSS_FOR_BLOCK_FORMATS(DECLARE_BLOCKS)
GPTOSS_FOR_PLANE_FORMATS(DECLARE_BLOCKS)
gptoss_multiply_panel_fn GPTOSS_KERNEL(multiply_panel_unscaled),
    GPTOSS_KERNEL(multiply_panel_scaled);
gptoss_attention_tile_fn GPTOSS_KERNEL(attention_tile_f32), GPTOSS_KERNEL(attention_tile_f16);

/* The elementwise kernels' types are those of the table's members. */
#define DECLARE(name) extern __typeof__(*((struct gptoss_kernels *)0)->name) GPTOSS_KERNEL(name)
DECLARE(attention_merge);
DECLARE(rms_norm);
DECLARE(layer_norm);
DECLARE(rope);
DECLARE(rope_neighbours);
DECLARE(swiglu);
DECLARE(silu_multiply);
DECLARE(gelu);
DECLARE(add);
DECLARE(multiply_add);
DECLARE(divide);
DECLARE(convert_f32_f16);
DECLARE(block_maxima);
DECLARE(add_powers);
DECLARE(weigh);
DECLARE(add_powers_and_weigh);

#define AND_MATVEC(name, NAME, ...) , [GPTOSS_LAYOUT_##NAME] = GPTOSS_KERNEL(matvec_##name)
#define AND_EXPAND(name, NAME, ...) , [GPTOSS_LAYOUT_##NAME] = GPTOSS_KERNEL(expand_panel_##name)

extern const struct gptoss_kernels GPTOSS_KERNEL(kernels);
const struct gptoss_kernels GPTOSS_KERNEL(kernels) = {
    .isa = STRING(GPTOSS_ISA),
    .matvec =
        {
            [GPTOSS_LAYOUT_F32] = GPTOSS_KERNEL(matvec_f32),
            [GPTOSS_LAYOUT_F16] = GPTOSS_KERNEL(matvec_f16),
            [GPTOSS_LAYOUT_BF16] = GPTOSS_KERNEL(matvec_bf16),
            [GPTOSS_LAYOUT_F32_TRANSPOSED] = GPTOSS_KERNEL(matvec_f32_transposed),
            [GPTOSS_LAYOUT_F16_TRANSPOSED] = GPTOSS_KERNEL(matvec_f16_transposed),
            [GPTOSS_LAYOUT_BF16_TRANSPOSED] = GPTOSS_KERNEL(matvec_bf16_transposed),
            [GPTOSS_LAYOUT_MXFP4] = GPTOSS_KERNEL(matvec_mxfp4),
            [GPTOSS_LAYOUT_MXFP4_GGUF] = GPTOSS_KERNEL(matvec_mxfp4_gguf),
            [GPTOSS_LAYOUT_Q8_0] = GPTOSS_KERNEL(matvec_q8_0) GPTOSS_FOR_BLOCK_FORMATS(AND_MATVEC)
                GPTOSS_FOR_PLANE_FORMATS(AND_MATVEC),
        },
    .expand_panel =
        {
            [GPTOSS_LAYOUT_F32] = GPTOSS_KERNEL(expand_panel_f32),
            [GPTOSS_LAYOUT_F16] = GPTOSS_KERNEL(expand_panel_f16),
            [GPTOSS_LAYOUT_BF16] = GPTOSS_KERNEL(expand_panel_bf16),
            [GPTOSS_LAYOUT_F32_TRANSPOSED] = GPTOSS_KERNEL(expand_panel_f32_transposed),
            [GPTOSS_LAYOUT_F16_TRANSPOSED] = GPTOSS_KERNEL(expand_panel_f16_transposed),
            [GPTOSS_LAYOUT_BF16_TRANSPOSED] = GPTOSS_KERNEL(expand_panel_bf16_transposed),
            [GPTOSS_LAYOUT_MXFP4] = GPTOSS_KERNEL(expand_panel_mxfp4),
            [GPTOSS_LAYOUT_MXFP4_GGUF] = GPTOSS_KERNEL(expand_panel_mxfp4_gguf),
            [GPTOSS_LAYOUT_Q8_0] = GPTOSS_KERNEL(expand_panel_q8_0)
                GPTOSS_FOR_BLOCK_FORMATS(AND_EXPAND) GPTOSS_FOR_PLANE_FORMATS(AND_EXPAND),
        },
    .multiply_panel_unscaled = GPTOSS_KERNEL(multiply_panel_unscaled),
    .multiply_panel_scaled = GPTOSS_KERNEL(multiply_panel_scaled),
    .attention_tile_f32 = GPTOSS_KERNEL(attention_tile_f32),
    .attention_tile_f16 = GPTOSS_KERNEL(attention_tile_f16),
    .attention_merge = GPTOSS_KERNEL(attention_merge),
    .rms_norm = GPTOSS_KERNEL(rms_norm),
    .layer_norm = GPTOSS_KERNEL(layer_norm),
    .rope = GPTOSS_KERNEL(rope),
    .rope_neighbours = GPTOSS_KERNEL(rope_neighbours),
    .swiglu = GPTOSS_KERNEL(swiglu),
    .silu_multiply = GPTOSS_KERNEL(silu_multiply),
    .gelu = GPTOSS_KERNEL(gelu),
    .add = GPTOSS_KERNEL(add),
    .multiply_add = GPTOSS_KERNEL(multiply_add),
    .divide = GPTOSS_KERNEL(divide),
    .convert_f32_f16 = GPTOSS_KERNEL(convert_f32_f16),
    .block_maxima = GPTOSS_KERNEL(block_maxima),
    .add_powers = GPTOSS_KERNEL(add_powers),
    .weigh = GPTOSS_KERNEL(weigh),
    .add_powers_and_weigh = GPTOSS_KERNEL(add_powers_and_weigh),
};
