"""What a trap costs on this machine: measured in a short-lived child of our own, while the BPF programs are compiled.

The child maps a page of machine code of its own, puts empty BPF programs on it and times loops over it. Measured is
what the kernel takes to come to a program and back; the programs' own time is told by the kernel while they run
(tracer.probes.runtime). No other process is touched, and the probes end with the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import platform
import select
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from tracer.probes import kernel
from tracer.probes.tracepoints import rss_stat_event_id

_ROUNDS = 5
_CALLS = 400
_STEPPED_CALLS = 100
_PAGES = 256
_MAX_ANSWER = 1 << 12

# x86-64. A function whose first instruction the kernel emulates, and one whose first it has to single-step.
_EMULATED = bytes.fromhex("55 5d c3")  # push %rbp; pop %rbp; ret
_STEPPED = bytes.fromhex("48 85 ff c3")  # test %rdi,%rdi; ret
# call(count, function): push %rbx; push %r12; mov %rdi,%rbx; mov %rsi,%r12; 1: call *%r12; dec %rbx; jne 1b; ...
_CALL_LOOP = bytes.fromhex("53 41 54 48 89 fb 49 89 f4 41 ff d4 48 ff cb 75 f8 41 5c 5b c3")
# touch(count, address): 1: movb $1,(%rsi); add $4096,%rsi; dec %rdi; jne 1b; ret
_TOUCH_LOOP = bytes.fromhex("c6 06 01 48 81 c6 00 10 00 00 48 ff cf 75 f1 c3")
_SPACING = 64


@dataclass(frozen=True, slots=True)
class TrapCosts:
    """Nanoseconds from the interrupted instruction to an empty BPF program and back.

    ``entry``: a uprobe on an instruction that the kernel emulates; ``skipped``: the same with the return probe
    suppressed (where there are no sessions: not suppressed); ``returned``: entry and return; ``stepped``: a uprobe
    on any other instruction. ``fault``: what the tracepoints on page faults and RSS counters add to one.
    """

    entry: float = 800.0
    skipped: float = 880.0
    returned: float = 1400.0
    stepped: float = 9000.0
    fault: float = 500.0
    measured: bool = False


class Calibration:
    """Measures in the background. To be started before the process has threads, as it forks."""

    def __init__(self) -> None:
        self._answer, theirs = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._answer)
            _measure_in_child(theirs)
        os.close(theirs)
        self._costs: TrapCosts | None = None

    def result(self, patience: float = 1.0) -> TrapCosts:
        """The costs; those of a typical machine where they could not be measured, or not in ``patience`` seconds."""
        if self._costs is None:
            ready, _, _ = select.select([self._answer], [], [], patience)
            answer = os.read(self._answer, _MAX_ANSWER) if ready else b""
            self._costs = TrapCosts(**json.loads(answer)) if answer else TrapCosts()
            self.close()
        return self._costs

    def close(self) -> None:
        """End the child, if it still runs. Safe to call twice."""
        if self._child:
            os.close(self._answer)
            with contextlib.suppress(OSError):
                os.kill(self._child, signal.SIGTERM)
                os.waitpid(self._child, 0)
            self._child = 0


def _measure_in_child(answer: int) -> None:
    """The child: measure, write the answer, end. Never returns."""
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(answer, json.dumps(asdict(measure())).encode())
    finally:
        os._exit(0)


def measure() -> TrapCosts:
    """Measure in this process, which gets probes that stay until it ends. Raises OSError where that is impossible."""
    if platform.machine() != "x86_64":
        raise OSError("not known on this machine")
    code = _Code()
    plain = kernel.load_program(0)
    held: list[int] = []
    base = code.time_calls(0, _CALLS)
    costs: dict[str, float] = {}
    try:
        session = {answer: kernel.load_program(answer, kernel.BPF_TRACE_UPROBE_SESSION) for answer in (0, 1)}
        multi = kernel.load_program(0, kernel.BPF_TRACE_UPROBE_MULTI)
        held.append(code.link(multi, 1))
        held.append(code.link(session[1], 2, session=True))
        held.append(code.link(session[0], 3, session=True))
        held.append(code.link(multi, 4))
    except OSError:  # before Linux 6.13
        held.append(code.probe(plain, 1))
        for slot in (2, 3):
            held += [code.probe(plain, slot), code.probe(plain, slot, on_return=True)]
        held.append(code.probe(plain, 4))
    costs["entry"] = code.time_calls(1, _CALLS) - base
    costs["skipped"] = code.time_calls(2, _CALLS) - base
    costs["returned"] = code.time_calls(3, _CALLS) - base
    costs["stepped"] = code.time_calls(4, _STEPPED_CALLS) - base
    costs["fault"] = _fault_cost(code)
    return TrapCosts(**{name: round(max(value, 0.0), 1) for name, value in costs.items()}, measured=True)


def _fault_cost(code: _Code) -> float:
    """What empty programs on page faults and RSS counters add to a fault; attached for some milliseconds."""
    quiet = code.time_faults()
    raw = kernel.load_program(0, kind=kernel.BPF_PROG_TYPE_RAW_TRACEPOINT)
    held = [kernel.open_raw_tracepoint("page_fault_user", raw)]
    with contextlib.suppress(OSError):
        event = rss_stat_event_id()
        held.append(kernel.open_tracepoint(kernel.load_program(0, kind=kernel.BPF_PROG_TYPE_TRACEPOINT), event))
    traced = code.time_faults()
    for descriptor in held:
        os.close(descriptor)
    return traced - quiet


class _Code:
    """The page of machine code: probed functions in slots 0 to 4, then the loops."""

    def __init__(self) -> None:
        parts = [_EMULATED] * 4 + [_STEPPED, _CALL_LOOP, _TOUCH_LOOP]
        image = b"".join(part.ljust(_SPACING, b"\xcc") for part in parts)
        self._file = os.memfd_create("memtrace-calibration")
        os.write(self._file, image.ljust(mmap.PAGESIZE, b"\xcc"))
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long]
        address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, self._file, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "cannot map code")
        self._base = int(address)
        loop = ctypes.CFUNCTYPE(None, ctypes.c_long, ctypes.c_void_p)
        self._call, self._touch = (loop(self._base + slot * _SPACING) for slot in (5, 6))

    def link(self, program: int, slot: int, *, session: bool = False) -> int:
        """Put a program on the function in a slot."""
        cookies = [1] if session else []
        return kernel.link_uprobes(program, self._path, [slot * _SPACING], os.getpid(), cookies)

    def probe(self, program: int, slot: int, *, on_return: bool = False) -> int:
        """The same by a perf event."""
        return kernel.open_perf_uprobe(program, self._path, slot * _SPACING, os.getpid(), on_return=on_return)

    @property
    def _path(self) -> str:
        return f"/proc/self/fd/{self._file}"

    def time_calls(self, slot: int, calls: int) -> float:
        """Nanoseconds of a call of the function in a slot."""
        target = self._base + slot * _SPACING
        return _best(lambda: self._call(calls, target)) / calls

    def time_faults(self) -> float:
        """Nanoseconds of touching a fresh page."""
        times = []
        for _ in range(_ROUNDS):
            with mmap.mmap(-1, _PAGES * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
                with contextlib.suppress(OSError):
                    pages.madvise(mmap.MADV_NOHUGEPAGE)
                start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
                times.append(_nanoseconds(partial(self._touch, _PAGES, start)))
        return statistics.median(times) / _PAGES


def _best(work: Callable[[], object]) -> float:
    """The median of some rounds: the least would leave out what the machine's other load adds to each trap."""
    work()
    return statistics.median(_nanoseconds(work) for _ in range(_ROUNDS))


def _nanoseconds(work: Callable[[], object]) -> int:
    # CPU time: that the child may have to wait for a CPU is no cost of a trap.
    began = time.thread_time_ns()
    work()
    return time.thread_time_ns() - began
