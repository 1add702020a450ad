"""The address space of a process as ranges, each with the origin that mapped it, kept up to date by events.

VMAs are only a view of it: the kernel merges and splits them as it likes, so that a VMA's start names nothing. Here a
range is split where an operation cuts it, and merged with its neighbour where both are alike, origin included.
Apply what releases address space at the entry of the system call and what acquires it at its exit (DESIGN.md, 2).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tracer.model.vma import Vma

_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses from ``start`` to ``end`` that are mapped alike.

    ``perms``, ``inode``, ``device`` and ``offset`` (bytes, 0 where there is no file) are as in maps; ``origin`` is the
    id of whoever mapped them, 0 for what was there before.
    """

    start: int
    end: int
    perms: str
    inode: int
    device: str
    offset: int
    origin: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start

    def part(self, start: int, end: int) -> Range:
        """The part of this range between two addresses, which must have one in common with it."""
        start, end = max(start, self.start), min(end, self.end)
        if start == self.start and end == self.end:
            return self
        return self.placed(start, end, self.offset + start - self.start)

    def placed(self, start: int, end: int, offset: int) -> Range:
        """The same mapping at other addresses and, where there is a file, from another offset."""
        return Range(start, end, self.perms, self.inode, self.device, offset if self.inode else 0, self.origin)

    def continues(self, other: Range) -> bool:
        """True where this range follows ``other`` without a gap and differs in nothing."""
        return (
            other.end == self.start
            and other.origin == self.origin
            and other.perms == self.perms
            and other.inode == self.inode
            and (not self.inode or (other.offset + other.size == self.offset and other.device == self.device))
        )


@dataclass(frozen=True, slots=True)
class Resync:
    """How far a model was from the kernel's maps: bytes that it lacked, and bytes that it had too many."""

    added_bytes: int
    removed_bytes: int


class RangeMap:
    """Disjoint ranges in ascending order.

    Starts must be on page boundaries (a brk need not be: round it up); lengths are rounded up to whole pages, as the
    system calls do.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ranges: list[Range] = []

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def seed(self, vmas: Iterable[Vma], origin: int = 0) -> None:
        """Forget everything and take over a maps snapshot; of VMAs that overlap (a torn snapshot) the first counts."""
        self._set([_range_of(vma, origin) for vma in _disjoint(vmas)])

    def map(
        self,
        start: int,
        length: int,
        perms: str,
        inode: int = 0,
        device: str = "00:00",
        offset: int = 0,
        origin: int = 0,
    ) -> list[Range]:
        """Map a range, in the place of what is there (MAP_FIXED); returns what was there."""
        return self._replace(Range(start, _end(start, length), perms, inode, device, offset if inode else 0, origin))

    def unmap(self, start: int, length: int) -> list[Range]:
        """Remove a range, splitting what it cuts; returns what was there."""
        return self._splice(start, _end(start, length), [])

    def restore(self, ranges: Iterable[Range]) -> None:
        """Put back what ``unmap`` returned, as after a munmap that failed; what has come in its place stays."""
        for range_ in ranges:
            for start, end in self._gaps(range_.start, range_.end):
                self._splice(start, end, [range_.part(start, end)])

    def protect(self, start: int, length: int, perms: str) -> None:
        """Change the permissions (``rwx`` or ``rwxp``; shared stays shared, private private); holes stay holes."""
        end = _end(start, length)
        changed = [
            Range(part.start, part.end, perms[:3] + part.perms[3:], part.inode, part.device, part.offset, part.origin)
            for part in self.overlapping(start, end)
        ]
        self._splice(start, end, changed)

    def move(self, old_start: int, old_length: int, new_start: int, new_length: int, *, keep_old: bool = False) -> None:
        """Apply an mremap that succeeded: shrink, grow in place, move, or any of them at once.

        ``keep_old`` is MREMAP_DONTUNMAP. An ``old_length`` of 0 maps the same (shared) pages a second time. Origins
        go with the ranges; what a mapping grows by has the origin of its last part. Holes in the old range leave the
        new one as it was there (possible since kernel 6.17).
        """
        old_end, new_end = _end(old_start, old_length), _end(new_start, new_length)
        if old_end == old_start:
            model = self.overlapping(old_start, old_start + _PAGE)
            if model:
                self._replace(model[0].placed(new_start, new_end, model[0].offset))
            return
        if new_end - new_start < old_end - old_start:
            shrunk = old_start + new_end - new_start
            self._splice(shrunk, old_end, [])
            old_end = shrunk
        pieces = self.overlapping(old_start, old_end)
        if new_start != old_start:
            if not keep_old:
                self._splice(old_start, old_end, [])
            for piece in pieces:
                shift = new_start - old_start
                self._replace(piece.placed(piece.start + shift, piece.end + shift, piece.offset))
        grown_from = new_start + old_end - old_start
        if pieces and pieces[-1].end == old_end and grown_from < new_end:
            last = pieces[-1]
            self._replace(last.placed(grown_from, new_end, last.offset + last.size))

    def overlapping(self, start: int, end: int) -> list[Range]:
        """The parts of the ranges that lie between two addresses."""
        first, last = self._window(start, end)
        return [range_.part(start, end) for range_ in self._ranges[first:last]]

    def at(self, address: int) -> Range | None:
        """The whole range that holds an address."""
        index = bisect_right(self._starts, address) - 1
        return self._ranges[index] if index >= 0 and address < self._ranges[index].end else None

    def covered(self, start: int, end: int) -> int:
        """How many bytes between two addresses are mapped."""
        first, last = self._window(start, end)
        return sum(min(end, range_.end) - max(start, range_.start) for range_ in self._ranges[first:last])

    def origins(self) -> dict[int, int]:
        """Bytes mapped by each origin."""
        totals: dict[int, int] = {}
        for range_ in self._ranges:
            totals[range_.origin] = totals.get(range_.origin, 0) + range_.size
        return totals

    def difference(self, vmas: Iterable[Vma]) -> Resync:
        """How many bytes ``resync`` would add and remove."""
        total = common = 0
        for vma in _disjoint(vmas):
            total += vma.size
            common += self.covered(vma.start, vma.end)
        return Resync(total - common, sum(range_.size for range_ in self._ranges) - common)

    def resync(self, vmas: Iterable[Vma], origin: int = 0) -> Resync:
        """Make the ranges equal to a maps snapshot; returns what was wrong in coverage.

        What was missing gets ``origin``; what the model had right keeps its own, but has permissions and file from
        the snapshot.
        """
        vmas = list(_disjoint(vmas))
        result = self.difference(vmas)
        ranges: list[Range] = []
        for vma in vmas:
            there = _range_of(vma, origin)
            position = vma.start
            for known in self.overlapping(vma.start, vma.end):
                if position < known.start:
                    ranges.append(there.part(position, known.start))
                offset = there.offset + known.start - vma.start
                ranges.append(_range_of(vma, known.origin).placed(known.start, known.end, offset))
                position = known.end
            if position < vma.end:
                ranges.append(there.part(position, vma.end))
        self._set(ranges)
        return result

    def _set(self, ranges: list[Range]) -> None:
        self._ranges = _merged(ranges)
        self._starts = [range_.start for range_ in self._ranges]

    def _window(self, start: int, end: int) -> tuple[int, int]:
        """Slice indices of the ranges that have an address between ``start`` and ``end``."""
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._ranges[first].end <= start:
            first += 1
        return first, bisect_left(self._starts, end, first) if start < end else first

    def _replace(self, new: Range) -> list[Range]:
        return self._splice(new.start, new.end, [new])

    def _splice(self, start: int, end: int, new: list[Range]) -> list[Range]:
        """Put ``new`` (ranges between ``start`` and ``end``) in the place of what is there; returns that, clipped."""
        if start >= end:
            return []
        first, last = self._window(start, end)
        old = self._ranges[first:last]
        fresh = list(new)
        if old and old[0].start < start:
            fresh.insert(0, old[0].part(old[0].start, start))
        elif first:
            first -= 1
            fresh.insert(0, self._ranges[first])
        if old and old[-1].end > end:
            fresh.append(old[-1].part(end, old[-1].end))
        elif last < len(self._ranges):
            fresh.append(self._ranges[last])
            last += 1
        merged = _merged(fresh)
        self._ranges[first:last] = merged
        self._starts[first:last] = [range_.start for range_ in merged]
        if old:
            old[0] = old[0].part(start, end)
            old[-1] = old[-1].part(start, end)
        return old

    def _gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        gaps: list[tuple[int, int]] = []
        for range_ in self.overlapping(start, end):
            if start < range_.start:
                gaps.append((start, range_.start))
            start = range_.end
        if start < end:
            gaps.append((start, end))
        return gaps


def _merged(ranges: list[Range]) -> list[Range]:
    merged: list[Range] = []
    for range_ in ranges:
        if merged and range_.continues(merged[-1]):
            last = merged[-1]
            merged[-1] = last.placed(last.start, range_.end, last.offset)
        else:
            merged.append(range_)
    return merged


def _range_of(vma: Vma, origin: int) -> Range:
    return Range(vma.start, vma.end, vma.perms, vma.inode, vma.device, vma.offset if vma.inode else 0, origin)


def _disjoint(vmas: Iterable[Vma]) -> Iterator[Vma]:
    """VMAs as they are, but cut where they overlap what came before."""
    position = 0
    for vma in vmas:
        if vma.start >= position:
            yield vma
        elif vma.end > position:
            offset = vma.offset + position - vma.start if vma.inode else 0
            yield Vma(position, vma.end, vma.perms, offset, vma.device, vma.inode, vma.path)
        position = max(position, vma.end)


def _end(start: int, length: int) -> int:
    return start + (length + _PAGE - 1) // _PAGE * _PAGE
