// A mix of sizes whose live bytes are known: `g` allocates COUNT blocks of sizes that repeat, and answers
// {"bytes": B, "count": N}; `f` frees them all and answers the same, which is then 0. Arguments: [COUNT].
#include "target.h"

static const size_t sizes[] = {16, 24, 40, 64, 100, 200, 200, 320, 512, 1000, 1500, 4000, 12000, 40000};
static size_t count, live_bytes, live_count;
static void *blocks[65536];

TRACED static void mix_allocate(void)
{
    for (size_t i = 0; i < count; i++) {
        size_t bytes = sizes[i % (sizeof(sizes) / sizeof(sizes[0]))];
        blocks[i] = malloc(bytes);
        if (!blocks[i])
            abort();
        live_bytes += bytes;
        live_count++;
    }
}

TRACED static void mix_free(void)
{
    for (size_t i = 0; i < count; i++) {
        free(blocks[i]);
        blocks[i] = NULL;
    }
    live_bytes = live_count = 0;
}

int main(int argc, char **argv)
{
    int command;

    count = argument(argc, argv, 1, 2800);
    if (count > sizeof(blocks) / sizeof(blocks[0]))
        return 2;
    mix_allocate();
    mix_free();
    target_ready();
    while ((command = target_command()) != 'q') {
        if (command == 'g') {
            mix_allocate();
        } else if (command == 'f') {
            mix_free();
        } else {
            target_refuse(command);
            continue;
        }
        put("{\"bytes\": %zu, \"count\": %zu}", live_bytes, live_count);
        send_line();
    }
    return 0;
}
