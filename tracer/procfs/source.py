"""Where the bytes of /proc come from: this machine, now, or a capture of some machine.

What shows processes reads through a ``ProcSource``, so that each view works on both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from tracer.procfs.files import read_file, target_errors, thread_ids


class ProcSource(Protocol):
    """Whole files of /proc, as bytes. Errors are TargetError (no such process) and PrivilegeError (may not look)."""

    def pids(self) -> list[int]:
        """Process ids (no threads), in ascending order."""
        ...

    def threads(self, pid: int) -> list[int]:
        """Thread ids of a process, in ascending order."""
        ...

    def read(self, pid: int, name: str) -> bytes:
        """The content of /proc/``pid``/``name``; a symbolic link (``exe``, ``cwd``) gives what it leads to."""
        ...

    def read_system(self, name: str) -> bytes:
        """The content of /proc/``name`` (``meminfo``, ...); raises FileNotFoundError where there is none."""
        ...

    def user_name(self, uid: int) -> str:
        """The name of a user, or the number as text where it has none."""
        ...


class LiveSource:
    """This machine's /proc."""

    def pids(self) -> list[int]:
        """Process ids, in ascending order."""
        return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())

    def threads(self, pid: int) -> list[int]:
        """Thread ids of a process, in ascending order."""
        return thread_ids(pid)

    def read(self, pid: int, name: str) -> bytes:
        """The content of a file, or what a symbolic link leads to."""
        if name in ("exe", "cwd", "root"):
            path = f"/proc/{pid}/{name}"
            with target_errors(pid, path):
                return os.fsencode(os.readlink(path))
        return read_file(pid, name)

    def read_system(self, name: str) -> bytes:
        """The content of a file that is of no single process."""
        return Path("/proc", name).read_bytes()

    def user_name(self, uid: int) -> str:
        """The name by the user database."""
        import pwd

        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)
