// Forks in each phase: the child frees blocks inherited from the parent, allocates, and ends by _exit, while the parent
// leaks too. The truth is the parent's; what the child does is none of its growth. Arguments: [COUNT [SIZE]].
#include "target.h"
#include <sys/wait.h>

DEFINE_TALLY(leak_in_parent);

static size_t count, size;

TRACED static void leak_in_parent(struct block *block)
{
    block_made(block, malloc(size), size, &TALLY(leak_in_parent));
}

TRACED static void *allocate_in_child(size_t bytes)
{
    void *address = malloc(bytes);

    if (!address)
        _exit(1);
    return memset(address, 1, bytes);
}

TRACED static void child_main(struct block *blocks)
{
    for (size_t i = 0; i < count; i += 2)
        free(blocks[i].address);
    for (size_t i = 0; i < count; i++) {
        void *kept = allocate_in_child(3 * size);
        free(allocate_in_child(size));
        if (!kept)
            _exit(1);
    }
    _exit(0);
}

TRACED static void run_phase(void)
{
    struct block *blocks = target_blocks(count);
    int status;
    pid_t child;

    for (size_t i = 0; i < count; i++)
        leak_in_parent(&blocks[i]);
    child = fork();
    if (child < 0)
        abort();
    if (child == 0)
        child_main(blocks);
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            abort();
    if (status != 0)
        abort();
    release_every_other(blocks, count);
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 1000);
    size = argument(argc, argv, 2, 200);
    free(malloc(size));
    target_blocks(count);
    target_ready();
    return target_serve(run_phase);
}
