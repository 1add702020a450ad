"""The address space of the target as events leave it: who mapped each range, and who made its pages resident.

The kernel merges and splits VMAs, so what is followed are ranges, each with its *origin*: a VMA that was there at the
start, the allocator, or a call stack that mapped memory directly.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tracer.model.events import (
    BLOCK_PAGES,
    Attached,
    Detaching,
    Kept,
    Mapped,
    Protected,
    Remapped,
    Remapping,
    RssChange,
    Unmapped,
    VmaEvent,
)
from tracer.model.ranges import Range, RangeMap, Resync
from tracer.model.vma import Vma

_PAGE = 4096
_ADDRESS_END = 1 << 64

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
        # Page faults without a stack, by origin.
        self.faulted_without_stack: Counter[int] = Counter()
        # What system calls other than mappings brought into (or took out of) ranges: by origin and call.
        self.called: dict[tuple[int, str], int] = defaultdict(int)
        # By member, cause and whether it went.
        self.rss_by_cause: Counter[tuple[str, str, bool]] = Counter()
        self.advised: Counter[int] = Counter()
        self._direct: dict[tuple[OriginKind, int], int] = {}
        self._allocator = 0
        self._unknown = 0
        self._remapping: dict[int, list[Range]] = {}
        # What each thread released last: the call may still fail.
        self._released: dict[int, list[Range]] = {}
        self._segments: dict[int, int] = {}
        self._opened: dict[int, int] = {}

    def seed(self, vmas: Iterable[Vma]) -> None:
        """Forget everything and start from a maps snapshot; each VMA is an origin of its own."""
        self.ranges = RangeMap()
        self.origins = [Origin("unknown"), Origin("allocator")]
        self._unknown, self._allocator = 0, 1
        self.faulted.clear()
        self.called.clear()
        self.faulted_without_stack.clear()
        self.rss_by_cause.clear()
        self.advised.clear()
        self._direct.clear()
        self._remapping.clear()
        self._released.clear()
        self._segments.clear()
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
                self._released[event.tid] = self.ranges.unmap(event.start, event.length)
            case Kept():
                self.ranges.restore(self._released.pop(event.tid, ()))
            case Attached():
                self._attach(event)
            case Detaching():
                self._detach(event)
            case Remapping():
                if event.length and not event.keep_old:
                    self._remapping[event.tid] = self.ranges.unmap(event.start, event.length)
            case Remapped():
                self._remap(event)
            case Protected():
                self._open_reserves(event)
                self.ranges.protect(event.start, event.length, event.perms)

    def _map(self, event: Mapped) -> None:
        origin = self._origin_of(event, event.kind, event.length)
        # The event does not tell which file: the next look at /proc/PID/maps does.
        self.ranges.map(event.start, event.length, event.perms, offset=event.offset, origin=origin)

    def _origin_of(self, event: Mapped | Attached, kind: OriginKind, length: int) -> int:
        """The origin of what an event maps, which it is added to."""
        origin = self._allocator if event.in_allocator else self._direct_origin(kind, event.stack, event.time_ns)
        known = self.origins[origin]
        known.mapped_bytes += length
        known.mapped_count += 1
        if known.kind != "allocator":
            known.starts.add(event.start)
        return origin

    def _attach(self, event: Attached) -> None:
        """Map a segment whose length has been found out; without one it stays unknown until the next resync."""
        if event.length is not None:
            origin = self._origin_of(event, "mmap", event.length)
            self._segments[event.start] = event.length
            self.ranges.map(event.start, event.length, event.perms, inode=event.segment, origin=origin)

    def _detach(self, event: Detaching) -> None:
        """Unmap what is left of a segment: as in the kernel (ipc/shm.c, ksys_shmdt), what lies at its place in it."""
        length = self._segments.pop(event.start, None)
        end = event.start + length if length is not None else _ADDRESS_END
        taken: list[Range] = []
        for range_ in self.ranges.overlapping(event.start, end):
            whole_at_start = not range_.inode and range_.start == event.start
            in_place = range_.inode and range_.offset == range_.start - event.start
            if not range_.perms.endswith("s") or not (whole_at_start or in_place):
                continue
            if not taken or (range_.inode, range_.device) == (taken[0].inode, taken[0].device):
                taken.append(range_)
        for range_ in taken:
            self.ranges.unmap(range_.start, range_.size)
        self._released[event.tid] = taken

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

    def _direct_origin(self, kind: OriginKind, stack: int, time_ns: int) -> int:
        key: tuple[OriginKind, int] = (kind, stack)
        if key not in self._direct:
            self._direct[key] = len(self.origins)
            self.origins.append(Origin(kind, stack=stack, first_ns=time_ns))
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
        for change in changes:
            cause = change.call or change.cause.replace("_", "-")
            self.rss_by_cause[(change.member, cause, change.bytes < 0)] += change.bytes
            if change.member == "swap":
                continue
            for origin, amount in self._placed(change):
                if change.stack:
                    self.faulted[(origin, change.stack)] += amount
                elif change.cause == "fault":
                    self.faulted_without_stack[origin] += amount
                elif change.cause in ("madvise", "other_call"):
                    self.called[(origin, cause)] += amount

    def _placed(self, change: RssChange) -> list[tuple[int, int]]:
        """The origins in which the pages of a change lie, with their bytes: equal shares for each page."""
        if not change.pages:
            return [(self._unknown, change.bytes)]
        first, count = change.block + _lowest_bit(change.pages) * _PAGE, change.pages.bit_count()
        last = change.block + change.pages.bit_length() * _PAGE
        found = self.ranges.overlapping(first, last)
        if len(found) == 1 and found[0].start <= first and last <= found[0].end:
            return [(found[0].origin, change.bytes)]
        shares: Counter[int] = Counter()
        for range_ in found:
            low = max(0, (range_.start - change.block) // _PAGE)
            high = min(BLOCK_PAGES, (range_.end - change.block) // _PAGE)
            pages = change.pages >> low & (1 << high - low) - 1
            shares[range_.origin] += pages.bit_count() * change.bytes // count
        shares[self._unknown] += change.bytes - shares.total()
        return [(origin, amount) for origin, amount in shares.items() if amount]


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
