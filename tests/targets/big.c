// Blocks of 256 KiB to 2 MiB, which glibc maps one by one; a third are touched in full, a third by half, a third not at
// all; half are freed. `resident_bytes` holds for glibc, where a 16-byte header stands before each block.
// Arguments: [COUNT [dynamic]]; `dynamic` lets glibc raise its mmap threshold as blocks are freed, as it does by
// default, so that later blocks come from the heap; the resident size is unknown then (and is not to be read).
#include "target.h"
#include <malloc.h>

DEFINE_TALLY_RESIDENT(leak_big_block);

static size_t count;

static size_t touched_bytes(size_t i, size_t bytes)
{
    return i % 3 == 0 ? bytes : i % 3 == 1 ? bytes / 2 : 0;
}

static size_t resident_bytes(const char *address, size_t touched)
{
    size_t first = ((size_t)address - 16) / PAGE;
    size_t last = ((size_t)address + touched - (touched > 0)) / PAGE;

    return (last - first + 1) * PAGE;
}

TRACED static void leak_big_block(struct block *block, size_t bytes)
{
    block->address = (char *)malloc(bytes);
    if (!block->address)
        abort();
    block->size = bytes;
    block->owner = &TALLY(leak_big_block);
    tally_allocated(block->owner, bytes);
}

TRACED static void touch_big_block(struct block *block, size_t touched)
{
    memset(block->address, 0x5a, touched);
    block->owner->resident += resident_bytes(block->address, touched);
}

TRACED static void run_phase(void)
{
    struct block *blocks = target_blocks(count);

    for (size_t i = 0; i < count; i++) {
        leak_big_block(&blocks[i], ((size_t)256 << 10) * (1 + i % 8));
        touch_big_block(&blocks[i], touched_bytes(i, blocks[i].size));
    }
    for (size_t i = 1; i < count; i += 2)
        TALLY(leak_big_block).resident -= resident_bytes(blocks[i].address, touched_bytes(i, blocks[i].size));
    release_every_other(blocks, count);
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 24);
#ifdef __GLIBC__
    if (argc < 3)
        mallopt(M_MMAP_THRESHOLD, 128 << 10);
#endif
    target_blocks(count);
    target_ready();
    return target_serve(run_phase);
}
