// Loads a library after ready and leaks through it. Arguments: MODE [COUNT [SIZE]], where MODE is
//   plugin     libplugin.so beside this program, loaded by the first phase; it calls malloc (truth: leak_in_plugin)
//   reopen     the same, but every phase unloads it and loads it again, maybe elsewhere
//   allocator  libjemalloc.so.2, whose own malloc is called (truth: leak_by_loaded_allocator); as it wants more static
//              thread-local storage than glibc keeps free, the program first executes itself with more of it
// What dlopen allocates for itself is in no tally.
#include "target.h"
#include <dlfcn.h>

DEFINE_TALLY(leak_in_plugin);
DEFINE_TALLY(leak_by_loaded_allocator);

static size_t count, size;
static const char *mode;
static void *library;

static void *loaded_symbol(const char *path, const char *name, int flags)
{
    void *symbol;

    if (!library)
        library = dlopen(path, RTLD_NOW | RTLD_LOCAL | flags);
    symbol = library ? dlsym(library, name) : NULL;
    if (!symbol) {
        put("{\"error\": \"%s\"}", dlerror());
        send_line();
        _exit(4);
    }
    return symbol;
}

static const char *plugin_path(void)
{
    static char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - sizeof("libplugin.so"));

    if (length < 0)
        abort();
    path[length] = '\0';
    strcpy(strrchr(path, '/') + 1, "libplugin.so");
    return path;
}

TRACED static void call_plugin(void)
{
    void *(*leak_in_plugin)(size_t) = (void *(*)(size_t))loaded_symbol(plugin_path(), "leak_in_plugin", 0);
    struct block block;

    for (size_t i = 0; i < count; i++)
        block_made(&block, leak_in_plugin(size), size, &TALLY(leak_in_plugin));
}

TRACED static void leak_by_loaded_allocator(void *(*allocate)(size_t), void (*release)(void *))
{
    struct block block;

    block_made(&block, allocate(size), size, &TALLY(leak_by_loaded_allocator));
    block_made(&block, allocate(2 * size), 2 * size, &TALLY(leak_by_loaded_allocator));
    release(block_taken(&block, 1));
}

TRACED static void call_allocator(void)
{
    void *(*allocate)(size_t) = (void *(*)(size_t))loaded_symbol("libjemalloc.so.2", "malloc", RTLD_DEEPBIND);
    void (*release)(void *) = (void (*)(void *))loaded_symbol("libjemalloc.so.2", "free", RTLD_DEEPBIND);

    for (size_t i = 0; i < count; i++)
        leak_by_loaded_allocator(allocate, release);
}

TRACED static void run_phase(void)
{
    if (strcmp(mode, "reopen") == 0 && library) {
        dlclose(library);
        library = NULL;
    }
    if (strcmp(mode, "allocator") == 0)
        call_allocator();
    else
        call_plugin();
}

static void exec_with_room_for_tls(char **argv)
{
    static char path[4096];

    if (getenv("GLIBC_TUNABLES"))
        return;
    if (setenv("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=16384", 1) ||
        readlink("/proc/self/exe", path, sizeof(path) - 1) < 0)
        abort();
    execv(path, argv);
    abort();
}

int main(int argc, char **argv)
{
    mode = argc > 1 ? argv[1] : "plugin";
    count = argument(argc, argv, 2, 1000);
    size = argument(argc, argv, 3, 200);
    if (strcmp(mode, "allocator") == 0)
        exec_with_room_for_tls(argv);
    free(malloc(size));
    target_ready();
    return target_serve(run_phase);
}
