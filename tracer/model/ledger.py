"""The ledger: the growth of RSS, VMA by VMA, split into its causes. Its rows add up to the growth, to the byte.

In memory that an allocator manages, the cause is the live allocations of the window, by the stack that made them;
what the VMA grew by beyond them is kept by the allocator. Where no allocator stands between, the cause is the stack
that mapped the range in the window, or else the stacks whose page faults made it resident. The rest is printed as
unexplained. Negative rows say what was given back, and what of the live allocations lies in memory that was resident
before the window began. Where allocations are sampled, live rows are estimates, and the rows that take the rest make up
for their error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tracer.model.blocks import Blocks
from tracer.model.heap_share import HeapShare
from tracer.model.report import ClassGrowth, LedgerRow, VmaGrowth
from tracer.model.resident import ResidentPages
from tracer.model.selfcheck import BETWEEN_READS
from tracer.model.survival import Survivors
from tracer.model.tracker import Origin, Tracker
from tracer.model.vma import Snapshot, Vma, VmaUsage

# Classes in which whatever was there at the start belongs to malloc.
ALLOCATOR_CLASSES = frozenset({"heap", "malloc arena", "malloc mmapped"})
_OWN_CLASS = "memtrace"


@dataclass(frozen=True, slots=True)
class Books:
    """The closed books: ``rows`` sum to the growth of the RSS counters, ``classes`` and ``vmas`` to that of the VMAs.

    ``between_reads`` is the difference of the two: what changed between reading the VMAs and the counters.
    ``resident_by_stack`` holds what of each stack's memory is resident, keyed by
    (``live``, ``unverified`` or ``faulted``, stack) and (``mapped``, origin). ``fault_estimate``: bytes of page faults
    seen, and of the growth that they stand for, where they are an estimate.
    """

    rows: tuple[LedgerRow, ...]
    classes: tuple[ClassGrowth, ...]
    vmas: tuple[VmaGrowth, ...]
    between_reads: int
    resident_by_stack: Mapping[tuple[str, int], int]
    fault_estimate: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class _Part:
    """The ranges of one VMA that share an origin, with what of them is resident."""

    origin: int
    ranges: tuple[tuple[int, int], ...]
    resident: int
    allocator: bool


@dataclass(slots=True)
class _Accounts:
    rows: dict[tuple[str, str, int], int] = field(default_factory=lambda: defaultdict(int))

    def book(self, vma_class: str, cause: str, amount: int, stack: int = 0) -> None:
        if amount:
            self.rows[(vma_class, cause, stack)] += amount

    def sorted_rows(self) -> tuple[LedgerRow, ...]:
        rows = [
            LedgerRow(vma_class, cause, f"{stack:016x}" if stack else None, amount)
            for (vma_class, cause, stack), amount in self.rows.items()
            if amount
        ]
        return tuple(sorted(rows, key=lambda row: (-abs(row.bytes), row.vma_class, row.cause, row.stack or "")))


def close_books(
    start: Snapshot,
    end: Snapshot,
    classes: Mapping[int, str],
    start_classes: Mapping[int, str],
    tracker: Tracker,
    blocks: Blocks,
    resident: ResidentPages,
    *,
    allocators_traced: bool = True,
    faults_are_estimates: bool = False,
    survivors: Survivors | None = None,
    owners: Mapping[int, int | None] | None = None,
    start_heap: Mapping[int, HeapShare] | None = None,
    end_heap: Mapping[int, HeapShare] | None = None,
    fault_stacks_sampled: bool = False,
) -> Books:
    """Split the growth between two snapshots.

    ``start_heap`` and ``end_heap`` tell what walks over malloc's heap found in the VMAs, by their start: with both,
    what the allocator keeps is known and not only inferred.

    ``survivors`` is set where the malloc probes were off for a time: then what the allocator's memory grew by beyond
    the live blocks may be live, too. ``owners`` maps stacks of page faults to the allocating stacks that they belong
    to; None for one whose blocks come and go. With ``fault_stacks_sampled``, only a part of the page faults has a
    stack, which stands for all.

    ``classes`` and ``start_classes`` map the start address of each VMA of the end and of the start snapshot to its
    class. ``tracker`` was seeded from the start snapshot. ``resident`` tells which pages were resident at the end.
    With ``faults_are_estimates`` the faults of a range say whose its growth is, in proportion, but not how much it is.
    """
    books = _Bookkeeper(
        start, end, classes, start_classes, tracker, blocks, resident, allocators_traced, faults_are_estimates
    )
    books.survivors, books.owners = survivors, owners or {}
    books.heaps = (start_heap, end_heap) if start_heap is not None and end_heap is not None else None
    if fault_stacks_sampled:
        books.scale_faults()
    return books.close()


class _Bookkeeper:
    def __init__(
        self,
        start: Snapshot,
        end: Snapshot,
        classes: Mapping[int, str],
        start_classes: Mapping[int, str],
        tracker: Tracker,
        blocks: Blocks,
        resident: ResidentPages,
        allocators_traced: bool,
        faults_are_estimates: bool,
    ) -> None:
        self._allocators_traced = allocators_traced
        self._faults_are_estimates = faults_are_estimates
        self._estimate = [0, 0]
        self.survivors: Survivors | None = None
        self.owners: Mapping[int, int | None] = {}
        self.heaps: tuple[Mapping[int, HeapShare], Mapping[int, HeapShare]] | None = None
        self._start = start
        self._end = end
        self._classes = classes
        self._start_classes = start_classes
        self._tracker = tracker
        self._blocks = blocks
        self._pages = resident
        self._accounts = _Accounts()
        self._resident: dict[tuple[str, int], int] = defaultdict(int)
        self._start_rss = self._rss_at_start()
        self._homes = self._home_vmas()
        self._faults: dict[int, dict[int, int]] = defaultdict(dict)
        for (origin, stack), amount in tracker.faulted.items():
            if amount:
                self._faults[origin][stack] = amount
        self._called: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for (origin, call), amount in tracker.called.items():
            cause = "populated" if amount > 0 else "advised" if call == "madvise" else "released"
            self._called[origin][cause] += amount
        self._held: dict[int, int] = defaultdict(int)
        for range_ in tracker.ranges:
            self._held[range_.origin] += range_.size

    def scale_faults(self) -> None:
        """Let the faults with a stack stand for all, origin by origin."""
        for origin, without in self._tracker.faulted_without_stack.items():
            stacks = self._faults[origin]
            known = sum(amount for amount in stacks.values() if amount > 0)
            if known > 0 and without > 0:
                for stack, amount in stacks.items():
                    stacks[stack] = round(amount * (1 + without / known)) if amount > 0 else amount

    def _rss_at_start(self) -> dict[int, int]:
        """What each origin that was there at the start held then; what was opened of a reserve held nothing."""
        by_start = {usage.vma.start: usage.rss for usage in self._start.usages}
        return {
            index: by_start.get(origin.vma.start, 0) if origin.vma is not None else 0
            for index, origin in enumerate(self._tracker.origins)
            if origin.kind in ("seed", "opened")
        }

    def _home_vmas(self) -> dict[int, int]:
        """Origin -> index of the end VMA that holds most of it: there its start RSS and its faults are booked."""
        held: dict[int, tuple[int, int]] = {}
        for index, usage in enumerate(self._end.usages):
            sizes: dict[int, int] = defaultdict(int)
            for range_ in self._tracker.ranges.overlapping(usage.vma.start, usage.vma.end):
                sizes[range_.origin] += range_.size
            for origin, size in sizes.items():
                if origin in self._start_rss and size > held.get(origin, (0, 0))[0]:
                    held[origin] = (size, index)
        return {origin: index for origin, (_, index) in held.items()}

    def close(self) -> Books:
        seeds_at: dict[int, list[int]] = defaultdict(list)
        for origin, index in self._homes.items():
            seeds_at[index].append(origin)
        vmas: list[VmaGrowth] = []
        for index, usage in enumerate(self._end.usages):
            vmas.append(self._book_vma(usage, seeds_at[index]))
        vmas += self._book_gone()
        between = (self._end.counters.rss - self._start.counters.rss) - sum(vma.growth for vma in vmas)
        self._accounts.book(BETWEEN_READS, "unexplained", between)
        return Books(
            rows=self._accounts.sorted_rows(),
            classes=self._class_growth(vmas),
            vmas=tuple(sorted(vmas, key=lambda vma: (-abs(vma.growth), vma.vma.start))),
            between_reads=between,
            resident_by_stack=dict(self._resident),
            fault_estimate=(self._estimate[0], self._estimate[1]),
        )

    def _book_vma(self, usage: VmaUsage, seeds: Sequence[int]) -> VmaGrowth:
        vma_class = self._classes.get(usage.vma.start, "anonymous")
        growth = usage.rss - sum(self._start_rss[origin] for origin in seeds)
        if vma_class == _OWN_CLASS:
            self._accounts.book(vma_class, "memtrace", growth)
            return VmaGrowth(usage.vma, vma_class, usage.rss, growth)
        parts = self._parts(usage, vma_class)
        booked = 0
        allocator = [part for part in parts if part.allocator]
        if allocator:
            booked += self._book_allocator(usage, vma_class, allocator, seeds)
        for part in parts:
            if not part.allocator:
                booked += self._book_direct(vma_class, part, seeds)
        self._accounts.book(vma_class, "unexplained", growth - booked)
        return VmaGrowth(usage.vma, vma_class, usage.rss, growth)

    def _parts(self, usage: VmaUsage, vma_class: str) -> list[_Part]:
        by_origin = self._by_origin(usage.vma, vma_class)
        if not by_origin:  # the model has lost it: all of its growth is unexplained
            return []
        if len(by_origin) == 1:
            ((origin, managed), ranges), *_ = by_origin.items()
            return [_Part(origin, tuple(ranges), usage.rss, managed)]
        if all(managed for _, managed in by_origin):
            return self._share_out(usage, by_origin)
        return [
            _Part(origin, tuple(ranges), sum(self._resident_bytes(usage, *range_) for range_ in ranges), managed)
            for (origin, managed), ranges in by_origin.items()
        ]

    def _by_origin(self, vma: Vma, vma_class: str) -> dict[tuple[int, bool], list[tuple[int, int]]]:
        """The ranges of a VMA by origin and by whether an allocator manages them.

        What was there at the start is one thing, managed or not: its bytes at the start cannot be divided.
        """
        ranges = self._tracker.ranges.overlapping(vma.start, vma.end)
        managed = [self._is_managed(range_.origin, vma_class, range_.start, range_.end) for range_ in ranges]
        whole = {range_.origin for range_, is_ in zip(ranges, managed, strict=True) if is_}
        found: dict[tuple[int, bool], list[tuple[int, int]]] = defaultdict(list)
        for range_, is_managed in zip(ranges, managed, strict=True):
            if range_.origin in self._start_rss:
                is_managed = range_.origin in whole
            found[(range_.origin, is_managed)].append((range_.start, range_.end))
        return found

    def _share_out(
        self, usage: VmaUsage, by_origin: Mapping[tuple[int, bool], Sequence[tuple[int, int]]]
    ) -> list[_Part]:
        """All of it is the allocator's: only the sum matters, and the VMA's own figure is the exact one."""
        parts = [_Part(origin, tuple(ranges), 0, True) for (origin, _), ranges in by_origin.items()]
        return [replace(parts[0], resident=usage.rss), *parts[1:]]

    def _is_managed(self, origin: int, vma_class: str, start: int, end: int) -> bool:
        if not self._allocators_traced:
            return False
        kind = self._tracker.origins[origin].kind
        if kind == "allocator":
            return True
        if kind in ("seed", "opened", "unknown") and vma_class in ALLOCATOR_CLASSES:
            return True
        return len(self._blocks.within(start, end)) > 0

    def _pages_within(self, usage: VmaUsage, start: int, end: int) -> list[tuple[int, int]]:
        # Of a VMA that holds nothing, the pages were not looked at.
        return self._pages.within(start, end) if usage.rss else []

    def _resident_bytes(self, usage: VmaUsage, start: int, end: int) -> int:
        return sum(stop - first for first, stop in self._pages_within(usage, start, end))

    def _book_allocator(self, usage: VmaUsage, vma_class: str, parts: Sequence[_Part], seeds: Sequence[int]) -> int:
        """Live blocks by stack, and what the allocator keeps beyond them; returns what was booked."""
        grown = sum(part.resident for part in parts)
        grown -= sum(self._start_rss[part.origin] for part in parts if part.origin in seeds)
        live = error = rounding = 0
        # A block may begin in one part and end in the next: the heap grows by pieces.
        for start, end in _joined(range_ for part in parts for range_ in part.ranges):
            for stack, amount in self._live_resident(usage, start, end).items():
                self._accounts.book(vma_class, "live", amount, stack)
                self._resident[("live", stack)] += amount
                live += amount
            error += self._blocks.error(self._blocks.within(start, end))
            rounding += self._blocks.rounding(self._blocks.within(start, end)) if self.heaps else 0
        rest = grown - live
        share = self._heap_growth(usage, parts, seeds)
        if share is not None:
            rest -= self._book_heap(vma_class, share, min(rounding, max(rest, 0)))
        # Estimates may exceed what is there by chance; what exceeds it by more lies in memory from before the window.
        too_much = min(max(-rest, 0), error)
        self._accounts.book(vma_class, "sampling", -too_much)
        rest += too_much
        if self.survivors is not None and rest > 0:
            self._book_unverified(vma_class, parts, rest)
            return grown
        if share is not None:
            # What was in use before the window: touched only now, or (negative) freed in it.
            self._accounts.book(vma_class, "before-attach", rest)
            return grown
        self._accounts.book(vma_class, "kept-by-allocator" if rest > 0 else "reused", rest)
        return grown

    def _heap_growth(self, usage: VmaUsage, parts: Sequence[_Part], seeds: Sequence[int]) -> HeapShare | None:
        """What malloc's free memory and its headers grew by in a VMA; None where its heap was not read."""
        if self.heaps is None:
            return None
        start, end = self.heaps
        before = HeapShare()
        known = usage.vma.start in end
        for part in parts:
            vma = self._tracker.origins[part.origin].vma
            if part.origin in seeds and vma is not None and vma.start in start:
                before += start[vma.start]
                known = True
        return end.get(usage.vma.start, HeapShare()) - before if known else None

    def _book_heap(self, vma_class: str, share: HeapShare, rounding: int) -> int:
        """Free memory and headers, as the walks found them; returns what was booked."""
        self._accounts.book(vma_class, "freed" if share.kept > 0 else "reused", share.kept)
        self._accounts.book(vma_class, "metadata", share.overhead + rounding)
        return share.kept + share.overhead + rounding

    def _book_unverified(self, vma_class: str, parts: Sequence[_Part], rest: int) -> None:
        """What grew while the malloc probes were off, by what their windows and the page faults meanwhile tell.

        First the survivors of the windows; then the stacks that touched the pages, as far as they are not known for
        blocks that come and go: beyond its survivors, what a stack touched counts for it. It sums to ``rest``.
        """
        assert self.survivors is not None
        wanted: dict[tuple[str, int], float] = defaultdict(float)
        for start, end in _joined(range_ for part in parts for range_ in part.ranges):
            for stack, amount in self.survivors.within(start, end).items():
                wanted["unverified", stack] += amount
        claimed = self._booked_in_proportion(vma_class, wanted, rest)
        touched: dict[tuple[str, int], float] = defaultdict(float)
        for part in parts:
            for stack, amount in self._faults[part.origin].items():
                owner = self.owners.get(stack, stack)
                if owner is not None and amount > 0:
                    touched["faulted" if owner == stack else "unverified", owner] += amount
        beyond = {key: amount - wanted.get(key, 0.0) for key, amount in touched.items()}
        claimed += self._booked_in_proportion(vma_class, beyond, rest - claimed)
        self._accounts.book(vma_class, "unverified", rest - claimed)

    def _booked_in_proportion(self, vma_class: str, wanted: Mapping[tuple[str, int], float], room: int) -> int:
        """Book amounts by (cause, stack), all of them scaled down where they exceed the room; returns their sum."""
        total = sum(amount for amount in wanted.values() if amount > 0)
        scale = min(1.0, room / total) if total > 0 else 0.0
        booked = 0
        for (cause, stack), amount in wanted.items():
            share = int(max(amount, 0.0) * scale)
            self._accounts.book(vma_class, cause, share, stack)
            self._resident[(cause, stack)] += share
            booked += share
        return booked

    def _live_resident(self, usage: VmaUsage, start: int, end: int) -> dict[int, int]:
        indices = self._blocks.within(start, end)
        if not indices:
            return {}
        return self._blocks.resident_by_stack(indices, self._pages_within(usage, start, end))

    def _book_direct(self, vma_class: str, part: _Part, seeds: Sequence[int]) -> int:
        origin = self._tracker.origins[part.origin]
        if origin.kind in ("mmap", "brk"):
            self._accounts.book(vma_class, "mapped", part.resident, origin.stack)
            self._resident[("mapped", part.origin)] += part.resident
            return part.resident
        grown = part.resident - (self._start_rss[part.origin] if part.origin in seeds else 0)
        if part.origin in self._start_rss and part.origin not in seeds:
            # A VMA of the start, split: its faults are booked where most of it lies.
            self._accounts.book(vma_class, "unexplained", grown)
            return grown
        return self._book_faulted(vma_class, part.origin, origin, grown)

    def _book_faulted(self, vma_class: str, index: int, origin: Origin, grown: int) -> int:
        rest = grown
        if origin.kind in ("seed", "opened"):
            for stack, amount in self._faults_of(index, grown).items():
                self._accounts.book(vma_class, "faulted", amount, stack)
                self._resident[("faulted", stack)] += amount
                rest -= amount
            rest -= self._book_called(vma_class, index, rest)
        cause = "unexplained" if rest > 0 else "unmapped" if self._lost_part(index, origin) else "released"
        self._accounts.book(vma_class, cause, rest)
        return grown

    def _faults_of(self, index: int, grown: int) -> Mapping[int, int]:
        """What each stack faulted in; estimates are made to fit the growth."""
        seen = self._faults[index]
        counted = sum(seen.values())
        if not self._faults_are_estimates or not counted:
            return seen
        self._estimate[0] += counted
        self._estimate[1] += max(grown, 0)
        fitted = {stack: amount * max(grown, 0) // counted for stack, amount in seen.items()}
        fitted[max(seen, key=seen.__getitem__)] += max(grown, 0) - sum(fitted.values())
        return fitted

    def _book_called(self, vma_class: str, index: int, rest: int) -> int:
        """What system calls brought in without a fault, or dropped, as far as that explains ``rest``."""
        booked = 0
        for cause, amount in self._called[index].items():
            if (amount > 0) != (rest - booked > 0):
                continue
            part = min(amount, rest - booked) if amount > 0 else max(amount, rest - booked)
            self._accounts.book(vma_class, cause, part)
            booked += part
        return booked

    def _lost_part(self, index: int, origin: Origin) -> bool:
        """Whether part of what was there at the start is no longer mapped."""
        return origin.vma is not None and self._held.get(index, 0) < origin.vma.size

    def _book_gone(self) -> list[VmaGrowth]:
        gone: list[VmaGrowth] = []
        for index, origin in enumerate(self._tracker.origins):
            if origin.vma is None or index in self._homes:
                continue
            vma_class = self._start_classes.get(origin.vma.start, "anonymous")
            amount = -self._start_rss[index]
            self._accounts.book(vma_class, "memtrace" if vma_class == _OWN_CLASS else "unmapped", amount)
            gone.append(VmaGrowth(origin.vma, vma_class, 0, amount, gone=True))
        return gone

    def _class_growth(self, vmas: Sequence[VmaGrowth]) -> tuple[ClassGrowth, ...]:
        rss: dict[str, int] = defaultdict(int)
        growth: dict[str, int] = defaultdict(int)
        size: dict[str, int] = defaultdict(int)
        for vma in vmas:
            rss[vma.vma_class] += vma.rss
            growth[vma.vma_class] += vma.growth
            size[vma.vma_class] += 0 if vma.gone else vma.vma.size
        for index, origin in enumerate(self._tracker.origins):
            if origin.vma is not None:
                size[self._class_of_seed(index, origin.vma)] -= origin.vma.size
        classes = [ClassGrowth(name, rss[name] - growth[name], rss[name], size[name]) for name in rss]
        return tuple(sorted(classes, key=lambda item: (-abs(item.growth), item.name)))

    def _class_of_seed(self, index: int, vma: Vma) -> str:
        home = self._homes.get(index)
        if home is None:
            return self._start_classes.get(vma.start, "anonymous")
        return self._classes.get(self._end.usages[home].vma.start, "anonymous")


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in ascending order, adjacent ones made one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
