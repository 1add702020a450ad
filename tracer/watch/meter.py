"""What each read of /proc costs, and whether the next one is within the share of time that reads may take.

A read of maps, pagemap, smaps or smaps_rollup takes a lock that the target's mmap, munmap and brk calls wait for. So
the time of all such reads is bounded: what a read cost is measured, what the next will cost is foreseen from that, and
it is put off until it is within the bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from tracer.model.watch import ReadCost

MAX_SHARE = 0.01
# One read that was interrupted must not pass for the rule: the middle one of this many counts.
_REMEMBERED = 5


@dataclass(slots=True)
class _Reader:
    """One kind of read: its costs so far, and how they compare with what a formula gives."""

    count: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    ratios: deque[float] = field(default_factory=lambda: deque([1.0], maxlen=_REMEMBERED))


class ReadMeter:
    """Measures reads, foresees their cost, and keeps their sum within ``share`` of the time since it was made."""

    def __init__(self, clock: Callable[[], float], share: float = MAX_SHARE) -> None:
        self._clock = clock
        self._share = share
        self._began = clock()
        self._readers: dict[str, _Reader] = {}
        self._reserved = 0.0

    @property
    def spent(self) -> float:
        """Seconds of all reads so far."""
        return sum(reader.seconds for reader in self._readers.values())

    def record(self, name: str, estimate: float, seconds: float) -> None:
        """A read took so many seconds; ``estimate`` is what the formula gave for it."""
        reader = self._readers.setdefault(name, _Reader())
        reader.count += 1
        reader.seconds += seconds
        reader.longest = max(reader.longest, seconds)
        if estimate > 0:
            reader.ratios.append(seconds / estimate)

    def foresee(self, name: str, estimate: float) -> float:
        """What a read will take, in seconds: the formula's figure, corrected by how earlier reads compared with it."""
        reader = self._readers.get(name)
        return estimate * median(reader.ratios) if reader else estimate

    def affords(self, name: str, estimate: float) -> bool:
        """True where the read would leave the sum of all reads, and what is reserved, within the share."""
        due = self.spent + self._reserved + self.foresee(name, estimate)
        return due <= self._share * (self._clock() - self._began)

    def reserve(self, seconds: float) -> None:
        """Keep so much free for the reads at the end."""
        self._reserved = seconds

    def share(self) -> float:
        """Which part of the time went into reads so far."""
        elapsed = self._clock() - self._began
        return self.spent / elapsed if elapsed > 0 else 0.0

    def costs(self) -> tuple[ReadCost, ...]:
        """Each kind of read, the dearest first."""
        costs = [ReadCost(name, reader.count, reader.seconds, reader.longest) for name, reader in self._readers.items()]
        return tuple(sorted(costs, key=lambda cost: -cost.seconds))
