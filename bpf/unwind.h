/* unwind.h: the unwinder's layouts: its state in struct thread_state, the values of its maps, the coding of rules.
 *
 * It stands before the definition of struct thread_state, which holds a `struct unwind_state unwind` and a
 * `u8 window[UNWIND_WINDOW]`. tracer/unwind/rules.py states the same rules for Python, tracer/unwind/mappings.py the
 * same map values; tests/bpf/test_unwind.py compares them.
 */
/* bpf_probe_read_user and bpf_probe_read_kernel. By these names, bcc looks for them in /proc/kallsyms at each call that it
 * meets, which took half of the time to compile.
 */
static long (*read_user)(void *to, u32 size, const void *from) = (void *)112;
static long (*read_kernel)(void *to, u32 size, const void *from) = (void *)113;

#define UNWIND_WINDOW_SPAN 4096                 /* bytes of the user's stack that are copied at once, a power of two */
#define UNWIND_WINDOW (UNWIND_WINDOW_SPAN + 8)  /* an 8-byte read at the last masked offset stays inside */
#define UNWIND_PAGE_SHIFT 8                     /* the page index has one entry per 256 bytes of an image */
#define UNWIND_HIDDEN 4                         /* nested calls whose return address a return probe has replaced */

enum unwind_flags {
	UNWIND_ENTRY = 1, /* the stack pointer is as at the function's entry: the caller's address lies there */
};

/* How the canonical frame address (CFA: the stack pointer before the call) follows from the registers: bits 0 to 3.
 * Bits 4-5: where the caller's rbp is (enum unwind_rbp), bits 6-12: its signed offset / 8,
 * bits 13-31: offset / 8 of the CFA.
 */
enum unwind_cfa {
	UNWIND_NONE,      /* no information: the frame pointer, if it looks like one */
	UNWIND_RSP,       /* rsp + offset */
	UNWIND_RBP,       /* rbp + offset */
	UNWIND_PLT,       /* rsp + 8, and 8 more from byte `offset / 8` of each 16-byte stub on */
	UNWIND_SIGNAL,    /* the kernel's signal frame: all registers lie at rsp */
	UNWIND_DEREF_RBP, /* *(rbp + signed offset) */
	UNWIND_END,       /* the outermost frame: its return address is undefined */
	UNWIND_UNSUP,     /* unwind information that has no coding here; the offset holds the reason */
	UNWIND_DEREF_RSP, /* *(rsp + low 12 bits * 8) + high 7 bits * 8 */
	UNWIND_PENDING,   /* the table of this mapping is not there (yet) */
};

enum unwind_rbp {
	UNWIND_RBP_SAME,  /* unchanged */
	UNWIND_RBP_CFA,   /* at CFA + offset */
	UNWIND_RBP_RBP,   /* at rbp + offset */
	UNWIND_RBP_LOST,  /* not known */
};

/* An executable mapping of a process. 32 bytes. */
struct unwind_mapping {
	u64 start;
	u64 length;
	u64 bias;        /* what to subtract from an address to get the image-relative one that rows and pages use */
	u32 first_page;  /* index into unwind_pages; the rule for the whole mapping where `pages` is 0 */
	u32 pages;
};

/* Which mappings a process has: `mappings` of them from index `first` on, sorted by address. 16 bytes. */
struct unwind_process {
	u32 first;
	u32 mappings;
	u64 trampoline;  /* where return probes make functions return to: the start of [uprobes]; 0: none */
};

/* A walk in progress; `hidden` outlives it. */
struct unwind_state {
	u64 ip;
	u64 sp;
	u64 bp;
	u64 hash;
	u64 window_base;
	u32 window_length; /* 0: nothing copied. It counts the addresses at which 8 bytes can be read */
	u32 flags;
	u32 started;
	u32 next;          /* the caller's: what unwind_finished goes on with */
	u32 after_call;    /* 1 where ip is a return address: the call lies before it */
	u32 guessed;       /* 1 where ip comes from a frame pointer that no table vouches for */
	struct unwind_mapping mapping; /* the one that the last frame was in */
	struct unwind_process process;
	u64 hidden_cfa[UNWIND_HIDDEN];
	u64 hidden_ip[UNWIND_HIDDEN];
	u32 hidden_next;
	u32 unused;
};
