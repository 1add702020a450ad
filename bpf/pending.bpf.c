/* pending.bpf.c: whether an allocator call is still in flight in this thread. */

/* No allocator's own frames reach further: what happens deeper down than this is not part of the pending call. */
#define NESTED_SPAN (256 * 1024)

/* Read the target's memory outside of a walk. Returns 0, or an error. */
static inline long read_target(struct thread_state *t, u64 *to, u64 from)
{
	t->busy = 1;
	long failed = read_user(to, sizeof(*to), (void *)from);
	t->busy = 0;
	return failed;
}

/* Whether an address is where return probes make functions return to. Until user space has seen that page, any address
 * outside the target's code is taken for it.
 */
static inline int is_trampoline(struct thread_state *t, u64 address)
{
	u32 tgid = target_tgid();
	struct unwind_process *process = unwind_processes.lookup(&tgid);
	if (!process)
		return 0;
	if (process->trampoline)
		return address == process->trampoline;
	t->unwind.process = *process;
	return unwind_find_mapping(&t->unwind, address) != 0;
}

/* Whether what happens at stack pointer `sp` is part of the pending allocator call. A call that was left by longjmp or
 * an exception is still on record, so look whether its return address is in its place: the true one where no return
 * probe is used, else that of the probes' trampoline.
 */
static inline int in_pending_call(struct thread_state *t, u64 sp)
{
	u64 slot = 0;
	if (t->call_op == CALL_NONE || sp >= t->call_sp || t->call_sp - sp >= NESTED_SPAN)
		return 0;
	if (read_target(t, &slot, t->call_sp))
		return 0;
	return t->call_op == CALL_NEW ? slot == t->call_return : is_trampoline(t, slot);
}
