"""What /proc/PID/status, stat, statm and cmdline say about a process. All cost microseconds and block nothing."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, replace

from tracer.errors import TargetError
from tracer.model.vma import RssCounters
from tracer.procfs.files import read_file, read_of_any_thread

_KIB = 1024
# include/linux/sched.h; unchanged since 2.6.28.
_PF_KTHREAD = 0x00200000


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """A process as /proc/PID/status describes it (proc(5)).

    ``state`` is the letter (``R``, ``S``, ``Z``, ...), ``uid`` the effective user, ``vm_size`` in bytes. A zombie
    and a kernel thread have no memory: ``vm_size`` and ``counters`` are 0.
    """

    name: str
    state: str
    tgid: int
    ppid: int
    uid: int
    threads: int
    vm_size: int
    counters: RssCounters
    kernel_thread: bool


def parse_status(data: bytes) -> ProcessStatus:
    """A status file; a field that is missing is 0. ``kernel_thread`` needs the line Kthread (kernel 6.8)."""
    fields = _fields(data)
    return ProcessStatus(
        name=_printable(fields.get(b"Name", b"")),
        state=fields.get(b"State", b"?")[:1].decode("ascii", "replace"),
        tgid=_number(fields, b"Tgid"),
        ppid=_number(fields, b"PPid"),
        uid=_number(fields, b"Uid", 1),
        threads=_number(fields, b"Threads"),
        vm_size=_number(fields, b"VmSize") * _KIB,
        counters=_counters(fields),
        kernel_thread=_number(fields, b"Kthread") == 1,
    )


def read_status(pid: int) -> ProcessStatus:
    """The status of a process.

    Where the group leader has exited but other threads run, one of these is described (they share the memory).
    Raises TargetError where the process does not exist or has ended.
    """
    data = read_of_any_thread(pid, "status", _has_memory)
    status = parse_status(data)
    if status.vm_size or b"\nKthread:" in data:
        return status
    return replace(status, kernel_thread=is_kernel_thread(pid))


def read_counters(pid: int) -> RssCounters:
    """The RSS of a process by member, in bytes; all 0 for a zombie or a kernel thread.

    Exact since kernel 6.16. From 6.2 each CPU, before 6.2 each thread, may hold back up to 64 pages or, with
    more than 32 CPUs, two pages for each CPU. Raises TargetError where the process has ended.
    """
    return _counters(_fields(read_of_any_thread(pid, "status", _has_memory)))


def read_statm_rss(pid: int) -> int:
    """Resident bytes by statm, the cheapest reader (2 us); as exact as ``read_counters``."""
    return int(read_of_any_thread(pid, "statm", _has_resident).split()[1]) * mmap.PAGESIZE


def read_command(pid: int) -> str:
    """The command line, its arguments separated by blanks, or the name in brackets where there is none.

    Printable as it is: undecodable bytes and control characters (which could drive a terminal) appear as escapes.
    """
    arguments = read_file(pid, "cmdline").rstrip(b"\0 ").split(b"\0")
    command = " ".join(_printable(argument) for argument in arguments)
    if command:
        return command
    name = read_file(pid, "comm").removesuffix(b"\n")
    return f"[{_printable(name)}]"


def read_start_time(pid: int) -> int:
    """When the process started, in clock ticks (SC_CLK_TCK) since boot: with the PID, it identifies a process."""
    return int(_stat_fields(pid)[22 - 3])


def read_brk_start(pid: int) -> int:
    """Where the brk heap starts, in bytes; 0 where the caller may not know (proc(5), stat field 47)."""
    return int(_stat_fields(pid)[47 - 3])


def cpu_seconds(pid: int) -> float:
    """CPU time that all threads of the process have used so far, in user and kernel mode, in seconds."""
    fields = _stat_fields(pid)
    return (int(fields[14 - 3]) + int(fields[15 - 3])) / os.sysconf("SC_CLK_TCK")


def is_kernel_thread(pid: int) -> bool:
    """True for a thread of the kernel, which has no address space of its own."""
    return _has_kernel_flag(_stat_fields(pid))


def is_kernel_thread_stat(stat: bytes) -> bool:
    """The same by the content of a stat file. Raises ValueError or IndexError where it is none."""
    return _has_kernel_flag(parse_stat(stat))


def parse_stat(data: bytes) -> list[bytes]:
    """The fields of a stat file from the third (state) on: field N of proc(5) is item N - 3.

    The second, the name in parentheses, may itself hold blanks and parentheses; no later field does.
    """
    return data[data.rindex(b")") + 1 :].split()


def _has_kernel_flag(fields: list[bytes]) -> bool:
    return bool(int(fields[9 - 3]) & _PF_KTHREAD)


def _stat_fields(pid: int) -> list[bytes]:
    data = read_file(pid, "stat")
    if not data:
        raise TargetError(f"process {pid} has ended")
    return parse_stat(data)


def _fields(data: bytes) -> dict[bytes, bytes]:
    """Names to values; a newline in the name of the process is escaped by the kernel, a colon is not."""
    return {name: value.strip() for name, _, value in (line.partition(b":") for line in data.split(b"\n"))}


def _number(fields: dict[bytes, bytes], name: bytes, index: int = 0) -> int:
    words = fields.get(name, b"").split()
    return int(words[index]) if len(words) > index else 0


def _counters(fields: dict[bytes, bytes]) -> RssCounters:
    return RssCounters(
        anon=_number(fields, b"RssAnon") * _KIB,
        file=_number(fields, b"RssFile") * _KIB,
        shmem=_number(fields, b"RssShmem") * _KIB,
        swap=_number(fields, b"VmSwap") * _KIB,
    )


def _has_memory(status: bytes) -> bool:
    return b"\nVmSize:" in status


def _has_resident(statm: bytes) -> bool:
    return not statm.startswith(b"0 ")


def _printable(text: bytes) -> str:
    decoded = text.decode("utf-8", "backslashreplace")
    if decoded.isprintable():
        return decoded
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in decoded)
