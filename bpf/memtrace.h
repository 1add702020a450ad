/* memtrace.h: what the BPF programs and the Python consumer share: limits, counters, map values and events.
 *
 * tracer/probes/layout.py states the same layouts for Python; tests/unit/test_layout.py compares the two.
 * Configuration arrives as -D: MAX_LIVE, MAX_STACKS, MAX_THREADS, MAX_RSS_KEYS, MAX_CPUS, EVENT_PAGES, which size maps
 * and nothing else; FILTER_BITS; and SESSIONS, CALL_EVENTS where the kernel has uprobe sessions and events of single
 * system calls.
 */
#define MAX_DEPTH 127

/* System call numbers (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h) and where the
 * kernel's pt_regs hold their arguments.
 */
#if defined(__x86_64__)
#define NR_MMAP 9
#define NR_MPROTECT 10
#define NR_MUNMAP 11
#define NR_BRK 12
#define NR_MREMAP 25
#define NR_MADVISE 28
#define NR_SHMAT 30
#define NR_SHMDT 67
#define NR_IO_SETUP 206
#define NR_IO_DESTROY 207
#define NR_REMAP_FILE_PAGES 216
#define NR_PKEY_MPROTECT 329
#define SYSCALL_ARG0(regs) ((regs).di)
#define SYSCALL_ARG1(regs) ((regs).si)
#define SYSCALL_ARG2(regs) ((regs).dx)
#define SYSCALL_ARG3(regs) ((regs).r10)
#define SYSCALL_ARG4(regs) ((regs).r8)
#define SYSCALL_ARG5(regs) ((regs).r9)
#define SYSCALL_NUMBER(regs) ((regs).orig_ax)
#define SYSCALL_RESULT(regs) ((regs).ax)
#define USER_IP(regs) ((regs).ip)
#define USER_SP(regs) ((regs).sp)
#define USER_FP(regs) ((regs).bp)
#else
#define NR_IO_SETUP 0
#define NR_IO_DESTROY 1
#define NR_SHMAT 196
#define NR_SHMDT 197
#define NR_BRK 214
#define NR_MUNMAP 215
#define NR_MREMAP 216
#define NR_MMAP 222
#define NR_MPROTECT 226
#define NR_MADVISE 233
#define NR_REMAP_FILE_PAGES 234
#define NR_PKEY_MPROTECT 288
#define SYSCALL_ARG0(regs_) ((regs_).regs[0])
#define SYSCALL_ARG1(regs_) ((regs_).regs[1])
#define SYSCALL_ARG2(regs_) ((regs_).regs[2])
#define SYSCALL_ARG3(regs_) ((regs_).regs[3])
#define SYSCALL_ARG4(regs_) ((regs_).regs[4])
#define SYSCALL_ARG5(regs_) ((regs_).regs[5])
#define SYSCALL_NUMBER(regs_) ((regs_).regs[8])
#define SYSCALL_RESULT(regs_) ((regs_).regs[0])
#define USER_IP(regs_) ((regs_).pc)
#define USER_SP(regs_) ((regs_).sp)
#define USER_FP(regs_) ((regs_).regs[29])
#endif

/* Each failure path has its counter; user space prints those that are not zero. The order is the index. */
enum counter {
	COUNT_ALLOCATIONS,         /* successful allocations seen */
	COUNT_FREES,               /* blocks freed that had been seen when allocated */
	COUNT_FREES_UNKNOWN,       /* frees of blocks that were allocated before tracing began */
	COUNT_FAILED_CALLS,        /* allocation calls that returned no memory */
	COUNT_PROBE_HITS,          /* malloc-family calls trapped at their entry, of functions that return a block */
	COUNT_FREE_HITS,           /* calls trapped of functions that only free */
	COUNT_SAMPLED,             /* calls followed to their return, with a stack */
	COUNT_EVENTS,              /* VMA events sent */
	COUNT_RSS_EVENTS,          /* changes of the RSS counters seen */
	COUNT_FAULT_STACKS,        /* page faults whose stack was taken */
	COUNT_FAULTS_IN_RUN,       /* page faults that were given the stack of the page before */
	COUNT_FAULTS,              /* page faults of the target seen */
	COUNT_FORKS,               /* child processes made by the target (they are not traced) */
	COUNT_THREADS,             /* threads made by the target */
	COUNT_LIVE_FULL,           /* LOSS: blocks not tracked: the table of live blocks was full */
	COUNT_TOTALS_FULL,         /* LOSS: allocations whose stack had no place in the table of totals */
	COUNT_STACKS_FULL,         /* LOSS: stacks whose frames had no place in the table of stacks */
	COUNT_THREADS_FULL,        /* LOSS: calls missed: the table of threads was full */
	COUNT_EVENTS_LOST,         /* LOSS: VMA events that found the ring buffer full */
	COUNT_RSS_FULL,            /* LOSS: RSS changes counted without their address: the table was full */
	COUNT_CALLS_ABANDONED,     /* LOSS: allocation calls that never returned (longjmp, exception, thread end) */
	COUNT_FREES_MISSED,        /* LOSS: blocks reused by the allocator without a free that memtrace saw */
	COUNT_READ_FAILED,         /* LOSS: target memory that could not be read at a probe */
	COUNT_TAIL_CALLS_FAILED,   /* LOSS: calls missed: a BPF program could not go on to the next */
	COUNT_UNWIND_LOST,         /* LOSS: stacks given up: the thread's state was gone */
	COUNT_UNWIND_TAIL_CALL,    /* LOSS: stacks cut: a BPF program could not go on to the next */
	COUNT_STACKS_EMPTY,        /* LOSS: stacks of which not one frame could be read */
	COUNT_RSS_UNSEEDED,        /* LOSS: RSS changes of unknown size (first of their kind after an exec) */
	COUNTERS
};

/* What the kernel side is told. Single entry, written by user space alone. */
struct settings {
	u64 enabled;       /* 0 until the start snapshot may be taken, and again from the end snapshot on */
	u64 heap_is_known; /* 1 where the allocator of the brk heap is probed: page faults there need no stack */
	u64 count_faults;  /* 1 without kmem:rss_stat: each page fault counts as one page that came */
	u64 sample_bytes;  /* mean distance of samples in bytes; blocks of that size or larger are all taken; 1: every one */
	u64 sample_scale;  /* 2^48 / sample_bytes */
	u64 probed_since;  /* CLOCK_MONOTONIC: when the malloc probes came back last; what was in flight before is void */
	u64 fault_stacks;  /* of so many page faults one gets its stack; all are counted */
};

/* What the kernel side remembers of the traced process. Single entry; user space seeds it while tracing is off. */
struct control {
	u64 epoch;      /* exec: counts the programs that this process has run; blocks of another epoch are void */
	u64 brk;        /* end of the brk heap; brk exits keep it */
	u64 heap_start; /* start of the brk heap; 0: unknown */
	u64 mm_id;      /* rss_stat's id of the target's mm; 0: not seen yet */
};

#define CERTAIN 4294967296 /* 2^32: the chance of what is always taken */
#define WEIGHT_SHIFT 12    /* totals count blocks in 1 / 4096, as a sampled one stands for a fraction more than itself */

struct live_key {
	u64 address;
	u32 tgid;
	u32 epoch;
};

struct live_value {
	u64 size; /* as requested */
	u64 stack;
	u64 time_ns;
	u64 chance; /* with which a block of this size was sampled, in 1 / CERTAIN; it stands for CERTAIN / chance blocks */
};

struct totals_key {
	u64 stack;
	u64 epoch;
};

/* Estimates, exact where all is taken: sums over the sampled calls of what each stands for. */
struct totals {
	u64 allocations; /* << WEIGHT_SHIFT, as are frees and lost */
	u64 allocated_bytes;
	u64 frees;
	u64 freed_bytes;
	u64 lost; /* allocated, but not tracked: whether they were freed is not known */
	u64 lost_bytes;
	u64 sampled; /* calls behind the sums */
	u64 late_frees; /* of the frees (<< WEIGHT_SHIFT), those of blocks from before the malloc probes came back last */
};

/* Why a stack ends where it does, and what it passed on the way. */
enum stack_status {
	STACK_COMPLETE = 1,        /* it reaches to where its thread began */
	STACK_NO_MAPPING = 2,      /* a return address outside all code that is known */
	STACK_NO_ROW = 4,          /* code without unwind information, and no frame pointer */
	STACK_READ_FAILED = 8,     /* stack memory that could not be read */
	STACK_TRUNCATED = 16,      /* deeper than MAX_DEPTH */
	STACK_THROUGH_FRAME_POINTERS = 32,
	STACK_THROUGH_SIGNAL = 64,
	STACK_UNSUPPORTED = 128,   /* unwind information that has no coding here */
	STACK_NO_TABLE = 256,      /* the module's unwind table was not there yet */
	STACK_HIDDEN_RETURN = 512, /* a return address that another tracer's return probe has replaced */
};

struct stack_value {
	u32 depth;
	u32 status;
	u64 ips[MAX_DEPTH];
};

enum event_kind {
	EVENT_MAP = 1,      /* address, length, prot, flags, offset, fd, stack or in_allocator */
	EVENT_UNMAP,        /* address, length: at entry, as it releases address space */
	EVENT_REMAP_ENTER,  /* old_address, old_length, flags */
	EVENT_REMAP,        /* address (or -errno), length, old_address, old_length, flags, stack or in_allocator */
	EVENT_BRK_GROW,     /* address (old end), length, stack or in_allocator */
	EVENT_PROTECT,      /* address, length, prot */
	EVENT_ADVISE,       /* address, length, flags (the advice) */
	EVENT_RESYNC,       /* a call changed what cannot be told from here: the model must be read again */
	EVENT_EXEC,         /* another program now runs in the process */
	EVENT_ATTACH,       /* shmat: address, old_address (the segment's id), prot, stack or in_allocator; no length */
	EVENT_DETACH,       /* shmdt: address: at entry, as it releases address space */
	EVENT_KEPT,         /* what this thread's last EVENT_UNMAP or EVENT_DETACH said is still there: the call failed */
};

struct event {
	u64 time_ns;
	u64 address;
	u64 length;
	u64 old_address;
	u64 old_length;
	u64 offset;
	u64 stack;
	u32 kind;
	u32 tid;
	u32 prot;
	u32 flags;
	s32 fd;
	u32 in_allocator;
};

/* Cookies of session_call's places: the shapes of tracer/heap/allocators.py. */
enum call_shape {
	SHAPE_MALLOC = 1, /* which calls no other function that is probed */
	SHAPE_VALLOC,     /* the same arguments, but it may */
	SHAPE_CALLOC,
	SHAPE_REALLOC,
	SHAPE_REALLOCARRAY,
	SHAPE_MEMALIGN,
	SHAPE_POSIX_MEMALIGN,
};

enum rss_cause {
	RSS_FAULT,         /* a page fault of the target */
	RSS_MMAP,          /* populated by mmap */
	RSS_MUNMAP,
	RSS_MREMAP,
	RSS_BRK,
	RSS_MADVISE,
	RSS_OTHER_CALL,    /* in the target's context, in another system call, whose number is added from bit 8 on */
	RSS_OTHER_CONTEXT, /* by another process or the kernel: direct reclaim, process_madvise, vfork children */
	RSS_KSWAPD,        /* reclaim in the background */
	RSS_KHUGEPAGED,    /* small pages made huge ones */
};

/* Changes of RSS are summed by blocks of 64 pages. */
struct rss_key {
	u64 stack;
	u64 block;   /* address of the block; 0: not known */
	u16 member;  /* MM_FILEPAGES 0, MM_ANONPAGES 1, MM_SWAPENTS 2, MM_SHMEMPAGES 3 (include/linux/mm_types_task.h) */
	u16 shrinks; /* 1: these pages went */
	u32 cause;
};

struct rss_value {
	s64 bytes;
	u64 pages; /* bit n: page n of the block is among them */
};

/* Page faults on neighbouring pages by one instruction with one stack, and what they changed that is not yet summed. */
struct fault_run {
	u32 tid;        /* 0: none */
	u32 taken;      /* a program is at it */
	u32 epoch;
	u32 left;       /* how many more faults its stack may serve */
	u32 heap;       /* 1: faults in the heap of a known allocator */
	u32 stackless;  /* 1: its faults need no stack, and so need not be on neighbouring pages */
	u64 ip, sp, bp; /* the user's, at each of its faults */
	u64 next;       /* the page that would go on with it */
	struct rss_key key;
	struct rss_value sum;
	u64 faults;     /* not yet counted: those that took the short way, and ... */
	u64 served;     /* ... those of them that were given another's stack */
	u64 pad0, pad1; /* to two cache lines: each CPU has one */
};
