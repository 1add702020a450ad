// How long the program is ever held up: one thread beats without end, and the longest time between two beats is kept.
// Each beat touches a page, maps and unmaps, allocates and frees. Commands: `b` begins a measurement (answer:
// {"begun": N}), `e` ends it. Argument: [sleep|busy], 50 us of sleep per beat, or none. Never quiet.
#include "target.h"
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

#define PAGES 64

static int is_busy;
static char pages[PAGES * 4096];
static uint64_t longest_gap, beats, gaps_over_1ms, gaps_over_10ms;

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

TRACED static void beat(size_t i)
{
    char *block = (char *)malloc(100 + i % 900);
    char *map = (char *)mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (!block || map == MAP_FAILED)
        abort();
    block[0] = 1;
    map[0] = 1;
    pages[i % PAGES * PAGE]++;
    munmap(map, 4 * PAGE);
    free(block);
}

static void note_gap(uint64_t gap)
{
    __atomic_fetch_add(&beats, 1, __ATOMIC_RELAXED);
    if (gap > 1000000)
        __atomic_fetch_add(&gaps_over_1ms, 1, __ATOMIC_RELAXED);
    if (gap > 10000000)
        __atomic_fetch_add(&gaps_over_10ms, 1, __ATOMIC_RELAXED);
    if (gap > __atomic_load_n(&longest_gap, __ATOMIC_RELAXED))
        __atomic_store_n(&longest_gap, gap, __ATOMIC_RELAXED);
}

TRACED static void *heart(void *unused)
{
    const struct timespec pause = {0, 50000};
    uint64_t last = now();

    for (size_t i = 0;; i++) {
        uint64_t time;

        if (!is_busy)
            clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
        beat(i);
        time = now();
        note_gap(time - last);
        last = time;
    }
    return unused;
}

static void begin(void)
{
    target_phase++;
    __atomic_store_n(&beats, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&gaps_over_1ms, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&gaps_over_10ms, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&longest_gap, 0, __ATOMIC_RELAXED);
    put("{\"begun\": %u}", target_phase);
    send_line();
}

static void end(void)
{
    put("{\"phase\": %u, \"longest_gap_ns\": %zu, \"beats\": %zu, \"gaps_over_1ms\": %zu, \"gaps_over_10ms\": %zu}",
        target_phase, (size_t)longest_gap, (size_t)beats, (size_t)gaps_over_1ms, (size_t)gaps_over_10ms);
    send_line();
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int command;

    is_busy = argc > 1 && strcmp(argv[1], "busy") == 0;
    if (pthread_create(&thread, NULL, heart, NULL))
        abort();
    target_ready();
    while ((command = target_command()) != 'q') {
        if (command == 'b')
            begin();
        else if (command == 'e')
            end();
        else
            target_refuse(command);
    }
    return 0;
}
