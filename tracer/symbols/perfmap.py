"""The map of generated code that a JIT compiler keeps in /tmp/perf-PID.map, for perf and for us.

Format (perf's Documentation/jit-interface.txt): a line ``START SIZE NAME`` for each function, both numbers in
hexadecimal; later lines replace earlier ones. Node (--perf-basic-prof), Java agents, .NET and Python 3.12 write it.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right

MAX_BYTES = 64 << 20
MAX_LINES = 1 << 20

_LOOK_BACK = 64


class PerfMap:
    """The perf map of a process, as seen from its own mount and PID namespaces. Held open, read when first asked.

    ``is_refused``: there is one, but others than the target's user may have written it.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._fd: int | None = None
        self._seen: tuple[int, int] | None = None
        self._loaded: tuple[int, int] | None = None
        self._starts: list[int] = []
        self._rows: list[tuple[int, int, int, bytes]] = []
        self.text = ""
        self.is_refused = False

    def refresh(self) -> bool:
        """Opens the file anew; True where what was looked up before may have changed."""
        fd = self._open()
        if fd is None:
            return False
        self.close()
        self._fd = fd
        before, self._seen = self._seen, _identity(fd)
        return before != self._seen

    def lookup(self, address: int) -> tuple[bytes, int] | None:
        """Name of the generated function at ``address``, and the distance from its start in bytes."""
        self._load()
        last = bisect_right(self._starts, address) - 1
        covering = [
            row for row in self._rows[max(0, last - _LOOK_BACK) : last + 1] if row[0] <= address < row[0] + row[2]
        ]
        newest = max(covering, key=lambda row: row[1], default=None)
        return (newest[3], address - newest[0]) if newest else None

    def close(self) -> None:
        """Gives the descriptor back; what was read stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int | None:
        """Nobody but the target's user and root may have written it, and a link there would lead out of the target."""
        inner = _namespace_pid(self._pid)
        try:
            owner = os.stat(f"/proc/{self._pid}").st_uid
            path = f"/proc/{self._pid}/root/tmp/perf-{inner}.map"
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            self.is_refused = error.errno == errno.ELOOP  # a link
            return None
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_uid in (0, owner):
            self.text = f"/tmp/perf-{inner}.map"
            return fd
        self.is_refused = True
        os.close(fd)
        return None

    def _load(self) -> None:
        if self._fd is None:
            return
        identity = _identity(self._fd)
        if identity == self._loaded:
            return
        self._loaded = identity
        try:
            data = _read(self._fd, min(identity[1], MAX_BYTES))
        except OSError:
            return
        self._rows = sorted(parse_perf_map(data))
        self._starts = [row[0] for row in self._rows]


def parse_perf_map(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Rows (start, line number, size, name); lines that are none, and what exceeds MAX_LINES, are left out."""
    rows: list[tuple[int, int, int, bytes]] = []
    for number, line in enumerate(data.split(b"\n", MAX_LINES)[:MAX_LINES]):
        fields = line.split(b" ", 2)
        if len(fields) != 3 or len(fields[0]) > 18 or len(fields[1]) > 18:
            continue
        try:
            rows.append((int(fields[0], 16), number, int(fields[1], 16), fields[2][:4096]))
        except ValueError:
            continue
    return rows


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_ino, status.st_size


def _read(fd: int, size: int) -> bytes:
    chunks: list[bytes] = []
    while size > 0:
        chunk = os.pread(fd, min(size, 1 << 20), sum(map(len, chunks)))
        if not chunk:
            break
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _namespace_pid(pid: int) -> int:
    """The process's PID in its own namespace, under which it names its file (NSpid of /proc/PID/status)."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except (OSError, ValueError, IndexError):
        pass
    return pid
