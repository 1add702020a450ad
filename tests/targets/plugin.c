// The library that `dlopener` loads: it leaks through the malloc of the program that loaded it.
#include <stdlib.h>
#include <string.h>

__attribute__((noipa)) void *leak_in_plugin(size_t bytes)
{
    void *address = malloc(bytes);

    return address ? memset(address, 0x5a, bytes) : NULL;
}
