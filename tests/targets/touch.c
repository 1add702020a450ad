// Does nothing but touch fresh pages, without end, and does not grow: maps a region, writes to each page, unmaps it.
// Commands: `c` gives {"pages": N}, the pages touched so far. Argument: [DEPTH], the frames above the one that touches.
#include "target.h"
#include <pthread.h>
#include <sys/mman.h>

#define REGION_PAGES 4096

static volatile uint64_t pages;

TRACED static void touch(char *region)
{
    for (size_t i = 0; i < REGION_PAGES; i++) {
        region[i * PAGE] = 1;
        pages++;
    }
}

TRACED static void descend(char *region, size_t depth)
{
    if (depth)
        descend(region, depth - 1);
    else
        touch(region);
    __asm__ volatile("" ::: "memory"); // no tail call: each level keeps its frame
}

static void *work(void *depth)
{
    for (;;) {
        char *region = (char *)mmap(NULL, REGION_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (region == MAP_FAILED)
            abort();
        descend(region, (size_t)(uintptr_t)depth);
        munmap(region, REGION_PAGES * PAGE);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    size_t depth = argument(argc, argv, 1, 8);
    int command;

    if (pthread_create(&thread, NULL, work, (void *)(uintptr_t)depth))
        abort();
    target_ready();
    while ((command = target_command()) != 'q') {
        if (command != 'c') {
            target_refuse(command);
            continue;
        }
        put("{\"pages\": %llu, \"pairs\": %llu}", (unsigned long long)pages, (unsigned long long)pages);
        send_line();
    }
    return 0;
}
