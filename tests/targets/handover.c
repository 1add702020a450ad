// Four threads that hand addresses on to each other: what one unmaps, another maps a moment later at the same place,
// by the kernel's choice or because it was told the address. Each `g` is a round: {"round", "operations"}.
// Arguments: [OPERATIONS of a thread and round].
#include "target.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/shm.h>

#define THREADS 4
#define SLOTS 8
#define SIZE (16 * PAGE)

static _Atomic(char *) slots[SLOTS];
static size_t operations, rounds;
static pthread_barrier_t start_line, finish_line;
static int segment;

static char *checked(void *address)
{
    if (address == MAP_FAILED)
        abort();
    return (char *)address;
}

static char *map(char *at, size_t length)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED_NOREPLACE : 0);

    return mmap(at, length, PROT_READ | PROT_WRITE, flags, -1, 0);
}

// The kernel gives out the address that was given back last.
static void map_and_unmap(void)
{
    munmap(checked(map(NULL, SIZE)), SIZE);
}

static void grow_and_move(void)
{
    char *start = checked(map(NULL, SIZE / 2));

    start = checked(mremap(start, SIZE / 2, SIZE, MREMAP_MAYMOVE));
    start = checked(mremap(start, SIZE, SIZE / 4, 0));
    munmap(start, SIZE / 4);
}

static void attach_and_detach(void)
{
    shmdt(checked(shmat(segment, NULL, 0)));
}

// Takes what another thread has put into a slot, moves or remakes it, and puts it into another slot.
static void pass_on(unsigned number)
{
    char *mine = __atomic_exchange_n((char **)&slots[number % SLOTS], NULL, __ATOMIC_ACQ_REL);

    if (!mine)
        mine = checked(map(NULL, SIZE));
    else if (number & 64)
        mine = checked(mremap(mine, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, checked(map(NULL, SIZE))));
    else {
        munmap(mine, SIZE);
        char *again = map(mine, SIZE); // unless another thread was given that address meanwhile
        mine = again == MAP_FAILED ? checked(map(NULL, SIZE)) : again;
    }
    if (number & 32)
        mprotect(mine, PAGE, PROT_READ);
    mine = __atomic_exchange_n((char **)&slots[(number >> 3) % SLOTS], mine, __ATOMIC_ACQ_REL);
    if (mine)
        munmap(mine, SIZE);
}

static void *work(void *argument)
{
    unsigned state = (unsigned)(uintptr_t)argument;

    for (;;) {
        pthread_barrier_wait(&start_line);
        for (size_t i = 0; i < operations; i++) {
            state = state * 1664525u + 1013904223u;
            unsigned number = state >> 16;
            if (number % 8 < 3)
                map_and_unmap();
            else if (number % 8 < 5)
                grow_and_move();
            else if (number % 8 < 6)
                attach_and_detach();
            else
                pass_on(number >> 3);
        }
        pthread_barrier_wait(&finish_line);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int command;

    operations = argument(argc, argv, 1, 1000);
    segment = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600);
    if (segment < 0 || shmat(segment, NULL, 0) == (void *)-1 || shmctl(segment, IPC_RMID, NULL))
        abort();
    pthread_barrier_init(&start_line, NULL, THREADS + 1);
    pthread_barrier_init(&finish_line, NULL, THREADS + 1);
    for (uintptr_t i = 1; i <= THREADS; i++) {
        if (pthread_create(&thread, NULL, work, (void *)(i * 7919)))
            abort();
    }
    target_ready();
    while ((command = target_command()) != 'q') {
        if (command != 'g') {
            target_refuse(command);
            continue;
        }
        pthread_barrier_wait(&start_line);
        pthread_barrier_wait(&finish_line);
        put("{\"round\": %zu, \"operations\": %zu}", ++rounds, THREADS * operations);
        send_line();
    }
    return 0;
}
