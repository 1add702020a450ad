"""Watching without a process: a clock that stands still unless told, and a process made of figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from tracer.model.classes import classify_all
from tracer.model.slope import Slope
from tracer.model.vma import RssCounters, Vma, VmaUsage
from tracer.model.watch import (
    ClassChange,
    Look,
    MemoryLimit,
    Projection,
    ReadCost,
    RegionChange,
    WatchCost,
    WatchState,
    WatchSummary,
    WatchVerdict,
)
from tracer.procfs.status import ProcessStatus

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
STARTED = datetime(2026, 2, 3, 14, 3, 22, 118_000, tzinfo=UTC)


class Clock:
    """Seconds that pass only by ``pass_by``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def anon(start: int, rss: int, size: int | None = None, swap: int = 0) -> VmaUsage:
    """Private anonymous memory, all of it dirty."""
    vma = Vma(start, start + (size or max(rss + swap, 4 * KIB)), "rw-p", 0, "00:00", 0, b"")
    return VmaUsage(vma, rss, pss=rss, anonymous=rss, private_dirty=rss, swap=swap)


def of_file(start: int, rss: int, path: bytes = b"/usr/lib/libx.so") -> VmaUsage:
    """Pages of a file, all clean."""
    vma = Vma(start, start + max(rss, 4 * KIB), "r--p", 0, "fd:01", 4711, path)
    return VmaUsage(vma, rss, pss=rss, private_clean=rss)


@dataclass
class FakeProcess:
    """Readers of a process that a test makes up; reading takes the ``costs`` (seconds) on the clock."""

    clock: Clock
    usages: list[VmaUsage]
    costs: dict[str, float] = field(default_factory=dict)
    has_scan: bool = True
    replaced: bool = False
    errors: dict[str, Exception] = field(default_factory=dict)
    bounds: list[MemoryLimit] = field(default_factory=list)
    cost: float = 0.0
    reads: list[str] = field(default_factory=list)
    scanned: list[tuple[Vma, ...]] = field(default_factory=list)

    def _read(self, name: str) -> None:
        if name in self.errors:
            raise self.errors[name]
        self.reads.append(name)
        self.cost += self.costs.get(name, 0.0)
        self.clock.pass_by(self.costs.get(name, 0.0))

    def counters(self) -> RssCounters:
        files = sum(usage.rss for usage in self.usages if usage.vma.is_file)
        return RssCounters(
            anon=sum(usage.rss for usage in self.usages) - files,
            file=files,
            swap=sum(usage.swap for usage in self.usages),
        )

    def command(self) -> str:
        return "another program"

    def status(self) -> ProcessStatus:
        if "status" in self.errors:
            raise self.errors["status"]
        size = sum(usage.vma.size for usage in self.usages)
        return ProcessStatus("x", "S", 7, 1, 0, 1, size, self.counters(), False)

    def was_replaced(self) -> bool:
        replaced, self.replaced = self.replaced, False
        return replaced

    def maps(self) -> tuple[Vma, ...]:
        self._read("maps")
        return tuple(usage.vma for usage in self.usages)

    def scan(self, vmas: Sequence[Vma]) -> tuple[VmaUsage, ...]:
        self._read("pagemap")
        self.scanned.append(tuple(vmas))
        known = {usage.vma: usage for usage in self.usages}
        found = [known.get(vma, VmaUsage(vma, 0)) for vma in vmas]
        return tuple(VmaUsage(one.vma, one.rss, anonymous=one.anonymous, swap=one.swap) for one in found)

    def smaps(self) -> tuple[VmaUsage, ...]:
        self._read("smaps")
        return tuple(self.usages)

    def private(self) -> int:
        self._read("smaps_rollup")
        return sum(usage.private_dirty + usage.swap for usage in self.usages)

    def take_cost(self) -> float:
        cost, self.cost = self.cost, 0.0
        return cost

    def classify(self, vmas: Iterable[tuple[Vma, tuple[str, ...]]]) -> dict[int, str]:
        return classify_all(vmas)

    def limits(self) -> list[MemoryLimit]:
        return self.bounds


class Shown:
    """A view that keeps what it was shown."""

    def __init__(self) -> None:
        self.states: list[WatchState] = []
        self.quit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, state: WatchState) -> None:
        self.states.append(state)

    def poll(self) -> bool:
        return self.quit


def look(seconds: float = 0.0, heap: int = 12 * MIB, **changes: Any) -> Look:
    """A look at a process with a heap of so many bytes and 5 MiB of file pages."""
    known = Look(
        seconds=seconds,
        counters=RssCounters(anon=heap, file=5 * MIB),
        size=heap + 100 * MIB,
        private=heap,
        private_is_exact=True,
        classes={"heap": heap, "file": 5 * MIB},
    )
    return replace(known, **changes)


def region(start: int, growth: int, path: bytes = b"", vma_class: str = "anonymous", **changes: Any) -> RegionChange:
    known = RegionChange(
        start=start,
        end=start + 64 * MIB,
        perms="rw-p",
        path=path,
        vma_class=vma_class,
        before=2 * MIB,
        after=2 * MIB + growth,
        private_growth=growth,
        vmas=1,
    )
    return replace(known, **changes)


GROWING = WatchVerdict(
    "growing",
    "private memory grew 58.0 MiB in 30 s and still grows: 1.9 MiB/s, give or take 12.0 KiB/s",
    (
        "private memory is Private_Dirty + Swap, read 31 times",
        "the last third of the time brought 33 % of its growth",
        "RSS grew 58.0 MiB",
    ),
    Slope(1.93 * MIB, 6 * KIB),
    Slope(1.93 * MIB, 6 * KIB),
)
PROJECTION = Projection(MemoryLimit("memory.max of cgroup /web", 512 * MIB, 128 * MIB), 66.0, 64.0, 69.0)
LOOKS = tuple(look(second, 12 * MIB + second * 58 * MIB // 30) for second in range(31))
REGIONS = (
    region(0x5555E5B06000, 57 * MIB, b"[heap]", "heap"),
    region(0x7F5F67600000, MIB, b"", "anonymous", vmas=3),
    region(0x7F5F77600000, -MIB, b"/usr/lib/x86_64-linux-gnu/libsamba-and-a-name-that-is-long.so.0", "file"),
)


def sample_state(**changes: Any) -> WatchState:
    known = WatchState(
        pid=4711,
        command="/usr/sbin/leaky-server --config /etc/leaky/server.conf",
        looks=LOOKS,
        regions=REGIONS,
        verdict=GROWING,
        projection=PROJECTION,
        share=0.0042,
    )
    return replace(known, **changes)


def sample_summary(**changes: Any) -> WatchSummary:
    known = WatchSummary(
        pid=4711,
        command="/usr/sbin/leaky-server --config /etc/leaky/server.conf",
        started=STARTED,
        seconds=30.0,
        ended="the duration was over",
        count=31,
        looks=LOOKS,
        classes=(
            ClassChange("file", 5 * MIB, 5 * MIB, 0),
            ClassChange("heap", 12 * MIB, 69 * MIB, 57 * MIB),
            ClassChange("anonymous", 0, MIB, MIB),
        ),
        regions=REGIONS,
        verdict=GROWING,
        projection=PROJECTION,
        cost=WatchCost(
            0.0042,
            0.012,
            (ReadCost("smaps", 31, 0.112, 0.009), ReadCost("smaps_rollup", 2, 0.014, 0.008)),
            0.41,
            24 * MIB,
        ),
        notes=("the process ran another program (exec) 2.0 s into the watch: leaky-server; ...",),
    )
    return replace(known, **changes)
