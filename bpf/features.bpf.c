/* features.bpf.c: a program for a uprobe of any kind, with which memtrace doctor tries what the kernel allows. It is no
 * part of what traces, and is compiled by itself.
 */

/* 0: times that the program ran, atomic adds; 1: the process that it ran in last, as BPF programs see it. */
BPF_ARRAY(seen, u64, 2);

/* Uprobe. In a session, 0 says that the return is wanted, too. */
int on_hit(struct pt_regs *ctx)
{
	u32 hits = 0, process = 1;
	u64 tgid = bpf_get_current_pid_tgid() >> 32;
	u64 *count = seen.lookup(&hits);
	if (count)
		__sync_fetch_and_add(count, 1);
	seen.update(&process, &tgid);
	return 0;
}
