"""What a stack costs in the kernel: the table unwinder against bpf_get_stackid, at several depths, in one run.

The unwinder runs on a build without frame pointers, bpf_get_stackid on one with them (else it would stop early).
Prints the mean BPF time per stack of each window (bpf_stats: run_time_ns / run_cnt), minimum and median.

    sudo python -m scripts.bench.unwind_cost [--rounds N]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.bpf.unwind_harness import UnwindProbe, mapped_file, running, symbol_offset

DEPTHS = (10, 30, 60, 120)
WINDOW_SECONDS = 0.25
SOURCE = r"""
#include <stdlib.h>
static volatile void *sink;
__attribute__((noinline)) static int down(int depth, volatile long *above)
{
    volatile long here[3] = {depth, above[0], 0};
    if (depth > 0)
        return down(depth - 1, here) + (int)here[0];
    for (;;) { void *p = malloc(32); sink = p; free(p); }
}
int main(int argc, char **argv) { volatile long top[1] = {1}; return down(atoi(argv[1]), top); }
"""
PROBES = """
BPF_HASH(stacks, u64, struct stack_value, 1024);
BPF_STACK_TRACE(traces, 1024);
BPF_ARRAY(state, u64, 3);
static inline int unwind_finished(void *ctx, struct thread_state *t)
{
	u64 hash = t->unwind.hash;
	if (!stacks.lookup(&hash))
		stacks.update(&hash, &t->stack);
	return 0;
}
int by_tables(struct pt_regs *ctx)
{
	struct thread_state *t = this_thread();
	if (!t)
		return 0;
	unwind_begin(t, ctx->ip, ctx->sp, ctx->bp, UNWIND_ENTRY);
	return unwind_in_uprobe(ctx, t);
}
int by_stackid(struct pt_regs *ctx)
{
	traces.get_stackid(ctx, BPF_F_USER_STACK);
	return 0;
}
int by_nothing(struct pt_regs *ctx)
{
	return 0;
}
"""


@contextlib.contextmanager
def bpf_stats() -> Iterator[None]:
    path = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = path.read_text()
    path.write_text("1")
    try:
        yield
    finally:
        path.write_text(before)


def build(directory: Path, name: str, *flags: str) -> Path:
    source = directory / "deep.c"
    source.write_text(SOURCE)
    subprocess.run(
        ["gcc", "-O1", "-fno-optimize-sibling-calls", "-fno-builtin", *flags, "-o", directory / name, source],
        check=True,
    )
    return directory / name


def run_time(fd: int) -> tuple[int, int]:
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if ":\t" in line
    )
    return int(fields["run_time_ns"]), int(fields["run_cnt"])


class Target:
    """One program at one depth, with the probe that is measured on it."""

    def __init__(self, pid: int, program: str) -> None:
        self.pid = pid
        self.probe = UnwindProbe(pid, probes=PROBES)
        path = mapped_file(pid, b"libc.so")
        self.probe.attach_uprobe(path, symbol_offset(path, "malloc"), program)
        self.fd = self.probe.load(program, 0)
        self.costs: list[float] = []

    def window(self) -> None:
        before = run_time(self.fd)
        os.kill(self.pid, 18)
        time.sleep(WINDOW_SECONDS)
        os.kill(self.pid, 19)
        after = run_time(self.fd)
        if after[1] > before[1]:
            self.costs.append((after[0] - before[0]) / (after[1] - before[1]))

    def __str__(self) -> str:
        return f"{min(self.costs):7.0f} ({median(self.costs):.0f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as place, bpf_stats():
        without = build(Path(place), "without", "-fomit-frame-pointer")
        with_fp = build(Path(place), "with", "-fno-omit-frame-pointer")
        print("frames   tables: min (median) ns   get_stackid: min (median) ns   ratio of minima   empty program")
        for depth in DEPTHS:
            # malloc, down(0) .. down(n), main, two frames of libc, _start
            argument = str(depth - 6)
            with running([str(without), argument]) as ours, running([str(with_fp), argument]) as theirs:
                targets = [Target(ours, "by_tables"), Target(theirs, "by_stackid"), Target(ours, "by_nothing")]
                for target in targets[:2]:
                    os.kill(target.pid, 19)
                for _ in range(rounds):
                    for target in targets:
                        target.window()
                tables, stackid, nothing = targets
                stack = next(iter(tables.probe.bpf["stacks"].values()))
                ratio = min(tables.costs) / min(stackid.costs)
                print(f"{stack.depth:6d} {tables!s:>24} {stackid!s:>24} {ratio:20.2f} {nothing!s:>20}", flush=True)
                for target in targets:
                    target.probe.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
