"""The address space of the target as events leave it: who mapped each range, and who made its pages resident.

The kernel merges and splits VMAs, so what is followed are ranges, each with its *origin*: a VMA that was there at the
start, the allocator, or a call stack that mapped memory directly.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tracer.model.events import Mapped, Protected, Remapped, Remapping, RssChange, Unmapped, VmaEvent
from tracer.model.ranges import Range, RangeMap, Resync
from tracer.model.vma import Vma

OriginKind = Literal["seed", "opened", "allocator", "mmap", "brk", "unknown"]


@dataclass(slots=True)
class Origin:
    """Where ranges come from. ``vma`` is set for seeds, ``stack`` for what was mapped directly.

    ``opened`` is what was taken in the window from a seed that could not be accessed, and so held nothing.

    Bytes and counts of mappings; ``first_ns`` is the CLOCK_MONOTONIC time of the first,
    ``starts`` where they began (neighbours of one origin are one range).
    """

    kind: OriginKind
    vma: Vma | None = None
    stack: int = 0
    mapped_bytes: int = 0
    mapped_count: int = 0
    first_ns: int = 0
    starts: set[int] = field(default_factory=set, compare=False)


class Tracker:
    """Applies events in their order; addresses and sizes in bytes."""

    def __init__(self) -> None:
        self.ranges = RangeMap()
        self.origins: list[Origin] = []
        self.faulted: dict[tuple[int, int], int] = defaultdict(int)
        self.faulted_without_stack: Counter[int] = Counter()
        self.rss_by_cause: Counter[tuple[str, str]] = Counter()
        self.advised: Counter[int] = Counter()
        self._direct: dict[tuple[OriginKind, int], int] = {}
        self._allocator = 0
        self._unknown = 0
        self._remapping: dict[int, list[Range]] = {}
        self._opened: dict[int, int] = {}

    def seed(self, vmas: Iterable[Vma]) -> None:
        """Forget everything and start from a maps snapshot; each VMA is an origin of its own."""
        self.ranges = RangeMap()
        self.origins = [Origin("unknown"), Origin("allocator")]
        self._unknown, self._allocator = 0, 1
        self.faulted.clear()
        self.faulted_without_stack.clear()
        self.rss_by_cause.clear()
        self.advised.clear()
        self._direct.clear()
        self._remapping.clear()
        self._opened.clear()
        for vma in vmas:
            self.origins.append(Origin("seed", vma=vma))
            self.ranges.map(
                vma.start, vma.size, vma.perms, vma.inode, vma.device, vma.offset, origin=len(self.origins) - 1
            )

    def apply(self, event: VmaEvent) -> None:
        """Follow one change of the address space."""
        match event:
            case Mapped():
                self._map(event)
            case Unmapped():
                self.ranges.unmap(event.start, event.length)
            case Remapping():
                if event.length and not event.keep_old:
                    self._remapping[event.tid] = self.ranges.unmap(event.start, event.length)
            case Remapped():
                self._remap(event)
            case Protected():
                self._open_reserves(event)
                self.ranges.protect(event.start, event.length, event.perms)

    def _map(self, event: Mapped) -> None:
        origin = self._allocator if event.in_allocator else self._direct_origin(event)
        known = self.origins[origin]
        known.mapped_bytes += event.length
        known.mapped_count += 1
        if known.kind != "allocator":
            known.starts.add(event.start)
        # The event does not tell which file: the next look at /proc/PID/maps does.
        self.ranges.map(event.start, event.length, event.perms, offset=event.offset, origin=origin)

    def _open_reserves(self, event: Protected) -> None:
        """What is taken from an inaccessible reserve (an arena's, a stack's) is no longer part of that reserve."""
        for part in self.ranges.overlapping(event.start, event.start + event.length):
            if part.perms.startswith("---") and self.origins[part.origin].kind == "seed":
                origin = self._opened_from(part)
                self.ranges.map(
                    part.start,
                    part.size,
                    part.perms,
                    part.inode,
                    part.device,
                    part.offset,
                    origin,
                )

    def _opened_from(self, part: Range) -> int:
        """The origin of what is opened: an arena grows by pieces, each behind the last, and they are one."""
        before = self.ranges.overlapping(part.start - 1, part.start)
        if before and self._opened.get(before[0].origin) == part.origin:
            return before[0].origin
        self._opened[len(self.origins)] = part.origin
        self.origins.append(Origin("opened"))
        return len(self.origins) - 1

    def _direct_origin(self, event: Mapped) -> int:
        key: tuple[OriginKind, int] = (event.kind, event.stack)
        if key not in self._direct:
            self._direct[key] = len(self.origins)
            self.origins.append(Origin(event.kind, stack=event.stack, first_ns=event.time_ns))
        return self._direct[key]

    def _remap(self, event: Remapped) -> None:
        pieces = self._remapping.pop(event.tid, None)
        if event.new_start is None:
            self.ranges.restore(pieces or [])
            return
        if pieces is None:  # the old range stays as it is, or was not known
            self.ranges.move(event.start, event.length, event.new_start, event.new_length, keep_old=event.keep_old)
            return
        if pieces and event.new_length > event.length:
            self.origins[pieces[-1].origin].mapped_bytes += event.new_length - event.length
        if pieces and event.start in (starts := self.origins[pieces[0].origin].starts):
            starts.remove(event.start)
            starts.add(event.new_start)
        # What was released at entry may be another thread's by now: only the new range is touched.
        end = event.new_start + event.new_length
        for piece in pieces:
            start = event.new_start + piece.start - event.start
            is_last = piece is pieces[-1] and piece.end == event.start + event.length
            stop = end if is_last else min(end, start + piece.size)
            if start < stop:
                self.ranges.map(start, stop - start, piece.perms, piece.inode, piece.device, piece.offset, piece.origin)

    def mappings(self, origin: int) -> int:
        """How many mappings of an origin are there still: a mapping is, as long as its first page is."""
        return sum(
            any(range_.origin == origin for range_ in self.ranges.overlapping(start, start + 1))
            for start in self.origins[origin].starts
        )

    def resync(self, vmas: Iterable[Vma]) -> Resync:
        """Take over the kernel's view; origins of what is still mapped are kept. Returns how far off the model was."""
        return self.ranges.resync(vmas, origin=self._unknown)

    def add_rss(self, changes: Iterable[RssChange]) -> None:
        """Place changes of RSS: pages go to the origin of the range in which they lie."""
        where: Range | None = None
        for change in changes:
            page, stack, amount = change.page, change.stack, change.bytes
            self.rss_by_cause[(change.member, change.cause)] += amount
            if change.member == "swap" or not (stack or change.cause == "fault"):
                continue
            # Pages come by the thousand, and most lie where the last one did.
            if where is None or not where.start <= page < where.end:
                where = self.ranges.at(page) if page else None
            origin = where.origin if where is not None else self._unknown
            if stack:
                self.faulted[(origin, stack)] += amount
            else:
                self.faulted_without_stack[origin] += amount
