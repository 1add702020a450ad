/* common.bpf.c: the maps that all probes share, the state of each traced thread, counters and stacks. */

enum call_op { CALL_NONE, CALL_PLAIN, CALL_NEW, CALL_REALLOC, CALL_POSIX_MEMALIGN };
enum syscall_op { SYS_NONE, SYS_MMAP, SYS_MUNMAP, SYS_MREMAP, SYS_BRK, SYS_MADVISE, SYS_MPROTECT };
/* What is to be done once a stack is known. */
enum stack_use { FOR_ALLOCATION, FOR_MAPPING, FOR_RSS };

/* One thread's state. It lives in the map, so that no program needs per-CPU scratch memory (uprobe programs may be
 * preempted) and none outgrows the 512-byte BPF stack. A thread runs at most one of our programs at a time.
 */
struct thread_state {
	/* The outermost allocator call in flight; nested ones belong to it. */
	u64 call_sp;
	u64 call_return;
	u64 call_size;
	u64 call_pointer; /* realloc: the old block; posix_memalign: where the result goes */
	u64 call_stack;
	struct live_value call_old; /* realloc: what is restored if the call fails */
	u32 call_op;
	u32 call_has_old;
	/* The call that has just been entered, on its way from its probe to call_enters. */
	u64 entered_size;
	u64 entered_pointer;
	u32 entered_op;
	u32 hole;
	/* The system call in flight. */
	u64 sys_args[6];
	u64 sys_sp;
	u32 sys_op;
	u32 stack_use;
	u64 fault_address; /* 0: none since the last traced system call */
	/* What waits for the stack of a change of RSS. */
	struct rss_key rss_key;
	s64 rss_delta;
	struct event event;
	struct stack_value stack;
};

/* Single entry. Written by user space and by exec, brk and rss_stat programs. */
BPF_ARRAY(control, struct control, 1);
/* Read by user space; atomic adds. */
BPF_ARRAY(counters, u64, COUNTERS);
/* tid -> state. Made at a thread's first event, deleted at its end; full: COUNT_THREADS_FULL, the call is missed. */
BPF_F_TABLE("hash", u32, struct thread_state, threads, MAX_THREADS, BPF_F_NO_PREALLOC);
/* A zeroed state to copy from: it is too large for the stack. Never written. */
BPF_ARRAY(blank_state, struct thread_state, 1);
/* 64-bit hash of the frames -> frames. Full: COUNT_STACKS_FULL, the id is kept, its frames are not known. */
BPF_F_TABLE("hash", u64, struct stack_value, stacks, MAX_STACKS, BPF_F_NO_PREALLOC);
/* Which 2 MiB granules hold code, folded to 65,536 bits. User space sets bits; a frame in no such granule is none. */
BPF_ARRAY(code_bitmap, u64, STACK_BITMAP_WORDS);
/* VMA events to user space. Full: COUNT_EVENTS_LOST, and user space reads the VMAs anew. */
BPF_RINGBUF_OUTPUT(events, EVENT_PAGES);

static inline void count(u32 index)
{
	u64 *value = counters.lookup(&index);
	if (value)
		__sync_fetch_and_add(value, 1);
}

static inline struct control *control_block(void)
{
	u32 zero = 0;
	return control.lookup(&zero);
}

/* The control block where the current task belongs to the target and tracing is on, else NULL. */
static inline struct control *traced(void)
{
	if ((bpf_get_current_pid_tgid() >> 32) != TARGET_TGID)
		return NULL;
	struct control *c = control_block();
	if (!c || !c->enabled)
		return NULL;
	return c;
}

static inline struct thread_state *find_thread(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	return threads.lookup(&tid);
}

static inline struct thread_state *this_thread(void)
{
	u32 tid = bpf_get_current_pid_tgid(), zero = 0;
	struct thread_state *t = threads.lookup(&tid);
	if (t)
		return t;
	struct thread_state *blank = blank_state.lookup(&zero);
	if (!blank)
		return NULL;
	threads.insert(&tid, blank);
	t = threads.lookup(&tid);
	if (!t)
		count(COUNT_THREADS_FULL);
	return t;
}

static inline int is_code(u64 address)
{
	u32 bit = (address >> CODE_GRANULE_SHIFT) & (STACK_BITMAP_WORDS * 64 - 1);
	u32 word = bit >> 6;
	u64 *bits = code_bitmap.lookup(&word);
	return bits && (*bits >> (bit & 63)) & 1;
}

/* No allocator's own frames reach further: what happens deeper down than this is not part of the pending call. */
#define NESTED_SPAN (256 * 1024)

/* Whether what happens at stack pointer `sp` is part of the pending allocator call. A call that was left by longjmp or
 * an exception is still on record, so look whether its return address is in its place: the true one where no return
 * probe is used, else the address of the probes' trampoline.
 */
static inline int in_pending_call(struct control *c, struct thread_state *t, u64 sp)
{
	u64 slot = 0;
	if (t->call_op == CALL_NONE || sp >= t->call_sp || t->call_sp - sp >= NESTED_SPAN)
		return 0;
	if (bpf_probe_read_user(&slot, sizeof(slot), (void *)t->call_sp))
		return 0;
	if (t->call_op == CALL_NEW)
		return slot == t->call_return;
	return c->trampoline ? slot == c->trampoline : !is_code(slot);
}

/* Cut the stack where it leaves the code, hash it and keep its frames. Returns the stack's id, 0 for an empty one.
 * The hash mixes every frame by multiplication with a 64-bit odd constant, so that equal ids mean equal frames
 * for all practical purposes (birthday bound: 10^5 stacks collide with a chance of 3 in 10^10).
 */
static inline u64 keep_stack(struct thread_state *t)
{
	u64 hash = 0x9e3779b97f4a7c15ULL;
	u32 depth = 0;
	u32 n = t->stack.depth;
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_DEPTH; i++) {
		if (i >= n)
			break;
		u64 ip = t->stack.ips[i];
		if (!is_code(ip)) {
			t->stack.status |= STACK_NO_MAPPING;
			break;
		}
		hash = (hash ^ ip) * 0xff51afd7ed558ccdULL;
		hash ^= hash >> 32;
		depth++;
	}
	t->stack.depth = depth;
	if (!depth) {
		count(COUNT_STACKS_EMPTY);
		return 0;
	}
	if (!stacks.lookup(&hash) && stacks.update(&hash, &t->stack))
		count(COUNT_STACKS_FULL);
	return hash;
}
