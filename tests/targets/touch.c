// A thread that does nothing but touch fresh pages and drop them again. Command `c` answers {"pairs": N}, pages touched
// since ready. Arguments: [PAGES], touched before they are dropped. Never quiet.
#include "target.h"
#include <pthread.h>
#include <sys/mman.h>

static size_t pages, touched;

TRACED static void *touch_loop(void *argument)
{
    char *memory = (char *)mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        abort();
    for (;;) {
        for (size_t i = 0; i < pages; i++)
            memory[i * PAGE] = 1;
        __atomic_fetch_add(&touched, pages, __ATOMIC_RELAXED);
        if (madvise(memory, pages * PAGE, MADV_DONTNEED))
            abort();
    }
    return argument;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int command;

    pages = argument(argc, argv, 1, 256);
    if (pthread_create(&thread, NULL, touch_loop, NULL))
        abort();
    target_ready();
    while ((command = target_command()) != 'q') {
        if (command == 'c') {
            put("{\"pairs\": %zu}", __atomic_load_n(&touched, __ATOMIC_RELAXED));
            send_line();
        } else {
            target_refuse(command);
        }
    }
    return 0;
}
