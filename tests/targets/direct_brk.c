// Moves the program break itself, without an allocator: three steps up, touched, and one step down, which takes back
// a third of the last growth. Argument: [UNIT], a multiple of 4 pages.
#include "target.h"

DEFINE_MAPPING_TALLY(grow_by_brk, TALLY_ANON);

static size_t unit;

TRACED static void grow_by_brk(void)
{
    char *start = (char *)sbrk((intptr_t)unit);

    if (start == (char *)-1)
        abort();
    for (size_t i = 0; i < unit; i += PAGE)
        start[i] = 1;
    tally_allocated(&TALLY(grow_by_brk), unit);
    TALLY(grow_by_brk).resident += unit;
}

TRACED static void shrink_by_brk(void)
{
    if (sbrk(-(intptr_t)unit) == (void *)-1)
        abort();
    tally_freed(&TALLY(grow_by_brk), unit);
    TALLY(grow_by_brk).resident -= unit;
}

TRACED static void run_phase(void)
{
    for (int i = 0; i < 3; i++)
        grow_by_brk();
    shrink_by_brk();
}

int main(int argc, char **argv)
{
    size_t past_page;

    unit = argument(argc, argv, 1, 1 << 20);
    if (unit % PAGE)
        return 2;
    past_page = (size_t)sbrk(0) % PAGE; // start on a page, so that whole pages come and go
    if (past_page && sbrk((intptr_t)(PAGE - past_page)) == (void *)-1)
        abort();
    target_ready();
    return target_serve(run_phase);
}
