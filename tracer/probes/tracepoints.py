"""Attaches the programs on system calls, page faults, RSS counters and process life."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field

from tracer.errors import KernelError
from tracer.probes import kernel
from tracer.probes.program import Program

SYSCALLS = ("mmap", "munmap", "mremap", "brk", "mprotect", "madvise")
_RAW = {
    "sched_process_exec": "on_exec",
    "task_newtask": "on_new_task",
    "sched_process_exit": "on_thread_exit",
}
_FAULTS = ("page_fault_user", "page_fault_kernel")
# Offsets and sizes that `struct rss_stat_args` in bpf/rss.bpf.c states.
_RSS_STAT_FIELDS = {"mm_id": (8, 4), "curr": (12, 4), "member": (16, 4), "size": (24, 8)}


@dataclass(slots=True)
class Tracepoints:
    """What is attached; ``missing`` says what the kernel lacks and what is lost by that."""

    descriptors: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    rss_source: bool = False

    def close(self) -> None:
        """Detach. Safe to call twice."""
        while self.descriptors:
            with contextlib.suppress(OSError):
                os.close(self.descriptors.pop())


def attach_tracepoints(program: Program) -> Tracepoints:
    """Attach all that exist here; raises KernelError only where the process's VMAs cannot be followed at all."""
    attached = Tracepoints()
    try:
        tracefs = kernel.open_tracefs()
    except OSError as error:
        raise KernelError(
            f"tracefs cannot be opened: {error.strerror}",
            "mount it: mount -t tracefs tracefs /sys/kernel/tracing (needs CONFIG_FTRACE)",
        ) from error
    try:
        _attach_syscalls(program, tracefs, attached)
        _attach_rss(program, tracefs, attached)
        _attach_raw(program, attached)
    except BaseException:
        attached.close()
        raise
    finally:
        os.close(tracefs)
    return attached


def _attach_syscalls(program: Program, tracefs: int, attached: Tracepoints) -> None:
    for name in SYSCALLS:
        # Exit before enter: a call whose exit is traced but not its enter is ignored; the other way round its
        # thread would look as if it were still inside.
        for side in ("exit", "enter"):
            try:
                event_id = int(kernel.read_at(tracefs, f"events/syscalls/sys_{side}_{name}/id"))
                fd = kernel.open_tracepoint(program.load(f"{side}_{name}", "TRACEPOINT"), event_id)
            except OSError as error:
                raise KernelError(
                    f"the tracepoint syscalls:sys_{side}_{name} cannot be attached: {error.strerror}",
                    "memtrace needs a kernel with CONFIG_FTRACE_SYSCALLS, and CAP_SYS_ADMIN",
                ) from error
            attached.descriptors.append(fd)


def _attach_rss(program: Program, tracefs: int, attached: Tracepoints) -> None:
    try:
        described = kernel.read_at(tracefs, "events/kmem/rss_stat/format").decode("ascii", "replace")
        event_id = int(kernel.read_at(tracefs, "events/kmem/rss_stat/id"))
    except OSError as error:
        attached.missing.append(f"kmem:rss_stat is missing ({error.strerror}): no RSS growth by fault stack")
        return
    if not rss_stat_layout_matches(described):
        attached.missing.append("kmem:rss_stat has an unknown layout on this kernel: no RSS growth by fault stack")
        return
    for name in _FAULTS:
        try:
            fd = kernel.open_raw_tracepoint(name, program.load("on_page_fault", "RAW_TRACEPOINT"))
        except OSError as error:
            attached.missing.append(f"exceptions:{name} is missing ({error.strerror}): RSS changes without address")
            continue
        attached.descriptors.append(fd)
    try:
        attached.descriptors.append(kernel.open_tracepoint(program.load("on_rss_stat", "TRACEPOINT"), event_id))
    except OSError as error:
        attached.missing.append(f"kmem:rss_stat cannot be attached ({error.strerror}): no RSS growth by fault stack")
        return
    attached.rss_source = True


def _attach_raw(program: Program, attached: Tracepoints) -> None:
    for name, function in _RAW.items():
        try:
            attached.descriptors.append(kernel.open_raw_tracepoint(name, program.load(function, "RAW_TRACEPOINT")))
        except OSError as error:
            raise KernelError(f"the raw tracepoint {name} cannot be attached: {error.strerror}") from error


def rss_stat_layout_matches(described: str) -> bool:
    """Whether a tracefs ``format`` file states the layout that bpf/rss.bpf.c was written for."""
    found = {
        name: (int(offset), int(size))
        for name, offset, size in re.findall(r"field:[\w ]+?(\w+);\s*offset:(\d+);\s*size:(\d+);", described)
    }
    return all(found.get(name) == place for name, place in _RSS_STAT_FIELDS.items())
