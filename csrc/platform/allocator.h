/* The only way to the heap. Tests make the n-th allocation fail through gptoss_allocator_fail_at
 * (gptoss.h). */
#ifndef GPTOSS_PLATFORM_ALLOCATOR_H
#define GPTOSS_PLATFORM_ALLOCATOR_H

#include <stdbool.h>
#include <stddef.h>

/* Zeroed memory, 64-byte aligned; NULL if refused or if count * size overflows. Released with
 * gptoss_free. */
void *gptoss_allocate(size_t count, size_t size);
char *gptoss_duplicate_string(const char *string);
/* Counts one allocation of another kind (address space, a file map) against the test hook; false:
 * fail now. */
bool gptoss_allocation_permitted(void);

#endif
