// Every way of calling realloc. A successful one counts as a free of the old size by its owner and as an allocation of
// the new size by the caller, whether the block moved or not; a failed one changes nothing. Arguments: [COUNT [SIZE]].
#include "target.h"

DEFINE_TALLY(leak_by_realloc_null);
DEFINE_TALLY(leak_by_realloc_growth);
DEFINE_TALLY(leak_by_realloc_shrink);
DEFINE_TALLY(keep_after_failed_realloc);
DEFINE_TALLY(free_by_realloc_zero);
DEFINE_TALLY(start_of_growth);

static size_t count, size;

static void block_resized(struct block *block, void *address, size_t bytes, struct tally *owner)
{
    block_taken(block, 1);
    block_made(block, address, bytes, owner);
}

TRACED static void leak_by_realloc_null(struct block *block)
{
    block_made(block, realloc(NULL, size), size, &TALLY(leak_by_realloc_null));
}

TRACED static void start_of_growth(struct block *block)
{
    block_made(block, malloc(size), size, &TALLY(start_of_growth));
}

TRACED static void leak_by_realloc_growth(struct block *block, size_t bytes)
{
    void *address = realloc(block->address, bytes);

    if (!address)
        abort();
    block_resized(block, address, bytes, &TALLY(leak_by_realloc_growth));
}

TRACED static void leak_by_realloc_shrink(struct block *block, size_t bytes)
{
    void *address = realloc(block->address, bytes);

    if (!address)
        abort();
    block_resized(block, address, bytes, &TALLY(leak_by_realloc_shrink));
}

TRACED static void keep_after_failed_realloc(struct block *block)
{
    block_made(block, malloc(size), size, &TALLY(keep_after_failed_realloc));
    if (realloc(block->address, impossible_size))
        abort();
}

// Frees the block and returns NULL in glibc; other allocators return a block of no size.
TRACED static void free_by_realloc_zero(struct block *block)
{
    void *address;

    block_made(block, malloc(size), size, &TALLY(free_by_realloc_zero));
    address = realloc(block->address, 0);
    block_resized(block, address, 0, &TALLY(free_by_realloc_zero));
    if (address)
        release_block(block);
}

// The block behind each one is in use, so that growth in place is not possible and the block moves.
TRACED static void grow_some(struct block *blocks)
{
    for (size_t i = 0; i < count; i++)
        start_of_growth(&blocks[i]);
    for (size_t doublings = 1; doublings <= 3; doublings++)
        for (size_t i = 0; i < count; i++)
            leak_by_realloc_growth(&blocks[i], size << doublings);
    for (size_t i = 0; i < count; i += 4)
        leak_by_realloc_shrink(&blocks[i], size / 2);
}

TRACED static void run_phase(void)
{
    struct block *blocks = target_blocks(4 * count);

    for (size_t i = 0; i < count; i++)
        leak_by_realloc_null(&blocks[i]);
    grow_some(blocks + count);
    for (size_t i = 0; i < count; i++)
        keep_after_failed_realloc(&blocks[2 * count + i]);
    for (size_t i = 0; i < count; i++)
        free_by_realloc_zero(&blocks[3 * count + i]);
    release_every_other(blocks, 3 * count);
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 500);
    size = argument(argc, argv, 2, 120);
    free(realloc(NULL, size));
    target_blocks(4 * count);
    target_ready();
    return target_serve(run_phase);
}
