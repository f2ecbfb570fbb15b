/* The shaders' SPIR-V, which `sh scripts/shaders` compiles from shaders/. */
#ifndef GPTOSS_VULKAN_SHADERS_H
#define GPTOSS_VULKAN_SHADERS_H

#include <stddef.h>
#include <stdint.h>

#define GPTOSS_FOR_SHADERS(X)                                                                      \
    X(activate)                                                                                    \
    X(attention)                                                                                   \
    X(attention_panel)                                                                             \
    X(embed)                                                                                       \
    X(expert_down_rows)                                                                            \
    X(expert_sum)                                                                                  \
    X(fragments)                                                                                   \
    X(group)                                                                                       \
    X(guess)                                                                                       \
    X(matrix_panel)                                                                                \
    X(norm)                                                                                        \
    X(product_panel)                                                                               \
    X(product_rows)                                                                                \
    X(rope_append)                                                                                 \
    X(round_rows)                                                                                  \
    X(route)                                                                                       \
    X(route_panel)                                                                                 \
    X(tile_attention)                                                                              \
    X(tile_down_rows)                                                                              \
    X(tile_panel)                                                                                  \
    X(tile_rows)

enum gptoss_shader {
#define GPTOSS_SHADER_ID(name) GPTOSS_SHADER_##name,
    GPTOSS_FOR_SHADERS(GPTOSS_SHADER_ID)
#undef GPTOSS_SHADER_ID
        GPTOSS_NUM_SHADERS
};

struct gptoss_shader_code {
    const char *name;
    const uint32_t *words;
    size_t num_bytes;
};
struct gptoss_shader_code gptoss_shader_code(enum gptoss_shader shader);

#endif
