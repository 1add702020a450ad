// Allocates many blocks and frees every second one: half of the heap is free, in holes of one block each.
// Arguments: [COUNT [SIZE]], COUNT per phase.
#include "frag.h"

DEFINE_TALLY(keep_every_second);

static size_t count, size;

TRACED static void keep_every_second(struct block *block)
{
    block_made(block, malloc(size), size, &TALLY(keep_every_second));
    if (!block->address)
        abort();
}

TRACED static void run_phase(void)
{
    struct block *blocks = block_room(count);

    for (size_t i = 0; i < count; i++)
        keep_every_second(&blocks[i]);
    for (size_t i = 0; i < count; i++) {
        if (i % 2)
            show_freed(blocks[i].address), release_block(&blocks[i]);
        else
            show_live(blocks[i].address);
    }
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 4000);
    size = argument(argc, argv, 2, 12000);
    warm_up(size);
    target_ready();
    return frag_serve(run_phase);
}
