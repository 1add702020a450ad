/* alloc.bpf.c: probes on the malloc family: the set of live blocks and the totals of each stack.
 *
 * A call counts once, however the allocator implements it: while one is in flight in a thread, calls from deeper
 * frames belong to it. Which call a return belongs to follows from the stack pointer, and a call that never returns
 * (longjmp, exception, thread end) is recognised by its return address being gone, so neither can shift the count.
 */

/* (address, process, program) -> block. Full: COUNT_LIVE_FULL, and the stack's totals say how much. */
BPF_F_TABLE("hash", struct live_key, struct live_value, live, MAX_LIVE, BPF_F_NO_PREALLOC);
/* (stack, program) -> totals, only ever added to. Full: COUNT_TOTALS_FULL. */
BPF_F_TABLE("hash", struct totals_key, struct totals, totals, MAX_STACKS, BPF_F_NO_PREALLOC);

#define RETURNED 8 /* what `ret` pops: a return probe sees the stack pointer above the return address */

static inline struct totals *totals_of(u64 stack, u64 epoch)
{
	struct totals_key key = {.stack = stack, .epoch = epoch};
	struct totals *sum = totals.lookup(&key);
	if (sum)
		return sum;
	struct totals zero = {};
	totals.insert(&key, &zero);
	sum = totals.lookup(&key);
	if (!sum)
		count(COUNT_TOTALS_FULL);
	return sum;
}

static inline void add_freed(struct live_value *block, u64 epoch, s64 sign)
{
	struct totals *sum = totals_of(block->stack, epoch);
	if (sum) {
		__sync_fetch_and_add(&sum->frees, sign);
		__sync_fetch_and_add(&sum->freed_bytes, sign * (s64)block->size);
	}
}

static inline struct live_key key_of(u64 address, struct control *c)
{
	struct live_key key = {.address = address, .tgid = TARGET_TGID, .epoch = c->epoch};
	return key;
}

/* A block leaves the live set; its record goes to *old. Returns 0 where it was not known. */
static inline int take_block(struct control *c, u64 address, struct live_value *old)
{
	struct live_key key = key_of(address, c);
	struct live_value *block = live.lookup(&key);
	if (!block)
		return 0;
	*old = *block;
	if (live.delete(&key))
		return 0; /* another thread freed it first: the target's own double free */
	add_freed(old, c->epoch, 1);
	return 1;
}

static inline void put_block(struct control *c, u64 address, struct live_value *block)
{
	struct live_key key = key_of(address, c);
	struct live_value *stale = live.lookup(&key);
	if (stale) {
		struct live_value missed = *stale;
		add_freed(&missed, c->epoch, 1);
		count(COUNT_FREES_MISSED);
	}
	int failed = live.update(&key, block);
	struct totals *sum = totals_of(block->stack, c->epoch);
	if (sum) {
		if (failed) {
			__sync_fetch_and_add(&sum->lost, 1);
			__sync_fetch_and_add(&sum->lost_bytes, block->size);
		} else {
			__sync_fetch_and_add(&sum->allocations, 1);
			__sync_fetch_and_add(&sum->allocated_bytes, block->size);
		}
	}
	if (failed)
		count(COUNT_LIVE_FULL);
}

/* A program that all entry probes go on to: 0 -> call_enters. Set at load. Compiling its body into each of them would
 * double the time from the command to the first probe.
 */
BPF_PROG_ARRAY(call_programs, 1);

static inline int call_entered(struct pt_regs *ctx, u32 op, u64 size, u64 pointer)
{
	if (!traced())
		return 0;
	count(COUNT_PROBE_HITS);
	struct thread_state *t = this_thread();
	if (!t)
		return 0;
	t->entered_op = op;
	t->entered_size = size;
	t->entered_pointer = pointer;
	call_programs.call(ctx, 0);
	count(COUNT_TAIL_CALLS_FAILED);
	return 0;
}

/* The pending call never returned. One that may throw has thrown, so it allocated nothing. */
static inline void call_abandoned(struct thread_state *t)
{
	if (t->call_op == CALL_NEW)
		count(COUNT_FAILED_CALLS);
	else
		count(COUNT_CALLS_ABANDONED);
	t->call_op = CALL_NONE;
}

/* Decide whether the call is the outermost one, and take out what it replaces. Returns 1 where it is. */
static inline int begin_call(struct thread_state *t, struct control *c, u64 sp, u64 caller)
{
	/* What an operator new that may throw calls is either its own way to the block, or the exception's memory: in both
	 * cases that call is the one to count.
	 */
	if (t->call_op != CALL_NEW && in_pending_call(t, sp))
		return 0;
	if (t->call_op != CALL_NONE) {
		/* Jumped to by the pending call: the return address is its return probe's, which is no code of the target. */
		if (sp == t->call_sp && is_trampoline(t, caller))
			return 0;
		/* A throwing function has no return probe, so its jump to another one cannot be told from a new call. */
		if (sp != t->call_sp || caller != t->call_return)
			call_abandoned(t);
	}
	t->call_op = t->entered_op;
	t->call_size = t->entered_size;
	t->call_pointer = t->entered_pointer;
	t->call_sp = sp;
	t->call_return = caller;
	t->call_has_old = 0;
	if (t->call_op == CALL_REALLOC && t->call_pointer) {
		t->call_has_old = take_block(c, t->call_pointer, &t->call_old);
		if (!t->call_has_old)
			count(COUNT_FREES_UNKNOWN);
	}
	return 1;
}

/* Never attached: call_entered goes on here. */
int call_enters(struct pt_regs *ctx)
{
	struct control *c = control_block();
	struct thread_state *t = find_thread();
	if (!c || !t)
		return 0;
	u64 sp = PT_REGS_SP(ctx);
	u64 caller = 0;
	if (read_target(t, &caller, sp))
		count(COUNT_READ_FAILED);
	/* Also of a function whose return is not probed here: another tracer may do it. */
	unwind_hide_return(t, sp + 8, caller);
	if (!begin_call(t, c, sp, caller))
		return 0;
	return stack_at_entry(ctx, t);
}

/* Return probe of the functions that cannot throw, and plain probe on the `ret` instructions of those that may: a
 * return probe would end the target when an exception passes it. (A call made by the pending one cannot be mistaken
 * for it: the ABI aligns the stack, so its stack pointer is at least 8 lower at its return, too.)
 */
int call_returns(struct pt_regs *ctx)
{
	struct control *c = traced();
	if (!c)
		return 0;
	struct thread_state *t = find_thread();
	if (!t || t->call_op == CALL_NONE)
		return 0;
	u64 sp = PT_REGS_SP(ctx);
	if (t->call_op != CALL_NEW)
		sp -= RETURNED;
	if (sp != t->call_sp) {
		if (sp > t->call_sp)
			call_abandoned(t);
		return 0;
	}
	u32 op = t->call_op;
	t->call_op = CALL_NONE;
	u64 address = PT_REGS_RC(ctx);
	if (op == CALL_POSIX_MEMALIGN) {
		u64 failed = address & 0xffffffff; /* the result is an int */
		address = 0;
		if (!failed && read_target(t, &address, t->call_pointer))
			count(COUNT_READ_FAILED);
	}
	if (!address) {
		count(COUNT_FAILED_CALLS);
		/* A failed realloc keeps the old block; realloc to size 0 frees it (glibc, jemalloc). */
		if (op == CALL_REALLOC && t->call_has_old && t->call_size) {
			struct live_value old = t->call_old;
			struct live_key key = key_of(t->call_pointer, c);
			add_freed(&old, c->epoch, -1);
			if (live.update(&key, &old))
				count(COUNT_LIVE_FULL);
		}
		return 0;
	}
	struct live_value block = {
	    .size = t->call_size, .stack = t->call_stack, .time_ns = bpf_ktime_get_ns()};
	put_block(c, address, &block);
	count(COUNT_ALLOCATIONS);
	return 0;
}

/* Probes. Named after the shape of the arguments: tracer/heap/allocators.py says which function has which. */

int enter_malloc(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_PLAIN, PT_REGS_PARM1(ctx), 0);
}

int enter_calloc(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_PLAIN, PT_REGS_PARM1(ctx) * PT_REGS_PARM2(ctx), 0);
}

int enter_realloc(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_REALLOC, PT_REGS_PARM2(ctx), PT_REGS_PARM1(ctx));
}

int enter_reallocarray(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_REALLOC, PT_REGS_PARM2(ctx) * PT_REGS_PARM3(ctx), PT_REGS_PARM1(ctx));
}

int enter_memalign(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_PLAIN, PT_REGS_PARM2(ctx), 0);
}

int enter_posix_memalign(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_POSIX_MEMALIGN, PT_REGS_PARM3(ctx), PT_REGS_PARM1(ctx));
}

int enter_new(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_NEW, PT_REGS_PARM1(ctx), 0);
}

int enter_free(struct pt_regs *ctx)
{
	u64 address = PT_REGS_PARM1(ctx);
	if (!address)
		return 0;
	struct control *c = traced();
	if (!c)
		return 0;
	count(COUNT_PROBE_HITS);
	struct thread_state *t = find_thread();
	struct live_value old;
	if (take_block(c, address, &old)) {
		count(COUNT_FREES);
		if (t)
			t->freed_last = address;
		return 0;
	}
	/* Not known; or taken out already, by the function that now goes on to this one (delete to free), or at the
	 * entry of a realloc that frees the old block itself.
	 */
	if (!t || (t->freed_last != address && !in_pending_call(t, PT_REGS_SP(ctx))))
		count(COUNT_FREES_UNKNOWN);
	if (t)
		t->freed_last = 0;
	return 0;
}

/* Never attached: whether it loads as a session program tells what the kernel's uprobe links can do. */
int feature_session(struct pt_regs *ctx)
{
	return 0;
}
