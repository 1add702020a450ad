"""Attaches the programs on system calls, page faults, RSS counters and process life."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tracer.errors import KernelError
from tracer.model.report import RssSource
from tracer.probes import kernel
from tracer.probes.program import Program

# What must be there. Exit before enter: a call whose exit is traced but not its enter is ignored; the other way round
# its thread would look as if it were still inside.
RAW_CALLS = {"sys_exit": "on_sys_exit", "sys_enter": "on_sys_enter"}
RAW_TRACEPOINTS = {
    "sched_process_exec": "on_exec",
    "task_newtask": "on_new_task",
    "sched_process_exit": "on_thread_exit",
}
# The calls that bpf/vma.bpf.c knows.
_MEMORY_CALLS = (
    *("mmap", "munmap", "mremap", "brk", "madvise", "mprotect", "pkey_mprotect"),
    *("shmat", "shmdt", "remap_file_pages", "io_setup", "io_destroy"),
)
FAULT_TRACEPOINTS = ("page_fault_user", "page_fault_kernel")
# Offsets and sizes that `struct rss_stat_args` in bpf/rss.bpf.c states.
_RSS_STAT_FIELDS = {"mm_id": (8, 4), "curr": (12, 4), "member": (16, 4), "size": (24, 8)}


@dataclass(slots=True)
class Tracepoints:
    """What is attached; ``missing`` says what the kernel lacks and what is lost by that.

    ``slow`` are those that take the kernel some 50 ms each to detach, one after the other.
    """

    descriptors: list[int] = field(default_factory=list)
    slow: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    rss_source: RssSource = "none"

    def close(self) -> None:
        """Detach. Safe to call twice."""
        kernel.close_all(self.slow)
        kernel.close_all(self.descriptors)


def attach_tracepoints(program: Program, wanted: RssSource = "rss-stat") -> Tracepoints:
    """Attach all that exist here; raises KernelError only where the process's VMAs cannot be followed at all.

    ``wanted`` is the best source of RSS changes to use: without kmem:rss_stat, page faults stand in for it.
    """
    attached = Tracepoints()
    try:
        program.set_tail_call("unwind_raw_programs", program.load("unwind_raw_tracepoint", "RAW_TRACEPOINT"))
        if wanted != "none" and _attach_faults(program, attached):
            attached.rss_source = "faults"
            if wanted == "rss-stat" and _attach_rss_stat(program, attached):
                attached.rss_source = "rss-stat"
        if not _attach_memory_calls(program, attached):
            _attach_raw(program, attached, RAW_CALLS)
        _attach_raw(program, attached, RAW_TRACEPOINTS)
    except BaseException:
        attached.close()
        raise
    return attached


def _attach_faults(program: Program, attached: Tracepoints) -> bool:
    for name in FAULT_TRACEPOINTS:
        try:
            fd = kernel.open_raw_tracepoint(name, program.load("on_page_fault", "RAW_TRACEPOINT"))
        except KernelError as error:
            # bpf_task_pt_regs came with Linux 5.15.
            attached.missing.append(
                f"page faults cannot be traced with stacks on this kernel, so RSS growth has none: {error.cause}"
            )
            return False
        except OSError as error:
            attached.missing.append(f"exceptions:{name} is missing ({error.strerror}): RSS changes without address")
            continue
        attached.descriptors.append(fd)
    return True


def _attach_rss_stat(program: Program, attached: Tracepoints) -> bool:
    reason = None
    try:
        described, event_id = rss_stat_event()
        if rss_stat_layout_matches(described):
            attached.descriptors.append(kernel.open_tracepoint(program.load("on_rss_stat", "TRACEPOINT"), event_id))
        else:
            reason = "its layout is unknown"
    except (OSError, KernelError) as error:
        reason = error.cause if isinstance(error, KernelError) else error.strerror
    if reason:
        attached.missing.append(f"kmem:rss_stat cannot be used here ({reason}): page faults stand in for it")
    return not reason


def _attach_memory_calls(program: Program, attached: Tracepoints) -> bool:
    """Attach to the events of the single system calls; False where this kernel has none."""
    held: list[int] = []
    if not program.has_call_events:
        return False
    try:
        tracefs = kernel.open_tracefs()
        try:
            ids = [call_event_ids(tracefs, name) for name in _MEMORY_CALLS]
        finally:
            os.close(tracefs)
        program.set_tail_call("unwind_tracepoint_programs", program.load("unwind_tracepoint", "TRACEPOINT"))
        enter, leave = (program.load(name, "TRACEPOINT") for name in ("on_memory_call", "on_memory_call_end"))
        for entry_id, exit_id in ids:
            held.append(kernel.open_tracepoint(leave, exit_id))
            held.append(kernel.open_tracepoint(enter, entry_id))
    except OSError as error:
        kernel.close_all(held)
        raise KernelError(f"the events of system calls cannot be attached: {error.strerror}") from error
    attached.slow += held
    return True


def call_event_ids(tracefs: int, name: str) -> tuple[int, int]:
    """The ids of the events at a system call's entry and exit. Raises OSError where the kernel has none."""
    entry, leave = (kernel.read_at(tracefs, f"events/syscalls/sys_{side}_{name}/id") for side in ("enter", "exit"))
    return int(entry), int(leave)


def _attach_raw(program: Program, attached: Tracepoints, wanted: Mapping[str, str]) -> None:
    for name, function in wanted.items():
        try:
            attached.descriptors.append(kernel.open_raw_tracepoint(name, program.load(function, "RAW_TRACEPOINT")))
        except OSError as error:
            raise KernelError(
                f"the raw tracepoint {name} cannot be attached: {error.strerror}",
                "memtrace needs a kernel with CONFIG_BPF_EVENTS and CONFIG_FTRACE_SYSCALLS, and CAP_SYS_ADMIN",
            ) from error


def rss_stat_event() -> tuple[str, int]:
    """The format and the id of kmem:rss_stat; the only trace event whose fields no raw tracepoint passes."""
    tracefs = kernel.open_tracefs()
    try:
        described = kernel.read_at(tracefs, "events/kmem/rss_stat/format").decode("ascii", "replace")
        return described, int(kernel.read_at(tracefs, "events/kmem/rss_stat/id"))
    finally:
        os.close(tracefs)


def rss_stat_event_id() -> int:
    """The id of kmem:rss_stat. Raises OSError where there is none."""
    return rss_stat_event()[1]


def rss_stat_layout_matches(described: str) -> bool:
    """Whether a tracefs ``format`` file states the layout that bpf/rss.bpf.c was written for."""
    found = {
        name: (int(offset), int(size))
        for name, offset, size in re.findall(r"field:[\w ]+?(\w+);\s*offset:(\d+);\s*size:(\d+);", described)
    }
    return all(found.get(name) == place for name, place in _RSS_STAT_FIELDS.items())
