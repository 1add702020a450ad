/* unwind.bpf.c: the user's call stack without frame pointers, from tables that tracer/unwind makes of .eh_frame.
 *
 * A probe calls unwind_begin and then, as its last step, unwind_in_uprobe or unwind_in_raw_tracepoint after its kind: a
 * tail call to a program that walks 5 frames and calls itself until the walk ends, then unwind_finished (defined by
 * who uses this file, and told what to go on with by unwind.next).
 * What makes it fast: the stack is copied once per page, and saved registers are read from the copy (a call of
 * bpf_probe_read_user costs 81 ns for 8 bytes and 122 for 4 KiB). All state is in struct thread_state, i.e. in map
 * memory: the verifier takes what it loads from there as unknown, so that the frames of a walk look alike to it.
 * Registers and rules are those of x86-64. Sizes arrive as -DUNWIND_ROWS, -DUNWIND_PAGES, -DUNWIND_MAPPINGS,
 * -DUNWIND_PROCESSES.
 */
#define UNWIND_FRAMES 5           /* per program: what loads fast; 127 frames take 26 of the 33 tail calls */
#define UNWIND_WINDOW_MIN 1024    /* fewer bytes left in the page: copy part of the next one too */
#define UNWIND_MAX_FRAME (1 << 20) /* a frame pointer further off than this is none */
#define UNWIND_HASH_FACTOR 0x9e3779b97f4a7c15ULL

/* Row number -> image-relative address << 32 | rule, sorted within an image. Written by user space through mmap,
 * each row before any page that names it. Full: user space leaves images without a table (UNWIND_PENDING) and says so.
 */
BPF_F_TABLE("array", u32, u64, unwind_rows, UNWIND_ROWS, BPF_F_MMAPABLE);
/* Page of an image -> candidates << 32 | number of the row in force at the page's start. Written as the rows are. */
BPF_F_TABLE("array", u32, u64, unwind_pages, UNWIND_PAGES, BPF_F_MMAPABLE);
/* Mapping number -> mapping. Written by user space: a process gets a fresh run of numbers with each change, and the
 * old run is left alone while a walk may still use it. Full: the least used mappings are left out and counted.
 */
BPF_F_TABLE("array", u32, struct unwind_mapping, unwind_mappings, UNWIND_MAPPINGS, BPF_F_MMAPABLE);
/* tgid -> its run of mappings. Written by user space, one atomic update for each change. Full: user space says so. */
BPF_TABLE("hash", u32, struct unwind_process, unwind_processes, UNWIND_PROCESSES);
/* 0 -> unwind_uprobe, unwind_plain_uprobe, unwind_raw_tracepoint, unwind_tracepoint. Written once, at load. */
BPF_PROG_ARRAY(unwind_uprobe_programs, 1);
BPF_PROG_ARRAY(unwind_plain_programs, 1);
BPF_PROG_ARRAY(unwind_raw_programs, 1);
BPF_PROG_ARRAY(unwind_tracepoint_programs, 1);

static inline int unwind_finished(void *ctx, struct thread_state *t);

/* Copy the stack from `address` to the end of its page. Returns 0, or an error where nothing can be read. */
static inline int unwind_refill(struct thread_state *t, u64 address)
{
	struct unwind_state *u = &t->unwind;
	u64 length = 4096 - (address & 4095);
	asm volatile("" : "+r"(length)); /* or the compiler compares the address instead, and the verifier sees no bound */
	if (length < UNWIND_WINDOW_MIN)
		length += 4096 - UNWIND_WINDOW_MIN;
	if (read_user(t->window, length, (void *)address)) {
		/* The next page may be none of the stack's. */
		length = 4096 - (address & 4095);
		if (read_user(t->window, length, (void *)address)) {
			u->window_length = 0;
			return -1;
		}
	}
	u->window_base = address;
	u->window_length = length < 8 ? 0 : length - 7;
	return 0;
}

/* 8 bytes of the user's stack. Returns 0, or an error. */
static inline int unwind_read(struct thread_state *t, u64 address, u64 *value)
{
	struct unwind_state *u = &t->unwind;
	if (address - u->window_base >= u->window_length) {
		if (unwind_refill(t, address) || !u->window_length)
			return -1;
	}
	u64 offset = address - u->window_base;
	/* Without this the compiler knows that the mask changes nothing and drops it; the verifier needs it. */
	asm volatile("" : "+r"(offset));
	*value = *(u64 *)(t->window + (offset & (UNWIND_WINDOW_SPAN - 1)));
	return 0;
}

static inline void unwind_record(struct thread_state *t, u64 ip)
{
	u64 depth = t->stack.depth;
	t->stack.depth = depth + 1;
	asm volatile("" : "+r"(depth)); /* as above */
	t->stack.ips[depth & 127] = ip;
	u64 hash = (t->unwind.hash ^ ip) * UNWIND_HASH_FACTOR;
	t->unwind.hash = hash ^ (hash >> 29);
}

/* Say that a return probe will replace the return address `ip` that lies below `cfa` (the stack pointer after the
 * return). To be called at each entry whose return is probed, so that walks from inside the call find the caller.
 */
static inline void unwind_hide_return(struct thread_state *t, u64 cfa, u64 ip)
{
	u32 slot = t->unwind.hidden_next++ & (UNWIND_HIDDEN - 1);
	t->unwind.hidden_cfa[slot] = cfa;
	t->unwind.hidden_ip[slot] = ip;
}

/* The return address that a return probe has replaced; 0: not known. The newest of equal places is the one that is
 * pending, except where a function was entered by a jump from another probed one: then that has the true address.
 */
static inline u64 unwind_hidden_return(struct unwind_state *u, u64 cfa)
{
	for (u32 i = 1; i <= UNWIND_HIDDEN; i++) {
		u32 slot = (u->hidden_next - i) & (UNWIND_HIDDEN - 1);
		if (u->hidden_cfa[slot] == cfa && u->hidden_ip[slot] != u->process.trampoline)
			return u->hidden_ip[slot];
	}
	return 0;
}

/* Load the mapping that holds `pc`. Returns 0, or -1 where there is none. */
static inline int unwind_find_mapping(struct unwind_state *u, u64 pc)
{
	u32 low = u->process.first, left = u->process.mappings;
	if (!left)
		return -1;
	for (int step = 0; step < 10; step++) {
		if (left <= 1)
			break;
		u32 half = left >> 1, middle = low + half;
		struct unwind_mapping *m = unwind_mappings.lookup(&middle);
		if (!m)
			return -1;
		if (m->start <= pc)
			low = middle;
		left -= half;
	}
	u32 found = low;
	struct unwind_mapping *m = unwind_mappings.lookup(&found);
	if (!m || pc - m->start >= m->length)
		return -1;
	u->mapping = *m;
	return 0;
}

/* The rule in force at `pc` in the current mapping. */
static inline u32 unwind_rule(struct unwind_state *u, u64 pc)
{
	u64 relative = pc - u->mapping.bias;
	u64 page = relative >> UNWIND_PAGE_SHIFT;
	if (!u->mapping.pages)
		return u->mapping.first_page;
	if (page >= u->mapping.pages)
		return UNWIND_NONE;
	u32 index = u->mapping.first_page + page;
	u64 *entry = unwind_pages.lookup(&index);
	if (!entry)
		return UNWIND_NONE;
	u32 low = *entry, left = *entry >> 32;
	u64 key = relative << 32 | 0xffffffff;
	for (int step = 0; step < 8; step++) {
		if (left <= 1)
			break;
		u32 half = left >> 1, middle = low + half;
		u64 *row = unwind_rows.lookup(&middle);
		if (!row)
			return UNWIND_NONE;
		if (*row <= key)
			low = middle;
		left -= half;
	}
	u32 found = low;
	u64 *row = unwind_rows.lookup(&found);
	return row ? *row : UNWIND_NONE;
}

/* Take the registers that the kernel saved at rsp for the interrupted code. Returns 1 where the walk ends. */
static inline int unwind_signal(struct thread_state *t)
{
	u64 saved[7]; /* rbp rbx rdx rax rcx rsp rip: uc_mcontext.gregs[REG_RBP] on, 120 bytes into ucontext */
	struct unwind_state *u = &t->unwind;
	if (read_user(saved, sizeof(saved), (void *)(u->sp + 120))) {
		t->stack.status |= STACK_READ_FAILED;
		return 1;
	}
	u->bp = saved[0];
	u->sp = saved[5];
	u->ip = saved[6];
	u->after_call = 0;
	u->guessed = 0;
	t->stack.status |= STACK_THROUGH_SIGNAL;
	return 0;
}

/* The caller's ip lies below the CFA; its stack pointer is the CFA. Returns 1 where the walk ends. */
static inline int unwind_return(struct thread_state *t, u64 cfa)
{
	struct unwind_state *u = &t->unwind;
	u64 ip;
	if (unwind_read(t, cfa - 8, &ip)) {
		t->stack.status |= STACK_READ_FAILED;
		return 1;
	}
	if (ip && ip == u->process.trampoline) {
		ip = unwind_hidden_return(u, cfa);
		if (!ip) {
			t->stack.status |= STACK_HIDDEN_RETURN;
			return 1;
		}
	}
	if (!ip) {
		t->stack.status |= STACK_COMPLETE;
		return 1;
	}
	u->ip = ip;
	u->sp = cfa;
	u->after_call = 1;
	return 0;
}

/* From the frame in u->ip, sp, bp to its caller's. Returns 1 where the walk ends, with the reason in the status. */
static inline int unwind_frame(struct thread_state *t)
{
	struct unwind_state *u = &t->unwind;
	u64 pc = u->ip - u->after_call;
	if (pc - u->mapping.start >= u->mapping.length && unwind_find_mapping(u, pc)) {
		t->stack.status |= STACK_NO_MAPPING;
		/* Kept, as its mapping may be newer than the table; but what a doubtful frame pointer led to is not. */
		if (!u->guessed && t->stack.depth < MAX_DEPTH)
			unwind_record(t, u->ip);
		return 1;
	}
	if (t->stack.depth >= MAX_DEPTH) {
		t->stack.status |= STACK_TRUNCATED;
		return 1;
	}
	unwind_record(t, u->ip);

	u32 rule = unwind_rule(u, pc);
	u32 kind = rule & 15;
	u64 offset = (rule >> 10) & ~7ULL;
	u64 cfa;
	u->guessed = 0;
	if (kind == UNWIND_RSP) {
		cfa = u->sp + offset;
	} else if (kind == UNWIND_RBP) {
		cfa = u->bp + offset;
	} else if (kind == UNWIND_NONE) {
		if (u->bp < u->sp || (u->bp & 7) || u->bp - u->sp > UNWIND_MAX_FRAME) {
			t->stack.status |= STACK_NO_ROW;
			return 1;
		}
		cfa = u->bp + 16;
		rule = UNWIND_RBP_RBP << 4;
		u->guessed = 1;
		t->stack.status |= STACK_THROUGH_FRAME_POINTERS;
	} else if (kind == UNWIND_END) {
		t->stack.status |= STACK_COMPLETE;
		return 1;
	} else if (kind == UNWIND_PLT) {
		cfa = u->sp + 8 + ((pc & 15) >= offset >> 3 ? 8 : 0);
	} else if (kind == UNWIND_SIGNAL) {
		return unwind_signal(t);
	} else if (kind == UNWIND_DEREF_RBP || kind == UNWIND_DEREF_RSP) {
		u64 place = u->bp + ((s64)(s32)(rule & 0xffffe000) >> 10), add = 0;
		if (kind == UNWIND_DEREF_RSP) {
			place = u->sp + (offset & 0x7fff);
			add = (offset >> 15) << 3;
		}
		if (read_user(&cfa, sizeof(cfa), (void *)place)) {
			t->stack.status |= STACK_READ_FAILED;
			return 1;
		}
		cfa += add;
	} else {
		t->stack.status |= kind == UNWIND_PENDING ? STACK_NO_TABLE : STACK_UNSUPPORTED;
		return 1;
	}

	u32 saved = (rule >> 4) & 3;
	if (saved == UNWIND_RBP_LOST) {
		u->bp = 1; /* no frame pointer is odd */
	} else if (saved) {
		u64 place = (saved == UNWIND_RBP_CFA ? cfa : u->bp) + (((s64)((u64)rule << 51) >> 57) << 3);
		if (unwind_read(t, place, &u->bp)) {
			t->stack.status |= STACK_READ_FAILED;
			return 1;
		}
	}
	return unwind_return(t, cfa);
}

/* Prepare the walk from these registers. Then: tail call, or unwind_some until it returns 1. */
static inline void unwind_begin(struct thread_state *t, u64 ip, u64 sp, u64 bp, u32 flags)
{
	struct unwind_state *u = &t->unwind;
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct unwind_process *process = unwind_processes.lookup(&tgid);
	if (process)
		u->process = *process;
	else
		u->process.mappings = 0;
	u->ip = ip;
	u->sp = sp;
	u->bp = bp;
	u->hash = tgid;
	u->flags = flags;
	u->started = 0;
	u->after_call = 0;
	u->guessed = 0;
	u->window_length = 0;
	u->mapping.length = 0;
	t->stack.depth = 0;
	t->stack.status = 0;
}

/* Walk up to UNWIND_FRAMES frames. Returns 1 when the walk has ended: t->stack and t->unwind.hash are final. */
static inline int unwind_some(struct thread_state *t)
{
	struct unwind_state *u = &t->unwind;
	int ended = 0;
	if (!u->started) {
		u->started = 1;
		if (u->flags & UNWIND_ENTRY) {
			unwind_record(t, u->ip);
			ended = unwind_return(t, u->sp + 8);
		}
	}
	if (!ended) {
		for (int i = 0; i < UNWIND_FRAMES; i++) {
			ended = unwind_frame(t);
			if (ended)
				break;
		}
	}
	return ended;
}

/* Equal frames that end for another reason are another stack. */
static inline int unwind_end(void *ctx, struct thread_state *t)
{
	u64 hash = (t->unwind.hash ^ t->stack.status) * UNWIND_HASH_FACTOR;
	t->unwind.hash = hash ^ (hash >> 29);
	return unwind_finished(ctx, t);
}

/* A tail call has failed: the program is not in its array, or 33 are through. */
static inline void unwind_cut(struct thread_state *t)
{
	count(COUNT_UNWIND_TAIL_CALL);
	t->stack.status |= STACK_TRUNCATED;
	if (!t->stack.depth)
		unwind_record(t, t->unwind.ip);
}

static inline struct thread_state *unwind_thread(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct thread_state *t = threads.lookup(&tid);
	if (!t)
		count(COUNT_UNWIND_LOST);
	return t;
}

/* The registers with which the current task left user code. */
struct user_registers {
	u64 ip, sp, bp;
	u64 call; /* the number of the system call that it is in; -1: in none, as in a page fault of user code */
};

#if defined(__x86_64__)
/* Where the context does not bring them. Returns 0, or -1 where the task has none (kernel threads) or runs 32-bit code.
 * Helpers 158 and 175 came with Linux 5.11 and 5.15; kernels without them, or without BTF, refuse a program that has
 * this, so that it is compiled out with -DNO_TASK_REGISTERS.
 */
static inline int user_registers(struct user_registers *to)
{
	to->ip = to->sp = to->bp = 0;
	to->call = -1;
#ifdef NO_TASK_REGISTERS
	return -1;
#else
	/* As a number, so that bcc does not turn these loads into bpf_probe_read: the verifier knows what it points to. */
	u64 registers = (u64)bpf_task_pt_regs(bpf_get_current_task_btf());
	u64 cs = *(u64 *)(registers + 136);
	to->bp = *(u64 *)(registers + 32);
	to->call = *(u64 *)(registers + 120);
	to->ip = *(u64 *)(registers + 128);
	to->sp = *(u64 *)(registers + 152);
	return (cs & 0xffff) == 0x33 && to->ip && to->sp ? 0 : -1;
#endif
}
#endif

/* The programs that walk. A program array takes programs of one type and of one expected attach type (the latter since
 * Linux 6.18: kernel/bpf/core.c, __bpf_prog_map_compatible), hence one array and one program for each kind of probe:
 * unwind_uprobe must be loaded with the attach type of the uprobes that use it.
 */
int unwind_uprobe(struct pt_regs *ctx)
{
	struct thread_state *t = unwind_thread();
	if (!t)
		return 0;
	if (!unwind_some(t)) {
		unwind_uprobe_programs.call(ctx, 0);
		unwind_cut(t);
	}
	return unwind_end(ctx, t);
}

#ifdef SESSIONS
/* For plain uprobes beside those of sessions. */
int unwind_plain_uprobe(struct pt_regs *ctx)
{
	struct thread_state *t = unwind_thread();
	if (!t)
		return 0;
	if (!unwind_some(t)) {
		unwind_plain_programs.call(ctx, 0);
		unwind_cut(t);
	}
	return unwind_end(ctx, t);
}
#endif

int unwind_raw_tracepoint(struct bpf_raw_tracepoint_args *ctx)
{
	struct thread_state *t = unwind_thread();
	if (!t)
		return 0;
	if (!unwind_some(t)) {
		unwind_raw_programs.call(ctx, 0);
		unwind_cut(t);
	}
	return unwind_end(ctx, t);
}

#ifdef CALL_EVENTS
int unwind_tracepoint(void *ctx)
{
	struct thread_state *t = unwind_thread();
	if (!t)
		return 0;
	if (!unwind_some(t)) {
		unwind_tracepoint_programs.call(ctx, 0);
		unwind_cut(t);
	}
	return unwind_end(ctx, t);
}

#endif

/* Ways into them, after unwind_begin, as the last step of a probe. They come back only where the tail call fails. */
static inline int unwind_in_uprobe(struct pt_regs *ctx, struct thread_state *t)
{
	unwind_uprobe_programs.call(ctx, 0);
	unwind_cut(t);
	return unwind_end(ctx, t);
}

static inline int unwind_in_plain_uprobe(struct pt_regs *ctx, struct thread_state *t)
{
	unwind_plain_programs.call(ctx, 0);
	unwind_cut(t);
	return unwind_end(ctx, t);
}

static inline int unwind_in_raw_tracepoint(void *ctx, struct thread_state *t)
{
	unwind_raw_programs.call(ctx, 0);
	unwind_cut(t);
	return unwind_end(ctx, t);
}

static inline int unwind_in_tracepoint(void *ctx, struct thread_state *t)
{
	unwind_tracepoint_programs.call(ctx, 0);
	unwind_cut(t);
	return unwind_end(ctx, t);
}
