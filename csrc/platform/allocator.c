#include "platform/allocator.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "gptoss.h"

/* Test hook only: no state that any result depends on. */
static atomic_uint_fast64_t num_counted;
static atomic_uint_fast64_t fail_at;

uint64_t gptoss_allocator_fail_at(uint64_t n) {
    atomic_store(&fail_at, n);
    return atomic_exchange(&num_counted, 0);
}

bool gptoss_allocation_permitted(void) {
    uint64_t count = atomic_fetch_add_explicit(&num_counted, 1, memory_order_relaxed) + 1;
    uint64_t failing = atomic_load_explicit(&fail_at, memory_order_relaxed);
    if (failing == 0 || count != failing)
        return true;
    atomic_store(&fail_at, 0);
    return false;
}

void *gptoss_allocate(size_t count, size_t size) {
    size_t num_bytes;
    if (__builtin_mul_overflow(count, size, &num_bytes) || num_bytes > PTRDIFF_MAX - 64)
        return NULL;
    if (!gptoss_allocation_permitted())
        return NULL;
    num_bytes = (num_bytes + 63) / 64 * 64;
    void *memory = aligned_alloc(64, num_bytes == 0 ? 64 : num_bytes);
    if (memory != NULL)
        memset(memory, 0, num_bytes);
    return memory;
}

char *gptoss_duplicate_string(const char *string) {
    size_t length = strlen(string) + 1;
    char *copy = gptoss_allocate(length, 1);
    if (copy != NULL)
        memcpy(copy, string, length);
    return copy;
}

void gptoss_free(void *memory) {
    free(memory);
}
