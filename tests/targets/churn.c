// Allocates and frees without end and does not grow: a ring of blocks, each replaced by one of the same size.
// What was allocated since ready and is live levels off at the ring's size. Arguments: [SLOTS [REPLACEMENTS]].
#include "target.h"

DEFINE_TALLY(churn_one);

static size_t slots, replacements, at;
static struct block *ring;

TRACED static void churn_one(struct block *block, size_t bytes)
{
    release_block(block);
    block_made(block, malloc(bytes), bytes, &TALLY(churn_one));
}

TRACED static void run_phase(void)
{
    for (size_t i = 0; i < replacements; i++) {
        churn_one(&ring[at], 64 + at * 37 % 512);
        at = (at + 1) % slots;
    }
}

int main(int argc, char **argv)
{
    slots = argument(argc, argv, 1, 1024);
    replacements = argument(argc, argv, 2, 20000);
    ring = target_blocks(slots);
    run_phase();
    target_ready();
    return target_serve(run_phase);
}
