/* common.bpf.c: the maps that all probes share, the state of each traced thread, counters and stacks. */

/* By number, as read_user is: bpf_get_func_ip (Linux 5.15) and bpf_get_attach_cookie (5.15). */
static u64 (*get_func_ip)(void *context) = (void *)173;
static u64 (*get_attach_cookie)(void *context) = (void *)174;

enum call_op { CALL_NONE, CALL_PLAIN, CALL_NEW, CALL_REALLOC, CALL_POSIX_MEMALIGN };
enum syscall_op {
	SYS_NONE, SYS_MMAP, SYS_MUNMAP, SYS_MREMAP, SYS_BRK, SYS_MADVISE, SYS_MPROTECT, SYS_SHMAT, SYS_SHMDT,
	SYS_OTHER_MAP, /* the effect cannot be told from the arguments */
};
/* How calls are entered and left: by a uprobe and a return probe of their own, or by one program for both (a session),
 * whose answer at the entry says whether the return is wanted.
 */
enum entered_by { BY_UPROBE, BY_SESSION };
#define SKIP_RETURN 1
#ifdef SESSIONS
#define HAS_SESSIONS 1
#else
#define HAS_SESSIONS 0
#endif
/* What is to be done once a stack is known. */
enum stack_use { FOR_ALLOCATION, FOR_MAPPING, FOR_FAULT };

/* One thread's state. It lives in the map, so that no program needs per-CPU scratch memory (uprobe programs may be
 * preempted) and none outgrows the 512-byte BPF stack. A thread runs at most one of our programs at a time, but for the
 * page-fault program: a read of the target's memory that finds no page raises a fault, and that program, amid the read.
 * `busy` tells it to keep out.
 */
struct thread_state {
	/* The outermost allocator call in flight; nested ones belong to it. */
	u64 call_sp;
	u64 call_return;
	u64 call_size;
	u64 call_pointer; /* realloc: the old block; posix_memalign: where the result goes */
	u64 call_stack;
	u64 freed_last;   /* the block whose release was seen last */
	struct live_value call_old; /* realloc: what is restored if the call fails */
	u64 call_chance;  /* of its being sampled; 0: it is followed for the old block's sake alone */
	u64 call_window;  /* settings.probed_since at its entry */
	u32 call_op;
	u32 call_has_old;
	/* The call that was not sampled and may make others that are none of their own (calloc's malloc): 0: none. */
	u64 skipped_sp;
	u64 skipped_return;
	u64 skipped_ip;
	u64 skipped_window;
	/* The call that has just been entered, on its way from its probe to call_enters. */
	u64 entered_size;
	u64 entered_pointer;
	u64 entered_chance;
	u32 entered_op;
	u32 entered_by; /* enum entered_by */
	u32 busy;
	u32 hole1;
	/* The system call in flight. */
	u64 sys_args[6];
	u64 sys_sp;
	u32 sys_op;
	u32 hole2;
	/* The page fault whose stack was taken last. */
	u64 fault_address;
	u64 fault_call;   /* the system call in which it came; -1: in none */
	u64 fault_stack;
	u64 fault_before; /* the stack of the page before, where this fault goes on with a run; else 0 */
	u64 fault_span;   /* how many pages the next stack may serve, on average */
	struct event event;
	struct stack_value stack;
	struct unwind_state unwind;
	u8 window[UNWIND_WINDOW];
};

/* Single entry. Written by user space. */
BPF_ARRAY(settings, struct settings, 1);
/* Single entry. Written by exec, brk and rss_stat programs. */
BPF_ARRAY(control, struct control, 1);
/* Read by user space, which sums over the CPUs. Atomic, as a program may be preempted by another on its CPU. */
BPF_PERCPU_ARRAY(counters, u64, COUNTERS);
/* The process that is traced. Single entry, written by user space before anything is attached; so the programs are the
 * same for every process.
 */
BPF_ARRAY(target, u32, 1);
/* tid -> state. Made at a thread's first event, deleted at its end; full: COUNT_THREADS_FULL, the call is missed. */
BPF_F_TABLE("hash", u32, struct thread_state, threads, MAX_THREADS, BPF_F_NO_PREALLOC);
/* A zeroed state to copy from: it is too large for the stack. Never written. */
BPF_ARRAY(blank_state, struct thread_state, 1);
/* 64-bit hash of the frames -> frames. Full: COUNT_STACKS_FULL, the id is kept, its frames are not known. */
BPF_F_TABLE("hash", u64, struct stack_value, stacks, MAX_STACKS, BPF_F_NO_PREALLOC);
/* VMA events to user space. Full: COUNT_EVENTS_LOST, and user space reads the VMAs anew. */
BPF_RINGBUF_OUTPUT(events, EVENT_PAGES);

static inline void count_more(u32 index, u64 by)
{
	u64 *value = counters.lookup(&index);
	if (value)
		__sync_fetch_and_add(value, by);
}

static inline void count(u32 index)
{
	count_more(index, 1);
}

static inline u32 target_tgid(void)
{
	u32 zero = 0;
	u32 *tgid = target.lookup(&zero);
	return tgid ? *tgid : 0;
}

static inline struct settings *settings_block(void)
{
	u32 zero = 0;
	return settings.lookup(&zero);
}

static inline int is_enabled(void)
{
	struct settings *s = settings_block();
	return s && s->enabled;
}

static inline struct control *control_block(void)
{
	u32 zero = 0;
	return control.lookup(&zero);
}

/* The control block where the current task belongs to the target and tracing is on, else NULL. */
static inline struct control *traced(void)
{
	if ((bpf_get_current_pid_tgid() >> 32) != target_tgid())
		return NULL;
	return is_enabled() ? control_block() : NULL;
}

/* The settings where the current task belongs to the target and tracing is on, else NULL. */
static inline struct settings *active(void)
{
	if ((bpf_get_current_pid_tgid() >> 32) != target_tgid())
		return NULL;
	struct settings *s = settings_block();
	return s && s->enabled ? s : NULL;
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
