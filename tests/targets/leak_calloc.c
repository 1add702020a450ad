// Leaks half of what it takes by calloc; requests whose product overflows fail. Arguments: [COUNT [SIZE]].
#include "target.h"

DEFINE_TALLY(leak_by_calloc);
DEFINE_TALLY(fail_by_calloc);

static size_t count, size;

TRACED static void leak_by_calloc(struct block *block, size_t members)
{
    block_made(block, calloc(members, size), members * size, &TALLY(leak_by_calloc));
}

TRACED static void fail_by_calloc(struct block *block)
{
    block_made(block, calloc(impossible_size, 4), 0, &TALLY(fail_by_calloc));
}

TRACED static void run_phase(void)
{
    struct block *blocks = target_blocks(count);
    struct block failed;

    for (size_t i = 0; i < count; i++)
        leak_by_calloc(&blocks[i], 1 + i % 8);
    for (size_t i = 0; i < 5; i++)
        fail_by_calloc(&failed);
    release_every_other(blocks, count);
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 1000);
    size = argument(argc, argv, 2, 48);
    free(calloc(1, size));
    target_blocks(count);
    target_ready();
    return target_serve(run_phase);
}
