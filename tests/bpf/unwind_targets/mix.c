/* mix.c THREADS MODE: allocates below frames of every shape that a C compiler makes without frame pointers.
 *
 * MODE: mix (callbacks through libc, alloca, realigned and large frames, recursion), deep (100 frames and more),
 * signal (malloc in a signal handler), map (mmap and page faults), calloc (page faults inside calloc).
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <malloc.h>
#include <pthread.h>
#include <regex.h>
#include <search.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>

#define NOINLINE __attribute__((noinline))

static __thread unsigned seed = 1;
static const char *mode;

NOINLINE static void use(void *p)
{
	asm volatile("" ::"r"(p) : "memory");
}

NOINLINE static int allocate(int n)
{
	char *p = malloc(16 + (n & 255));
	use(p);
	free(p);
	return n;
}

NOINLINE static int map_pages(int n)
{
	char *p = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	p[0] = p[9000] = 1;
	munmap(p, 65536);
	return n;
}

NOINLINE static int fresh_calloc(int n)
{
	char *p = calloc(1, 100000);
	use(p);
	free(p);
	malloc_trim(0);
	return n;
}

NOINLINE static int bottom(int n)
{
	if (!strcmp(mode, "map"))
		return map_pages(n) + 1;
	if (!strcmp(mode, "calloc"))
		return fresh_calloc(n) + 1;
	return allocate(n) + 1;
}

NOINLINE static int compare(const void *a, const void *b)
{
	bottom(*(const int *)a);
	return *(const int *)a - *(const int *)b;
}

NOINLINE static void sort(void)
{
	int values[24];
	for (int i = 0; i < 24; i++)
		values[i] = rand_r(&seed);
	qsort(values, 24, sizeof(*values), compare);
	use(values);
}

NOINLINE static void tree(void)
{
	void *root = NULL;
	int values[16];
	for (int i = 0; i < 16; i++) {
		values[i] = rand_r(&seed);
		tsearch(&values[i], &root, compare);
	}
	tdestroy(root, use);
}

NOINLINE static int large(int n)
{
	volatile char frame[300000];
	frame[n & 1023] = n;
	return bottom(n) + frame[n & 1023];
}

NOINLINE static int recurse(int depth, int kind)
{
	volatile int here[3] = {depth, kind, 0};
	int result;
	if (depth <= 0)
		return bottom(kind) + here[0];
	switch ((depth + kind) % 4) {
	case 0:
		result = recurse(depth - 1, kind) + 1;
		break;
	case 1: {
		volatile char block[200];
		block[0] = depth;
		result = recurse(depth - 1, kind + 1) + block[0];
		break;
	}
	case 2: {
		char *block = alloca(16 + (depth * kind & 127));
		block[0] = depth;
		use(block);
		result = recurse(depth - 1, kind) + block[0];
		break;
	}
	default: {
		volatile double __attribute__((aligned(64))) block[8];
		block[0] = depth;
		result = recurse(depth - 1, kind + 2) + (int)block[0];
	}
	}
	return result + here[1];
}

NOINLINE static void print(void)
{
	char *text;
	size_t size;
	FILE *file = open_memstream(&text, &size);
	fprintf(file, "%d %s %g %ls\n", rand_r(&seed), "xyz", 3.25, L"wide");
	fclose(file);
	free(text);
}

NOINLINE static void match(void)
{
	regex_t regex;
	if (!regcomp(&regex, "^(a|b(c|d)*e)+[0-9]{2,5}$", REG_EXTENDED)) {
		regexec(&regex, "abcde12", 0, 0, 0);
		regfree(&regex);
	}
}

static void on_signal(int number)
{
	allocate(number);
}

NOINLINE static void busy(void)
{
	volatile unsigned long x = seed;
	for (int i = 0; i < 20000; i++)
		x = x * 31 + i;
}

NOINLINE static void one_round(void)
{
	if (!strcmp(mode, "signal")) {
		busy();
		return;
	}
	if (!strcmp(mode, "deep")) {
		recurse(90 + rand_r(&seed) % 15, rand_r(&seed) & 7);
		return;
	}
	sort();
	tree();
	recurse(rand_r(&seed) % 30, rand_r(&seed) & 7);
	large(rand_r(&seed));
	print();
	match();
}

__attribute__((noreturn)) static void *work(void *argument)
{
	seed = (long)argument;
	for (;;)
		one_round();
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 1;
	mode = argc > 2 ? argv[2] : "mix";
	if (!strcmp(mode, "calloc"))
		mallopt(M_MMAP_THRESHOLD, 1 << 25);
	if (!strcmp(mode, "signal")) {
		struct sigaction action = {.sa_handler = on_signal};
		struct itimerval timer = {{0, 500}, {0, 500}};
		sigaction(SIGALRM, &action, NULL);
		setitimer(ITIMER_REAL, &timer, NULL);
	}
	for (long i = 1; i < threads; i++) {
		pthread_t thread;
		pthread_create(&thread, NULL, work, (void *)(i + 7));
	}
	work((void *)1L);
}
