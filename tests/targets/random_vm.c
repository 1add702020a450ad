// Changes its address space at random, from a seed, by every system call that can: for a model to be compared with
// /proc/PID/maps. Commands: `n` begins the next seed with everything put back; `g` does a batch of operations:
// {"seed", "operations", "failed"}. Arguments: [SEED] [OPERATIONS of a batch]. Nothing here calls malloc.
#include "target.h"
#include <linux/aio_abi.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#define REGION_PAGES 1024
#define FREE_SLOTS 24
#define SEGMENTS 6
#define BRK_PAGES 64

static char *const region = (char *)0x200000000000UL;
static struct slot { char *start; size_t length; } slots[FREE_SLOTS];
static struct { int id; size_t size; char *at; } segments[SEGMENTS];
static int file, pipe_ends[2];
static char *first_brk;
static uint64_t state;
static size_t failed;

static unsigned random_below(unsigned limit)
{
    state = state * 6364136223846793005UL + 1442695040888963407UL;
    return (unsigned)(state >> 33) % limit;
}

static int one_in(unsigned times)
{
    return random_below(times) == 0;
}

static void done(int ok)
{
    failed += !ok;
}

static int protection(void)
{
    static const int all[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
                              PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC};

    return all[random_below(sizeof(all) / sizeof(all[0]))];
}

// A part of the region, which may be mapped, in part, or not at all. Most are small.
static struct slot anywhere(void)
{
    size_t first = random_below(REGION_PAGES), pages = 1 + random_below(one_in(4) ? 200 : 16);

    if (first + pages > REGION_PAGES)
        pages = REGION_PAGES - first;
    return (struct slot){region + first * PAGE, pages * PAGE};
}

static struct slot *free_slot(void)
{
    return &slots[random_below(FREE_SLOTS)];
}

static void unmap_slot(struct slot *slot)
{
    if (slot->start)
        munmap(slot->start, slot->length);
    slot->start = NULL;
}

static void keep_slot(void *start, size_t length)
{
    struct slot *slot = free_slot();

    done(start != MAP_FAILED);
    if (start == MAP_FAILED)
        return;
    unmap_slot(slot);
    slot->start = start;
    slot->length = length;
}

static void map_fixed(void)
{
    struct slot at = anywhere();
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (one_in(5) ? MAP_FIXED_NOREPLACE : MAP_FIXED) | (one_in(4) ? MAP_POPULATE : 0);

    done(mmap(at.start, at.length - random_below(PAGE), protection(), flags, -1, 0) != MAP_FAILED);
}

static void map_file(void)
{
    struct slot at = anywhere();
    off_t offset = random_below(REGION_PAGES) * PAGE;
    int flags = one_in(2) ? MAP_SHARED : one_in(4) ? MAP_SHARED_VALIDATE : MAP_PRIVATE;

    done(mmap(at.start, at.length, protection(), flags | MAP_FIXED, file, offset) != MAP_FAILED);
}

static void map_anywhere(void)
{
    size_t length = (1 + random_below(32)) * PAGE;
    int shared = one_in(4), of_file = one_in(4);
    int flags = (shared ? MAP_SHARED : MAP_PRIVATE) | (of_file ? 0 : MAP_ANONYMOUS) | (one_in(8) ? MAP_NORESERVE : 0);

    keep_slot(mmap(NULL, length, protection(), flags, of_file ? file : -1, 0), length);
}

static void unmap_some(void)
{
    struct slot *slot = free_slot(), at = anywhere();

    if (one_in(3) && slot->start) {
        size_t part = (1 + random_below(slot->length / PAGE)) * PAGE;
        done(!munmap(slot->start + (one_in(2) ? 0 : slot->length - part), part));
    } else if (one_in(10)) {
        done(!munmap(at.start + 8, at.length)); // an address that is no page's
    } else {
        done(!munmap(at.start, at.length - random_below(PAGE)));
    }
}

static void protect(void)
{
    struct slot *slot = free_slot(), at = anywhere();

    // With a hole in its way, mprotect fails when it has done a part: mostly take what was mapped as a whole.
    if (!one_in(12)) {
        if (!slot->start)
            return;
        size_t first = random_below(slot->length / PAGE);
        at = (struct slot){slot->start + first * PAGE, (1 + random_below(slot->length / PAGE - first)) * PAGE};
    }
    done(!(one_in(3) ? syscall(SYS_pkey_mprotect, at.start, at.length, protection(), -1)
                     : mprotect(at.start, at.length, protection())));
}

static void resize(void)
{
    struct slot at = anywhere();

    done(mremap(at.start, at.length, (1 + random_below(32)) * PAGE, 0) != MAP_FAILED);
}

static void move_freely(void)
{
    struct slot *slot = free_slot();
    size_t length = (1 + random_below(64)) * PAGE;

    if (slot->start) {
        void *at = mremap(slot->start, slot->length, length, MREMAP_MAYMOVE);
        done(at != MAP_FAILED);
        if (at != MAP_FAILED)
            *slot = (struct slot){at, length};
    }
}

static void move_fixed(void)
{
    struct slot *slot = free_slot(), from = one_in(12) ? anywhere() : *slot, to = anywhere();
    size_t length = one_in(2) ? from.length : (1 + random_below(32)) * PAGE;

    if (!from.start || to.start + length > region + REGION_PAGES * PAGE)
        return;
    // Where it fails, what was at the new place may be gone.
    done(mremap(from.start, from.length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to.start) != MAP_FAILED);
}

static void move_and_keep(void)
{
    struct slot *slot = free_slot();

    if (slot->start)
        keep_slot(mremap(slot->start, slot->length, slot->length, MREMAP_MAYMOVE | MREMAP_DONTUNMAP), slot->length);
}

// An old size of 0 maps the pages of a shared mapping once more.
static void map_again(void)
{
    struct slot at = anywhere();
    size_t length = (1 + random_below(8)) * PAGE;

    keep_slot(mremap(at.start, 0, length, MREMAP_MAYMOVE), length);
}

static void advise(void)
{
    static const int all[] = {MADV_DONTNEED, MADV_FREE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, MADV_NOHUGEPAGE,
                              MADV_DONTFORK, MADV_DOFORK, MADV_SEQUENTIAL, MADV_NORMAL};
    struct slot at = anywhere();

    done(!madvise(at.start, at.length, all[random_below(sizeof(all) / sizeof(all[0]))]));
}

// By read(2), which fails where nothing is mapped or may be written.
static void touch(void)
{
    struct slot at = anywhere();
    static const char bytes[16];
    size_t left = write(pipe_ends[1], bytes, sizeof(bytes));

    for (char *page = at.start; left && page < at.start + at.length; page += PAGE)
        left -= read(pipe_ends[0], page, 1) == 1;
    while (left) {
        char sink;
        left -= read(pipe_ends[0], &sink, 1) == 1;
    }
}

static void move_brk(void)
{
    char *wanted = first_brk + random_below(BRK_PAGES * PAGE);

    done((char *)syscall(SYS_brk, wanted) == wanted);
}

static void attach(void)
{
    unsigned index = random_below(SEGMENTS);
    struct slot at = anywhere();
    int flags = (one_in(3) ? SHM_RDONLY : 0) | (one_in(4) ? SHM_EXEC : 0);
    void *start;

    if (segments[index].at)
        return;
    if (one_in(2) && at.start + segments[index].size <= region + REGION_PAGES * PAGE)
        start = shmat(segments[index].id, at.start + random_below(PAGE), flags | SHM_RND | SHM_REMAP);
    else
        start = shmat(segments[index].id, NULL, flags);
    done(start != (void *)-1);
    segments[index].at = start == (void *)-1 ? NULL : start;
}

static void detach(void)
{
    unsigned index = random_below(SEGMENTS);

    if (one_in(8)) {
        done(!shmdt(anywhere().start));
    } else if (segments[index].at) {
        done(!shmdt(segments[index].at)); // fails where all of it has been unmapped
        segments[index].at = NULL;
    }
}

// What no argument tells the effect of.
static void rare(void)
{
    struct slot at = anywhere();
    aio_context_t context = 0;

    switch (random_below(20)) {
    case 0:
        done(!syscall(SYS_remap_file_pages, at.start, at.length, 0, random_below(REGION_PAGES), 0));
        break;
    case 1:
        done(!syscall(SYS_io_setup, 8, &context) && !syscall(SYS_io_destroy, context));
        break;
    case 2:
        done(mmap(at.start, at.length, PROT_READ, MAP_PRIVATE | MAP_FIXED, 99, 0) != MAP_FAILED); // no such file
        break;
    }
}

static void put_back(void)
{
    munmap(region, REGION_PAGES * PAGE);
    for (size_t i = 0; i < FREE_SLOTS; i++)
        unmap_slot(&slots[i]);
    for (size_t i = 0; i < SEGMENTS; i++) {
        if (segments[i].at)
            shmdt(segments[i].at);
        segments[i].at = NULL;
    }
    syscall(SYS_brk, first_brk);
}

static void do_operation(void)
{
    static void (*const all[])(void) = {map_fixed,   map_fixed,     map_file,  map_anywhere, unmap_some, unmap_some,
                                        protect,     resize,        move_freely, move_fixed, move_and_keep, map_again,
                                        advise,      touch,         move_brk,  attach,       detach,     rare};

    all[random_below(sizeof(all) / sizeof(all[0]))]();
}

int main(int argc, char **argv)
{
    size_t seed = argument(argc, argv, 1, 0), operations = argument(argc, argv, 2, 10);
    int command;

    file = memfd_create("random_vm", MFD_CLOEXEC);
    first_brk = (char *)syscall(SYS_brk, 0);
    if (file < 0 || ftruncate(file, 2 * REGION_PAGES * PAGE) || pipe(pipe_ends))
        abort();
    for (size_t i = 0; i < SEGMENTS; i++) {
        segments[i].size = (i * 7 + 1) * PAGE - i * 100;
        segments[i].id = shmget(IPC_PRIVATE, segments[i].size, IPC_CREAT | 0600);
        if (segments[i].id < 0)
            abort();
    }
    // One that is attached before anybody looks. They go with the process: each is attached once more, to no effect.
    segments[0].at = shmat(segments[0].id, NULL, 0);
    for (size_t i = 0; i < SEGMENTS; i++) {
        if (shmat(segments[i].id, NULL, SHM_RDONLY) == (void *)-1 || shmctl(segments[i].id, IPC_RMID, NULL))
            abort();
    }
    target_ready();
    while ((command = target_command()) != 'q') {
        if (command == 'n')
            put_back();
        else if (command != 'g')
            abort();
        if (command == 'n') {
            state = ++seed * 2654435761u;
            for (int i = 0; i < FREE_SLOTS; i++)
                map_anywhere();
        }
        failed = 0;
        for (size_t i = 0; command == 'g' && i < operations; i++)
            do_operation();
        put("{\"seed\": %zu, \"operations\": %zu, \"failed\": %zu}", seed, operations, failed);
        send_line();
    }
    return 0;
}
