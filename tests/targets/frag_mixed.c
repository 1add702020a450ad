// Several threads, main among them, allocate blocks of all sizes, alignments and origins by a fixed random sequence,
// and free most: every kind of chunk that glibc has. The threads stay. Arguments: [THREADS [COUNT [HOW]]], COUNT per
// thread and phase. HOW: `blocked` lets the program break not grow, so that the main arena is made of mappings;
// `foreign` moves the break between phases, as a library with an allocator of its own does.
#include "frag.h"
#include <pthread.h>

#define MAX_THREADS 16

DEFINE_TALLY(allocate_mixed);

struct worker {
    unsigned long random;
    struct block *blocks;
};

static size_t threads, count;
static const char *how = "";
static struct worker workers[MAX_THREADS];
static pthread_barrier_t begin, end;

static size_t random_below(struct worker *worker, size_t limit)
{
    worker->random = worker->random * 6364136223846793005UL + 1442695040888963407UL;
    return (worker->random >> 33) % limit;
}

static size_t random_size(struct worker *worker)
{
    size_t kind = random_below(worker, 1000);

    if (kind < 600)
        return 1 + random_below(worker, 200);
    if (kind < 900)
        return 200 + random_below(worker, 3000);
    if (kind < 995)
        return 3000 + random_below(worker, 60000);
    return 150000 + random_below(worker, 300000);
}

TRACED static void allocate_mixed(struct worker *worker, struct block *block)
{
    size_t size = random_size(worker);
    size_t alignment = (size_t)32 << random_below(worker, 10);
    void *address = random_below(worker, 60) ? malloc(size) : memalign(alignment, size);

    block_made(block, address, size, &TALLY(allocate_mixed));
    if (!block->address)
        abort();
}

TRACED static void reallocate(struct worker *worker, struct block *block)
{
    size_t size = 1 + random_below(worker, 2000);

    tally_freed(&TALLY(allocate_mixed), block->size);
    block_made(block, realloc(block->address, size), size, &TALLY(allocate_mixed));
}

static void work(struct worker *worker)
{
    for (size_t i = 0; i < count; i++)
        allocate_mixed(worker, &worker->blocks[i]);
    for (size_t i = 0; i < count; i++)
        if (random_below(worker, 100) < 70)
            release_block(&worker->blocks[i]);
    for (size_t i = 0; i < count; i++)
        if (worker->blocks[i].address && !random_below(worker, 20))
            reallocate(worker, &worker->blocks[i]);
    for (size_t i = 0; i < count / 20; i++)
        allocate_mixed(worker, &worker->blocks[count + i]);
}

TRACED static void *thread_main(void *argument)
{
    warm_up(100); // before ready: makes the arena
    for (;;) {
        pthread_barrier_wait(&end);
        pthread_barrier_wait(&begin);
        work((struct worker *)argument);
    }
    return NULL;
}

static void show_blocks(struct worker *worker)
{
    size_t room = count + count / 20;

    for (size_t i = 0; i < room; i += room / 13 + 1)
        if (worker->blocks[i].address)
            show_live(worker->blocks[i].address);
}

static void free_last(struct worker *worker)
{
    for (size_t i = 0; i < count / 20; i += 7) {
        show_freed(worker->blocks[count + i].address);
        release_block(&worker->blocks[count + i]);
    }
}

TRACED static void run_phase(void)
{
    if (!strcmp(how, "foreign") && sbrk(24000) == (void *)-1)
        abort();
    for (size_t i = 0; i < threads; i++)
        workers[i].blocks = block_room(count + count / 20);
    pthread_barrier_wait(&begin);
    work(&workers[0]);
    pthread_barrier_wait(&end);
    free_last(&workers[0]);
    for (size_t i = 0; i < threads; i++)
        show_blocks(&workers[i]);
}

// A page in the way of the program break.
static void block_break(void)
{
    char *wall = (char *)(((size_t)sbrk(0) + 16 * PAGE) & -PAGE);

    if (mmap(wall, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        abort();
}

int main(int argc, char **argv)
{
    pthread_t thread;

    threads = argument(argc, argv, 1, 3);
    count = argument(argc, argv, 2, 2000);
    if (argc > 3)
        how = argv[3];
    if (!threads || threads > MAX_THREADS || count < 20)
        return 2;
    if (!strcmp(how, "blocked"))
        block_break();
    mallopt(M_ARENA_MAX, (int)threads);
    pthread_barrier_init(&begin, NULL, (unsigned)threads);
    pthread_barrier_init(&end, NULL, (unsigned)threads);
    for (size_t i = 0; i < threads; i++) {
        workers[i].random = 17 + i;
        if (i && pthread_create(&thread, NULL, thread_main, &workers[i]))
            abort();
    }
    pthread_barrier_wait(&end);
    target_ready();
    return frag_serve(run_phase);
}
