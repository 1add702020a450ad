"""The threads of a process: their names, and where their stacks are."""

from __future__ import annotations

import os
from pathlib import Path

from tracer.errors import MemtraceError
from tracer.model.thread_stacks import Thread
from tracer.procfs.files import thread_ids

_U64 = 1 << 64


def read_threads(pid: int) -> list[Thread]:
    """The threads that live, the main thread first; empty where the process has ended or may not be looked at.

    The stack pointer is that of /proc/PID/task/TID/syscall (proc(5)): it is known only of threads that wait in the
    kernel, and only to who may trace the process. Reading it holds no thread up.
    """
    try:
        tids = thread_ids(pid)
    except MemtraceError:
        return []
    namespaced = _has_pid_namespace(pid)
    return [_thread(pid, tid, namespaced=namespaced) for tid in sorted(tids, key=lambda tid: (tid != pid, tid))]


def _thread(pid: int, tid: int, *, namespaced: bool) -> Thread:
    base = f"/proc/{pid}/task/{tid}"
    name = _read(f"{base}/comm").removesuffix(b"\n").decode("utf-8", "backslashreplace")
    local = _local_tid(_read(f"{base}/status"), tid) if namespaced else tid
    return Thread(tid, local, name, parse_stack_pointer(_read(f"{base}/syscall")))


def parse_stack_pointer(data: bytes) -> int | None:
    """The stack pointer of a ``syscall`` file: ``NUMBER [ARGUMENTS] SP PC`` in hexadecimal, or ``running``."""
    words = data.split()
    if len(words) < 3:
        return None
    try:
        pointer = int(words[-2], 16)
    except ValueError:
        return None
    return pointer if 0 < pointer < _U64 else None


def _local_tid(status: bytes, tid: int) -> int:
    """The id in the innermost PID namespace: the last of the line NSpid (kernel 4.1)."""
    for line in status.split(b"\n"):
        if line.startswith(b"NSpid:") and (words := line.split()[1:]):
            return int(words[-1])
    return tid


def _has_pid_namespace(pid: int) -> bool:
    """Whether the process may know its threads by other ids than we do."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    except OSError:
        return True


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # ended meanwhile, or no permission
        return b""
