"""/proc/PID/cgroup: which control group a process's memory is charged to (cgroups(7))."""

from __future__ import annotations


def memory_cgroup(data: bytes) -> str:
    """The path of the group: of the v1 controller ``memory`` where that is mounted, else of the v2 hierarchy.

    ``""`` where the file names neither. Bytes that are no UTF-8 become surrogates (PEP 383).
    """
    unified = ""
    for line in data.split(b"\n"):
        # The path is the rest of the line: it may hold colons.
        number, _, rest = line.partition(b":")
        controllers, found, path = rest.partition(b":")
        if not found:
            continue
        if b"memory" in controllers.split(b","):
            return path.decode("utf-8", "surrogateescape")
        if number == b"0" and not controllers:
            unified = path.decode("utf-8", "surrogateescape")
    return unified
