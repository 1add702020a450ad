// Threads that do nothing but malloc and free, checking that no block changes in between: what a probe must survive.
// Command `c` answers {"pairs": N, "corrupt": 0}, N counted since ready. Arguments: [THREADS [SIZE]]. Never quiet.
#include "target.h"
#include <pthread.h>

#define MAX_THREADS 64
#define SLOTS 64

struct worker {
    size_t pairs, corrupt;
    char apart[112]; // each counter in cache lines of its own
} __attribute__((aligned(128)));

static struct worker workers[MAX_THREADS];
static size_t threads, size;

TRACED static void *hot_malloc(size_t bytes)
{
    return malloc(bytes);
}

TRACED static void hot_free(void *address)
{
    free(address);
}

TRACED static void hot_pair(struct worker *worker, unsigned char **slot, size_t i)
{
    unsigned char mark = (unsigned char)(i % SLOTS + 1);
    size_t bytes = size + i % 32 * 8;

    if (*slot && ((*slot)[0] != mark || (*slot)[size - 1] != mark))
        __atomic_fetch_add(&worker->corrupt, 1, __ATOMIC_RELAXED);
    hot_free(*slot);
    *slot = (unsigned char *)hot_malloc(bytes);
    if (!*slot)
        abort();
    (*slot)[0] = (*slot)[size - 1] = mark;
    __atomic_fetch_add(&worker->pairs, 1, __ATOMIC_RELAXED);
}

TRACED static void *hot_loop(void *argument)
{
    struct worker *worker = (struct worker *)argument;
    unsigned char *slots[SLOTS] = {0};

    for (size_t i = 0;; i++)
        hot_pair(worker, &slots[i % SLOTS], i);
    return NULL;
}

static void send_count(void)
{
    size_t pairs = 0, corrupt = 0;

    for (size_t i = 0; i < threads; i++) {
        pairs += __atomic_load_n(&workers[i].pairs, __ATOMIC_RELAXED);
        corrupt += __atomic_load_n(&workers[i].corrupt, __ATOMIC_RELAXED);
    }
    put("{\"pairs\": %zu, \"corrupt\": %zu}", pairs, corrupt);
    send_line();
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int command;

    threads = argument(argc, argv, 1, 2);
    size = argument(argc, argv, 2, 64);
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
