"""The heap's inside at the start and at the end of a window: what grew in it, what it keeps, and what helps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tracer.heap.advice import advise, advise_other, why_not_walked
from tracer.heap.glibc import walk
from tracer.heap.heap_walk import HeapWalk, Refused
from tracer.model.heap_share import HeapShare
from tracer.model.report import HeapInside, HeapState
from tracer.model.vma import VmaUsage

_GLIBC = "glibc malloc"
# What the looks may take: at the start the events of the target wait meanwhile, at the end the report does.
_START_SECONDS, _END_SECONDS = 0.5, 1.5


class HeapWatch:
    """Looks at the heap when told. Of the start, only sums are kept; of the end, each block can be asked for."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._forget()

    def _forget(self) -> None:
        self.start_shares: Mapping[int, HeapShare] | None = None
        self.end_shares: Mapping[int, HeapShare] | None = None
        self._start: HeapState | None = None
        self._end: HeapWalk | None = None
        self._reason: str | None = None

    def look_at_start(self, usages: Sequence[VmaUsage]) -> None:
        """Walk the heap as the window begins."""
        self._forget()  # after an exec, what was seen before is void
        found = walk(self._pid, [usage.vma for usage in usages], seconds=_START_SECONDS)
        if isinstance(found, Refused):
            self._reason = found.reason
        else:
            self.start_shares, self._start = _shares(found, usages), _state(found)

    def look_at_end(self, usages: Sequence[VmaUsage]) -> None:
        """Walk the heap as the window ends."""
        found = walk(self._pid, [usage.vma for usage in usages], seconds=_END_SECONDS)
        if isinstance(found, Refused):
            self._reason = found.reason
        else:
            self._end, self.end_shares = found, _shares(found, usages)

    def live_at(self, addresses: Sequence[int]) -> set[int] | None:
        """Of these, the addresses at which the allocator has a block in use; None where it could not be asked."""
        if self._end is None:
            return None
        states = zip(addresses, self._end.state_of(addresses), strict=True)
        return {address for address, state in states if state == "in use"}

    def inside(self, allocators: Iterable[str], kept: int, resident: int) -> HeapInside | None:
        """What the report shows. ``kept`` and ``resident`` are for allocators whose heap cannot be read: estimates."""
        names = [*allocators]
        if self._end is not None:
            found = advise(self._end)
            reasons = [*self._end.notes] + ([self._reason] if self._reason else [])
            if self._end.changed:
                reasons.append("the heap changed while it was read: its parts were seen at slightly different moments")
            finding = found.finding if found.kind != "little" else None
            return HeapInside(
                _GLIBC, self._start, _state(self._end), "; ".join(reasons) or None, finding, found.remedies
            )
        other = next((name for name in names if why_not_walked(name)), None)
        if other is not None:
            found = advise_other(other, kept, resident)
            return HeapInside(other, reason=why_not_walked(other), finding=found.finding, remedies=found.remedies)
        return HeapInside(_GLIBC, self._start, None, self._reason) if names else None


def _shares(found: HeapWalk, usages: Sequence[VmaUsage]) -> dict[int, HeapShare]:
    shares: dict[int, HeapShare] = {}
    for usage in usages:
        if usage.rss and usage.vma.perms.startswith("rw"):
            part = found.within(usage.vma.start, usage.vma.end)
            if part.total:
                shares[usage.vma.start] = HeapShare(part.kept, part.overhead)
    return shares


def _state(found: HeapWalk) -> HeapState:
    use = found.total
    return HeapState(use.live, use.kept, use.returnable, use.overhead, found.mmapped.resident, len(found.arenas))
