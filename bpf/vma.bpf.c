/* vma.bpf.c: system calls that change the address space, as events.
 *
 * What releases address space is sent at entry, what acquires it at exit: with release at exit, two threads that
 * hand an address on to each other are seen in the wrong order.
 */

struct sys_enter_args {
	u64 common;
	u64 nr;
	u64 args[6];
};

struct sys_exit_args {
	u64 common;
	u64 nr;
	s64 result;
};

#define PAGE_UP(x) (((x) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1ULL))
#define MREMAP_DONTUNMAP 4

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
	e->in_allocator = t->call_op != CALL_NONE;
}

/* `arguments`: how many the call has; the kernel refuses a program that could read past them. */
static inline struct thread_state *syscall_enters(struct sys_enter_args *ctx, u32 op, u32 arguments)
{
	if (!traced())
		return NULL;
	struct thread_state *t = this_thread();
	if (!t)
		return NULL;
	t->sys_op = op;
	t->fault_address = 0;
	t->sys_args[0] = ctx->args[0];
	if (arguments > 1)
		t->sys_args[1] = ctx->args[1];
	if (arguments > 2)
		t->sys_args[2] = ctx->args[2];
	if (arguments > 3)
		t->sys_args[3] = ctx->args[3];
	if (arguments > 4)
		t->sys_args[4] = ctx->args[4];
	if (arguments > 5)
		t->sys_args[5] = ctx->args[5];
	return t;
}

/* The state of a thread that leaves the call it entered while traced, else NULL. */
static inline struct thread_state *syscall_leaves(u32 op)
{
	if (!traced())
		return NULL;
	struct thread_state *t = find_thread();
	if (!t || t->sys_op != op)
		return NULL;
	t->sys_op = SYS_NONE;
	return t;
}

static inline int failed(s64 result)
{
	return result < 0 && result >= -4095;
}

/* Send the event, with the stack where no allocator stands between the caller and the kernel. */
static inline int send_mapping(void *ctx, struct thread_state *t)
{
	if (t->event.in_allocator) {
		send(t);
		return 0;
	}
	return stack_in_kernel(ctx, t, FOR_MAPPING);
}

int enter_mmap(struct sys_enter_args *ctx)
{
	syscall_enters(ctx, SYS_MMAP, 6);
	return 0;
}

int exit_mmap(struct sys_exit_args *ctx)
{
	struct thread_state *t = syscall_leaves(SYS_MMAP);
	if (!t || failed(ctx->result))
		return 0;
	blank_event(t, EVENT_MAP);
	t->event.address = ctx->result;
	t->event.length = PAGE_UP(t->sys_args[1]);
	t->event.prot = t->sys_args[2];
	t->event.flags = t->sys_args[3];
	t->event.fd = t->sys_args[4];
	t->event.offset = t->sys_args[5];
	return send_mapping(ctx, t);
}

int enter_munmap(struct sys_enter_args *ctx)
{
	struct thread_state *t = syscall_enters(ctx, SYS_MUNMAP, 2);
	if (!t)
		return 0;
	blank_event(t, EVENT_UNMAP);
	t->event.address = t->sys_args[0];
	t->event.length = PAGE_UP(t->sys_args[1]);
	send(t);
	return 0;
}

int exit_munmap(struct sys_exit_args *ctx)
{
	struct thread_state *t = syscall_leaves(SYS_MUNMAP);
	if (!t || !failed(ctx->result))
		return 0;
	blank_event(t, EVENT_RESYNC);
	send(t);
	return 0;
}

int enter_mremap(struct sys_enter_args *ctx)
{
	struct thread_state *t = syscall_enters(ctx, SYS_MREMAP, 5);
	if (!t)
		return 0;
	blank_event(t, EVENT_REMAP_ENTER);
	t->event.old_address = t->sys_args[0];
	t->event.old_length = PAGE_UP(t->sys_args[1]);
	t->event.flags = t->sys_args[3];
	send(t);
	return 0;
}

int exit_mremap(struct sys_exit_args *ctx)
{
	struct thread_state *t = syscall_leaves(SYS_MREMAP);
	if (!t)
		return 0;
	blank_event(t, EVENT_REMAP);
	t->event.old_address = t->sys_args[0];
	t->event.old_length = PAGE_UP(t->sys_args[1]);
	t->event.address = ctx->result;
	t->event.length = PAGE_UP(t->sys_args[2]);
	t->event.flags = t->sys_args[3];
	return send_mapping(ctx, t);
}

int enter_brk(struct sys_enter_args *ctx)
{
	struct thread_state *t = syscall_enters(ctx, SYS_BRK, 1);
	struct control *c = control_block();
	if (!t || !c)
		return 0;
	u64 wanted = t->sys_args[0];
	if (!wanted || !c->brk || wanted >= c->brk || PAGE_UP(wanted) == PAGE_UP(c->brk))
		return 0;
	blank_event(t, EVENT_UNMAP);
	t->event.address = PAGE_UP(wanted);
	t->event.length = PAGE_UP(c->brk) - PAGE_UP(wanted);
	send(t);
	return 0;
}

int exit_brk(struct sys_exit_args *ctx)
{
	struct thread_state *t = syscall_leaves(SYS_BRK);
	struct control *c = control_block();
	if (!t || !c)
		return 0;
	u64 before = c->brk, now = ctx->result;
	c->brk = now;
	if (!c->heap_start)
		c->heap_start = now;
	if (!before || PAGE_UP(now) <= PAGE_UP(before))
		return 0;
	blank_event(t, EVENT_BRK_GROW);
	t->event.address = PAGE_UP(before);
	t->event.length = PAGE_UP(now) - PAGE_UP(before);
	return send_mapping(ctx, t);
}

int enter_mprotect(struct sys_enter_args *ctx)
{
	syscall_enters(ctx, SYS_MPROTECT, 3);
	return 0;
}

int exit_mprotect(struct sys_exit_args *ctx)
{
	struct thread_state *t = syscall_leaves(SYS_MPROTECT);
	if (!t || failed(ctx->result))
		return 0;
	blank_event(t, EVENT_PROTECT);
	t->event.address = t->sys_args[0];
	t->event.length = PAGE_UP(t->sys_args[1]);
	t->event.prot = t->sys_args[2];
	send(t);
	return 0;
}

int enter_madvise(struct sys_enter_args *ctx)
{
	syscall_enters(ctx, SYS_MADVISE, 3);
	return 0;
}

int exit_madvise(struct sys_exit_args *ctx)
{
	struct thread_state *t = syscall_leaves(SYS_MADVISE);
	if (!t || failed(ctx->result))
		return 0;
	blank_event(t, EVENT_ADVISE);
	t->event.address = t->sys_args[0];
	t->event.length = PAGE_UP(t->sys_args[1]);
	t->event.flags = t->sys_args[2];
	send(t);
	return 0;
}
