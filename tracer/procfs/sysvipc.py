"""How long a segment of System V shared memory is, which no argument of shmat(2) tells."""

from __future__ import annotations

import os
from dataclasses import replace
from mmap import PAGESIZE
from pathlib import Path

from tracer.errors import MemtraceError
from tracer.model.events import Attached
from tracer.procfs.maps import read_maps


def with_length(pid: int, event: Attached) -> Attached:
    """The event with the length that the segment has in memory, in bytes; as it is where it is not there any more."""
    size = segment_size(pid, event.segment)
    if size is None:
        size = attached_size(pid, event.segment, event.start)
    return replace(event, length=None if size is None else (size + PAGESIZE - 1) // PAGESIZE * PAGESIZE)


def segment_size(pid: int, segment: int) -> int | None:
    """The size by /proc/sysvipc/shm (proc(5)), which shows the segments of our own IPC namespace."""
    try:
        if os.readlink(f"/proc/{pid}/ns/ipc") != os.readlink("/proc/self/ns/ipc"):
            return None
        return parse_segments(Path("/proc/sysvipc/shm").read_bytes()).get(segment)
    except OSError:
        return None


def parse_segments(data: bytes) -> dict[int, int]:
    """Sizes in bytes by segment id; the columns are key, shmid, perms, size, ..."""
    rows = [line.split() for line in data.splitlines()[1:]]
    return {int(row[1]): int(row[3]) for row in rows if len(row) > 3}


def attached_size(pid: int, segment: int, start: int) -> int | None:
    """The size of what is still mapped of a segment that was attached at ``start``; its inode number is its id."""
    try:
        vmas = read_maps(pid)
    except MemtraceError:
        return None
    ends = [
        vma.end
        for vma in vmas
        if vma.path.startswith(b"/SYSV") and vma.inode == segment and vma.start - vma.offset == start
    ]
    return max(ends) - start if ends else None
