// Frees all but the first of many blocks, so that they join the top of the arena, which a high trim threshold keeps.
// Arguments: [COUNT [SIZE]], COUNT per phase.
#include "frag.h"

DEFINE_TALLY(keep_the_first);

static size_t count, size;

TRACED static void keep_the_first(struct block *block)
{
    block_made(block, malloc(size), size, &TALLY(keep_the_first));
    if (!block->address)
        abort();
}

TRACED static void run_phase(void)
{
    struct block *blocks = block_room(count);

    for (size_t i = 0; i < count; i++)
        keep_the_first(&blocks[i]);
    show_live(blocks[0].address);
    for (size_t i = count; --i > 0;) {
        show_freed(blocks[i].address);
        release_block(&blocks[i]);
    }
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 4000);
    size = argument(argc, argv, 2, 6000);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    warm_up(size);
    target_ready();
    return frag_serve(run_phase);
}
