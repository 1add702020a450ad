// Threads that do nothing but malloc and free, DEPTH calls deep, and one call in EVERY that leaks: the leak keeps pace
// with the loop, so that a tracer which slows the loop down sees little of it. Command `c` answers
// {"pairs": N, "leaked": B}, bytes counted since ready. Arguments: [THREADS [EVERY [SIZE [DEPTH]]]]; EVERY 0 leaks
// nothing. Never quiet.
#include "target.h"
#include <pthread.h>

#define MAX_THREADS 64
#define SLOTS 256

struct worker {
    size_t pairs, leaked;
    char apart[112]; // each in cache lines of its own
} __attribute__((aligned(128)));

static struct worker workers[MAX_THREADS];
static size_t threads, every, size, depth;

TRACED static void *hot_malloc(size_t bytes)
{
    return malloc(bytes);
}

TRACED static void *hot_call(size_t bytes, size_t deeper)
{
    void *address = deeper ? hot_call(bytes, deeper - 1) : hot_malloc(bytes);

    __asm__ volatile("" : "+r"(address)); // no tail call
    return address;
}

TRACED static void planted_leak(struct worker *worker)
{
    char *address = (char *)malloc(size);

    if (!address)
        abort();
    memset(address, 0x5a, size);
    __atomic_fetch_add(&worker->leaked, size, __ATOMIC_RELAXED);
}

TRACED static void *hot_loop(void *argument)
{
    struct worker *worker = (struct worker *)argument;
    void *slots[SLOTS] = {0};

    for (size_t i = 1;; i++) {
        free(slots[i % SLOTS]);
        slots[i % SLOTS] = hot_call(64 + i * 37 % 512, depth);
        if (i % 16 == 0)
            __atomic_fetch_add(&worker->pairs, 16, __ATOMIC_RELAXED);
        if (every && i % every == 0)
            planted_leak(worker);
    }
    return NULL;
}

static void send_count(void)
{
    size_t pairs = 0, leaked = 0;

    for (size_t i = 0; i < threads; i++) {
        pairs += __atomic_load_n(&workers[i].pairs, __ATOMIC_RELAXED);
        leaked += __atomic_load_n(&workers[i].leaked, __ATOMIC_RELAXED);
    }
    put("{\"pairs\": %zu, \"leaked\": %zu}", pairs, leaked);
    send_line();
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int command;

    threads = argument(argc, argv, 1, 1);
    every = argument(argc, argv, 2, 50000);
    size = argument(argc, argv, 3, 1000);
    depth = argument(argc, argv, 4, 8);
    if (threads > MAX_THREADS || size == 0)
        return 2;
    for (size_t i = 0; i < threads; i++)
        if (pthread_create(&thread, NULL, hot_loop, &workers[i]))
            abort();
    target_ready();
    while ((command = target_command()) != 'q') {
        if (command == 'c')
            send_count();
        else
            target_refuse(command);
    }
    return 0;
}
