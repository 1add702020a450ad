// Leaks by each form of operator new; half is deleted again. One new throws bad_alloc, which is caught: a return probe
// on operator new would end the program here. Arguments: [COUNT [SIZE [FAILS [CHILDREN]]]]; FAILS 0 leaves out what
// fails, as an allocator written in C (mimalloc) aborts instead of throwing; CHILDREN 1 lets it fail in a child, too.
#include "target.h"
#include <new>
#include <sys/wait.h>
#include <vector>

DEFINE_TALLY(leak_by_new);
DEFINE_TALLY(leak_by_new_array);
DEFINE_TALLY(leak_by_nothrow_new);
DEFINE_TALLY(leak_by_aligned_new);
DEFINE_TALLY(leak_by_vector);
DEFINE_TALLY(fail_by_new);

namespace {

size_t count, size, fails, children;
void *volatile never_made; // or the compiler drops the call that fails

struct Record {
    char bytes[96];
};

struct alignas(64) Line {
    char bytes[128];
};

} // namespace

TRACED static void leak_by_new(struct block *block)
{
    block_made(block, new Record, sizeof(Record), &TALLY(leak_by_new));
}

TRACED static void leak_by_new_array(struct block *block, size_t bytes)
{
    block_made(block, new char[bytes], bytes, &TALLY(leak_by_new_array));
}

TRACED static void leak_by_nothrow_new(struct block *block)
{
    block_made(block, new (std::nothrow) char[size], size, &TALLY(leak_by_nothrow_new));
    if (fails && (never_made = ::operator new(impossible_size, std::nothrow)))
        abort();
}

TRACED static void leak_by_aligned_new(struct block *block)
{
    block_made(block, new Line, sizeof(Line), &TALLY(leak_by_aligned_new));
}

// The vector leaks its last buffer; those that it outgrew it has freed.
TRACED static void leak_by_vector()
{
    auto *numbers = new (target_blocks(1)) std::vector<uint64_t>;
    size_t capacity = 0;

    for (uint64_t i = 0; i < 200; i++) {
        numbers->push_back(i);
        if (numbers->capacity() == capacity)
            continue;
        if (capacity)
            tally_freed(&TALLY(leak_by_vector), capacity * sizeof(i));
        capacity = numbers->capacity();
        tally_allocated(&TALLY(leak_by_vector), capacity * sizeof(i));
    }
}

// The exception object is memory too, but is freed when the handler ends.
TRACED static bool fail_by_new()
{
    try {
        never_made = ::operator new(impossible_size);
        return false;
    } catch (const std::bad_alloc &) {
        return true;
    }
}

// Beside a traced process: in the child of one.
TRACED static bool fail_in_child()
{
    pid_t child = fork();
    int status = -1;
    if (child == 0)
        _exit(fail_by_new() ? 0 : 1);
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

TRACED static void delete_half(struct block *blocks)
{
    for (size_t i = 0; i < count; i++) {
        if (i % 2 == 0)
            continue;
        delete static_cast<Record *>(block_taken(&blocks[i], 1));
        delete[] static_cast<char *>(block_taken(&blocks[count + i], 1));
        delete[] static_cast<char *>(block_taken(&blocks[2 * count + i], 1));
        delete static_cast<Line *>(block_taken(&blocks[3 * count + i], 1));
    }
}

TRACED static void run_phase()
{
    for (size_t i = 0; i < count / 10; i++)
        leak_by_vector();

    struct block *blocks = target_blocks(4 * count);
    for (size_t i = 0; i < count; i++) {
        leak_by_new(&blocks[i]);
        leak_by_new_array(&blocks[count + i], size + i % 8 * 8);
        leak_by_nothrow_new(&blocks[2 * count + i]);
        leak_by_aligned_new(&blocks[3 * count + i]);
    }
    if (fails && !fail_by_new())
        abort();
    if (children && !fail_in_child())
        abort();
    delete_half(blocks);
}

int main(int argc, char **argv)
{
    count = argument(argc, argv, 1, 500);
    size = argument(argc, argv, 2, 150);
    fails = argument(argc, argv, 3, 1);
    children = argument(argc, argv, 4, 0);
    delete[] new char[size];
    if (fails)
        fail_by_new(); // the first throw allocates what the unwinder keeps
    target_blocks(4 * count);
    target_ready();
    return target_serve(run_phase);
}
