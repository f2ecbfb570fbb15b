#include "platform/address_space.h"

#include <assert.h>
#include <sys/mman.h>
#include <unistd.h>

#include "platform/allocator.h"

size_t gptoss_address_space_page_bytes(void) {
    return (size_t)sysconf(_SC_PAGESIZE);
}

bool gptoss_address_space_reserve(size_t num_bytes, struct gptoss_address_space *space_out) {
    *space_out = (struct gptoss_address_space){0};
    if (!gptoss_allocation_permitted())
        return false;
    /* NORESERVE: a long context may be reserved on a machine that could not hold it filled. */
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *base = mmap(NULL, num_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (base == MAP_FAILED)
        return false;
    *space_out = (struct gptoss_address_space){.base = base, .num_bytes = num_bytes};
    return true;
}

void gptoss_address_space_discard(const struct gptoss_address_space *space, size_t begin,
                                  size_t end) {
    assert(end <= space->num_bytes);
    size_t page = gptoss_address_space_page_bytes();
    size_t first = (begin + page - 1) / page * page, last = end / page * page;
    /* A refusal (locked memory) leaves the pages: nothing is lost but the memory they hold. */
    if (first < last)
        (void)madvise(space->base + first, last - first, MADV_DONTNEED);
}

void gptoss_address_space_release(struct gptoss_address_space *space) {
    if (space->base != NULL)
        munmap(space->base, space->num_bytes);
    *space = (struct gptoss_address_space){0};
}
