/* process.bpf.c: exec, fork and thread end of the target. */

#define CLONE_VM 0x100
#define CLONE_THREAD 0x10000

/* Raw tracepoint sched_process_exec: the current task now runs another program: all that was known is void. */
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct control *c = traced();
	if (!c)
		return 0;
	c->epoch++;
	c->brk = 0;
	c->heap_start = 0;
	c->mm_id = 0;
	for (u32 i = 0; i < RSS_MEMBERS; i++) {
		u32 member = i; /* a copy: the verifier loses track of a loop counter whose address was taken */
		struct rss_last *last = rss_last.lookup(&member);
		if (last)
			last->known = 0;
	}
	struct thread_state *t = this_thread();
	if (!t)
		return 0;
	t->call_op = CALL_NONE;
	t->skipped_sp = 0;
	t->sys_op = SYS_NONE;
	t->fault_address = 0;
	t->fault_call = 0;
	blank_event(t, EVENT_EXEC);
	send(t);
	return 0;
}

/* Raw tracepoint task_newtask: args are (task, clone flags). */
int on_new_task(struct bpf_raw_tracepoint_args *ctx)
{
	if (!traced())
		return 0;
	u64 flags = ctx->args[1];
	if (flags & CLONE_THREAD)
		count(COUNT_THREADS);
	else
		count(COUNT_FORKS);
	return 0;
}

/* Raw tracepoint sched_process_exit: of each thread. */
int on_thread_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	if ((id >> 32) != target_tgid())
		return 0;
	u32 tid = id;
	threads.delete(&tid);
	return 0;
}
