"""Reading whole files of /proc/PID as bytes, with errors that say what became of the process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tracer.errors import PrivilegeError, TargetError

_SUDO = "run memtrace with sudo, as root of the initial user namespace"


@contextmanager
def target_errors(pid: int, path: str) -> Iterator[None]:
    """Turn the OSErrors of reading ``path`` into TargetError (process gone) or PrivilegeError (not allowed).

    /proc answers ENOENT at open() and ESRCH at read() for a process that has ended; with hidepid=2 a process
    of another user looks the same as one that does not exist (proc(5)).
    """
    try:
        yield
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetError(f"process {pid} does not exist or has ended") from error
    except PermissionError as error:
        raise PrivilegeError(f"no permission to read {path}", _SUDO) from error


def read_file(pid: int, name: str) -> bytes:
    """The content of /proc/``pid``/``name``.

    Raises TargetError where the process does not exist or has ended, PrivilegeError where the caller may not look.
    """
    path = f"/proc/{pid}/{name}"
    # Unbuffered: the kernel hands out at most a page per read() of maps and smaps, a second buffer gains nothing.
    with target_errors(pid, path), open(path, "rb", buffering=0) as file:
        return file.read()


def read_parts(pid: int, name: str, size: int = 64 << 10) -> Iterator[bytes]:
    """The content of /proc/``pid``/``name`` in parts of about ``size`` bytes, for files of tens of megabytes.

    Raises as ``read_file``, when it is iterated.
    """
    path = f"/proc/{pid}/{name}"
    # The buffer is filled by the kernel's small reads, without a copy for each.
    with target_errors(pid, path), open(path, "rb", buffering=size) as file:
        while part := file.read(size):
            yield part


def thread_ids(pid: int) -> list[int]:
    """Thread ids of a process, in ascending order; raises TargetError and PrivilegeError."""
    path = f"/proc/{pid}/task"
    with target_errors(pid, path):
        return sorted(int(name) for name in os.listdir(path))


def read_of_any_thread(pid: int, name: str, usable: Callable[[bytes], object] = bool) -> bytes:
    """The content of /proc/PID/NAME, or of task/TID/NAME where the process's own is not ``usable``.

    A group leader that has exited while other threads live on has given up its mm: its maps, smaps and the Vm
    lines of its status are empty, those of the other threads are not. What the leader says is returned where no
    thread has an mm, as in a kernel thread or a zombie.
    """
    data = read_file(pid, name)
    if usable(data):
        return data
    for tid in thread_ids(pid):
        try:
            of_thread = read_file(pid, f"task/{tid}/{name}")
        except TargetError:  # this thread has ended meanwhile; another may live
            continue
        if usable(of_thread):
            return of_thread
    return data
