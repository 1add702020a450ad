// Takes the address of malloc and free in an executable at a fixed address (-no-pie), where the address is that of a
// stub in the executable itself, which then has a symbol `malloc` that is no allocator. Arguments: [COUNT [SIZE]].
#include "target.h"

DEFINE_TALLY(leak_by_malloc_address);

static size_t count, size;
static void *(*volatile allocate)(size_t);
static void (*volatile release)(void *);

TRACED static void leak_by_malloc_address(struct block *block)
{
    block_made(block, allocate(size), size, &TALLY(leak_by_malloc_address));
}

TRACED static void run_phase(void)
{
    struct block *blocks = target_blocks(count);

    for (size_t i = 0; i < count; i++)
        leak_by_malloc_address(&blocks[i]);
    for (size_t i = 1; i < count; i += 2)
        release(block_taken(&blocks[i], 1));
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 1000);
    size = argument(argc, argv, 2, 200);
    allocate = malloc; // in code, not in data: only this makes the linker give the stub the symbol's address
    release = free;
    release(allocate(size));
    target_blocks(count);
    target_ready();
    return target_serve(run_phase);
}
