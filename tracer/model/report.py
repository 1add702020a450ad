"""What one tracing session found: the data that every output form shows.

All sizes are in bytes, all times in seconds, unless a name says otherwise. The names follow the JSON contract
``memtrace/1``, which ``tracer.report.json`` writes out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tracer.model.rates import Rate, Trend
from tracer.model.vma import RssCounters, Vma

VerdictKind = Literal["leak", "plateau", "retention", "file-cache", "stacks", "not-growing", "unknown"]
# Where changes of RSS are learnt: from the kernel's counters, exactly; from page faults, as an estimate; not at all.
RssSource = Literal["rss-stat", "faults", "none"]
StackKind = Literal["malloc", "mmap", "fault", "brk"]
# What a report rests on: all that a session gathered, or two looks at the process in the course of one.
Basis = Literal["session", "looks"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer in one sentence, and its kind; ``evidence`` lists what it rests on, a line each."""

    kind: VerdictKind
    text: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClassGrowth:
    """Resident memory of one class of VMAs at the start and the end of the window."""

    name: str
    rss_start: int
    rss_end: int
    size_growth: int

    @property
    def growth(self) -> int:
        """Change of the resident bytes."""
        return self.rss_end - self.rss_start


@dataclass(frozen=True, slots=True)
class VmaGrowth:
    """One VMA at the end of the window (or, with ``gone``, at its start) and its growth."""

    vma: Vma
    vma_class: str
    rss: int
    growth: int
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a stack. ``function`` is None where no symbol covers the address.

    ``module`` is the mapped file's path as text, ``offset`` the address within that file's image (what
    ``addr2line -e MODULE OFFSET`` takes), ``function_offset`` the distance from the function's start, ``address`` the
    address in the process (0 where it is not known).
    """

    function: str | None
    module: str | None
    offset: int
    function_offset: int = 0
    build_id: str | None = None
    file: str | None = None
    line: int | None = None
    inlined: bool = False
    language: str = "native"
    address: int = 0


@dataclass(frozen=True, slots=True)
class StackGrowth:
    """A call stack and the memory for which it stands; ``frames[0]`` is the innermost.

    ``malloc`` stacks: blocks allocated in the window and still live. ``mmap`` and ``brk`` stacks: memory mapped
    directly in the window and still mapped (``bytes`` counts what of it is resident). ``fault`` stacks: memory made
    resident by page faults where neither an allocator nor a mapping made in the window stands between.
    ``unverified_bytes`` are not in ``bytes``: what probably is live too, but lived through a time in which the malloc
    probes were off. ``rate`` is bytes per second over the window, ``oldest`` the age of the oldest live block,
    ``survival`` the share of the bytes held in the middle of the window that are still held at its end (None: not
    known).
    """

    id: str
    kind: StackKind
    bytes: int
    count: int
    allocated_bytes: int
    freed_bytes: int
    allocated_count: int
    freed_count: int
    rate: float
    oldest: float
    vma_class: str
    complete: bool
    frames: tuple[Frame, ...]
    trend: Trend = "unknown"
    bytes_error: int = 0
    survival: float | None = None
    unverified_bytes: int = 0

    @property
    def held(self) -> int:
        """What the stack holds, proven or not: stacks are ranked by it."""
        return self.bytes + self.unverified_bytes


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """So many bytes of RSS growth in this class have this cause (and this stack, where one is the cause)."""

    vma_class: str
    cause: str
    stack: str | None
    bytes: int


@dataclass(frozen=True, slots=True)
class RssMove:
    """What the kernel told of a member of RSS (anon, file, shmem, swap): ``shrank`` is 0 or negative.

    ``cause`` is ``fault``, a system call's name, ``kswapd``, ``khugepaged`` or ``other-context`` (another process, or
    the kernel on its behalf).
    """

    cause: str
    member: str
    grew: int
    shrank: int


@dataclass(frozen=True, slots=True)
class HeapState:
    """What an allocator's heap holds, in bytes; what is resident, but for ``live``: usable bytes of blocks in use.

    ``kept`` is free memory that it has not given back, ``returnable`` what of it malloc_trim(0) would give back,
    ``overhead`` headers and tables, ``mapped`` blocks mapped one by one.
    """

    live: int
    kept: int
    returnable: int
    overhead: int
    mapped: int
    arenas: int


@dataclass(frozen=True, slots=True)
class HeapInside:
    """The inside of the heap at both ends, where it could be read; what that means, and what helps.

    ``reason`` says why a state is missing or not certain, ``finding`` is a sentence, ``remedies`` name what helps.
    """

    allocator: str
    start: HeapState | None = None
    end: HeapState | None = None
    reason: str | None = None
    finding: str | None = None
    remedies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """Mean distance of samples in bytes; 1 and exact: every allocation was seen."""

    interval: int = 1
    exact: bool = True


@dataclass(frozen=True, slots=True)
class OverheadStep:
    """What the budget changed: when (seconds since the start), what, and the share of CPU time that led to it."""

    seconds: float
    action: str
    share: float


@dataclass(frozen=True, slots=True)
class Overhead:
    """What memtrace cost: share of the target's CPU time (None: not measured), own CPU seconds, own RSS.

    ``cpu_share`` is what it cost the target as a share of one CPU's time.

    ``limit`` is the budget (None: none), ``steps`` what it led to, ``probed_share`` the share of the window in which
    the malloc probes were in.
    """

    target_share: float | None
    self_cpu: float
    self_rss: int
    probe_hits: int = 0
    map_memory: int = 0
    limit: float | None = None
    steps: tuple[OverheadStep, ...] = ()
    probed_share: float = 1.0
    cpu_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that a session found. ``ledger`` sums to ``rss_end.rss - rss_start.rss``; ``rate`` is that of RSS.

    ``rss_source`` says where stacks of page faults come from: ``rss-stat`` (exact), ``faults`` (estimates), ``none``.
    ``changes`` without those of swap sum to the same growth, where they are complete: all were seen, on a kernel whose
    counters are exact. Of a report whose ``basis`` is looks, stacks have differences and the ledger no causes.
    """

    pid: int
    command: str
    verdict: Verdict
    started: datetime
    seconds: float
    ended: str
    rss_start: RssCounters
    rss_end: RssCounters
    classes: tuple[ClassGrowth, ...]
    vmas: tuple[VmaGrowth, ...]
    stacks: tuple[StackGrowth, ...]
    ledger: tuple[LedgerRow, ...]
    probed: tuple[str, ...]
    sampling: Sampling = field(default_factory=Sampling)
    rate: Rate | None = None
    rss_source: RssSource = "rss-stat"
    heap: HeapInside | None = None
    changes: tuple[RssMove, ...] = ()
    changes_complete: bool = False
    basis: Basis = "session"
    overhead: Overhead
    losses: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def growth(self) -> int:
        """Change of RSS over the window."""
        return self.rss_end.rss - self.rss_start.rss

    @property
    def unexplained(self) -> int:
        """The part of the growth for which no cause is known."""
        return sum(row.bytes for row in self.ledger if row.cause == "unexplained")
