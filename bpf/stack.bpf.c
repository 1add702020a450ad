/* stack.bpf.c: take the user's call stack at a probe, then go on with what needs it.
 *
 * Taking a stack is the last thing that a probe does; `stack_taken` goes on from there. So an unwinder that runs over
 * several programs by tail calls fits in without a change to the probes.
 */

static inline void send(struct thread_state *t);
static inline void keep_rss(struct rss_key *key, s64 delta);

/* Allocation calls, mappings and RSS changes go on here. */
static inline int stack_taken(struct thread_state *t, u32 use)
{
	u64 stack = keep_stack(t);
	if (use == FOR_ALLOCATION) {
		t->call_stack = stack;
	} else if (use == FOR_MAPPING) {
		t->event.stack = stack;
		send(t);
	} else {
		t->rss_key.stack = stack;
		struct rss_key key = t->rss_key;
		keep_rss(&key, t->rss_delta);
	}
	return 0;
}

/* Frame-pointer stack of the current user context, from index `from` on. */
static inline void walk_frame_pointers(void *ctx, struct thread_state *t, u32 from)
{
	long bytes;
	t->stack.status = STACK_THROUGH_FRAME_POINTERS;
	if (from)
		bytes = bpf_get_stack(ctx, &t->stack.ips[1], sizeof(t->stack.ips) - 8, BPF_F_USER_STACK);
	else
		bytes = bpf_get_stack(ctx, &t->stack.ips[0], sizeof(t->stack.ips), BPF_F_USER_STACK);
	if (bytes < 0) {
		t->stack.status |= STACK_READ_FAILED;
		bytes = 0;
	}
	t->stack.depth = from + (bytes >> 3);
	if (t->stack.depth >= MAX_DEPTH)
		t->stack.status |= STACK_TRUNCATED;
}

/* At a function's entry the caller is not on the frame-pointer chain yet: its address lies at the stack pointer.
 * frames: [function, caller, caller's caller, ...]. Kernels from 6.11 add the caller themselves at some entries
 * (arch/x86/events/core.c, is_uprobe_at_func_entry): then frame 0 stands twice, and user space drops one.
 */
static inline int stack_at_entry(struct pt_regs *ctx, struct thread_state *t, u64 caller)
{
	walk_frame_pointers(ctx, t, 1);
	t->stack.ips[0] = PT_REGS_IP(ctx);
	if (t->stack.depth < 2)
		t->stack.depth = 2;
	if (t->stack.ips[2] != caller || t->stack.depth < 3)
		t->stack.ips[1] = caller;
	return stack_taken(t, FOR_ALLOCATION);
}

static inline int stack_in_kernel(void *ctx, struct thread_state *t, u32 use)
{
	walk_frame_pointers(ctx, t, 0);
	return stack_taken(t, use);
}
