// Allocates below a large local array that nobody has touched: the stack has pages that are not there, and whoever walks
// it meets them. Argument: [COUNT], allocations by each of the two functions in a phase.
#include "target.h"

#define HOLE_BYTES ((size_t)256 << 10)

DEFINE_TALLY(leak_above_the_hole);
DEFINE_TALLY(leak_below_the_hole);

static size_t count;

TRACED static void leak_above_the_hole(void)
{
    if (!malloc(40))
        abort();
    tally_allocated(&TALLY(leak_above_the_hole), 40);
}

TRACED static void leak_below_the_hole(void)
{
    if (!malloc(56))
        abort();
    tally_allocated(&TALLY(leak_below_the_hole), 56);
}

// `pad` moves the frames below through a page: near its end, the next page matters to whoever walks them.
TRACED static void call_below_a_hole(size_t pad)
{
    char hole[HOLE_BYTES + pad];

    __asm__ volatile("" : : "r"(hole) : "memory"); // it is there, but no page of it is
    leak_below_the_hole();
    __asm__ volatile("" : : "r"(hole) : "memory");
}

TRACED static void run_phase(void)
{
    for (size_t i = 0; i < count; i++) {
        leak_above_the_hole();
        call_below_a_hole(i % 16 * 256);
    }
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 300);
    target_ready();
    return target_serve(run_phase);
}
