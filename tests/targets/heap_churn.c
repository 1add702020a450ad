// Threads that allocate and free blocks of all sizes without pause, beside blocks that stay: what a walk over a live
// heap meets. Command `c` answers {"operations": N, "live": [ADDRESS...]}: blocks in use since before ready. Never
// quiet. Arguments: [THREADS [SLOTS]], blocks per thread that come and go.
#include "frag.h"
#include <pthread.h>

#define MAX_THREADS 16
#define STAYING 4000

struct worker {
    unsigned long random;
    void **slots;
    size_t operations;
    char apart[128]; // each counter in a cache line of its own
};

static size_t threads, slots;
static struct worker workers[MAX_THREADS];

static size_t random_below(struct worker *worker, size_t limit)
{
    worker->random = worker->random * 6364136223846793005UL + 1442695040888963407UL;
    return (worker->random >> 33) % limit;
}

static void *filled(size_t size)
{
    void *address = malloc(size);

    if (!address)
        abort();
    return memset(address, 0xa5, size);
}

static size_t random_size(struct worker *worker)
{
    return random_below(worker, 100) < 97 ? 1 + random_below(worker, 800) : 800 + random_below(worker, 30000);
}

TRACED static void *thread_main(void *argument)
{
    struct worker *worker = argument;

    for (;;) {
        size_t i = random_below(worker, slots);

        free(worker->slots[i]);
        worker->slots[i] = filled(random_size(worker));
        __atomic_fetch_add(&worker->operations, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void make_staying_blocks(void)
{
    for (size_t i = 0; i < STAYING; i++) {
        void *staying = filled(random_size(&workers[0]));

        free(filled(random_size(&workers[0])));
        if (i % (STAYING / SHOWN) == 0)
            show_live(staying);
    }
}

static void send_count(void)
{
    size_t operations = 0;

    for (size_t i = 0; i < threads; i++)
        operations += __atomic_load_n(&workers[i].operations, __ATOMIC_RELAXED);
    put("{\"operations\": %zu, ", operations);
    put_addresses("live", shown_live, live_seen);
    put("}");
    send_line();
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int command;

    threads = argument(argc, argv, 1, 2);
    slots = argument(argc, argv, 2, 20000);
    if (!threads || threads > MAX_THREADS || !slots)
        return 2;
    make_staying_blocks();
    for (size_t i = 0; i < threads; i++) {
        workers[i].random = 99 + i;
        workers[i].slots = mmap(NULL, slots * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (workers[i].slots == MAP_FAILED || pthread_create(&thread, NULL, thread_main, &workers[i]))
            abort();
    }
    target_ready();
    while ((command = target_command()) != 'q') {
        if (command == 'c')
            send_count();
        else
            target_refuse(command);
    }
    return 0;
}
