#include "vulkan/shaders.h"

/* The sources' hashes; also a reason to compile this file again when a shader changes. */
#include "vulkan/spirv/manifest.h"

#define EMBED(name)                                                                                \
    __asm__(".pushsection .rodata\n"                                                               \
            ".balign 8\n"                                                                          \
            ".globl gptoss_spirv_" #name "\n"                                                      \
            ".hidden gptoss_spirv_" #name "\n"                                                     \
            "gptoss_spirv_" #name ":\n"                                                            \
            ".incbin \"vulkan/spirv/" #name ".spv\"\n"                                             \
            ".globl gptoss_spirv_end_" #name "\n"                                                  \
            ".hidden gptoss_spirv_end_" #name "\n"                                                 \
            "gptoss_spirv_end_" #name ":\n"                                                        \
            ".byte 0\n"                                                                            \
            ".popsection\n");                                                                      \
    extern const uint32_t gptoss_spirv_##name[];                                                   \
    extern const uint8_t gptoss_spirv_end_##name[];
GPTOSS_FOR_SHADERS(EMBED)

struct gptoss_shader_code gptoss_shader_code(enum gptoss_shader shader) {
    switch (shader) {
#define CODE(name)                                                                                 \
    case GPTOSS_SHADER_##name:                                                                     \
        return (struct gptoss_shader_code){                                                        \
            #name, gptoss_spirv_##name,                                                            \
            (size_t)(gptoss_spirv_end_##name - (const uint8_t *)gptoss_spirv_##name)};
        GPTOSS_FOR_SHADERS(CODE)
    default: return (struct gptoss_shader_code){0};
    }
}
