// Allocates many small blocks and frees all but one in each page: nearly all of the heap is free, no page of it is.
// Arguments: [COUNT [SIZE]], COUNT per phase.
#include "frag.h"

DEFINE_TALLY(keep_one_per_page);

static size_t count, size;

TRACED static void keep_one_per_page(struct block *block)
{
    block_made(block, malloc(size), size, &TALLY(keep_one_per_page));
    if (!block->address)
        abort();
}

TRACED static void run_phase(void)
{
    struct block *blocks = block_room(count);
    size_t page = 0;

    for (size_t i = 0; i < count; i++)
        keep_one_per_page(&blocks[i]);
    for (size_t i = 0; i < count; i++) {
        if ((size_t)blocks[i].address / PAGE == page) {
            show_freed(blocks[i].address);
            release_block(&blocks[i]);
        } else {
            page = (size_t)blocks[i].address / PAGE;
            show_live(blocks[i].address);
        }
    }
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 40000);
    size = argument(argc, argv, 2, 240);
    warm_up(size);
    target_ready();
    return frag_serve(run_phase);
}
