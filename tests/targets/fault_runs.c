// Two callers at the same depth touch the pages of one mapping through one function, so that nothing but a return
// address tells them apart: in turns of the given numbers of pages each. Arguments: [PAGES_EACH [TURN_A [TURN_B]]].
#include "target.h"
#include <sys/mman.h>

DEFINE_MAPPING_TALLY(caller_a, TALLY_ANON);
DEFINE_MAPPING_TALLY(caller_b, TALLY_ANON);

static char *region, *next_page;
static size_t pages_each, turn_a, turn_b;

TRACED static void touch(size_t count)
{
    for (size_t i = 0; i < count; i++) {
        *next_page = 1;
        next_page += PAGE;
    }
}

TRACED static void caller_a(size_t count)
{
    touch(count);
    TALLY(caller_a).resident += count * PAGE;
    tally_allocated(&TALLY(caller_a), count * PAGE);
}

TRACED static void caller_b(size_t count)
{
    touch(count);
    TALLY(caller_b).resident += count * PAGE;
    tally_allocated(&TALLY(caller_b), count * PAGE);
}

TRACED static void run_phase(void)
{
    next_page = region;
    for (size_t done = 0; done < pages_each; done += turn_a)
        caller_a(turn_a);
    next_page = region + pages_each * PAGE;
    for (size_t done = 0; done < pages_each; done += turn_a + turn_b) {
        caller_a(turn_a);
        caller_b(turn_b);
    }
}

int main(int argc, char **argv)
{
    pages_each = argument(argc, argv, 1, 1200);
    turn_a = argument(argc, argv, 2, 1);
    turn_b = argument(argc, argv, 3, 1);
    region = (char *)mmap(NULL, 3 * pages_each * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region == MAP_FAILED)
        abort();
    target_ready();
    return target_serve(run_phase);
}
