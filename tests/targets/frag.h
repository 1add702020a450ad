// What the targets that fragment glibc's heap share: what malloc itself says of its heap, and what malloc_trim returns.
//
// Commands: `g` runs a phase and prints the truth, `i` prints it again, `t` trims and prints what that did. The truth
// has mallinfo2's figures, and of some blocks whether they are in use; nothing is allocated while it is printed.
#ifndef MEMTRACE_FRAG_H
#define MEMTRACE_FRAG_H

#include "target.h"
#include <malloc.h>
#include <sys/mman.h>

// glibc has it from 2.33 on; before, the fields of mallinfo are ints, large enough for what is done here.
extern struct mallinfo2 mallinfo2(void) __attribute__((weak));

#define SHOWN 64

static void *shown_live[SHOWN], *shown_freed[SHOWN];
static size_t live_seen, freed_seen;

static UNUSED void show_live(void *address)
{
    shown_live[live_seen++ % SHOWN] = address;
}

// Only of blocks after which nothing is allocated before the truth is printed.
static UNUSED void show_freed(void *address)
{
    shown_freed[freed_seen++ % SHOWN] = address;
}

// Not a pair of calls that the compiler may leave out.
static UNUSED void warm_up(size_t size)
{
    void *volatile address = malloc(size);

    free(address);
}

// Room for blocks that malloc does not know of, written so that it is resident.
static UNUSED struct block *block_room(size_t count)
{
    size_t size = count * sizeof(struct block);
    void *room = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (room == MAP_FAILED)
        abort();
    memset(room, 0, size);
    return (struct block *)room;
}

static UNUSED void put_mallinfo(const char *name)
{
#define PUT_ALL(info)                                                                                            \
    put("\"%s\": {\"arena\": %zu, \"ordblks\": %zu, \"smblks\": %zu, \"hblks\": %zu, \"hblkhd\": %zu, "          \
        "\"uordblks\": %zu, \"fordblks\": %zu, \"fsmblks\": %zu, \"keepcost\": %zu}",                            \
        name, (size_t)(info).arena, (size_t)(info).ordblks, (size_t)(info).smblks, (size_t)(info).hblks,         \
        (size_t)(info).hblkhd, (size_t)(info).uordblks, (size_t)(info).fordblks, (size_t)(info).fsmblks,         \
        (size_t)(info).keepcost)
    if (mallinfo2) {
        struct mallinfo2 info = mallinfo2();

        PUT_ALL(info);
    } else {
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
        struct mallinfo info = mallinfo();

        PUT_ALL(info);
    }
}

static void put_addresses(const char *name, void **addresses, size_t count)
{
    put("\"%s\": [", name);
    for (size_t i = 0; i < count && i < SHOWN; i++)
        put("%s%zu", i ? ", " : "", (size_t)addresses[i]);
    put("]");
}

static void send_heap_truth(void)
{
    put_truth();
    put(", ");
    put_mallinfo("mallinfo");
    put(", ");
    put_addresses("live", shown_live, live_seen);
    put(", ");
    put_addresses("freed", shown_freed, freed_seen);
    put("}");
    send_line();
}

// Bytes: what left the resident anonymous memory, by the kernel's own count.
static void send_trimmed(void)
{
    put("{\"before\": {");
    put_rss();
    put("}, ");
    put_mallinfo("mallinfo_before");
    put(", \"returned\": %d, \"after\": {", malloc_trim(0));
    put_rss();
    put("}, ");
    put_mallinfo("mallinfo");
    put("}");
    send_line();
}

static UNUSED int frag_serve(void (*phase)(void))
{
    int command;

    while ((command = target_command()) != 'q') {
        if (command == 't') {
            send_trimmed();
        } else if (command == 'g' || command == 'i') {
            if (command == 'g') {
                target_phase++;
                freed_seen = 0;
                phase();
            }
            send_heap_truth();
        } else {
            target_refuse(command);
        }
    }
    return 0;
}

#endif
