// Eight threads leak small blocks, each in an arena of its own (glibc). The threads and their arenas exist before
// ready and stay alive, waiting in a barrier. Arguments: [COUNT [SIZE]], COUNT blocks per thread and phase.
#include "target.h"
#include <malloc.h>
#include <pthread.h>

#define THREADS 8

DEFINE_TALLY(leak_in_thread);

static size_t count, size;
static pthread_barrier_t begin, end;

TRACED static void leak_in_thread(size_t bytes)
{
    struct block block;

    block_made(&block, malloc(bytes), bytes, &TALLY(leak_in_thread));
    if (!block.address)
        abort();
}

TRACED static void *thread_main(void *unused)
{
    leak_in_thread(size); // before ready: makes the arena
    for (;;) {
        pthread_barrier_wait(&end);
        pthread_barrier_wait(&begin);
        for (size_t i = 0; i < count; i++)
            leak_in_thread(size + i % 4 * 16);
    }
    return unused;
}

TRACED static void run_phase(void)
{
    pthread_barrier_wait(&begin);
    pthread_barrier_wait(&end);
}

int main(int argc, char **argv)
{
    pthread_t thread;

    count = argument(argc, argv, 1, 2000);
    size = argument(argc, argv, 2, 64);
#ifdef __GLIBC__
    mallopt(M_ARENA_MAX, 2 * THREADS); // or two threads of a small machine would share one
#endif
    pthread_barrier_init(&begin, NULL, THREADS + 1);
    pthread_barrier_init(&end, NULL, THREADS + 1);
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&thread, NULL, thread_main, NULL))
            abort();
    pthread_barrier_wait(&end);
    target_ready();
    return target_serve(run_phase);
}
