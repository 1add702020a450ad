"""A /proc in memory, and the bytes that a kernel writes for processes of given sizes. Sizes are KiB here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tracer.errors import PrivilegeError, TargetError

File = bytes | Exception

DENIED = PrivilegeError("no permission to read it")
GONE = TargetError("it has ended")


@dataclass
class FakeProc:
    """Implements ProcSource. A file that is an exception raises it; one that is not there is of no process."""

    files: dict[int, dict[str, File]] = field(default_factory=dict)
    system: dict[str, bytes] = field(default_factory=dict)
    users: Mapping[int, str] = field(default_factory=lambda: {0: "root", 33: "www-data", 1000: "ann"})
    reads: list[str] = field(default_factory=list)

    def pids(self) -> list[int]:
        return sorted(self.files)

    def threads(self, pid: int) -> list[int]:
        names = (name.split("/") for name in self.files.get(pid, {}))
        return sorted({int(parts[1]) for parts in names if parts[0] == "task"} | {pid})

    def read(self, pid: int, name: str) -> bytes:
        self.reads.append(name)
        data = self.files.get(pid, {}).get(name, GONE)
        if isinstance(data, Exception):
            raise data
        return data

    def read_system(self, name: str) -> bytes:
        try:
            return self.system[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def user_name(self, uid: int) -> str:
        return self.users.get(uid, str(uid))


@dataclass(frozen=True)
class FakeMapping:
    """One VMA of a made-up smaps."""

    name: bytes = b""
    size: int = 64
    rss: int = 32
    pss: int = 16
    private_dirty: int = 8
    swap: int = 0
    perms: str = "rw-p"


def status(
    name: bytes = b"server",
    pid: int = 7,
    *,
    uid: int = 0,
    ppid: int = 1,
    threads: int = 1,
    vm_size: int | None = 1000,
    rss: tuple[int, int, int] = (100, 50, 10),
    swap: int = 0,
    hugetlb: int = 0,
    state: str = "S (sleeping)",
    kthread: int | None = 0,
    tgid: int | None = None,
) -> bytes:
    """A status file; without ``vm_size`` that of a process that has no memory, without ``kthread`` an older one."""
    lines = [
        b"Name:\t" + name,
        f"State:\t{state}".encode(),
        f"Tgid:\t{pid if tgid is None else tgid}".encode(),
        f"Pid:\t{pid}".encode(),
        f"PPid:\t{ppid}".encode(),
        f"Uid:\t1\t{uid}\t{uid}\t{uid}".encode(),
    ]
    if kthread is not None:
        lines.append(f"Kthread:\t{kthread}".encode())
    if vm_size is not None:
        anon, file, shmem = rss
        lines += [
            f"VmSize:\t{vm_size:8} kB".encode(),
            f"RssAnon:\t{anon:8} kB".encode(),
            f"RssFile:\t{file:8} kB".encode(),
            f"RssShmem:\t{shmem:8} kB".encode(),
            f"VmSwap:\t{swap:8} kB".encode(),
            f"HugetlbPages:\t{hugetlb:8} kB".encode(),
        ]
    return b"\n".join([*lines, f"Threads:\t{threads}".encode(), b""])


def rollup(
    rss: int = 160,
    pss: int = 120,
    private: tuple[int, int] = (10, 90),
    swap: int = 0,
    swap_pss: int = 0,
    hugetlb: tuple[int, int] = (0, 0),
) -> bytes:
    """A smaps_rollup file as kernel 6.18 writes it."""
    fields = {
        "Rss": rss,
        "Pss": pss,
        "Pss_Dirty": private[1],
        "Shared_Clean": rss - sum(private),
        "Shared_Dirty": 0,
        "Private_Clean": private[0],
        "Private_Dirty": private[1],
        "Referenced": rss,
        "Shared_Hugetlb": hugetlb[0],
        "Private_Hugetlb": hugetlb[1],
        "Swap": swap,
        "SwapPss": swap_pss,
        "Locked": 0,
    }
    head = b"559868cf0000-7fff863f6000 ---p 00000000 00:00 0                          [rollup]\n"
    return head + b"".join(f"{name + ':':<16}{value:8} kB\n".encode() for name, value in fields.items())


def smaps(*mappings: FakeMapping) -> bytes:
    """A smaps file; the mappings follow one another without holes."""
    blocks, start = [], 0x400000
    for mapping in mappings:
        end = start + mapping.size * 1024
        inode = 7 if mapping.name.startswith(b"/") else 0
        head = f"{start:x}-{end:x} {mapping.perms} 00000000 08:01 {inode} ".encode().ljust(73) + mapping.name
        fields = {
            "Size": mapping.size,
            "KernelPageSize": 4,
            "MMUPageSize": 4,
            "Rss": mapping.rss,
            "Pss": mapping.pss,
            "Shared_Clean": mapping.rss - mapping.private_dirty,
            "Shared_Dirty": 0,
            "Private_Clean": 0,
            "Private_Dirty": mapping.private_dirty,
            "Anonymous": mapping.private_dirty,
            "Swap": mapping.swap,
        }
        lines = [f"{name + ':':<16}{value:8} kB".encode() for name, value in fields.items()]
        blocks.append(b"\n".join([head.rstrip(b" ") if not mapping.name else head, *lines, b"VmFlags: rd wr mr mw \n"]))
        start = end
    return b"".join(blocks)


def process(
    pid: int,
    name: bytes = b"server",
    command: bytes | None = None,
    *,
    denied: bool = False,
    memory: bytes | None = None,
    mappings: tuple[FakeMapping, ...] = (),
    start: int = 5,
    cgroup: bytes = b"0::/\n",
    **of_status: int,
) -> dict[str, File]:
    """The files of a process; one that is ``denied`` shows what everybody may see."""
    command = b"/usr/bin/" + name if command is None else command
    files: dict[str, File] = {
        "status": status(name, pid, **of_status),  # type: ignore[arg-type]
        "cmdline": command.replace(b" ", b"\0") + b"\0",
        "stat": b"%d (x) S 1 " % pid + b"0 " * 17 + b"%d 0 0" % start,
        "cgroup": cgroup,
    }
    if denied:
        return files | dict.fromkeys(("smaps_rollup", "smaps", "maps", "exe"), DENIED)
    whole = smaps(*mappings)
    return files | {
        "smaps_rollup": rollup() if memory is None else memory,
        "smaps": whole,
        "maps": b"\n" * len(mappings),
        "exe": b"/usr/bin/" + name,
    }


KERNEL_THREAD: dict[str, File] = {
    "status": status(b"kthreadd", 2, vm_size=None, kthread=1),
    "cmdline": b"",
    "smaps_rollup": GONE,
    "smaps": b"",
}
ZOMBIE: dict[str, File] = {
    "status": status(b"dead", 9, vm_size=None, state="Z (zombie)"),
    "cmdline": b"",
    "smaps_rollup": GONE,
    "smaps": b"",
}
MEMINFO = b"""MemTotal:       16000000 kB
MemFree:         4000000 kB
MemAvailable:    9000000 kB
Buffers:          200000 kB
Cached:          5000000 kB
SwapCached:            0 kB
AnonPages:       5000000 kB
Mapped:          1500000 kB
Shmem:            300000 kB
KReclaimable:     600000 kB
Slab:             900000 kB
SReclaimable:     600000 kB
SUnreclaim:       300000 kB
KernelStack:       20000 kB
PageTables:        80000 kB
Percpu:             5000 kB
VmallocUsed:       60000 kB
SwapTotal:       2000000 kB
SwapFree:        1500000 kB
HugePages_Total:     512
Hugepagesize:       2048 kB
Hugetlb:         1048576 kB
"""
IOMEM = b"""00000000-00000fff : Reserved
00001000-0009ffff : System RAM
00100000-3ffffffff : System RAM
  01000000-02209987 : Kernel code
  02400000-02e09fff : Kernel rodata
  03000000-0327c0ff : Kernel data
  03b34000-03c57fff : Kernel bss
"""
