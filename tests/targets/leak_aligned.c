// Leaks by each aligned form, each in a function of its own; a bad alignment fails. What valloc and pvalloc return is
// never freed, as an allocator put in front by LD_PRELOAD may leave these two to libc. Arguments: [COUNT [SIZE]].
#include "target.h"
#include <malloc.h>

DEFINE_TALLY(leak_by_posix_memalign);
DEFINE_TALLY(leak_by_aligned_alloc);
DEFINE_TALLY(leak_by_memalign);
DEFINE_TALLY(leak_by_valloc);
#ifdef __GLIBC__
DEFINE_TALLY(leak_by_pvalloc);
#endif
DEFINE_TALLY(fail_by_posix_memalign);

static size_t count, size;

TRACED static void leak_by_posix_memalign(struct block *block)
{
    void *address = NULL;

    if (posix_memalign(&address, 64, size))
        abort();
    block_made(block, address, size, &TALLY(leak_by_posix_memalign));
}

TRACED static void leak_by_aligned_alloc(struct block *block)
{
    size_t bytes = (size + 127) / 128 * 128;

    block_made(block, aligned_alloc(128, bytes), bytes, &TALLY(leak_by_aligned_alloc));
}

TRACED static void leak_by_memalign(struct block *block)
{
    block_made(block, memalign(256, size), size, &TALLY(leak_by_memalign));
}

TRACED static void leak_by_valloc(struct block *block)
{
    block_made(block, valloc(size), size, &TALLY(leak_by_valloc));
}

#ifdef __GLIBC__
TRACED static void leak_by_pvalloc(struct block *block)
{
    block_made(block, pvalloc(size), size, &TALLY(leak_by_pvalloc));
}
#endif

// The pointer that it leaves behind looks like a result, but is none.
TRACED static void fail_by_posix_memalign(void)
{
    static char not_a_block;
    void *address = &not_a_block;

    if (!posix_memalign(&address, 3, size) || !posix_memalign(&address, 64, impossible_size))
        abort();
}

TRACED static void run_phase(void)
{
    struct block *blocks = target_blocks(3 * count);
    struct block page_aligned;

    for (size_t i = 0; i < count; i++) {
        leak_by_posix_memalign(&blocks[i]);
        leak_by_aligned_alloc(&blocks[count + i]);
        leak_by_memalign(&blocks[2 * count + i]);
        fail_by_posix_memalign();
    }
    for (size_t i = 0; i < count / 10; i++) {
        leak_by_valloc(&page_aligned);
#ifdef __GLIBC__
        leak_by_pvalloc(&page_aligned);
#endif
    }
    release_every_other(blocks, 3 * count);
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 300);
    size = argument(argc, argv, 2, 200);
    free(memalign(64, size));
    target_blocks(3 * count);
    target_ready();
    return target_serve(run_phase);
}
