// One of every kind of memory. The ready line is followed by nothing until asked; commands:
//   m   the truth: {"ranges": [{"what", "start", "end", "class", "detail"}], "threads": N}; a range may be part of a
//       larger one of the same class; detail "*" means any
//   f   forks a child whose brk heap consists of two VMAs: {"child": PID, "ranges": [...]}; it dies with the target
//   s   a thread begins to run without ever waiting; x stops it
// Nothing is resident that is not named by a range.
#include "target.h"
#include <pthread.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#define PAGES __attribute__((aligned(4096)))
#define MIB ((size_t)1 << 20)

static const char constants[2 * 4096] PAGES __attribute__((used)) = {1};
static char initialized[3 * 4096] PAGES = {1};
static char zeroed[MIB] PAGES;
static void *(*const pointers[4 * 512])(size_t) PAGES __attribute__((section(".data.rel.ro"), used)) = {malloc};
extern char _end[];

static struct { const char *what, *name; char detail[64]; uintptr_t start, end; } ranges[64];
static size_t range_count;
static size_t thread_count = 1;
static volatile int spinning, stop_spinning;

static void expect(const char *what, const char *name, const char *detail, const void *start, size_t length)
{
    if (range_count == sizeof(ranges) / sizeof(ranges[0]))
        abort();
    ranges[range_count].what = what;
    ranges[range_count].name = name;
    snprintf(ranges[range_count].detail, sizeof(ranges[0].detail), "%s", detail);
    ranges[range_count].start = (uintptr_t)start & ~(PAGE - 1);
    ranges[range_count].end = ((uintptr_t)start + length + PAGE - 1) & ~(PAGE - 1);
    range_count++;
}

static void *checked(void *address)
{
    if (address == MAP_FAILED || !address)
        abort();
    return address;
}

static char *map(void *at, size_t length, int protection, int flags)
{
    return checked(mmap(at, length, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0));
}

static char *filled(char *start, size_t length)
{
    memset(start, 0x11, length);
    return start;
}

TRACED static void some_code(void)
{
    __asm__ volatile("");
}

// Threads. Each says where its stack is, and then waits (or, asked to, runs).

struct worker {
    const char *what, *name;
    int runs, ends, allocates;
    pthread_t id;
    pthread_barrier_t known;
};

static void *work(void *argument)
{
    struct worker *worker = argument;
    pthread_attr_t attributes;
    size_t size, guard;
    void *start;
    char detail[64];

    pthread_setname_np(pthread_self(), worker->name);
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &start, &size);
    pthread_attr_getguardsize(&attributes, &guard);
    pthread_attr_destroy(&attributes);
    snprintf(detail, sizeof(detail), "tid %d %s", (int)syscall(SYS_gettid), worker->name);
    expect(worker->what, "thread stack", worker->ends ? "unused" : detail, start, size);
    if (worker->allocates)
        expect("block in an arena", "malloc arena", "*", filled(checked(malloc(100000)), 100000), 100000);
    pthread_barrier_wait(&worker->known);
    if (worker->ends)
        return NULL;
    while (worker->runs && !stop_spinning)
        spinning = 1;
    for (;;)
        pause();
}

static void start_worker(struct worker *worker, void *stack, size_t size)
{
    pthread_attr_t attributes;

    pthread_attr_init(&attributes);
    if (stack ? pthread_attr_setstack(&attributes, stack, size) : pthread_attr_setstacksize(&attributes, (1 + worker->runs) * MIB))
        abort();
    pthread_barrier_init(&worker->known, NULL, 2);
    if (pthread_create(&worker->id, &attributes, work, worker))
        abort();
    pthread_attr_destroy(&attributes);
    pthread_barrier_wait(&worker->known);
    if (worker->ends)
        pthread_join(worker->id, NULL);
    else
        thread_count++;
}

// As glibc 2.42 makes them: the guards are no VMAs, so that the two stacks are one.
static void touching_stacks(void)
{
    static struct worker workers[] = {{.what = "lower of two stacks that touch", .name = "lower"},
                                      {.what = "upper of two stacks that touch", .name = "upper"}};
    size_t guard = 16 * PAGE;
    char *both = map(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_STACK | MAP_NORESERVE);

    for (int i = 0; i < 2; i++) {
        char *start = both + i * MIB;
        if (madvise(start, guard, MADV_GUARD_INSTALL))
            return; // before Linux 6.13
        start_worker(&workers[i], start + guard, MIB - guard);
    }
    expect("guard of the upper stack", "guard", "*", both + MIB, guard);
}

static void threads(void)
{
    static struct worker workers[] = {{.what = "stack of a thread that waits", .name = "waiter", .allocates = 1},
                                      {.what = "stack with a [name]", .name = "[a]\x1b b"},
                                      {.what = "stack of a thread that has ended", .name = "dead", .ends = 1}};
    static struct worker on_own = {.what = "stack that the program mapped", .name = "own-stack"};

    start_worker(&on_own, map(NULL, 512 * 1024, PROT_READ | PROT_WRITE, 0), 512 * 1024);
    touching_stacks();
    // The one that ends comes last: a new thread would take over its stack.
    for (size_t i = 0; i < sizeof(workers) / sizeof(workers[0]); i++)
        start_worker(&workers[i], NULL, 0);
}

static void spin(void)
{
    // A larger stack than that of the thread that has ended, or it would be taken over.
    static struct worker worker = {.what = "stack of a thread that runs", .name = "spinner", .runs = 1};

    stop_spinning = 0;
    start_worker(&worker, NULL, 0);
    while (!spinning)
        sched_yield();
}

// Mappings of the program's own.

static void shared_memory(void)
{
    char path[32], detail[64];
    int fd = memfd_create("zoo [x]", MFD_CLOEXEC), id = shmget(IPC_PRIVATE, 3 * PAGE, IPC_CREAT | 0600);
    char *start;

    if (fd < 0 || ftruncate(fd, 4 * PAGE) || id < 0)
        abort();
    start = checked(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    expect("memfd", "shared memory", "memfd:zoo [x]", filled(start, 4 * PAGE), 4 * PAGE);
    start = checked(shmat(id, NULL, 0));
    shmctl(id, IPC_RMID, NULL);
    snprintf(detail, sizeof(detail), "SysV shmid %d", id);
    expect("SysV segment", "shared memory", detail, filled(start, 3 * PAGE), 3 * PAGE);
    start = checked(mmap(NULL, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    expect("shared anonymous memory", "shared memory", "shared anonymous", filled(start, 5 * PAGE), 5 * PAGE);
    snprintf(path, sizeof(path), "/dev/shm/zoo-%d", (int)getpid());
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, 2 * PAGE))
        abort();
    unlink(path);
    snprintf(detail, sizeof(detail), "%s (deleted)", path);
    start = checked(mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    expect("POSIX shared memory", "shared memory", detail, filled(start, 2 * PAGE), 2 * PAGE);
}

static void files(const char *self)
{
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    off_t size = lseek(fd, 0, SEEK_END);

    // The program's own file, mapped to be read: no part of the program.
    expect("own file, to be read", "file", self, checked(mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0)), size);
    expect("own file, shared", "file", self, checked(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0)), PAGE);
}

// The kernel maps from high addresses to low ones where no hole is in its way: other memory, a chunk, other memory are
// neighbours then, and one VMA. Holes fill up.
static void chunk_amid_other_memory(void)
{
    size_t size = 300000, below = 30 * PAGE, above = 20 * PAGE, pages = (size + 16 + PAGE - 1) & ~(PAGE - 1);
    char *large = checked(malloc(5 * MIB));

    expect("large chunk", "malloc mmapped", "", filled(large, 5 * MIB) - 16, 5 * MIB + 16);
    for (int tries = 0; tries < 100; tries++) {
        char *upper = map(NULL, above, PROT_READ | PROT_WRITE, 0);
        char *chunk = (char *)checked(malloc(size)) - 16;
        char *lower = map(NULL, below, PROT_READ | PROT_WRITE, 0);
        if (lower + below != chunk || chunk + pages != upper)
            continue;
        filled(chunk + 16, size);
        expect("chunk amid other memory", "malloc mmapped", "", chunk, pages);
        expect("memory below a chunk", "anonymous", "", filled(lower, below), below);
        expect("memory above a chunk", "anonymous", "", filled(upper, above), above);
        return;
    }
    abort();
}

static void mappings(void)
{
    char *behind_bss = (char *)(((uintptr_t)_end + PAGE - 1) & ~(PAGE - 1));

    expect("code made at run time", "jit", "",
           filled(map(NULL, 4 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, 0), 4 * PAGE), 4 * PAGE);
    expect("guard", "guard", "", map(NULL, 4 * PAGE, PROT_NONE, 0), 4 * PAGE);
    expect("memory between guard and reserve", "anonymous", "*",
           filled(map(NULL, PAGE, PROT_READ | PROT_WRITE, 0), PAGE), PAGE);
    expect("reserve", "reserve", "", map(NULL, 256 * MIB, PROT_NONE, MAP_NORESERVE), 256 * MIB);
    behind_bss = mmap(behind_bss, 16 * PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (behind_bss != MAP_FAILED) // where the brk heap is not there already
        expect("memory behind the bss", "anonymous", "", filled(behind_bss, 16 * PAGE), 16 * PAGE);
}

static void parts_of_images(const char *self)
{
    expect("own code", "text", self, (void *)some_code, 1);
    expect("constants", "rodata", self, constants, sizeof(constants));
    expect("relocated constants", "relro", self, pointers, sizeof(pointers));
    expect("variables", "data", self, filled(initialized, sizeof(initialized)), sizeof(initialized));
    expect("zeroed variables", "bss", self, filled(zeroed, sizeof(zeroed)), sizeof(zeroed));
    expect("code of libc", "text", "libc.so.6", (void *)printf, 1);
    expect("data of libc", "data", "libc.so.6", stdin, 1);
    expect("vdso", "kernel", "vdso", (void *)getauxval(AT_SYSINFO_EHDR), 1);
}

static void put_ranges(void)
{
    put("\"ranges\": [");
    for (size_t i = 0; i < range_count; i++) {
        put("%s{\"what\": \"%s\", \"start\": %zu, \"end\": %zu, \"class\": \"%s\", \"detail\": \"", i ? ", " : "",
            ranges[i].what, ranges[i].start, ranges[i].end, ranges[i].name);
        for (const char *c = ranges[i].detail; *c; c++) {
            if (*c >= ' ')
                put("%c", *c);
            else // what is not ASCII as the byte of that number
                put("\\u%04x", (unsigned char)*c);
        }
        put("\"}");
    }
    put("]");
}

static void fork_and_grow(void)
{
    size_t before = range_count;
    char *start;
    pid_t child;

    filled(checked(sbrk(8 * PAGE)), 8 * PAGE);
    child = fork();
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        filled(checked(sbrk(2 * MIB)), 2 * MIB);
        kill(getppid(), SIGUSR1);
        for (;;)
            pause();
    }
    if (child < 0)
        abort();
    int signal;
    sigset_t grown;
    sigemptyset(&grown);
    sigaddset(&grown, SIGUSR1);
    sigwait(&grown, &signal);
    start = sbrk(0);
    put("{\"child\": %d, ", (int)child);
    range_count = 0;
    expect("old part of the heap", "heap", "", start - 8 * PAGE, 8 * PAGE);
    expect("new part of the heap", "heap", "", start, 2 * MIB);
    put_ranges();
    put("}");
    send_line();
    range_count = before;
}

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/'), *self = slash ? slash + 1 : argv[0];
    char detail[64], local = 0;
    sigset_t grown;
    int command;

    (void)argc;
    sigemptyset(&grown);
    sigaddset(&grown, SIGUSR1);
    sigprocmask(SIG_BLOCK, &grown, NULL);
    parts_of_images(self);
    expect("block of the heap", "heap", "", filled(checked(malloc(1000)), 1000), 1000);
    snprintf(detail, sizeof(detail), "tid %d %.15s", (int)getpid(), self);
    expect("local variable", "stack", detail, &local, 1);
    threads();
    shared_memory();
    files(self);
    chunk_amid_other_memory();
    mappings();
    target_ready();
    while ((command = target_command()) != 'q') {
        if (command == 'm') {
            put("{\"threads\": %zu, ", thread_count);
            put_ranges();
            put("}");
            send_line();
        } else if (command == 'f') {
            fork_and_grow();
        } else if (command == 's' || command == 'x') {
            if (command == 's')
                spin();
            else
                stop_spinning = 1;
            put("{\"threads\": %zu}", thread_count);
            send_line();
        } else {
            target_refuse(command);
        }
    }
    return 0;
}
