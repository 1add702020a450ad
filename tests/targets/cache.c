// A cache with a limit: the first phase fills it and replaces some entries, every later one only replaces, so that it
// is level from then on. All entries stay reachable. Arguments: [CAPACITY [STORES]], STORES per phase.
#include "target.h"

DEFINE_TALLY(cache_store);

static size_t capacity, stores, at;
static struct block *entries;

TRACED static void cache_evict(struct block *entry)
{
    release_block(entry);
}

TRACED static void cache_store(struct block *entry, size_t bytes)
{
    block_made(entry, malloc(bytes), bytes, &TALLY(cache_store));
}

TRACED static void run_phase(void)
{
    for (size_t i = 0; i < stores; i++) {
        struct block *entry = &entries[at];

        if (entry->address)
            cache_evict(entry);
        cache_store(entry, 500 + at % 16 * 64);
        at = (at + 1) % capacity;
    }
}

int main(int argc, char **argv)
{
    capacity = argument(argc, argv, 1, 4000);
    stores = argument(argc, argv, 2, 6000);
    entries = target_blocks(capacity);
    free(malloc(500));
    target_ready();
    return target_serve(run_phase);
}
