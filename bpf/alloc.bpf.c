/* alloc.bpf.c: probes on the malloc family: the set of live blocks and the totals of each stack.
 *
 * A call counts once, however the allocator implements it: while one is in flight in a thread, calls from deeper
 * frames belong to it. Which call a return belongs to follows from the stack pointer, and a call that never returns
 * (longjmp, exception, thread end) is recognised by its return address being gone, so neither can shift the count.
 *
 * A call that is not sampled ends at its entry, by the cheapest way: no stack, no return probe, no table. Where it may
 * itself call the allocator (calloc's malloc), it leaves a mark with its thread, so that its inner call does not draw
 * a second time.
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
	if (!sum)
		return;
	s64 blocks = sign * (s64)blocks_for(block);
	__sync_fetch_and_add(&sum->frees, blocks);
	__sync_fetch_and_add(&sum->freed_bytes, sign * (s64)bytes_for(block));
	struct settings *s = settings_block();
	if (s && block->time_ns < s->probed_since)
		__sync_fetch_and_add(&sum->late_frees, blocks);
}

static inline struct live_key key_of(u64 address, struct control *c)
{
	struct live_key key = {.address = address, .tgid = target_tgid(), .epoch = c->epoch};
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
	filter_add(address, -1);
	add_freed(old, c->epoch, 1);
	return 1;
}

/* Insert or replace. The filter is told first: no free of the block may find it empty. Returns 0, or an error. */
static inline int insert_block(struct live_key *key, struct live_value *block, int is_new)
{
	if (is_new)
		filter_add(key->address, 1);
	int failed = live.update(key, block);
	if (failed && is_new)
		filter_add(key->address, -1);
	return failed;
}

static inline void put_block(struct control *c, struct settings *s, u64 address, struct live_value *block)
{
	struct live_key key = key_of(address, c);
	struct live_value *stale = live.lookup(&key);
	if (stale) {
		struct live_value missed = *stale;
		add_freed(&missed, c->epoch, 1);
		/* What was freed while the probes were off is no loss. */
		if (missed.time_ns >= s->probed_since)
			count(COUNT_FREES_MISSED);
	}
	int failed = insert_block(&key, block, !stale);
	struct totals *sum = totals_of(block->stack, c->epoch);
	if (sum) {
		if (failed) {
			__sync_fetch_and_add(&sum->lost, blocks_for(block));
			__sync_fetch_and_add(&sum->lost_bytes, bytes_for(block));
		} else {
			__sync_fetch_and_add(&sum->allocations, blocks_for(block));
			__sync_fetch_and_add(&sum->allocated_bytes, bytes_for(block));
		}
		__sync_fetch_and_add(&sum->sampled, 1);
	}
	if (failed)
		count(COUNT_LIVE_FULL);
}

/* A program that all entry probes go on to: 0 -> call_enters. Set at load. Compiling its body into each of them would
 * double the time from the command to the first probe.
 */
BPF_PROG_ARRAY(call_programs, 1);
/* The same for plain probes beside those of sessions: 0 -> plain_call_enters. */
BPF_PROG_ARRAY(plain_call_programs, 1);

/* Whether this call is part of one that was not sampled. Its return address still being in its place tells that it has
 * not returned (or it is a return probe's: a session leaves it alone, but may not be the only one). At the same stack
 * pointer, another function was jumped to.
 */
static inline int in_skipped_call(struct thread_state *t, struct settings *s, u64 ip, u64 sp)
{
	u64 slot = 0;
	if (t->skipped_window == s->probed_since && sp <= t->skipped_sp && t->skipped_sp - sp < NESTED_SPAN &&
	    (sp != t->skipped_sp || ip != t->skipped_ip) && !read_target(t, &slot, t->skipped_sp) &&
	    (slot == t->skipped_return || is_trampoline(t, slot)))
		return 1;
	t->skipped_sp = 0;
	return 0;
}

static inline void skip_call(struct thread_state *t, struct settings *s, u64 ip, u64 sp)
{
	if (!t || read_target(t, &t->skipped_return, sp))
		return;
	t->skipped_sp = sp;
	t->skipped_ip = ip;
	t->skipped_window = s->probed_since;
}

/* Whether the call needs to be followed. `chance` is what it drew; a call inside another one has no say. */
static inline int is_wanted(struct thread_state *t, struct settings *s, struct pt_regs *ctx, u32 op, u64 pointer,
			    u64 chance)
{
	if (t && t->skipped_sp && in_skipped_call(t, s, PT_REGS_IP(ctx), PT_REGS_SP(ctx)))
		return 0;
	/* One that is followed is in flight, or was left by a jump: call_enters finds out. */
	if (chance || (t && t->call_op != CALL_NONE))
		return 1;
	/* It may fail, and then the old block, which is followed, stays. */
	return op == CALL_REALLOC && pointer && may_be_live(pointer);
}

/* Each call of a function that returns a block. `is_leaf`: it calls no other function that is probed. */
static inline int call_entered(struct pt_regs *ctx, u32 op, u64 size, u64 pointer, u32 by, int is_leaf)
{
	int unwanted = by == BY_SESSION ? SKIP_RETURN : 0;
	struct settings *s = active();
	if (!s)
		return unwanted;
	count(COUNT_PROBE_HITS);
	struct thread_state *t = find_thread();
	u64 chance = draw(s, size);
	if (!is_wanted(t, s, ctx, op, pointer, chance)) {
		if (!is_leaf && !(t && t->skipped_sp))
			skip_call(this_thread(), s, PT_REGS_IP(ctx), PT_REGS_SP(ctx));
		return unwanted;
	}
	t = this_thread();
	if (!t)
		return unwanted;
	t->entered_op = op;
	t->entered_by = by;
	t->entered_size = size;
	t->entered_pointer = pointer;
	t->entered_chance = chance;
	if (HAS_SESSIONS && by == BY_UPROBE)
		plain_call_programs.call(ctx, 0);
	else
		call_programs.call(ctx, 0);
	count(COUNT_TAIL_CALLS_FAILED);
	return unwanted;
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
static inline int begin_call(struct pt_regs *ctx, struct thread_state *t, struct control *c, struct settings *s, u64 caller)
{
	u64 sp = PT_REGS_SP(ctx);
	if (t->call_window != s->probed_since)
		t->call_op = CALL_NONE; /* its return came while the probes were off */
	/* What an operator new that may throw calls is either its own way to the block, or the exception's memory: in both
	 * cases that call is the one to count.
	 */
	if (in_pending_call(t, sp)) {
		if (t->call_op != CALL_NEW)
			return 0;
		t->entered_chance = t->call_chance; /* drawn already */
	}
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
	t->call_chance = t->entered_chance;
	t->call_window = s->probed_since;
	t->call_has_old = 0;
	if (t->call_op == CALL_REALLOC && t->call_pointer) {
		t->call_has_old = may_be_live(t->call_pointer) && take_block(c, t->call_pointer, &t->call_old);
		if (!t->call_has_old)
			count(COUNT_FREES_UNKNOWN);
	}
	if (t->call_chance || t->call_has_old)
		return 1;
	t->call_op = CALL_NONE;
	skip_call(t, s, PT_REGS_IP(ctx), sp);
	return 0;
}

static inline int call_goes_on(struct pt_regs *ctx, int is_plain)
{
	struct control *c = control_block();
	struct settings *s = settings_block();
	struct thread_state *t = find_thread();
	if (!c || !s || !t)
		return 0;
	u64 sp = PT_REGS_SP(ctx);
	u64 caller = 0;
	if (read_target(t, &caller, sp))
		count(COUNT_READ_FAILED);
	/* Also of a function whose return is not probed here: another tracer may do it. */
	unwind_hide_return(t, sp + 8, caller);
	if (!begin_call(ctx, t, c, s, caller))
		return t->entered_by == BY_SESSION ? SKIP_RETURN : 0;
	count(COUNT_SAMPLED);
	return stack_at_entry(ctx, t, is_plain);
}

/* Never attached: call_entered goes on here. */
int call_enters(struct pt_regs *ctx)
{
	return call_goes_on(ctx, 0);
}

#ifdef SESSIONS
int plain_call_enters(struct pt_regs *ctx)
{
	return call_goes_on(ctx, 1);
}
#endif

/* The block of a call that has returned; 0 where it failed. */
static inline u64 result_of(struct thread_state *t, u32 op, u64 result)
{
	u64 address = 0;
	if (op != CALL_POSIX_MEMALIGN)
		return result;
	if (!(result & 0xffffffff) && read_target(t, &address, t->call_pointer)) /* the result is an int */
		count(COUNT_READ_FAILED);
	return address;
}

/* A failed realloc keeps the old block; realloc to size 0 frees it (glibc, jemalloc). */
static inline void restore_old(struct thread_state *t, struct control *c)
{
	struct live_value old = t->call_old;
	struct live_key key = key_of(t->call_pointer, c);
	add_freed(&old, c->epoch, -1);
	if (insert_block(&key, &old, 1))
		count(COUNT_LIVE_FULL);
}

/* A followed call returns; `sp` is as at its entry. (A call made by the pending one cannot be mistaken for it: the ABI
 * aligns the stack, so its stack pointer is at least 8 lower at its return, too.)
 */
static inline void call_left(struct pt_regs *ctx, struct thread_state *t, u64 sp)
{
	struct control *c = control_block();
	struct settings *s = settings_block();
	if (!c || !s || t->call_op == CALL_NONE || t->call_window != s->probed_since)
		return;
	if (sp != t->call_sp) {
		if (sp > t->call_sp)
			call_abandoned(t);
		return;
	}
	u32 op = t->call_op;
	t->call_op = CALL_NONE;
	u64 address = result_of(t, op, PT_REGS_RC(ctx));
	if (!address) {
		count(COUNT_FAILED_CALLS);
		if (op == CALL_REALLOC && t->call_has_old && t->call_size)
			restore_old(t, c);
		return;
	}
	if (!t->call_chance)
		return; /* followed for the old block's sake */
	struct live_value block = {
	    .size = t->call_size, .stack = t->call_stack, .time_ns = bpf_ktime_get_ns(), .chance = t->call_chance};
	put_block(c, s, address, &block);
	count(COUNT_ALLOCATIONS);
}

/* Probes. Named after the shape of the arguments: tracer/heap/allocators.py says which function has which. */

/* Operator new may throw, and an exception that meets a return probe's trampoline ends the target. A session makes the
 * kernel put one at each hit for which its program does not run: in other processes that have the breakpoint, which are
 * the target's children and whatever another memtrace traces (kernel/trace/bpf_trace.c, uprobe_prog_run). So these
 * have plain probes always, on the entry and on the `ret` instructions.
 */
int enter_new(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_NEW, PT_REGS_PARM1(ctx), 0, BY_UPROBE, 0);
}

int new_returns(struct pt_regs *ctx)
{
	struct thread_state *t = active() ? find_thread() : NULL;
	if (!t)
		return 0;
	if (t->skipped_sp == PT_REGS_SP(ctx))
		t->skipped_sp = 0;
	call_left(ctx, t, PT_REGS_SP(ctx));
	return 0;
}

#ifndef SESSIONS
/* Return probe of the functions that cannot throw. */
int call_returns(struct pt_regs *ctx)
{
	if (!active())
		return 0;
	struct thread_state *t = find_thread();
	if (!t)
		return 0;
	u64 sp = PT_REGS_SP(ctx) - RETURNED;
	if (t->skipped_sp == sp)
		t->skipped_sp = 0;
	call_left(ctx, t, sp);
	return 0;
}

int enter_malloc(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_PLAIN, PT_REGS_PARM1(ctx), 0, BY_UPROBE, 1);
}

/* As malloc, but it may call malloc. */
int enter_valloc(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_PLAIN, PT_REGS_PARM1(ctx), 0, BY_UPROBE, 0);
}

int enter_calloc(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_PLAIN, PT_REGS_PARM1(ctx) * PT_REGS_PARM2(ctx), 0, BY_UPROBE, 0);
}

int enter_realloc(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_REALLOC, PT_REGS_PARM2(ctx), PT_REGS_PARM1(ctx), BY_UPROBE, 0);
}

int enter_reallocarray(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_REALLOC, PT_REGS_PARM2(ctx) * PT_REGS_PARM3(ctx), PT_REGS_PARM1(ctx), BY_UPROBE, 0);
}

int enter_memalign(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_PLAIN, PT_REGS_PARM2(ctx), 0, BY_UPROBE, 0);
}

int enter_posix_memalign(struct pt_regs *ctx)
{
	return call_entered(ctx, CALL_POSIX_MEMALIGN, PT_REGS_PARM3(ctx), PT_REGS_PARM1(ctx), BY_UPROBE, 0);
}

#else
/* All shapes in one program, run at the entry and at the return (BPF_TRACE_UPROBE_SESSION): which function it is
 * says the cookie of its place. At a return, the instruction pointer is the caller's.
 */
int session_call(struct pt_regs *ctx)
{
	u64 cookie = get_attach_cookie(ctx);
	if (get_func_ip(ctx) != PT_REGS_IP(ctx)) {
		struct thread_state *t = active() ? find_thread() : NULL;
		if (t)
			call_left(ctx, t, PT_REGS_SP(ctx) - RETURNED);
		return 0;
	}
	u64 first = PT_REGS_PARM1(ctx), second = PT_REGS_PARM2(ctx), third = PT_REGS_PARM3(ctx);
	u32 op = CALL_PLAIN;
	u64 size = first, pointer = 0;
	if (cookie == SHAPE_CALLOC) {
		size = first * second;
	} else if (cookie == SHAPE_REALLOC || cookie == SHAPE_REALLOCARRAY) {
		op = CALL_REALLOC;
		size = cookie == SHAPE_REALLOC ? second : second * third;
		pointer = first;
	} else if (cookie == SHAPE_MEMALIGN) {
		size = second;
	} else if (cookie == SHAPE_POSIX_MEMALIGN) {
		op = CALL_POSIX_MEMALIGN;
		size = third;
		pointer = first;
	}
	return call_entered(ctx, op, size, pointer, BY_SESSION, cookie == SHAPE_MALLOC);
}

#endif

int enter_free(struct pt_regs *ctx)
{
	u64 address = PT_REGS_PARM1(ctx);
	struct settings *s = active();
	if (!address || !s)
		return 0;
	count(COUNT_FREE_HITS);
	int candidate = may_be_live(address);
	/* Of those that were not sampled nothing is known. */
	if (!candidate && s->sample_bytes > 1)
		return 0;
	struct control *c = control_block();
	struct thread_state *t = find_thread();
	struct live_value old;
	if (candidate && c && take_block(c, address, &old)) {
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
