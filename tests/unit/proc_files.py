"""Files of /proc made up for tests, and a source that has them."""

from __future__ import annotations

from collections.abc import Mapping

from tracer.errors import PrivilegeError, TargetError

NAMES: tuple[str, ...] = (
    *("KernelPageSize", "MMUPageSize", "Rss", "Pss", "Pss_Dirty", "Shared_Clean", "Shared_Dirty"),
    *("Private_Clean", "Private_Dirty", "Referenced", "Anonymous", "KSM", "LazyFree", "AnonHugePages"),
    *("Shared_Hugetlb", "Private_Hugetlb", "Swap", "SwapPss", "Locked"),
)


def size_line(name: str, kib: int) -> bytes:
    return f"{name + ':':<16}{kib:>8} kB\n".encode()


def maps_line(start: int, end: int, perms: bytes = b"rw-p", path: bytes = b"", inode: int = 0) -> bytes:
    head = b"%x-%x %s 00000000 %s %d " % (start, end, perms, b"fe:00" if inode else b"00:00", inode)
    return (head.ljust(73) + path if path else head) + b"\n"


def block(
    start: int,
    end: int,
    perms: bytes = b"rw-p",
    path: bytes = b"",
    inode: int = 0,
    *,
    flags: bytes = b"rd wr mr mw me ac ",
    extra: bytes = b"",
    **sizes: int,
) -> bytes:
    """A block of smaps; sizes in KiB by the kernel's names, 0 where not given."""
    sizes = {"KernelPageSize": 4, "MMUPageSize": 4, **sizes}
    lines = [size_line("Size", (end - start) >> 10), *(size_line(name, sizes.get(name, 0)) for name in NAMES)]
    head = maps_line(start, end, perms, path, inode)
    return head + b"".join(lines) + b"THPeligible:           0\n" + extra + b"VmFlags: " + flags + b"\n"


def status(name: bytes = b"server", *, size: int = 0, rss: int = 0, state: bytes = b"S (sleeping)") -> bytes:
    """A status file; sizes in KiB. A process of size 0 has no memory, as a zombie."""
    memory = b"VmSize:\t%d kB\nRssAnon:\t%d kB\nRssFile:\t0 kB\nRssShmem:\t0 kB\nVmSwap:\t0 kB\n" % (size, rss)
    head = b"Name:\t%s\nState:\t%s\nTgid:\t7\nPPid:\t1\nUid:\t0\t0\t0\t0\n" % (name, state)
    return head + (memory if size else b"") + b"Threads:\t1\nKthread:\t0\n"


class Files:
    """A ``ProcSource`` of files by process and name; the value None stands for one that may not be read."""

    def __init__(self, processes: Mapping[int, Mapping[str, bytes | None]]) -> None:
        self.processes = processes

    def pids(self) -> list[int]:
        return sorted(self.processes)

    def threads(self, pid: int) -> list[int]:
        names = [name.split("/") for name in self._of(pid) if name.startswith("task/")]
        return sorted({int(parts[1]) for parts in names} | {pid})

    def read(self, pid: int, name: str) -> bytes:
        files = self._of(pid)
        if name not in files:
            raise TargetError(f"process {pid} has no {name}")
        content = files[name]
        if content is None:
            raise PrivilegeError(f"no permission to read {name}", "use sudo")
        return content

    def read_system(self, name: str) -> bytes:
        raise FileNotFoundError(name)

    def user_name(self, uid: int) -> str:
        return {0: "root"}.get(uid, str(uid))

    def _of(self, pid: int) -> Mapping[str, bytes | None]:
        try:
            return self.processes[pid]
        except KeyError:
            raise TargetError(f"process {pid} does not exist or has ended") from None
