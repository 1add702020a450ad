"""One look at all processes: whose memory they are, how much, and which of them may not be looked at.

Cheap by default: status, smaps_rollup and the command line of each process, some 0.1 ms together for a small one. Only
what is shown by mapping or by class, or filtered by mapping, costs a whole smaps for each process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

from tracer.errors import MemtraceError, PrivilegeError, TargetError
from tracer.model.classes import ReadMemory
from tracer.model.usage import Part, ProcessUsage, Sizes, Survey
from tracer.model.vma import VmaUsage
from tracer.procfs.rollup import parse_rollup, sizes_of_rollup, sizes_of_smaps
from tracer.procfs.smaps import parse_smaps
from tracer.procfs.source import ProcSource
from tracer.procfs.status import ProcessStatus, parse_stat, parse_status
from tracer.procs.cgroup import memory_cgroup
from tracer.procs.classes import classified, no_memory
from tracer.procs.selection import Selection

MemoryOf = Callable[[int], AbstractContextManager[ReadMemory | None]]

ANONYMOUS = "[anonymous]"
_KIB = 1024
_PF_KTHREAD = 0x00200000
_START_TIME, _FLAGS = 22 - 3, 9 - 3  # fields of stat, by proc(5), in what parse_stat returns
# comm holds 15 bytes: a name as long as that may have been cut (TASK_COMM_LEN).
_LONGEST_COMM = 15


@dataclass(frozen=True, slots=True)
class Needs:
    """What to read beyond the sizes: each costs a file for every process."""

    parts: Literal["mapping", "class"] | None = None
    maps: bool = False
    cgroup: bool = False
    program: bool = False
    start: bool = False


class Surveyor:
    """Looks at the processes of a source, as often as asked."""

    def __init__(self, source: ProcSource, selection: Selection, needs: Needs, memory_of: MemoryOf = no_memory) -> None:
        self._source = source
        self._selection = selection
        self._needs = needs
        self._memory_of = memory_of
        self._users: dict[int, str] = {}
        self._unjudged: list[ProcessUsage] = []

    def look(self) -> Survey:
        """The processes of now. A process that cannot be read is in it, with its reason; none is left out silently."""
        found: list[ProcessUsage] = []
        self._unjudged = []
        counts = {"kernel": 0, "zombie": 0, "ended": 0}
        itself = False
        for pid in self._source.pids():
            if pid in self._selection.itself:
                itself = self._selection.takes_pid(pid)
            elif self._selection.takes_pid(pid):
                try:
                    usage = self._process(pid)
                except TargetError:
                    counts["ended"] += 1
                    continue
                if isinstance(usage, str):
                    counts[usage] += 1
                elif usage is not None:
                    found.append(usage)
        return Survey(tuple(found), tuple(self._unjudged), counts["kernel"], counts["zombie"], counts["ended"], itself)

    def _process(self, pid: int) -> ProcessUsage | str | None:
        """A process, what it is instead (``kernel``, ``zombie``), or None where it is not asked for.

        Raises TargetError where it has ended.
        """
        try:
            status, data, task = self._status(pid)
        except PrivilegeError as error:
            return self._hidden(pid, error)  # hidepid=1 (proc(5)): its pid is all that there is
        if not status.vm_size:
            return "kernel" if status.kernel_thread else "zombie"
        user = self._user(status.uid)
        if not self._selection.takes_user(user):
            return None
        command = self._command(pid, status.name)
        if not self._selection.takes_process(pid, status.name, command):
            return None
        usage = ProcessUsage(
            pid=pid,
            user=user,
            uid=status.uid,
            name=status.name,
            command=command,
            sizes=_public_sizes(status, data),
            threads=status.threads,
        )
        return self._with_details(self._with_memory(usage, task))

    def _hidden(self, pid: int, error: PrivilegeError) -> ProcessUsage | None:
        usage = ProcessUsage(pid, "?", -1, "?", "?", Sizes(), refusal=error.cause)
        if not (self._selection.process or self._selection.user or self._selection.mapping):
            return usage
        self._unjudged.append(usage)
        return None

    def _status(self, pid: int) -> tuple[ProcessStatus, bytes, str]:
        """The status of a process, or of a thread where the leader has exited, and where its files lie."""
        data = self._source.read(pid, "status")
        status = parse_status(data)
        if status.vm_size:
            return status, data, ""
        if status.kernel_thread or (b"\nKthread:" not in data and self._is_kernel_thread(pid)):
            return replace(status, kernel_thread=True), data, ""
        if status.threads > 1:
            for task, of_thread in self._tasks(pid):
                if parse_status(of_thread).vm_size:
                    return replace(parse_status(of_thread), name=status.name), of_thread, task
        return status, data, ""

    def _tasks(self, pid: int) -> Iterator[tuple[str, bytes]]:
        for tid in self._source.threads(pid):
            task = f"task/{tid}/"
            try:
                yield task, self._source.read(pid, task + "status")
            except MemtraceError:
                continue

    def _is_kernel_thread(self, pid: int) -> bool:
        # Kernels before 6.8 do not say so in status.
        return bool(int(parse_stat(self._source.read(pid, "stat"))[_FLAGS]) & _PF_KTHREAD)

    def _user(self, uid: int) -> str:
        name = self._users.get(uid)
        if name is None:
            name = self._users[uid] = self._source.user_name(uid)
        return name

    def _command(self, pid: int, name: str) -> str:
        """The command line, or the name in brackets; as it is, so that patterns find what the user typed."""
        try:
            words = self._source.read(pid, "cmdline").rstrip(b"\0 ").split(b"\0")
        except PrivilegeError:
            words = []
        return b" ".join(words).decode("utf-8", "surrogateescape") or f"[{name}]"

    def _with_memory(self, usage: ProcessUsage, task: str) -> ProcessUsage | None:
        """The process with what it takes; None where none of its mappings is asked for."""
        try:
            if self._needs.parts or self._selection.mapping:
                return self._by_mappings(usage, task)
            sizes, maps = self._whole(usage.pid, task, usage.sizes.vss or 0)
        except PrivilegeError as error:
            usage = replace(usage, refusal=error.cause)
            if self._selection.mapping is None:
                return usage
            self._unjudged.append(usage)  # whether it has such a mapping is not known
            return None
        return replace(usage, sizes=sizes, maps=maps)

    def _whole(self, pid: int, task: str, vss: int) -> tuple[Sizes, int | None]:
        maps = self._source.read(pid, task + "maps").count(b"\n") if self._needs.maps else None
        try:
            fields = parse_rollup(self._source.read(pid, task + "smaps_rollup"))
            if fields is not None:
                return sizes_of_rollup(fields, vss), maps
        except TargetError:
            pass  # it has ended, or the kernel is older than 4.14: the next file tells
        summed = sizes_of_smaps(self._source.read(pid, task + "smaps"), vss)
        if summed is None:
            raise TargetError(f"process {pid} has ended")
        return summed

    def _by_mappings(self, usage: ProcessUsage, task: str) -> ProcessUsage | None:
        mappings = parse_smaps(self._source.read(usage.pid, task + "smaps"))
        if not mappings:
            raise TargetError(f"process {usage.pid} has ended")
        labelled = list(self._labelled(usage.pid, mappings))
        if self._selection.mapping is not None:
            labelled = [item for item in labelled if self._selection.takes_mapping(mapping_name(item[1]))]
            if not labelled:
                return None
        if self._needs.parts:
            usage = replace(usage, parts=_parts(labelled))
        return replace(usage, sizes=_sum(mapping for _, mapping in labelled), maps=len(labelled))

    def _labelled(self, pid: int, mappings: tuple[VmaUsage, ...]) -> Iterable[tuple[str, VmaUsage]]:
        if self._needs.parts != "class":
            return ((mapping_name(mapping), mapping) for mapping in mappings)
        with self._memory_of(pid) as read_memory:
            return list(classified(mappings, read_memory))

    def _with_details(self, usage: ProcessUsage | None) -> ProcessUsage | None:
        if usage is None:
            return None
        needs = self._needs
        if needs.cgroup:
            usage = replace(usage, cgroup=memory_cgroup(self._optional(usage.pid, "cgroup")))
        if needs.program:
            usage = replace(usage, program=self._program(usage))
        if needs.start:
            usage = replace(usage, start=int(parse_stat(self._source.read(usage.pid, "stat"))[_START_TIME]))
        return usage

    def _program(self, usage: ProcessUsage) -> str:
        """The name that a program goes by: comm, completed from its file or command line where it was cut."""
        if len(usage.name.encode()) < _LONGEST_COMM:
            return usage.name
        path = self._optional(usage.pid, "exe").decode("utf-8", "surrogateescape").removesuffix(" (deleted)")
        words = usage.command.split(" ")[:2]
        names = (word.rpartition("/")[2] for word in (path, *words))
        return next((name for name in names if name.startswith(usage.name)), usage.name)

    def _optional(self, pid: int, name: str) -> bytes:
        try:
            return self._source.read(pid, name)
        except MemtraceError:
            return b""


def mapping_name(mapping: VmaUsage) -> str:
    """The mapped name, whole: blanks and `` (deleted)`` included; bytes that are no UTF-8 become surrogates."""
    return mapping.vma.path.decode("utf-8", "surrogateescape") or ANONYMOUS


def _public_sizes(status: ProcessStatus, data: bytes) -> Sizes:
    """What status tells everybody."""
    hugetlb = data.partition(b"\nHugetlbPages:")[2].split(None, 1)[:1]
    return Sizes(
        rss=status.counters.rss,
        vss=status.vm_size,
        swap=status.counters.swap,
        hugetlb=int(hugetlb[0]) * _KIB if hugetlb else None,
    )


def _parts(labelled: Iterable[tuple[str, VmaUsage]]) -> tuple[Part, ...]:
    groups: dict[str, list[VmaUsage]] = defaultdict(list)
    for label, mapping in labelled:
        groups[label].append(mapping)
    return tuple(Part(label, len(mappings), _sum(mappings)) for label, mappings in groups.items())


def _sum(mappings: Iterable[VmaUsage]) -> Sizes:
    uss = pss = rss = vss = swap = 0
    for mapping in mappings:
        uss += mapping.private_clean + mapping.private_dirty
        pss += mapping.pss
        rss += mapping.rss
        vss += mapping.vma.end - mapping.vma.start
        swap += mapping.swap
    return Sizes(uss, pss, rss, vss, swap)
