// Memory mapped directly, one way of mapping per function, some pages touched. No allocator stands between, so the
// truth of `bytes` is the address space still mapped, and `resident_bytes` the pages of it that are there.
// A mapping that grows or shrinks by mremap counts its difference; moving counts nothing.
// `count` is the number of mappings of which any part is left. Argument: [UNIT], a multiple of 4 pages.
#include "target.h"
#include <sys/mman.h>
#include <sys/shm.h>

DEFINE_MAPPING_TALLY(map_and_touch_part, TALLY_ANON);
DEFINE_MAPPING_TALLY(map_and_unmap, TALLY_ANON);
DEFINE_MAPPING_TALLY(map_with_hole, TALLY_ANON);
DEFINE_MAPPING_TALLY(map_below, TALLY_ANON);
DEFINE_MAPPING_TALLY(map_over, TALLY_ANON);
DEFINE_MAPPING_TALLY(map_and_grow_in_place, TALLY_ANON);
DEFINE_MAPPING_TALLY(map_and_move, TALLY_ANON);
DEFINE_MAPPING_TALLY(map_and_shrink, TALLY_ANON);
DEFINE_MAPPING_TALLY(map_and_drop_pages, TALLY_ANON);
DEFINE_MAPPING_TALLY(map_file, TALLY_FILE);
DEFINE_MAPPING_TALLY(map_shared, TALLY_SHMEM);
DEFINE_MAPPING_TALLY(attach_segment, TALLY_SHMEM);

// Pages of this very file for map_file, untouched until then.
static const char file_content[1 << 20] __attribute__((used, aligned(4096))) = {1};
static size_t unit;

static void mapped(struct tally *tally, size_t length)
{
    tally->allocated_bytes += length;
    tally->allocated_count++;
}

static void touch(struct tally *tally, char *start, size_t length)
{
    for (size_t i = 0; i < length; i += PAGE)
        start[i] = 1;
    tally->resident += length;
}

static char *checked(void *address)
{
    if (address == MAP_FAILED)
        abort();
    return (char *)address;
}

// Inlined, so that the function that asks for the mapping is the frame next to libc's.
static inline __attribute__((always_inline)) char *map(void *where, size_t length, int flags)
{
    return checked(mmap(where, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0));
}

TRACED static void map_and_touch_part(void)
{
    char *start = map(NULL, 4 * unit, 0);

    mapped(&TALLY(map_and_touch_part), 4 * unit);
    touch(&TALLY(map_and_touch_part), start + unit, unit);
}

TRACED static void map_and_unmap(void)
{
    char *start = map(NULL, unit, 0);

    mapped(&TALLY(map_and_unmap), unit);
    touch(&TALLY(map_and_unmap), start, unit);
    munmap(start, unit);
    TALLY(map_and_unmap).resident -= unit;
    tally_freed(&TALLY(map_and_unmap), unit);
}

TRACED static void map_with_hole(void)
{
    char *start = map(NULL, 3 * unit, 0);

    mapped(&TALLY(map_with_hole), 3 * unit);
    touch(&TALLY(map_with_hole), start, 3 * unit);
    munmap(start + unit, unit);
    TALLY(map_with_hole).resident -= unit;
    TALLY(map_with_hole).freed_bytes += unit;
}

TRACED static char *map_below(void)
{
    char *start = map(NULL, 4 * unit, 0);

    mapped(&TALLY(map_below), 4 * unit);
    touch(&TALLY(map_below), start, 4 * unit);
    return start;
}

// Replaces the middle of what map_below mapped.
TRACED static void map_over(char *below)
{
    char *start = map(below + unit, 2 * unit, MAP_FIXED);

    TALLY(map_below).freed_bytes += 2 * unit;
    TALLY(map_below).resident -= 2 * unit;
    mapped(&TALLY(map_over), 2 * unit);
    touch(&TALLY(map_over), start, unit / 2);
}

TRACED static void map_and_grow_in_place(void)
{
    char *start = map(NULL, 3 * unit, 0);

    munmap(start + unit, 2 * unit);
    start = checked(mremap(start, unit, 3 * unit, 0));
    mapped(&TALLY(map_and_grow_in_place), 3 * unit);
    TALLY(map_and_grow_in_place).freed_bytes += 2 * unit;
    TALLY(map_and_grow_in_place).allocated_bytes += 2 * unit;
    touch(&TALLY(map_and_grow_in_place), start, 2 * unit);
}

// The place to move to is reserved first, so that the move never fails and never stays in place.
TRACED static void map_and_move(void)
{
    char *start = map(NULL, unit, 0);
    char *target = map(NULL, 2 * unit, 0);

    mapped(&TALLY(map_and_move), unit);
    mapped(&TALLY(map_and_move), 2 * unit);
    touch(&TALLY(map_and_move), start, unit);
    tally_freed(&TALLY(map_and_move), 2 * unit); // the reservation, which the move replaces
    start = checked(mremap(start, unit, 2 * unit, MREMAP_MAYMOVE | MREMAP_FIXED, target));
    TALLY(map_and_move).allocated_bytes += unit;
    touch(&TALLY(map_and_move), start + unit, unit / 2);
}

TRACED static void map_and_shrink(void)
{
    char *start = map(NULL, 2 * unit, 0);

    mapped(&TALLY(map_and_shrink), 2 * unit);
    touch(&TALLY(map_and_shrink), start, 2 * unit);
    checked(mremap(start, 2 * unit, unit, 0));
    TALLY(map_and_shrink).freed_bytes += unit;
    TALLY(map_and_shrink).resident -= unit;
}

TRACED static void map_and_drop_pages(void)
{
    char *start = map(NULL, 2 * unit, 0);

    mapped(&TALLY(map_and_drop_pages), 2 * unit);
    touch(&TALLY(map_and_drop_pages), start, 2 * unit);
    if (madvise(start + unit / 2, unit, MADV_DONTNEED))
        abort();
    TALLY(map_and_drop_pages).resident -= unit;
}

// The kernel maps neighbouring pages of the page cache along with the one that faults; all are touched in the end.
TRACED static void map_file(void)
{
    size_t length = sizeof(file_content);
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    volatile const char *start;

    if (fd < 0)
        abort();
    start = checked(mmap(NULL, length, PROT_READ, MAP_PRIVATE, fd, 0));
    close(fd);
    mapped(&TALLY(map_file), length);
    for (size_t i = 0; i < length; i += PAGE)
        (void)start[i];
    TALLY(map_file).resident += length;
}

TRACED static void map_shared(void)
{
    char *start = checked(mmap(NULL, 2 * unit, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));

    mapped(&TALLY(map_shared), 2 * unit);
    touch(&TALLY(map_shared), start, unit);
}

// Inlined, as map() is. The segment goes with its last attachment.
static inline __attribute__((always_inline)) char *attach(int flags)
{
    int id = shmget(IPC_PRIVATE, 2 * unit, 0600);
    char *start = checked(shmat(id, NULL, flags));

    shmctl(id, IPC_RMID, NULL);
    mapped(&TALLY(attach_segment), 2 * unit);
    return start;
}

// One segment stays, one is detached again, one is detached when a part of it is gone already.
TRACED static void attach_segment(void)
{
    touch(&TALLY(attach_segment), attach(0), unit);
    shmdt(attach(SHM_RDONLY));
    tally_freed(&TALLY(attach_segment), 2 * unit);
    char *start = attach(0);
    munmap(start + unit / 2, unit);
    shmdt(start);
    tally_freed(&TALLY(attach_segment), 2 * unit);
}

TRACED static void run_phase(void)
{
    map_and_touch_part();
    map_and_unmap();
    map_with_hole();
    map_over(map_below());
    map_and_grow_in_place();
    map_and_move();
    map_and_shrink();
    map_and_drop_pages();
    map_file();
    map_shared();
    attach_segment();
}

int main(int argc, char **argv)
{
    unit = argument(argc, argv, 1, 1 << 20);
    if (unit % (4 * PAGE))
        return 2;
    target_ready();
    return target_serve(run_phase);
}
