// Frees and resizes, after ready, blocks made before it: a tracer attached in between never saw their sizes, and must
// neither go below zero nor invent growth. Arguments: [COUNT [SIZE]]. `g` is useful once, further ones do less.
#include "target.h"

DEFINE_TALLY(resize_old_block);

static size_t count, size;
static struct block *blocks;
static size_t old_bytes, old_count;

TRACED static void allocate_before_ready(struct block *block)
{
    block_made(block, malloc(size), size, NULL);
}

TRACED static void free_old_block(struct block *block)
{
    old_bytes += block->size;
    old_count += 1;
    release_block(block);
}

TRACED static void resize_old_block(struct block *block)
{
    void *address = realloc(block->address, 2 * size);

    if (!address)
        abort();
    old_bytes += block->size;
    old_count += 1;
    block_made(block, address, 2 * size, &TALLY(resize_old_block));
}

// Of every four old blocks: one stays, two are freed, one is resized.
TRACED static void run_phase(void)
{
    if (target_phase > 1)
        return;
    for (size_t i = 0; i < count; i++) {
        if (i % 4 == 1 || i % 4 == 2)
            free_old_block(&blocks[i]);
        else if (i % 4 == 3)
            resize_old_block(&blocks[i]);
    }
}

int main(int argc, char **argv)
{
    int command;

    count = argument(argc, argv, 1, 2000);
    size = argument(argc, argv, 2, 400);
    blocks = target_blocks(count);
    for (size_t i = 0; i < count; i++)
        allocate_before_ready(&blocks[i]);
    target_ready();
    while ((command = target_command()) != 'q') {
        if (command != 'g') {
            target_refuse(command);
            continue;
        }
        target_phase++;
        run_phase();
        put_truth();
        put(", \"before_ready\": {\"freed_bytes\": %zu, \"freed_count\": %zu}}", old_bytes, old_count);
        send_line();
    }
    return 0;
}
