"""What a session sees at each interval, as plain data: for those who keep it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from tracer.model.report import Frame, Report, RssSource, Sampling, StackKind
from tracer.model.tracker import Tracker
from tracer.model.vma import RssCounters, Snapshot

StackKey = tuple[StackKind, int]


class Held(NamedTuple):
    """What a stack holds, and what it took and gave back since the window began."""

    bytes: int
    blocks: int
    allocated_bytes: int
    allocated_count: int
    freed_bytes: int
    freed_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What is known when the window begins: at the start, and again after an exec.

    ``classes`` maps the start address of each VMA of ``snapshot`` to its class. ``frames_of`` names the frames of a
    stack, innermost first, and says whether they are all; it is quick, and can be asked only while the session runs.
    """

    command: str
    started: datetime
    snapshot: Snapshot
    classes: Mapping[int, str]
    frames_of: Callable[[int], tuple[tuple[Frame, ...], bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The process ``seconds`` after the window began.

    ``allocations`` holds (allocations, bytes, frees, bytes, ...) of every stack that allocated in the window.
    ``snapshot`` and ``classes`` are the latest look at the VMAs, ``snapshot_age`` seconds old. ``mapped`` is what was
    mapped directly or faulted in, by kind and stack, as of that snapshot; None where it is as before.
    """

    seconds: float
    rss: RssCounters
    allocations: Mapping[int, tuple[int, ...]]
    mapped: Mapping[StackKey, Held] | None
    snapshot: Snapshot
    snapshot_age: float
    classes: Mapping[int, str]
    counters: Mapping[str, int]
    losses: Mapping[str, int]
    probed: tuple[str, ...]
    notes: tuple[str, ...]
    sampling: Sampling
    rss_source: RssSource
    self_cpu: float
    self_rss: int


class Recorder(Protocol):
    """Keeps what a session sees. None of these raises for want of space or for a file that cannot be written."""

    def begin(self, window: Window) -> None:
        """The window begins; what was recorded before is void."""

    def look(self, look: Look) -> None:
        """An interval is over, or the window has ended."""

    def finish(self, report: Report) -> None:
        """The session's report, complete."""


def mapped_stacks(tracker: Tracker, classes: Mapping[int, str], managed: frozenset[str]) -> dict[StackKey, Held]:
    """What was mapped directly in the window, and what page faults made resident elsewhere, by stack.

    Estimates while tracing goes on: of a direct mapping, what was faulted in counts as resident as far as it is still
    mapped. Where an allocator stands between (``managed`` classes), page faults name no cause and are left out.
    """
    held: Counter[int] = Counter()
    for range_ in tracker.ranges:
        held[range_.origin] += range_.size
    resident: dict[int, int] = defaultdict(int)
    found: dict[StackKey, Held] = {}
    faulted: dict[int, int] = defaultdict(int)
    for (index, stack), amount in tracker.faulted.items():
        origin = tracker.origins[index]
        resident[index] += amount
        if origin.vma is not None and classes.get(origin.vma.start, "anonymous") not in managed:
            faulted[stack] += amount
    for stack, amount in faulted.items():
        if amount > 0:
            found[("fault", stack)] = Held(amount, 0, amount, 0, 0, 0)
    for index, origin in enumerate(tracker.origins):
        if origin.kind not in ("mmap", "brk"):
            continue
        kind: StackKind = "brk" if origin.kind == "brk" else "mmap"
        size = min(held[index], max(0, resident[index]))
        gone = max(0, origin.mapped_bytes - held[index])
        there = tracker.mappings(index)
        found[(kind, origin.stack)] = Held(
            size, there, origin.mapped_bytes, origin.mapped_count, gone, max(0, origin.mapped_count - there)
        )
    return found
