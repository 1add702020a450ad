"""How long a segment of System V shared memory is, which no argument of shmat(2) tells."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from tracer.errors import MemtraceError
from tracer.model.events import Attached
from tracer.procfs.maps import read_maps


def with_length(pid: int, event: Attached) -> Attached:
    """The event with the length of the segment in bytes, or as it is where the segment is not there any more."""
    size = segment_size(pid, event.segment)
    return replace(event, length=size if size is not None else attached_size(pid, event.segment, event.start))


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
