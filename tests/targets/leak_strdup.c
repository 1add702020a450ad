// Leaks through functions of libc that call malloc themselves: the frame between is libc's. Arguments: [COUNT].
#include "target.h"

DEFINE_TALLY(leak_by_strdup);
DEFINE_TALLY(leak_by_strndup);

static size_t count;
static char text[301];

TRACED static void leak_by_strdup(struct block *block)
{
    block_made(block, strdup(text), sizeof(text), &TALLY(leak_by_strdup));
}

TRACED static void leak_by_strndup(struct block *block)
{
    block_made(block, strndup(text, 99), 100, &TALLY(leak_by_strndup));
}

TRACED static void run_phase(void)
{
    struct block *blocks = target_blocks(2 * count);

    for (size_t i = 0; i < count; i++) {
        leak_by_strdup(&blocks[i]);
        leak_by_strndup(&blocks[count + i]);
    }
    release_every_other(blocks, 2 * count);
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 1000);
    memset(text, 'x', sizeof(text) - 1);
    free(strdup(text));
    target_blocks(2 * count);
    target_ready();
    return target_serve(run_phase);
}
