"""memtrace's own programs and model following the VMAs of one process, within the test: no session around them."""

from __future__ import annotations

from typing import Self

from tracer.model.events import Attached, Detaching, Mapped, Remapped, Remapping, Unmapped, VmaEvent
from tracer.model.tracker import Tracker
from tracer.model.vma import Vma
from tracer.probes import consumer
from tracer.probes.layout import Control, Event, EventKind, Settings
from tracer.probes.program import Limits, Program
from tracer.probes.tracepoints import attach_tracepoints
from tracer.procfs.maps import read_maps
from tracer.procfs.status import read_brk_start
from tracer.procfs.sysvipc import with_length
from tracer.unwind.access import UnwindSizes

MAP_FIXED, MREMAP_FIXED = 0x10, 2
# These the kernel maps or lets grow without a system call; vsyscall is no part of the address space.
_NOT_FOLLOWED = (b"[stack]", b"[uprobes]", b"[vsyscall]")

Extent = tuple[int, int, str]


class FollowedVmas:
    """A context manager; the process must be quiet whenever anything is asked.

    ``inversions`` counts events in an order that cannot be, for a process that unmaps and moves only what is mapped,
    and moves only onto what is.
    """

    def __init__(self, pid: int, event_pages: int = 256) -> None:
        self.pid = pid
        self.tracker = Tracker()
        self.wants_resync = False
        self.kinds: dict[int, int] = {}
        self.inversions = 0
        self._program = Program(pid, Limits(event_pages=event_pages), UnwindSizes(rows=1, pages=1))
        try:
            self._program.on_event(self._on_event)
            self._tracepoints = attach_tracepoints(self._program)
        except BaseException:
            self._program.close()
            raise
        self._start()

    def _start(self) -> None:
        vmas = read_maps(self.pid)
        heap = [vma for vma in vmas if vma.path == b"[heap]"]
        start = heap[0].start if heap else read_brk_start(self.pid)
        self._program.seed_control(Control(brk=heap[-1].end if heap else start, heap_start=start))
        self.tracker.seed(vmas)
        self._program.set_settings(Settings(enabled=1))

    def follow(self) -> None:
        """Take in all that has happened."""
        self._program.consume()

    @property
    def events_lost(self) -> int:
        return self._program.counters()["events_lost"]

    def resync(self) -> None:
        self.wants_resync = False
        self.tracker.resync(read_maps(self.pid))

    def differences(self) -> list[str]:
        """Where the model and the kernel differ in what is mapped, or in its permissions."""
        vmas = read_maps(self.pid)
        hidden = [vma for vma in vmas if vma.path in _NOT_FOLLOWED]
        theirs = _joined([(vma.start, vma.end, vma.perms) for vma in vmas if vma not in hidden])
        ours = _joined([(r.start, r.end, r.perms) for r in self.tracker.ranges if not _is_in(hidden, r.start)])
        return [f"lacks {_text(row)}" for row in theirs if row not in ours] + [
            f"has {_text(row)}" for row in ours if row not in theirs
        ]

    def _on_event(self, event: Event) -> None:
        self.kinds[event.kind] = self.kinds.get(event.kind, 0) + 1
        self.wants_resync |= consumer.needs_resync(event)
        if event.kind in (EventKind.ADVISE, EventKind.RESYNC, EventKind.EXEC):
            return
        change = consumer.decode_event(event)
        assert change is not None
        if isinstance(change, Attached):
            change = with_length(self.pid, change)
            assert change.length is not None
        self.inversions += self._is_inverted(change, event.flags)
        self.tracker.apply(change)

    def _is_inverted(self, change: VmaEvent, flags: int) -> bool:
        """Whether the order is wrong: what the kernel gives out must be free in the model, what goes must be there."""
        covered = self.tracker.ranges.covered
        match change:
            case Mapped(start=start, length=length) if not flags & MAP_FIXED:
                return covered(start, start + length) > 0
            case Attached(start=start, length=int(length)):
                return covered(start, start + length) > 0
            case Remapped(start=start, new_start=int(new), new_length=length) if new != start and flags & MREMAP_FIXED:
                return covered(new, new + length) < length
            case Remapped(start=start, new_start=int(new), new_length=length) if new != start:
                return covered(new, new + length) > 0
            case Unmapped(start=start, length=length) | Remapping(start=start, length=length):
                return covered(start, start + length) < length
            case Detaching(start=start):
                return not covered(start, start + 1)
        return False

    def close(self) -> None:
        self._tracepoints.close()
        self._program.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_in(vmas: list[Vma], address: int) -> bool:
    return any(vma.start <= address < vma.end for vma in vmas)


def _joined(rows: list[Extent]) -> list[Extent]:
    """Neighbours with the same permissions made one: where a VMA ends among them is the kernel's choice."""
    joined: list[Extent] = []
    for start, end, perms in rows:
        if joined and joined[-1][1:] == (start, perms):
            joined[-1] = (joined[-1][0], end, perms)
        else:
            joined.append((start, end, perms))
    return joined


def _text(row: Extent) -> str:
    return f"{row[0]:x}-{row[1]:x} {row[2]}"
