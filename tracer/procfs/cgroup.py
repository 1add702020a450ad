r"""What bounds the memory of a process from outside: the limits of its memory cgroups, and what the host has left.

Sources: cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst, proc(5) for mountinfo, whose
paths hold blanks as ``\040``. The directory of a cgroup is looked for in the mounts that the caller sees.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import MemtraceError
from tracer.model.watch import MemoryLimit
from tracer.procfs.files import read_file

_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class _Version:
    """The names of files and of fields of memory.stat; a field says what can be reclaimed."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: tuple[bytes, ...]


_V1 = _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", (b"total_inactive_file", b"total_active_file"))
_V2 = _Version(("memory.max", "memory.high"), "memory.current", (b"inactive_file", b"active_file", b"slab_reclaimable"))


def read_limits(pid: int) -> list[MemoryLimit]:
    """Every limit that ``pid``'s memory can run into, the host's available memory among them; the nearest first.

    A limit that cannot be read (another namespace's cgroup, a cgroup that is gone) is left out.
    """
    try:
        limits = cgroup_limits(read_file(pid, "cgroup"), Path("/proc/self/mountinfo").read_bytes())
    except (MemtraceError, OSError):
        limits = []
    with suppress(OSError, KeyError):
        limits.append(host_limit(Path("/proc/meminfo").read_bytes()))
    return sorted(limits, key=lambda limit: limit.room)


def host_limit(meminfo: bytes) -> MemoryLimit:
    """What the host can give without swapping (MemAvailable); raises KeyError where the file lacks it."""
    fields = _numbers(meminfo)
    return MemoryLimit("the host's available memory", fields[b"MemTotal"] * 1024, fields[b"MemAvailable"] * 1024)


def cgroup_limits(cgroup: bytes, mountinfo: bytes) -> list[MemoryLimit]:
    """The limits of a memory cgroup and of all above it, from /proc/PID/cgroup and /proc/self/mountinfo.

    Where version 1 has the memory controller, version 2 cannot have it.
    """
    paths = _memory_paths(cgroup)
    mounts = list(_mounts(mountinfo))
    for is_v1 in (True, False):
        if is_v1 not in paths:
            continue
        for mount in mounts:
            below = _relative(paths[is_v1], mount.root)
            if mount.is_v1 == is_v1 and below is not None:
                return list(_limits_upwards(mount, below, _V1 if is_v1 else _V2))
    return []


@dataclass(frozen=True, slots=True)
class _Mount:
    root: bytes
    point: bytes
    is_v1: bool


def _memory_paths(cgroup: bytes) -> dict[bool, bytes]:
    """Whether it is version 1, to the path of the memory cgroup in that hierarchy."""
    paths: dict[bool, bytes] = {}
    for line in cgroup.splitlines():
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if b"memory" in controllers.split(b","):
            paths[True] = path
        elif number == b"0" and not controllers:
            paths[False] = path
    return paths


def _mounts(mountinfo: bytes) -> Iterator[_Mount]:
    """The mounts of the hierarchies that may hold the memory controller."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(b" - ")
        words, kind = before.split(b" "), after.split(b" ")
        if len(words) < 5 or len(kind) < 3:
            continue
        is_v1 = kind[0] == b"cgroup" and b"memory" in kind[2].split(b",")
        if is_v1 or kind[0] == b"cgroup2":
            yield _Mount(_unescape(words[3]), _unescape(words[4]), is_v1)


def _unescape(path: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), path)


def _relative(path: bytes, root: bytes) -> list[bytes] | None:
    """The parts of ``path`` below ``root``; None where it is not below (another namespace: ``/../x``)."""
    parts = [part for part in path.split(b"/") if part]
    above = [part for part in root.split(b"/") if part]
    if b".." in parts or parts[: len(above)] != above:
        return None
    return parts[len(above) :]


def _limits_upwards(mount: _Mount, below: list[bytes], version: _Version) -> Iterator[MemoryLimit]:
    for depth in range(len(below), -1, -1):
        name = b"/".join(below[:depth])
        shown = (b"/" + name).decode("utf-8", "backslashreplace")
        yield from _limits_of(Path(os.fsdecode(mount.point)) / os.fsdecode(name), shown, version)


def _limits_of(directory: Path, name: str, version: _Version) -> Iterator[MemoryLimit]:
    try:
        usage = int((directory / version.usage).read_bytes())
        stat = _numbers((directory / "memory.stat").read_bytes())
    except (OSError, ValueError):
        return
    in_use = usage - sum(stat.get(field, 0) for field in version.reclaimable)
    for file in version.limits:
        try:
            limit = int((directory / file).read_bytes())
        except (OSError, ValueError):  # "max" says that there is none
            continue
        # Version 1 says the largest multiple of the page size for "none".
        if limit < 1 << 62:
            yield MemoryLimit(f"{file} of cgroup {name}", limit, max(0, limit - max(0, in_use)))


def _numbers(data: bytes) -> dict[bytes, int]:
    """``name number`` and ``Name: number kB`` lines."""
    fields: dict[bytes, int] = {}
    for line in data.splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            fields[words[0].removesuffix(b":")] = int(words[1])
    return fields
