// Calls the allocator through a table of functions, as programs with exchangeable allocators do: the executable holds
// relocations for malloc and its family, but no call to them. Arguments: [COUNT [SIZE]].
#include "target.h"

DEFINE_TALLY(leak_by_table);

struct allocator {
    void *(*allocate)(size_t);
    void *(*allocate_zeroed)(size_t, size_t);
    void *(*resize)(void *, size_t);
    void (*release)(void *);
};

static const struct allocator from_libc = {malloc, calloc, realloc, free};
static const struct allocator *volatile allocator = &from_libc;
static size_t count, size;

static void resize(struct block *block, size_t bytes)
{
    void *address = allocator->resize(block->address, bytes);

    if (!address)
        abort();
    block_taken(block, 1);
    block_made(block, address, bytes, &TALLY(leak_by_table));
}

TRACED static void leak_by_table(struct block *block, size_t i)
{
    void *address = i % 2 ? allocator->allocate(size) : allocator->allocate_zeroed(1, size);

    block_made(block, address, size, &TALLY(leak_by_table));
    if (i % 3 == 0)
        resize(block, 2 * size);
}

TRACED static void run_phase(void)
{
    struct block *blocks = target_blocks(count);

    for (size_t i = 0; i < count; i++)
        leak_by_table(&blocks[i], i);
    for (size_t i = 1; i < count; i += 2)
        allocator->release(block_taken(&blocks[i], 1));
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 1000);
    size = argument(argc, argv, 2, 200);
    allocator->release(allocator->allocate(size));
    target_blocks(count);
    target_ready();
    return target_serve(run_phase);
}
