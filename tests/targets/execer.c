// On the first `g` leaks, then executes itself anew: everything from before is gone, and the new image prints a ready
// line of its own (in place of the truth), with the same pid. It leaks on the `g` that follow.
// Arguments: [COUNT [SIZE]]; a third one marks the new image.
#include "target.h"

DEFINE_TALLY(leak_before_exec);
DEFINE_TALLY(leak_after_exec);

static size_t count, size;
static int is_new_image;

TRACED static void leak_before_exec(struct block *block)
{
    block_made(block, malloc(size), size, &TALLY(leak_before_exec));
}

TRACED static void leak_after_exec(struct block *block)
{
    block_made(block, malloc(size), size, &TALLY(leak_after_exec));
}

TRACED static void exec_again(void)
{
    static char path[4096], counts[2][24], mark[] = "again";
    char *arguments[] = {path, counts[0], counts[1], mark, NULL};
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);

    if (length < 0)
        abort();
    path[length] = '\0';
    snprintf(counts[0], sizeof(counts[0]), "%zu", count);
    snprintf(counts[1], sizeof(counts[1]), "%zu", size);
    execv(path, arguments);
    abort();
}

TRACED static void run_phase(void)
{
    struct block *blocks = target_blocks(count);

    for (size_t i = 0; i < count; i++) {
        if (is_new_image)
            leak_after_exec(&blocks[i]);
        else
            leak_before_exec(&blocks[i]);
    }
    if (!is_new_image)
        exec_again();
    release_every_other(blocks, count);
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 1000);
    size = argument(argc, argv, 2, 200);
    is_new_image = argc > 3;
    free(malloc(size));
    target_blocks(count);
    target_ready();
    return target_serve(run_phase);
}
