// What every target program needs: a tally per allocating function, and the protocol it speaks.
//
// Protocol: the program warms up, prints {"ready": true, ...}, then blocks in read(0) and is quiet. It answers each
// command byte on stdin with one line of JSON: `g` runs a phase and prints the truth, `q` or end of file ends it.
// The truth is cumulative since ready and counts what the program asked for, not what the allocator made of it.
// Nothing here calls malloc, so that a tracer sees only what the tallies hold.
#ifndef MEMTRACE_TARGET_H
#define MEMTRACE_TARGET_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

// A function that tests look for in stacks: it keeps its own frame and its plain name.
#define TRACED __attribute__((noipa))
#define UNUSED __attribute__((unused))

// Larger than any allocator grants, and not a constant that the compiler could warn about or fold away.
static volatile size_t impossible_size UNUSED = SIZE_MAX / 2;

#define PAGE ((size_t)4096)

enum tally_kind { TALLY_HEAP, TALLY_ANON, TALLY_FILE, TALLY_SHMEM };

// The allocations of one function. `resident` is kept only where the program knows it: for mappings of its own.
struct tally {
    const char *function;
    enum tally_kind kind;
    int knows_resident;
    size_t allocated_bytes, allocated_count, freed_bytes, freed_count;
    size_t resident;
};

#define TALLY(name) tally_of_##name
#define DEFINE_TALLY_(name, kind, knows_resident)                                           \
    static struct tally TALLY(name) = {#name, kind, knows_resident, 0, 0, 0, 0, 0};         \
    static struct tally *entry_of_##name __attribute__((section("tallies"), used)) = &TALLY(name)

// At file scope, before the function it names: allocations through an allocator, or mappings.
#define DEFINE_TALLY(name) DEFINE_TALLY_(name, TALLY_HEAP, 0)
#define DEFINE_TALLY_RESIDENT(name) DEFINE_TALLY_(name, TALLY_HEAP, 1)
#define DEFINE_MAPPING_TALLY(name, kind) DEFINE_TALLY_(name, kind, 1)

#ifdef __cplusplus
extern "C" {
#endif
// Set by the linker around the section "tallies"; absent in a program that has none.
extern struct tally *__start_tallies[] __attribute__((weak, visibility("hidden")));
extern struct tally *__stop_tallies[] __attribute__((weak, visibility("hidden")));
#ifdef __cplusplus
}
#endif

static int target_is_ready;
static unsigned target_phase;

static UNUSED void tally_allocated(struct tally *tally, size_t bytes)
{
    __atomic_fetch_add(&tally->allocated_bytes, bytes, __ATOMIC_RELAXED);
    __atomic_fetch_add(&tally->allocated_count, 1, __ATOMIC_RELAXED);
}

static UNUSED void tally_freed(struct tally *tally, size_t bytes)
{
    __atomic_fetch_add(&tally->freed_bytes, bytes, __ATOMIC_RELAXED);
    __atomic_fetch_add(&tally->freed_count, 1, __ATOMIC_RELAXED);
}

// One allocation that will be freed or forgotten. `owner` is NULL for one made before ready, which no tally holds.
struct block {
    char *address;
    size_t size;
    struct tally *owner;
};

// Fills the block, so that it is resident, and counts it. A failed allocation counts as nothing.
static UNUSED void block_made(struct block *block, void *address, size_t size, struct tally *owner)
{
    block->address = (char *)address;
    block->size = size;
    block->owner = address && target_is_ready ? owner : NULL;
    if (address)
        memset(address, 0x5a, size);
    if (block->owner)
        tally_allocated(owner, size);
}

// Call before the block is freed or forgotten; returns the address and clears what is kept of it.
static UNUSED void *block_taken(struct block *block, int is_freed)
{
    void *address = block->address;

    if (block->owner && is_freed)
        tally_freed(block->owner, block->size);
    memset(block, 0, sizeof(*block));
    return address;
}

TRACED static UNUSED void release_block(struct block *block)
{
    free(block_taken(block, 1));
}

// Frees every other block and forgets the address of the rest, which are leaks from then on.
TRACED static UNUSED void release_every_other(struct block *blocks, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (i % 2)
            release_block(&blocks[i]);
        else
            block_taken(&blocks[i], 0);
    }
}

static char target_line[16384];
static size_t target_line_length;

__attribute__((format(printf, 1, 2))) static UNUSED void put(const char *format, ...)
{
    va_list arguments;
    size_t room = sizeof(target_line) - target_line_length;
    int length;

    va_start(arguments, format);
    length = vsnprintf(target_line + target_line_length, room, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= room)
        abort();
    target_line_length += (size_t)length;
}

static UNUSED void send_line(void)
{
    size_t sent = 0;

    put("\n");
    while (sent < target_line_length) {
        ssize_t n = write(STDOUT_FILENO, target_line + sent, target_line_length - sent);
        if (n < 0 && errno != EINTR)
            _exit(3); // nobody is listening any more
        if (n > 0)
            sent += (size_t)n;
    }
    target_line_length = 0;
}

static size_t status_pages(const char *status, const char *field)
{
    const char *at = strstr(status, field);

    return at ? strtoul(at + strlen(field), NULL, 10) * 1024 / PAGE : 0;
}

// Exact where the kernel sums its per-CPU counters for /proc/PID/status (before 6.2 and from 6.17); in between it may
// be off by some tens of pages.
static UNUSED void put_rss(void)
{
    static char status[8192];
    size_t length = 0;
    ssize_t n;
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        abort();
    while (length < sizeof(status) - 1 && (n = read(fd, status + length, sizeof(status) - 1 - length)) > 0)
        length += (size_t)n;
    close(fd);
    status[length] = '\0';
    put("\"rss_pages\": {\"anon\": %zu, \"file\": %zu, \"shmem\": %zu}", status_pages(status, "\nRssAnon:"),
        status_pages(status, "\nRssFile:"), status_pages(status, "\nRssShmem:"));
}

static UNUSED void put_tally(const struct tally *tally)
{
    static const char *const kinds[] = {"heap", "anon", "file", "shmem"};

    put("\"%s\": {\"kind\": \"%s\", \"bytes\": %zu, \"count\": %zu, \"allocated_bytes\": %zu, \"allocated_count\": %zu, "
        "\"freed_bytes\": %zu, \"freed_count\": %zu",
        tally->function, kinds[tally->kind], tally->allocated_bytes - tally->freed_bytes,
        tally->allocated_count - tally->freed_count, tally->allocated_bytes, tally->allocated_count, tally->freed_bytes,
        tally->freed_count);
    if (tally->knows_resident)
        put(", \"resident_bytes\": %zu", tally->resident);
    put("}");
}

// Leaves the object open, so that a target can add fields of its own before send_truth_end().
static UNUSED void put_truth(void)
{
    put("{\"phase\": %u, \"stacks\": {", target_phase);
    for (struct tally **entry = __start_tallies; entry < __stop_tallies; entry++) {
        put("%s", entry == __start_tallies ? "" : ", ");
        put_tally(*entry);
    }
    put("}, ");
    put_rss();
}

static UNUSED void send_truth(void)
{
    put_truth();
    put("}");
    send_line();
}

// Huge pages are off, or the resident size would not be what the program touched; TARGET_THP=1 leaves them on.
__attribute__((constructor)) static void refuse_huge_pages(void)
{
    if (!getenv("TARGET_THP"))
        prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
}

// Announces the target. What is printed later is formatted once before, so that its pages are there already.
static UNUSED void target_ready(void)
{
    put_truth();
    memset(target_line, 0, sizeof(target_line));
    target_line_length = 0;
    put("{\"ready\": true, \"pid\": %d, ", (int)getpid());
    put_rss();
    put("}");
    target_is_ready = 1;
    send_line();
}

// Blocks until a command byte comes; white space separates commands; end of file means `q`.
static UNUSED int target_command(void)
{
    for (;;) {
        char command;
        ssize_t n = read(STDIN_FILENO, &command, 1);

        if (n == 0 || (n < 0 && errno != EINTR))
            return 'q';
        if (n == 1 && command != '\n' && command != ' ')
            return command;
    }
}

static UNUSED void target_refuse(int command)
{
    put("{\"error\": \"unknown command %d\"}", command);
    send_line();
}

// The whole of most targets: runs a phase for each `g` until `q`. The result is main's.
static UNUSED int target_serve(void (*phase)(void))
{
    int command;

    while ((command = target_command()) != 'q') {
        if (command != 'g') {
            target_refuse(command);
            continue;
        }
        target_phase++;
        phase();
        send_truth();
    }
    return 0;
}

// argv[index] as a number, or the value that applies when it is not given.
static UNUSED size_t argument(int argc, char **argv, int index, size_t otherwise)
{
    return argc > index ? strtoul(argv[index], NULL, 0) : otherwise;
}

// An array of cleared blocks. Its pages are written at once, so that filling it later adds no memory.
static UNUSED struct block *target_blocks(size_t count)
{
    static struct block blocks[32768];

    if (count > sizeof(blocks) / sizeof(blocks[0]))
        abort();
    memset(blocks, 0, count * sizeof(blocks[0]));
    return blocks;
}

#endif
