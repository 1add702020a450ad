"""Compares the kernel's stacks with gdb's, frame by frame.

A BPF program takes a stack at a probe of the target and sends SIGUSR2 to the thread; gdb, attached to the target,
stops at the signal and walks the same stack. Run as a script for larger samples:

    python -m tests.bpf.unwind_harness [-n SAMPLES] [--probe malloc|mmap|rss] -- COMMAND...
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tracer.bpf_source import bpf_directory
from tracer.probes import kernel
from tracer.probes.bcc_import import import_bcc
from tracer.probes.maps import KernelMap
from tracer.probes.unwinding import ProcessMap
from tracer.procfs.maps import read_maps
from tracer.unwind.access import ROW_SIZE, BufferWriter, UnwindWriters, plan_sizes
from tracer.unwind.mappings import MAPPING, PROCESS, UPROBES, UnwindMaps
from tracer.unwind.tables import TableStore

HERE = Path(__file__).resolve().parent
MAX_DEPTH = 127
GDB_DEADLINE = 60.0
STATUS_NAMES = {
    1: "complete",
    2: "no mapping",
    4: "no row",
    8: "read failed",
    16: "truncated",
    32: "through frame pointers",
    64: "through a signal",
    128: "unsupported",
    256: "no table",
    512: "hidden return",
}
COMPLETE, THROUGH_SIGNAL, NO_TABLE, HIDDEN = 1, 64, 256, 512
SAMPLE = struct.Struct("<QQQQII127Q")

# What the unwinder takes for granted: memtrace's own programs have it in common.bpf.c and memtrace.h.
COMMON = """
#define MAX_DEPTH 127
enum { COUNT_UNWIND_LOST, COUNT_UNWIND_TAIL_CALL, COUNTERS };
enum stack_status {
	STACK_COMPLETE = 1, STACK_NO_MAPPING = 2, STACK_NO_ROW = 4, STACK_READ_FAILED = 8, STACK_TRUNCATED = 16,
	STACK_THROUGH_FRAME_POINTERS = 32, STACK_THROUGH_SIGNAL = 64, STACK_UNSUPPORTED = 128, STACK_NO_TABLE = 256,
	STACK_HIDDEN_RETURN = 512,
};
struct stack_value { u32 depth; u32 status; u64 ips[MAX_DEPTH]; };
"""
STATE = """
struct thread_state {
	struct stack_value stack;
	struct unwind_state unwind;
	u64 saved;
	u64 entry_sp;
	u8 window[UNWIND_WINDOW];
};
BPF_F_TABLE("hash", u32, struct thread_state, threads, 1024, BPF_F_NO_PREALLOC);
BPF_ARRAY(blank_state, struct thread_state, 1);
BPF_ARRAY(counters, u64, COUNTERS);
static inline void count(u32 index)
{
	u64 *value = counters.lookup(&index);
	if (value)
		__sync_fetch_and_add(value, 1);
}
static inline struct thread_state *this_thread(void)
{
	u32 tid = bpf_get_current_pid_tgid(), zero = 0;
	struct thread_state *t = threads.lookup(&tid);
	if (t)
		return t;
	struct thread_state *blank = blank_state.lookup(&zero);
	if (!blank)
		return NULL;
	threads.insert(&tid, blank);
	return threads.lookup(&tid);
}
"""
PROBES = """
struct sample { u64 thread; u64 time; u64 saved; u64 sp; struct stack_value stack; };
BPF_ARRAY(samples, struct sample, SAMPLES);
BPF_ARRAY(state, u64, 3); /* 0: armed, 1: samples taken, 2: time of the last */
BPF_HASH(claims, u64, u64, SAMPLES);

static inline int unwind_finished(void *ctx, struct thread_state *t)
{
	u32 one = 1, two = 2;
	u64 *taken = state.lookup(&one), *last = state.lookup(&two);
	if (!taken || !last)
		return 0;
	u64 number = *taken, thread = bpf_get_current_pid_tgid();
	u32 index = number;
	struct sample *s = samples.lookup(&index);
	if (!s || claims.insert(&number, &thread)) /* two CPUs may be here at once */
		return 0;
	*taken = number + 1;
	s->thread = (u32)thread;
	s->time = bpf_ktime_get_ns();
	s->saved = t->saved;
	s->sp = t->entry_sp;
	bpf_probe_read_kernel(&s->stack, sizeof(s->stack), &t->stack);
	*last = bpf_ktime_get_ns();
	if (SIGNAL)
		bpf_send_signal_thread(12);
	return 0;
}
static inline int wanted(void)
{
	u32 zero = 0, two = 2;
	u64 *armed = state.lookup(&zero), *last = state.lookup(&two);
	if (!armed || !last || !*armed || bpf_ktime_get_ns() - *last < GAP_NS)
		return 0;
	return (bpf_get_current_pid_tgid() >> 32) == TARGET && bpf_get_prandom_u32() % ONE_IN == 0;
}
int on_entry(struct pt_regs *ctx)
{
	if (!wanted())
		return 0;
	struct thread_state *t = this_thread();
	if (!t)
		return 0;
	t->saved = (((ctx->bx * 31 + ctx->r12) * 31 + ctx->r13) * 31 + ctx->r14) * 31 + ctx->r15;
	t->entry_sp = ctx->sp;
	unwind_begin(t, ctx->ip, ctx->sp, ctx->bp, ENTRY ? UNWIND_ENTRY : 0);
	return unwind_in_uprobe(ctx, t);
}
int on_call(struct pt_regs *ctx)
{
	struct thread_state *t = this_thread();
	u64 caller;
	if (t && !bpf_probe_read_user(&caller, sizeof(caller), (void *)ctx->sp))
		unwind_hide_return(t, ctx->sp + 8, caller);
	return 0;
}
int on_return(struct pt_regs *ctx)
{
	return 0;
}
int on_event(void *ctx)
{
	struct user_registers r;
	if (!wanted() || user_registers(&r))
		return 0;
	struct thread_state *t = this_thread();
	if (!t)
		return 0;
	t->saved = 0;
	t->entry_sp = r.sp;
	unwind_begin(t, r.ip, r.sp, r.bp, 0);
	return unwind_in_tracepoint(ctx, t);
}
"""


@dataclass(frozen=True)
class Sample:
    """A stack as the kernel's unwinder saw it. `saved` identifies the moment: a hash of registers, or 0 for `sp`."""

    thread: int
    time_ns: int
    saved: int
    sp: int
    status: int
    ips: tuple[int, ...]


@dataclass(frozen=True)
class Backtrace:
    """The same as gdb saw it."""

    thread: int
    time_ns: int
    saved: int
    sp: int
    pcs: tuple[int, ...]
    names: tuple[str, ...]
    reason: str


@dataclass
class Comparison:
    """What came of a run. `unpaired` are backtraces whose sample could not be told.

    `hidden` are those that gdb lost to a return probe: while any process of the machine has one on the same function,
    the kernel sets it in this process too.
    """

    samples: int = 0
    exact: int = 0
    unpaired: int = 0
    hidden: int = 0
    mismatches: list[str] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    distinct: int = 0

    def __str__(self) -> str:
        depths = sorted(self.depths) or [0]
        statuses = ", ".join(f"{describe(status)}: {count}" for status, count in self.statuses.most_common())
        return (
            f"samples {self.samples} exact {self.exact} unpaired {self.unpaired} hidden {self.hidden} "
            f"distinct {self.distinct} "
            f"depth {depths[0]}/{depths[len(depths) // 2]}/{depths[-1]} [{statuses}]"
        )


def describe(status: int) -> str:
    return " + ".join(name for bit, name in STATUS_NAMES.items() if status & bit) or "none"


def compare(samples: Sequence[Sample], backtraces: Sequence[Backtrace], *, at_entry: bool) -> Comparison:
    """Pair each backtrace with the last sample of its thread before it, and compare them pc by pc.

    At an entry probe, gdb stops a few instructions after it, in the same function: frame 0 may be that much further.
    """
    result = Comparison()
    for theirs in backtraces:
        if theirs.reason == "hidden":
            result.hidden += 1
            continue
        before = [s for s in samples if s.thread == theirs.thread and s.time_ns <= theirs.time_ns]
        if not before or (before[-1].saved != theirs.saved if at_entry else before[-1].sp != theirs.sp):
            result.unpaired += 1
            continue
        ours = before[-1]
        result.samples += 1
        result.depths.append(len(ours.ips))
        result.statuses[ours.status] += 1
        drift = theirs.pcs[0] - ours.ips[0]
        if ours.ips[1:] == theirs.pcs[1:MAX_DEPTH] and 0 <= drift <= (32 if at_entry else 0):
            result.exact += 1
        else:
            result.mismatches.append(_difference(ours, theirs))
    result.distinct = len({theirs.pcs[1:] for theirs in backtraces})
    return result


def _difference(ours: Sample, theirs: Backtrace) -> str:
    equal = 0
    for mine, other in zip(ours.ips[1:], theirs.pcs[1:], strict=False):
        if mine != other:
            break
        equal += 1
    at = max(0, equal)
    return (
        f"{describe(ours.status)}: {len(ours.ips)} frames against {len(theirs.pcs)}, equal up to {at} "
        f"{theirs.names[at : at + 4]}: {[hex(ip) for ip in ours.ips[at : at + 4]]} against "
        f"{[hex(pc) for pc in theirs.pcs[at : at + 4]]} ({theirs.reason})"
    )


class UnwindProbe:
    """The unwinder of bpf/unwind.bpf.c at one probe of one process."""

    def __init__(
        self,
        pid: int,
        *,
        samples: int = 1024,
        gap_ns: int = 3_000_000,
        one_in: int = 37,
        at_entry: bool = True,
        signal_gdb: bool = False,
        probes: str = PROBES,
        flags: Sequence[str] = (),
        store: TableStore | None = None,
        build: bool = True,
    ) -> None:
        self.pid = pid
        self.samples_size = samples
        directory = bpf_directory()
        os.environ["BCC_KERNEL_SOURCE"] = str(directory / "stub")
        text = COMMON + (directory / "unwind.h").read_text() + STATE + (directory / "unwind.bpf.c").read_text() + probes
        vmas = read_maps(pid)
        sizes = plan_sizes(pid, vmas)
        self._bcc = import_bcc()
        options = [
            f"-DTARGET={pid}",
            "-DCALL_EVENTS",
            f"-DSAMPLES={samples}",
            f"-DGAP_NS={gap_ns}",
            f"-DONE_IN={one_in}",
            f"-DENTRY={int(at_entry)}",
            f"-DSIGNAL={int(signal_gdb)}",
        ]
        started = time.perf_counter()
        self.bpf: Any = self._bcc.BPF(text=text.encode(), cflags=[*sizes.flags(), *options, *flags])
        self.compile_seconds = time.perf_counter() - started
        self.load_seconds: dict[str, float] = {}
        self._fds: list[int] = []
        self._views: list[tuple[memoryview, mmap.mmap]] = []
        self._programs: dict[str, int] = {}
        processes = ProcessMap(KernelMap(self.bpf[b"unwind_processes"].map_fd, 4, PROCESS.size))
        writers = UnwindWriters(
            self._writer("unwind_rows", sizes.rows, ROW_SIZE),
            self._writer("unwind_pages", sizes.pages, ROW_SIZE),
            self._writer("unwind_mappings", sizes.mappings, MAPPING.size),
            processes,
        )
        self.maps = UnwindMaps(sizes, writers, store=store)
        self.maps.update(pid, vmas)
        started = time.perf_counter()
        if build:
            self.maps.build_all()
        self.build_seconds = time.perf_counter() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self.maps.close()
        for view, memory in self._views:
            view.release()
            memory.close()
        self._views.clear()
        for fd in self._programs.values():
            os.close(fd)
        self.bpf.funcs.clear()
        self.bpf.cleanup()

    def _writer(self, name: str, size: int, element: int) -> BufferWriter:
        length = -(-size * element // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(self.bpf[name.encode()].map_fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        view = memoryview(memory)
        self._views.append((view, memory))
        return BufferWriter(view, element)

    def load(self, name: str, kind: int) -> int:
        """Load a program once; returns its descriptor."""
        if name not in self._programs:
            started = time.perf_counter()
            self._programs[name] = self.bpf.load_func(name.encode(), kind).fd
            self.load_seconds[name] = time.perf_counter() - started
        return self._programs[name]

    def attach_uprobe(self, path: str, offset: int, program: str = "on_entry", *, on_return: bool = False) -> None:
        """At a file offset, in this process only."""
        continuation = self.load("unwind_uprobe", self._bcc.BPF.KPROBE)
        self.bpf[b"unwind_uprobe_programs"][ctypes.c_int(0)] = ctypes.c_int(continuation)
        fd = self.load(program, self._bcc.BPF.KPROBE)
        self._fds.append(kernel.open_perf_uprobe(fd, path, offset, self.pid, on_return=on_return))

    def attach_tracepoint(self, name: str, program: str = "on_event") -> None:
        """At a trace event, e.g. "kmem/rss_stat"; the program picks out the process."""
        continuation = self.load("unwind_tracepoint", self._bcc.BPF.TRACEPOINT)
        self.bpf[b"unwind_tracepoint_programs"][ctypes.c_int(0)] = ctypes.c_int(continuation)
        fd = self.load(program, self._bcc.BPF.TRACEPOINT)
        tracefs = kernel.open_tracefs()
        try:
            event = int(kernel.read_at(tracefs, f"events/{name}/id"))
        finally:
            os.close(tracefs)
        self._fds.append(kernel.open_tracepoint(fd, event))

    def arm(self, on: bool = True) -> None:
        self.bpf[b"state"][ctypes.c_int(0)] = ctypes.c_uint64(int(on))

    def reset(self) -> None:
        """Forget the samples."""
        self.bpf[b"state"][ctypes.c_int(1)] = ctypes.c_uint64(0)
        self.bpf[b"claims"].clear()

    def wait_for_trampoline(self) -> None:
        """Until the kernel has mapped [uprobes], at the first hit of a return probe; then publish it."""
        _wait(lambda: _mapped(self.pid, UPROBES), 10)
        self.maps.update(self.pid, read_maps(self.pid))

    def samples(self) -> list[Sample]:
        taken = min(self.bpf[b"state"][ctypes.c_int(1)].value, self.samples_size)
        values = KernelMap(self.bpf[b"samples"].map_fd, 4, SAMPLE.size)
        out = []
        for index in range(taken):
            thread, when, saved, sp, depth, status, *ips = SAMPLE.unpack(values.get(struct.pack("<I", index)) or b"")
            out.append(Sample(thread, when, saved, sp, status, tuple(ips[:depth])))
        return out


def symbol_offset(path: str, symbol: str) -> int:
    """File offset of a dynamic symbol (position-independent files whose code lies where its address says)."""
    lines = subprocess.run(["readelf", "-W", "--dyn-syms", path], capture_output=True, text=True, check=True).stdout
    address = next(
        int(fields[1], 16)
        for fields in map(str.split, lines.splitlines())
        if len(fields) >= 8 and fields[7].split("@")[0] == symbol and fields[6] != "UND"
    )
    headers = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True).stdout
    for fields in map(str.split, headers.splitlines()):
        if fields[:1] == ["LOAD"]:
            offset, start, size = int(fields[1], 16), int(fields[2], 16), int(fields[4], 16)
            if start <= address < start + size:
                return address - start + offset
    raise LookupError(symbol)


def collect(probe: UnwindProbe, count: int, seconds: float = 10.0) -> list[Sample]:
    """At least `count` samples taken from now on, if they come in time."""
    probe.reset()
    probe.arm()
    _wait(lambda: len(probe.samples()) >= count, seconds)
    probe.arm(False)
    return probe.samples()


def mapped_file(pid: int, part: bytes) -> str:
    """The path of a mapped file whose name contains `part`."""
    return next(os.fsdecode(vma.path) for vma in read_maps(pid) if part in vma.path)


def run_against_gdb(
    pid: int, probe: UnwindProbe, count: int, *, at_entry: bool = True, seconds: float = GDB_DEADLINE
) -> Comparison:
    """Let gdb and the kernel take `count` stacks of the process; the probe must be attached already."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "stacks"
        environment = dict(os.environ, UNWIND_OUT=str(out), UNWIND_COUNT=str(count), UNWIND_SECONDS=str(seconds))
        command = ["gdb", "-nx", "-q", "-batch", "-iex", "set debuginfod enabled off", "-p", str(pid)]
        with (Path(directory) / "log").open("w+b") as log:
            debugger = subprocess.Popen(
                [*command, "-x", str(HERE / "unwind_gdb.py")],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                _wait(lambda: out.with_suffix(".ready").exists() or debugger.poll() is not None, seconds)
                probe.arm()
                _wait(lambda: debugger.poll() is not None, seconds + 10)
            finally:
                probe.arm(False)
                if debugger.poll() is None:
                    debugger.kill()
                debugger.wait()
            if not out.exists():
                log.seek(0)
                raise RuntimeError(f"gdb could not trace: {log.read()[-2000:].decode(errors='replace')}")
        return compare(probe.samples(), _read_backtraces(out), at_entry=at_entry)


def _wait(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def _read_backtraces(path: Path) -> list[Backtrace]:
    out = []
    for line in path.read_text().splitlines():
        thread, when, saved, sp, pcs, names, reason = line.split(" ", 6)
        out.append(
            Backtrace(
                int(thread),
                int(when),
                int(saved),
                int(sp),
                tuple(map(int, pcs.split(","))),
                tuple(names.split(",")),
                reason,
            )
        )
    return out


@contextlib.contextmanager
def running(command: Sequence[str], ready: Callable[[int], bool] = lambda _: True) -> Any:
    """Run a target in a session of its own; killed at the end, however gdb has left it."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait(lambda: _mapped(process.pid, b"libc.so") and ready(process.pid), 10)
        time.sleep(0.2)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


def _mapped(pid: int, part: bytes) -> bool:
    try:
        return any(part in vma.path for vma in read_maps(pid))
    except OSError:
        return False


def check(pid: int, kind: str, count: int, *, image: str = "libc.so", symbol: str = "malloc") -> Comparison:
    """Compare `count` stacks at malloc's entry, or at a trace event ("mmap", "rss")."""
    rare = kind != "malloc"
    with UnwindProbe(pid, samples=16 * count, one_in=3 if rare else 37, gap_ns=1_000_000, signal_gdb=True) as probe:
        if kind == "malloc":
            path = mapped_file(pid, image.encode())
            probe.attach_uprobe(path, symbol_offset(path, symbol))
        else:
            probe.attach_tracepoint({"mmap": "syscalls/sys_exit_mmap", "rss": "kmem/rss_stat"}[kind])
        result = run_against_gdb(pid, probe, count, at_entry=kind == "malloc")
        print(f"  compile {probe.compile_seconds:.2f} s, tables {probe.build_seconds:.2f} s, load", end=" ")
        print({name: round(seconds, 3) for name, seconds in probe.load_seconds.items()}, probe.maps.used)
        return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--samples", type=int, default=300)
    parser.add_argument("--probe", choices=("malloc", "mmap", "rss"), default="malloc")
    parser.add_argument("--image", default="libc.so", help="part of the path of the file that holds --symbol")
    parser.add_argument("--symbol", default="malloc")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    with running(options.command) as pid:
        result = check(pid, options.probe, options.samples, image=options.image, symbol=options.symbol)
    print(result)
    for mismatch in result.mismatches[:5]:
        print("  ", mismatch)
    return 0 if result.samples and result.exact == result.samples else 1


if __name__ == "__main__":
    sys.exit(main())
