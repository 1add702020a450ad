// Several threads, each with an arena of its own, allocate many blocks and free every second one; the threads stay.
// Arguments: [THREADS [COUNT [SIZE]]], COUNT per thread and phase.
#include "frag.h"
#include <pthread.h>

#define MAX_THREADS 32

DEFINE_TALLY(keep_in_thread);

static size_t threads, count, size;
static struct block *blocks[MAX_THREADS];
static pthread_barrier_t begin, end;

TRACED static void keep_in_thread(struct block *block)
{
    block_made(block, malloc(size), size, &TALLY(keep_in_thread));
    if (!block->address)
        abort();
}

TRACED static void *thread_main(void *argument)
{
    struct block **mine = argument;

    warm_up(size); // before ready: makes the arena
    for (;;) {
        pthread_barrier_wait(&end);
        pthread_barrier_wait(&begin);
        for (size_t i = 0; i < count; i++)
            keep_in_thread(&(*mine)[i]);
        for (size_t i = 1; i < count; i += 2)
            release_block(&(*mine)[i]);
    }
    return NULL;
}

TRACED static void run_phase(void)
{
    for (size_t i = 0; i < threads; i++)
        blocks[i] = block_room(count);
    pthread_barrier_wait(&begin);
    pthread_barrier_wait(&end);
    for (size_t i = 0; i < threads; i++)
        for (size_t j = 0; j < 16 && j < count; j += 2)
            show_live(blocks[i][j].address);
}

int main(int argc, char **argv)
{
    pthread_t thread;

    threads = argument(argc, argv, 1, 4);
    count = argument(argc, argv, 2, 2000);
    size = argument(argc, argv, 3, 12000);
    if (threads > MAX_THREADS)
        return 2;
    mallopt(M_ARENA_MAX, (int)threads + 1); // or two threads of a small machine would share one
    pthread_barrier_init(&begin, NULL, (unsigned)threads + 1);
    pthread_barrier_init(&end, NULL, (unsigned)threads + 1);
    for (size_t i = 0; i < threads; i++)
        if (pthread_create(&thread, NULL, thread_main, &blocks[i]))
            abort();
    pthread_barrier_wait(&end);
    target_ready();
    return frag_serve(run_phase);
}
