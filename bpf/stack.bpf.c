/* stack.bpf.c: take the user's call stack at a probe, then go on with what needs it.
 *
 * Taking a stack is the last thing that a probe does: the unwinder runs over several programs by tail calls, and goes
 * on in unwind_finished.
 */

static inline void send(struct thread_state *t);
static inline void fault_stack_taken(struct thread_state *t, u64 stack);

/* Keep the frames of a stack under the hash of them. Returns the stack's id, 0 for an empty one.
 * Equal ids mean equal frames for all practical purposes (64 bits: 10^5 stacks collide with a chance of 3 in 10^10).
 */
static inline u64 keep_stack(struct thread_state *t)
{
	u64 hash = t->unwind.hash;
	if (!t->stack.depth) {
		count(COUNT_STACKS_EMPTY);
		return 0;
	}
	if (!stacks.lookup(&hash) && stacks.update(&hash, &t->stack))
		count(COUNT_STACKS_FULL);
	return hash;
}

/* Allocation calls, mappings and page faults go on here. */
static inline int unwind_finished(void *ctx, struct thread_state *t)
{
	u64 stack = keep_stack(t);
	t->busy = 0;
	if (t->unwind.next == FOR_ALLOCATION) {
		t->call_stack = stack;
	} else if (t->unwind.next == FOR_MAPPING) {
		t->event.stack = stack;
		send(t);
	} else {
		fault_stack_taken(t, stack);
	}
	return 0;
}

/* At a function's entry: frames are the function, its caller, ... `is_plain`: the probe is none of a session, though
 * others are.
 */
static inline int stack_at_entry(struct pt_regs *ctx, struct thread_state *t, int is_plain)
{
	t->busy = 1;
	unwind_begin(t, PT_REGS_IP(ctx), PT_REGS_SP(ctx), PT_REGS_FP(ctx), UNWIND_ENTRY);
	t->unwind.next = FOR_ALLOCATION;
	return is_plain ? unwind_in_plain_uprobe(ctx, t) : unwind_in_uprobe(ctx, t);
}

/* At the end of a system call that the user made with these registers. */
static inline int stack_at_sys_exit(void *ctx, struct thread_state *t, u64 registers, int is_raw)
{
	struct pt_regs regs;
	if (read_kernel(&regs, sizeof(regs), (void *)registers)) {
		count(COUNT_READ_FAILED);
		return 0;
	}
	t->busy = 1;
	unwind_begin(t, USER_IP(regs), USER_SP(regs), USER_FP(regs), 0);
	t->unwind.next = FOR_MAPPING;
	return is_raw ? unwind_in_raw_tracepoint(ctx, t) : unwind_in_tracepoint(ctx, t);
}

/* In a page fault: it may have come in a system call, so these are the registers with which user code was left. */
static inline int stack_at_fault(struct bpf_raw_tracepoint_args *ctx, struct thread_state *t, struct user_registers *r)
{
	t->busy = 1;
	unwind_begin(t, r->ip, r->sp, r->bp, 0);
	t->unwind.next = FOR_FAULT;
	return unwind_in_raw_tracepoint(ctx, t);
}
