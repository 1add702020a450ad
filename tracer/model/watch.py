"""What watching a process yields: looks, and at the end a summary. Sizes in bytes, times in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tracer.model.slope import Slope
from tracer.model.vma import RssCounters

WatchKind = Literal["growing", "levelled-off", "not-growing", "unknown"]


@dataclass(frozen=True, slots=True)
class Look:
    """One look. ``private`` is Private_Dirty + Swap, in between two readings of it as RssAnon + VmSwap tell.

    ``classes`` is what each class takes (RSS and swap), as of ``detail_age`` seconds ago.
    """

    seconds: float
    counters: RssCounters
    size: int
    private: int
    private_is_exact: bool
    classes: Mapping[str, int]
    detail_age: float = 0.0

    @property
    def occupied(self) -> int:
        """RSS and swap."""
        return self.counters.rss + self.counters.swap


@dataclass(frozen=True, slots=True)
class ClassChange:
    """What a class of memory took (RSS and swap) at the start and takes at the end.

    ``private_growth`` is that of Private_Dirty + Swap; None where smaps was not read at both ends.
    """

    name: str
    before: int
    after: int
    private_growth: int | None

    @property
    def growth(self) -> int:
        """Bytes gained, or lost if below zero."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class RegionChange:
    """The same for a range of addresses, which ``vmas`` VMAs make up now: none where it was unmapped."""

    start: int
    end: int
    perms: str
    path: bytes
    vma_class: str
    before: int
    after: int
    private_growth: int | None
    vmas: int

    @property
    def growth(self) -> int:
        """Bytes gained, or lost if below zero."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class WatchVerdict:
    """What kind of growth it is, in a sentence, and what that rests on.

    ``slope`` is of the whole time, ``recent`` of its second half, where enough looks lie in it.
    """

    kind: WatchKind
    text: str
    evidence: tuple[str, ...] = ()
    slope: Slope | None = None
    recent: Slope | None = None


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A bound that growing memory runs into: its size, and what of it is left or can be reclaimed."""

    name: str
    size: int
    room: int


@dataclass(frozen=True, slots=True)
class Projection:
    """When a limit is reached at the present slope; ``latest`` is None where the slope may be next to nothing."""

    limit: MemoryLimit
    seconds: float
    earliest: float
    latest: float | None


@dataclass(frozen=True, slots=True)
class ReadCost:
    """What reading one file of /proc took: how often, in total, and the longest."""

    name: str
    count: int
    seconds: float
    longest: float


@dataclass(frozen=True, slots=True)
class WatchCost:
    """What memtrace took: reads for which the target may have waited, as a share of the time, and its own use.

    ``edges`` is how many seconds of them were of the first look and the last, which are made in any case.
    """

    share: float
    edges: float
    reads: tuple[ReadCost, ...]
    self_cpu: float
    self_rss: int

    @property
    def seconds(self) -> float:
        """Time of all the reads for which the target may have waited."""
        return sum(read.seconds for read in self.reads)


@dataclass(frozen=True, slots=True)
class WatchState:
    """What there is to show after a look. ``looks`` are thinned out, first and newest included."""

    pid: int
    command: str
    looks: tuple[Look, ...]
    regions: tuple[RegionChange, ...]
    verdict: WatchVerdict
    projection: Projection | None
    share: float
    status: str = ""


@dataclass(frozen=True, slots=True)
class WatchSummary:
    """The whole of a watch. ``looks`` are thinned out; ``count`` is how many there were."""

    pid: int
    command: str
    started: datetime
    seconds: float
    ended: str
    count: int
    looks: tuple[Look, ...]
    classes: tuple[ClassChange, ...]
    regions: tuple[RegionChange, ...]
    verdict: WatchVerdict
    projection: Projection | None
    cost: WatchCost
    notes: tuple[str, ...] = ()
