/* rss.bpf.c: changes of the target's RSS counters, by call stack and page.
 *
 * kmem:rss_stat gives each counter's new size, in the context that changes it; the page-fault tracepoints give the
 * address. The difference to the size seen last is the change. (Kernels before 6.2 keep up to 64 pages per thread
 * back.) The kernel side sums by (stack, page, member, cause); user space drains the sums and places the pages.
 */

/* Fields of kmem:rss_stat (include/trace/events/kmem.h); tracer/probes/tracepoints.py checks them at start. */
struct rss_stat_args {
	u64 common;
	u32 mm_id;
	u32 curr;
	s32 member;
	u32 hole;
	s64 size;
};

struct rss_last {
	s64 size;
	u64 known;
};

#define RSS_MEMBERS 4
/* member -> size seen last. Seeded by user space before tracing is switched on; void after an exec. */
BPF_ARRAY(rss_last, struct rss_last, RSS_MEMBERS);
/* Sums, drained by user space each interval. Full: summed with page 0 and counted in COUNT_RSS_FULL. */
BPF_F_TABLE("hash", struct rss_key, struct rss_value, rss_sums, MAX_RSS_KEYS, BPF_F_NO_PREALLOC);

static inline int add_rss(struct rss_key *key, s64 delta)
{
	struct rss_value *sum = rss_sums.lookup(key);
	if (!sum) {
		struct rss_value zero = {};
		rss_sums.insert(key, &zero);
		sum = rss_sums.lookup(key);
		if (!sum)
			return -1;
	}
	__sync_fetch_and_add(&sum->bytes, delta);
	__sync_fetch_and_add(&sum->events, 1);
	return 0;
}

static inline void keep_rss(struct rss_key *key, s64 delta)
{
	if (!add_rss(key, delta))
		return;
	count(COUNT_RSS_FULL);
	struct rss_key coarse = {.member = key->member, .cause = key->cause};
	add_rss(&coarse, delta);
}

/* Where a probed allocator manages the brk heap, who touches a fresh page of it is not who makes it grow. */
static inline int in_known_heap(struct control *c, u64 address)
{
	struct settings *s = settings_block();
	return s && s->heap_is_known && c->heap_start && address >= c->heap_start && address < c->brk;
}

/* Whether this fault gets its stack: all do, or one in `fault_stacks`. */
static inline int is_stack_wanted(void)
{
	struct settings *s = settings_block();
	return s && (s->fault_stacks <= 1 || bpf_get_prandom_u32() % s->fault_stacks == 0);
}

/* Raw tracepoints exceptions:page_fault_user and page_fault_kernel: args are (address, registers, error code). The
 * stack is taken here, where the user's registers are at hand; what the fault does to RSS follows in on_rss_stat.
 */
int on_page_fault(struct bpf_raw_tracepoint_args *ctx)
{
	struct control *c = traced();
	if (!c)
		return 0;
	struct thread_state *t = this_thread();
	if (!t)
		return 0;
	if (t->busy)
		return 0; /* our own read of the target's memory, which has no effect on it */
	t->fault_address = ctx->args[0];
	t->fault_stack = 0;
	count(COUNT_FAULTS);
	if (in_known_heap(c, t->fault_address) || !is_stack_wanted())
		return 0;
	return stack_at_fault(ctx, t);
}

static inline void name_cause(struct thread_state *t, struct rss_key *key)
{
	u32 op = t->sys_op;
	if (t->fault_address) {
		key->cause = RSS_FAULT;
		key->page = t->fault_address & ~(PAGE_SIZE - 1ULL);
		return;
	}
	key->page = t->sys_args[0] & ~(PAGE_SIZE - 1ULL);
	if (op == SYS_MMAP)
		key->cause = RSS_MMAP;
	else if (op == SYS_MUNMAP)
		key->cause = RSS_MUNMAP;
	else if (op == SYS_MREMAP)
		key->cause = RSS_MREMAP;
	else if (op == SYS_BRK)
		key->cause = RSS_BRK;
	else if (op == SYS_MADVISE)
		key->cause = RSS_MADVISE;
	else {
		key->cause = RSS_OTHER_CALL;
		key->page = 0;
	}
}

/* Whether this event is about the target's mm; learns the mm's id from the target's own events. */
static inline int is_targets_mm(struct control *c, u32 mm_id, u32 curr, int in_target)
{
	if (in_target && !curr)
		return 0; /* the old mm's end, in exec or exit */
	if (in_target)
		c->mm_id = mm_id;
	return c->mm_id == mm_id;
}

int on_rss_stat(struct rss_stat_args *ctx)
{
	struct control *c = control_block();
	if (!c || !is_enabled())
		return 0;
	int in_target = (bpf_get_current_pid_tgid() >> 32) == TARGET_TGID;
	if (!in_target && c->mm_id != ctx->mm_id)
		return 0;
	if (!is_targets_mm(c, ctx->mm_id, ctx->curr, in_target))
		return 0;
	u32 member = ctx->member;
	if (member >= RSS_MEMBERS)
		return 0;
	struct rss_last *last = rss_last.lookup(&member);
	if (!last)
		return 0;
	s64 size = ctx->size;
	s64 delta = size - last->size;
	u64 known = last->known;
	last->size = size;
	last->known = 1;
	if (!known) {
		count(COUNT_RSS_UNSEEDED);
		return 0;
	}
	if (!delta)
		return 0;
	count(COUNT_RSS_EVENTS);
	struct rss_key key = {.member = member, .cause = RSS_OTHER_CONTEXT};
	struct thread_state *t = in_target ? this_thread() : NULL;
	if (t)
		name_cause(t, &key);
	if (in_known_heap(c, key.page))
		key.page = c->heap_start & ~(PAGE_SIZE - 1ULL);
	else if (t && key.cause == RSS_FAULT)
		key.stack = t->fault_stack;
	keep_rss(&key, delta);
	return 0;
}
