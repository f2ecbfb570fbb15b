/* Address space reserved once and filled lazily: zero pages that cost memory only after they are
 * written. */
#ifndef GPTOSS_PLATFORM_ADDRESS_SPACE_H
#define GPTOSS_PLATFORM_ADDRESS_SPACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gptoss_address_space {
    uint8_t *base; /* page-aligned, never moves; NULL: nothing is reserved */
    size_t num_bytes;
};

/* Reserves num_bytes >= 1 of readable and writable zeros; false if the system refuses, and then
 * *space_out is empty. */
bool gptoss_address_space_reserve(size_t num_bytes, struct gptoss_address_space *space_out);
/* Gives the pages that lie wholly in [begin, end) back to the system; they read as zeros again. end
 * <= num_bytes. */
void gptoss_address_space_discard(const struct gptoss_address_space *space, size_t begin,
                                  size_t end);
/* Gives all up and empties *space; an empty one is accepted. */
void gptoss_address_space_release(struct gptoss_address_space *space);
size_t gptoss_address_space_page_bytes(void);

#endif
