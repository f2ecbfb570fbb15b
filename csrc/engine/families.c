#include "engine/families.h"

#include <assert.h>
#include <string.h>

#include "engine/dense.h"
#include "engine/gpt_oss.h"

static const struct gptoss_family families[] = {
    {"gpt_oss", gptoss_gpt_oss_bind, gptoss_gpt_oss_clear, gptoss_gpt_oss_forward},
    {"llama", gptoss_llama_bind, gptoss_dense_clear, gptoss_llama_forward},
    {"gpt2", gptoss_gpt2_bind, gptoss_dense_clear, gptoss_gpt2_forward},
};

const struct gptoss_family *gptoss_family_find(const struct gptoss_config *config) {
    size_t i = 0;
    while (strcmp(families[i].architecture, config->architecture) != 0) {
        ++i;
        assert(i < sizeof families / sizeof families[0]);
    }
    return &families[i];
}
