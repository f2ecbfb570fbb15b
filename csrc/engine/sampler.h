/* What a draw is made of, for those who guess it. */
#ifndef GPTOSS_ENGINE_SAMPLER_H
#define GPTOSS_ENGINE_SAMPLER_H

#include "gptoss.h"

/* The random bits of a draw after `position` tokens. */
uint64_t gptoss_sampler_random(uint64_t seed, uint64_t position);

#endif
