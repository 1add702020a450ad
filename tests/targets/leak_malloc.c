// Leaks half of what it takes by malloc; also malloc(0), and requests that fail. Arguments: [COUNT [SIZE]].
#include "target.h"

DEFINE_TALLY(leak_by_malloc);
DEFINE_TALLY(leak_by_malloc_zero);
DEFINE_TALLY(fail_by_malloc);

static size_t count, size;

TRACED static void leak_by_malloc(struct block *block, size_t bytes)
{
    block_made(block, malloc(bytes), bytes, &TALLY(leak_by_malloc));
}

TRACED static void leak_by_malloc_zero(struct block *block)
{
    block_made(block, malloc(0), 0, &TALLY(leak_by_malloc_zero));
}

TRACED static void fail_by_malloc(struct block *block)
{
    block_made(block, malloc(impossible_size), impossible_size, &TALLY(fail_by_malloc));
}

TRACED static void run_phase(void)
{
    struct block *blocks = target_blocks(count + 3);
    struct block failed;

    for (size_t i = 0; i < count; i++)
        leak_by_malloc(&blocks[i], size + i % 8 * 8);
    for (size_t i = 0; i < 3; i++)
        leak_by_malloc_zero(&blocks[count + i]);
    for (size_t i = 0; i < 5; i++)
        fail_by_malloc(&failed);
    release_every_other(blocks, count);
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 1000);
    size = argument(argc, argv, 2, 200);
    block_made(target_blocks(count + 3), malloc(size), size, NULL);
    release_block(target_blocks(0));
    target_ready();
    return target_serve(run_phase);
}
