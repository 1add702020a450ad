"""Checks, before anything is attached, that the process can be traced and that we may trace it."""

from __future__ import annotations

import os
import select
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import KernelError, PrivilegeError, TargetError
from tracer.procfs.status import read_command, read_start_time, read_status

_CAP_SYS_ADMIN = 21


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """The process to be traced; ``start_time`` (clock ticks since boot) tells it from a later one of its pid."""

    pid: int
    command: str
    start_time: int


def check_privileges(arguments: Sequence[str]) -> None:
    """Raise PrivilegeError, with the exact command to type, where the caller may not trace.

    Uprobes need CAP_SYS_ADMIN; CAP_BPF with CAP_PERFMON does not suffice (perf_event_open(2), kernel/events/core.c).
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    if not effective >> _CAP_SYS_ADMIN & 1:
        typed = shlex.join(["sudo", "memtrace", *arguments])
        raise PrivilegeError("tracing needs root (CAP_SYS_ADMIN)", f"type: {typed}")


def check_target(pid: int, command: str = "memtrace") -> TargetInfo:
    """Return what is known of the process. Raises TargetError, saying why it cannot be traced.

    ``command`` is what to type before the pid of another process.
    """
    try:
        status = read_status(pid)
    except TargetError:
        raise TargetError(f"there is no process {pid}", "list processes with: ps aux --sort=-rss | head") from None
    if status.kernel_thread:
        raise TargetError(f"process {pid} ({status.name}) is a kernel thread: it has no memory of its own to trace")
    if status.tgid != pid:
        raise TargetError(f"{pid} is a thread of process {status.tgid}", f"trace the process: {command} {status.tgid}")
    if not status.vm_size:
        raise TargetError(f"process {pid} ({status.name}) has ended: what is left of it is a zombie without memory")
    if pid == os.getpid():
        raise TargetError("memtrace cannot trace itself")
    return TargetInfo(pid, read_command(pid), read_start_time(pid))


class ProcessHandle:
    """Tells when a process ends, by a pidfd: its pid being used again cannot deceive it (pidfd_open(2), Linux 5.3)."""

    def __init__(self, target: TargetInfo) -> None:
        """Raises TargetError where the process has ended since it was checked."""
        try:
            self._fd = os.pidfd_open(target.pid)
        except ProcessLookupError:
            raise TargetError(f"process {target.pid} has ended") from None
        except OSError as error:
            raise KernelError(
                f"pidfd_open is refused: {error.strerror}", "memtrace needs kernel 5.10 or newer"
            ) from error
        if read_start_time(target.pid) != target.start_time:
            os.close(self._fd)
            raise TargetError(f"process {target.pid} has ended; another one has its pid now")
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended (all of its threads)."""
        return bool(self._poll.poll(0))

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until the process has ended; whether it has."""
        return bool(self._poll.poll(seconds * 1000))

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)
