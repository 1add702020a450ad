/* rss.bpf.c: changes of the target's RSS counters, by call stack and page.
 *
 * kmem:rss_stat gives each counter's new size, in the context that changes it; the page-fault tracepoints give the
 * address. The difference to the size seen last is the change. (Kernels before 6.2 keep up to 64 pages per thread
 * back.) The kernel side sums by (stack, block of pages, member, cause); user space drains the sums and places the pages.
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
#define MM_ANONPAGES 1
#define RSS_BLOCK (64 * PAGE_SIZE)
#define PAGE_OF(address) ((address) & ~(PAGE_SIZE - 1ULL))
#define FAULT_SPAN 32 /* how many pages one walk may serve, on average, once stacks have stayed the same for long */

/* member -> size seen last. Seeded by user space before tracing is switched on; void after an exec. */
BPF_ARRAY(rss_last, struct rss_last, RSS_MEMBERS);
/* Sums, drained by user space each interval. Full: summed with block 0 and counted in COUNT_RSS_FULL. */
BPF_F_TABLE("hash", struct rss_key, struct rss_value, rss_sums, MAX_RSS_KEYS, BPF_F_NO_PREALLOC);
/* CPU -> the run of page faults in progress there. What is left in it at the end is read by user space. */
BPF_ARRAY(fault_runs, struct fault_run, MAX_CPUS);

static inline int add_rss(struct rss_key *key, s64 bytes, u64 pages)
{
	struct rss_value *sum = rss_sums.lookup(key);
	if (!sum) {
		struct rss_value zero = {};
		rss_sums.insert(key, &zero);
		sum = rss_sums.lookup(key);
		if (!sum)
			return -1;
	}
	__sync_fetch_and_add(&sum->bytes, bytes);
	sum->pages |= pages; /* a bit lost to another CPU moves bytes to other pages of the block, no more */
	return 0;
}

static inline void keep_rss(struct rss_key *key, s64 bytes, u64 pages)
{
	count(COUNT_RSS_EVENTS);
	if (!add_rss(key, bytes, pages))
		return;
	count(COUNT_RSS_FULL);
	struct rss_key coarse = {.member = key->member, .shrinks = key->shrinks, .cause = key->cause};
	add_rss(&coarse, bytes, 0);
}

static inline u64 bit_of(u64 address)
{
	return 1ULL << (address / PAGE_SIZE & 63);
}

/* This CPU's run, until give_run. NULL where a thread was preempted while it had it: then do without. */
static inline struct fault_run *take_run(void)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct fault_run *run = fault_runs.lookup(&cpu);
	if (!run || run->taken)
		return NULL;
	run->taken = 1;
	asm volatile("" ::: "memory"); /* or the compiler drops the store above */
	return run;
}

static inline void give_run(struct fault_run *run)
{
	asm volatile("" ::: "memory");
	run->taken = 0;
}

static inline void count_run(struct fault_run *run)
{
	count_more(COUNT_FAULTS, run->faults);
	count_more(COUNT_FAULTS_IN_RUN, run->served);
	run->faults = 0;
	run->served = 0;
}

/* A fault that takes the short way. The budget wants to know of them in time. */
static inline void count_short(struct fault_run *run)
{
	run->faults++;
	if (run->faults >= FAULT_SPAN)
		count_run(run);
}

/* Move to the sums what the run's faults changed. */
static inline void sum_run(struct fault_run *run, struct control *c)
{
	if (run->sum.bytes && run->epoch == (u32)c->epoch)
		keep_rss(&run->key, run->sum.bytes, run->sum.pages);
	run->sum.bytes = 0;
	run->sum.pages = 0;
	count_run(run);
}

/* Add a change, made by a page fault of user code, to the run that this thread is in. Returns 0 where it is in none. */
static inline int add_to_run(struct control *c, u32 tid, u16 member, s64 delta)
{
	struct fault_run *run = take_run();
	if (!run)
		return 0;
	if (run->tid != tid) {
		give_run(run);
		return 0;
	}
	u64 address = run->heap ? c->heap_start : run->next - PAGE_SIZE;
	u64 block = address & ~(RSS_BLOCK - 1ULL);
	u16 shrinks = delta < 0;
	if (run->key.block != block || run->key.member != member || run->key.shrinks != shrinks) {
		sum_run(run, c);
		run->key.block = block;
		run->key.member = member;
		run->key.shrinks = shrinks;
	}
	run->sum.bytes += delta;
	run->sum.pages |= bit_of(address);
	give_run(run);
	return 1;
}

/* Without kmem:rss_stat, a page fault stands for one page of anonymous memory: user space weighs that up. */
static inline void count_fault(struct control *c)
{
	struct settings *s = settings_block();
	if (s && s->count_faults)
		add_to_run(c, bpf_get_current_pid_tgid(), MM_ANONPAGES, PAGE_SIZE);
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

/* The walk of a fault's stack has ended: it may serve the pages that follow, if the one before could. For how many was
 * decided before this look, and by chance, so that callers that take turns get their shares, in whatever rhythm.
 */
static inline void fault_stack_taken(struct thread_state *t, u64 stack)
{
	struct control *c = control_block();
	struct user_registers r;
	u32 span = t->fault_span;
	t->fault_stack = stack;
	if (!stack || stack != t->fault_before)
		t->fault_span = 1;
	else if (t->fault_span < FAULT_SPAN)
		t->fault_span *= 2;
	u32 left = span > 1 ? bpf_get_prandom_u32() % (2 * span - 1) : 0;
	if (!c || user_registers(&r))
		return;
	struct fault_run *run = take_run();
	if (!run)
		return;
	sum_run(run, c);
	run->tid = bpf_get_current_pid_tgid();
	run->epoch = c->epoch;
	run->left = left;
	run->heap = 0;
	run->stackless = 0;
	run->ip = r.ip;
	run->sp = r.sp;
	run->bp = r.bp;
	run->next = PAGE_OF(t->fault_address) + PAGE_SIZE;
	run->key.stack = stack;
	run->key.cause = RSS_FAULT;
	give_run(run);
	count_fault(c);
}

/* Raw tracepoints exceptions:page_fault_user and page_fault_kernel: args are (address, registers, error code). What
 * the fault does to RSS follows in on_rss_stat.
 *
 * Programs touch fresh memory page by page, and walking the same stack for each page would cost as much as the fault
 * itself. So a fault on the page behind the last one, by the same instruction with the same stack and frame pointers,
 * is given the last one's stack, which is looked at again after some pages: more and more, as long as it is the same.
 */
int on_page_fault(struct bpf_raw_tracepoint_args *ctx)
{
	struct control *c = traced();
	if (!c)
		return 0;
	u64 address = ctx->args[0], before = 0;
	struct user_registers r;
	int has_registers = !user_registers(&r);
	u32 in_heap = in_known_heap(c, address);
	int stackless = in_heap;
	struct fault_run *run = take_run();
	if (run) {
		int mine = run->tid == (u32)bpf_get_current_pid_tgid() && r.call == -1ULL;
		int goes_on = mine && !in_heap && !run->stackless && run->next == PAGE_OF(address) &&
			      run->ip == r.ip && run->sp == r.sp && run->bp == r.bp;
		if (goes_on && run->left) {
			run->left--;
			run->served++;
			run->next += PAGE_SIZE;
			count_short(run);
			give_run(run);
			count_fault(c);
			return 0;
		}
		if (goes_on)
			before = run->key.stack;
		if (!in_heap && !is_stack_wanted())
			stackless = 1;
		if (mine && stackless && run->stackless && run->heap == in_heap) {
			run->next = PAGE_OF(address) + PAGE_SIZE;
			count_short(run);
			give_run(run);
			count_fault(c);
			return 0;
		}
		give_run(run);
	}
	struct thread_state *t = this_thread();
	if (!t)
		return 0;
	if (t->busy)
		return 0; /* our own read of the target's memory, which has no effect on it */
	run = take_run();
	if (run) {
		sum_run(run, c);
		run->tid = stackless ? (u32)bpf_get_current_pid_tgid() : 0;
		run->epoch = c->epoch;
		run->heap = in_heap;
		run->stackless = stackless;
		run->next = PAGE_OF(address) + PAGE_SIZE;
		run->key.stack = 0;
		run->key.cause = RSS_FAULT;
		give_run(run);
	}
	t->fault_address = address;
	t->fault_call = r.call;
	t->fault_stack = 0;
	t->fault_before = before;
	if (!before)
		t->fault_span = 1;
	count(COUNT_FAULTS);
	if (stackless)
		count_fault(c);
	if (!has_registers || stackless)
		return 0;
	count(COUNT_FAULT_STACKS);
	return stack_at_fault(ctx, t, &r);
}

/* The cause of a change in the target's own context, and where it may be. Returns the address; 0: not known. */
static inline u64 name_cause(struct thread_state *t, struct rss_key *key, u64 call)
{
	u32 op = t->sys_op;
	if (t->fault_address && t->fault_call == call) {
		key->cause = RSS_FAULT;
		key->stack = t->fault_stack;
		return t->fault_address;
	}
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
		key->cause = RSS_OTHER_CALL | (u32)call << 8;
		return 0;
	}
	return t->sys_args[0];
}

/* The cause of a change that another task makes. */
static inline u32 foreign_cause(void)
{
	u64 name[2] = {};
	bpf_get_current_comm(name, sizeof(name));
	if ((name[0] & 0xffffffffffffULL) == 0x64706177736bULL)
		return RSS_KSWAPD;
	return name[0] == 0x676170656775686bULL ? RSS_KHUGEPAGED : RSS_OTHER_CONTEXT;
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
	u64 id = bpf_get_current_pid_tgid();
	int in_target = (id >> 32) == target_tgid();
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
	if (!last->known) {
		last->size = size;
		last->known = 1;
		count(COUNT_RSS_UNSEEDED);
		return 0;
	}
	if (!delta)
		return 0;
	/* Added, not set: where two CPUs come at once, what one change has too much the next one has too little, so that
	 * the changes always add up to the size seen last.
	 */
	__sync_fetch_and_add(&last->size, delta);
	struct user_registers r = {};
	if (in_target) {
		user_registers(&r);
		if (r.call == -1ULL && add_to_run(c, id, member, delta))
			return 0;
	}
	struct rss_key key = {.member = member, .shrinks = delta < 0};
	struct thread_state *t = in_target ? this_thread() : NULL;
	u64 address = 0, pages = 0;
	if (t)
		address = name_cause(t, &key, r.call);
	else
		key.cause = in_target ? RSS_OTHER_CALL : foreign_cause();
	if (in_known_heap(c, address)) {
		address = c->heap_start;
		key.stack = 0;
	}
	if (address) {
		key.block = address & ~(RSS_BLOCK - 1ULL);
		pages = bit_of(address);
	}
	keep_rss(&key, delta, pages);
	return 0;
}
