// Leaks by reallocarray: new blocks, growth, and a product that overflows and changes nothing. Arguments: [COUNT [SIZE]].
#include "target.h"

DEFINE_TALLY(leak_by_reallocarray);
DEFINE_TALLY(grow_by_reallocarray);

static size_t count, size;

TRACED static void leak_by_reallocarray(struct block *block)
{
    block_made(block, reallocarray(NULL, 3, size), 3 * size, &TALLY(leak_by_reallocarray));
    if (reallocarray(block->address, impossible_size, 4))
        abort();
}

TRACED static void grow_by_reallocarray(struct block *block)
{
    void *address = reallocarray(block->address, 7, size);

    if (!address)
        abort();
    block_taken(block, 1);
    block_made(block, address, 7 * size, &TALLY(grow_by_reallocarray));
}

TRACED static void run_phase(void)
{
    struct block *blocks = target_blocks(count);

    for (size_t i = 0; i < count; i++)
        leak_by_reallocarray(&blocks[i]);
    for (size_t i = 0; i < count / 2; i++)
        grow_by_reallocarray(&blocks[i]);
    release_every_other(blocks, count);
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 1000);
    size = argument(argc, argv, 2, 40);
    free(reallocarray(NULL, 1, size));
    target_blocks(count);
    target_ready();
    return target_serve(run_phase);
}
