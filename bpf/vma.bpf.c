/* vma.bpf.c: system calls that change the address space, as events.
 *
 * What releases address space is sent at entry, what acquires it at exit: with release at exit, two threads that
 * hand an address on to each other are seen in the wrong order. The events of the single system calls are used
 * (syscalls:sys_enter_mmap, ...): all others, of every process, pay 45 ns for them. The raw tracepoints sys_enter and
 * sys_exit, which run a program at each, cost 200 ns; they are for kernels without the helpers that user_registers needs.
 */

/* What a raw tracepoint on system calls passes: the user's registers, and the number at the entry, the result at the exit. */
struct call_args {
	u64 args[2];
};

#define PAGE_UP(x) (((x) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1ULL))
/* Flags of the calls (include/uapi/asm-generic/mman-common.h, linux/shm.h). */
#define MAP_FIXED 0x10
#define PROT_GROWS 0x03000000 /* PROT_GROWSDOWN, PROT_GROWSUP: as far as the mapping reaches */
#define SHM_RDONLY 010000
#define SHM_EXEC 0100000

static inline void send(struct thread_state *t)
{
	t->event.time_ns = bpf_ktime_get_ns();
	t->event.tid = bpf_get_current_pid_tgid();
	if (events.ringbuf_output(&t->event, sizeof(t->event), 0))
		count(COUNT_EVENTS_LOST);
	else
		count(COUNT_EVENTS);
}

static inline void blank_event(struct thread_state *t, u32 kind)
{
	struct event *e = &t->event;
	e->kind = kind;
	e->address = e->length = e->old_address = e->old_length = e->offset = e->stack = 0;
	e->prot = e->flags = 0;
	e->fd = -1;
	e->in_allocator = 0;
}

static inline int failed(s64 result)
{
	return result < 0 && result >= -4095;
}

/* Send what the call is about to release. */
static inline void send_release(struct thread_state *t, u32 op, struct control *c)
{
	u64 address = t->sys_args[0], length = PAGE_UP(t->sys_args[1]);
	if (op == SYS_BRK) {
		if (!address || !c->brk || PAGE_UP(address) >= PAGE_UP(c->brk))
			return;
		length = PAGE_UP(c->brk) - PAGE_UP(address);
		address = PAGE_UP(address);
	}
	if (op == SYS_MREMAP) {
		blank_event(t, EVENT_REMAP_ENTER);
		t->event.old_address = address;
		t->event.old_length = length;
		t->event.flags = t->sys_args[3];
	} else {
		blank_event(t, op == SYS_SHMDT ? EVENT_DETACH : EVENT_UNMAP);
		t->event.address = address;
		t->event.length = op == SYS_SHMDT ? 0 : length;
	}
	send(t);
}

/* args are (registers, number). */
static inline int call_begins(struct call_args *ctx)
{
	u64 number = ctx->args[1];
	u32 op;
	if (number == NR_MMAP)
		op = SYS_MMAP;
	else if (number == NR_MUNMAP)
		op = SYS_MUNMAP;
	else if (number == NR_BRK)
		op = SYS_BRK;
	else if (number == NR_MREMAP)
		op = SYS_MREMAP;
	else if (number == NR_MADVISE)
		op = SYS_MADVISE;
	else if (number == NR_MPROTECT || number == NR_PKEY_MPROTECT)
		op = SYS_MPROTECT;
	else if (number == NR_SHMAT)
		op = SYS_SHMAT;
	else if (number == NR_SHMDT)
		op = SYS_SHMDT;
	else if (number == NR_REMAP_FILE_PAGES || number == NR_IO_SETUP || number == NR_IO_DESTROY)
		op = SYS_OTHER_MAP;
	else
		return 0;
	struct control *c = traced();
	if (!c)
		return 0;
	struct thread_state *t = this_thread();
	if (!t)
		return 0;
	struct pt_regs regs;
	if (read_kernel(&regs, sizeof(regs), (void *)ctx->args[0])) {
		count(COUNT_READ_FAILED);
		return 0;
	}
	t->sys_op = op;
	t->sys_sp = USER_SP(regs);
	t->fault_address = 0;
	t->sys_args[0] = SYSCALL_ARG0(regs);
	t->sys_args[1] = SYSCALL_ARG1(regs);
	t->sys_args[2] = SYSCALL_ARG2(regs);
	t->sys_args[3] = SYSCALL_ARG3(regs);
	t->sys_args[4] = SYSCALL_ARG4(regs);
	t->sys_args[5] = SYSCALL_ARG5(regs);
	if (op == SYS_MUNMAP || op == SYS_MREMAP || op == SYS_BRK || op == SYS_SHMDT)
		send_release(t, op, c);
	return 0;
}

/* The event of a call that returned; 0 where there is none. */
static inline u32 describe(struct thread_state *t, u32 op, s64 result, struct control *c)
{
	struct event *e = &t->event;
	blank_event(t, 0);
	e->address = t->sys_args[0];
	e->length = PAGE_UP(t->sys_args[1]);
	if (op == SYS_MREMAP) {
		e->old_address = t->sys_args[0];
		e->old_length = PAGE_UP(t->sys_args[1]);
		e->address = result; /* or -errno: what was released at entry is still there */
		e->length = PAGE_UP(t->sys_args[2]);
		e->flags = t->sys_args[3];
		return EVENT_REMAP;
	}
	if (op == SYS_MUNMAP || op == SYS_SHMDT)
		return failed(result) ? EVENT_KEPT : 0;
	if (op == SYS_BRK) {
		u64 before = c->brk, now = result, wanted = t->sys_args[0];
		c->brk = now;
		if (!c->heap_start)
			c->heap_start = now;
		e->address = PAGE_UP(before);
		e->length = PAGE_UP(now) - PAGE_UP(before);
		if (wanted && PAGE_UP(wanted) < PAGE_UP(before) && PAGE_UP(now) != PAGE_UP(wanted))
			return EVENT_KEPT;
		return before && PAGE_UP(now) > PAGE_UP(before) ? EVENT_BRK_GROW : 0;
	}
	if (op == SYS_OTHER_MAP)
		return failed(result) ? 0 : EVENT_RESYNC;
	if (failed(result)) {
		/* What was in the place may be gone, or what came first in the range may be changed already. */
		if (op == SYS_MMAP && t->sys_args[3] & MAP_FIXED)
			return EVENT_RESYNC;
		return op == SYS_MPROTECT ? EVENT_RESYNC : 0;
	}
	if (op == SYS_MMAP) {
		e->address = result;
		e->prot = t->sys_args[2];
		e->flags = t->sys_args[3];
		e->fd = t->sys_args[4];
		e->offset = t->sys_args[5];
		return EVENT_MAP;
	}
	if (op == SYS_MPROTECT) {
		e->prot = t->sys_args[2];
		return e->prot & PROT_GROWS ? EVENT_RESYNC : EVENT_PROTECT;
	}
	if (op == SYS_SHMAT) {
		u64 flags = t->sys_args[2];
		e->address = result;
		e->length = 0;
		e->old_address = t->sys_args[0];
		e->prot = 1 | (flags & SHM_RDONLY ? 0 : 2) | (flags & SHM_EXEC ? 4 : 0);
		return EVENT_ATTACH;
	}
	e->flags = t->sys_args[2];
	return EVENT_ADVISE;
}

/* args are (registers, result). */
static inline int call_ends(void *context, struct call_args *ctx, int is_raw)
{
	struct control *c = traced();
	if (!c)
		return 0;
	struct thread_state *t = find_thread();
	if (!t || t->sys_op == SYS_NONE)
		return 0;
	u32 op = t->sys_op;
	t->sys_op = SYS_NONE;
	u32 kind = describe(t, op, ctx->args[1], c);
	if (!kind)
		return 0;
	t->event.kind = kind;
	int acquires = kind == EVENT_MAP || kind == EVENT_REMAP || kind == EVENT_BRK_GROW || kind == EVENT_ATTACH;
	t->event.in_allocator = in_pending_call(t, t->sys_sp);
	/* The stack is of use where no allocator stands between the caller and the kernel. */
	if (acquires && !t->event.in_allocator)
		return stack_at_sys_exit(context, t, ctx->args[0], is_raw);
	send(t);
	return 0;
}

#ifndef CALL_EVENTS
int on_sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
	struct call_args args = {.args = {ctx->args[0], ctx->args[1]}};
	return call_begins(&args);
}

int on_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct call_args args = {.args = {ctx->args[0], ctx->args[1]}};
	return call_ends(ctx, &args, 1);
}

#else
/* Events syscalls:sys_enter_mmap and so on. Their own fields differ from call to call: the registers do not. */
static inline int read_registers(struct pt_regs *regs)
{
	return traced() && !read_kernel(regs, sizeof(*regs), (void *)bpf_task_pt_regs(bpf_get_current_task_btf()));
}

int on_memory_call(void *ctx)
{
	struct pt_regs regs;
	if (!read_registers(&regs))
		return 0;
	struct call_args args = {.args = {(u64)&regs, SYSCALL_NUMBER(regs)}};
	return call_begins(&args);
}

int on_memory_call_end(void *ctx)
{
	struct pt_regs regs;
	if (!read_registers(&regs))
		return 0;
	struct call_args args = {.args = {(u64)&regs, SYSCALL_RESULT(regs)}};
	return call_ends(ctx, &args, 0);
}
#endif
