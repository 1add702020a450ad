"""Watching one process from start to end: when to look, what to show, and the summary."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from tracer.errors import MemtraceError, PrivilegeError, TargetError
from tracer.model.regions import compare, occupied, private, totals_by_class
from tracer.model.thinned import Thinned
from tracer.model.watch import (
    ClassChange,
    Look,
    MemoryLimit,
    Projection,
    RegionChange,
    WatchCost,
    WatchState,
    WatchSummary,
    WatchVerdict,
)
from tracer.model.watch_verdict import WatchFindings, judge_watch, project
from tracer.procfs.snapshot import SnapshotPlan
from tracer.procfs.status import read_counters
from tracer.report.screen import View
from tracer.target import TargetInfo
from tracer.units import human_bytes, human_seconds, plural
from tracer.watch.ladder import MAX_SMAPS_SECONDS, Ladder
from tracer.watch.meter import ReadMeter
from tracer.watch.readers import Readers

_POLL_SECONDS = 0.1
_PROCESS_ENDED = "the process ended"
_MAX_LOOKS = 240
# The limits of cgroups move slowly; memory.stat of a large machine takes milliseconds.
_LIMITS_MAX_AGE = 5.0
# Comparing more VMAs than this after each look would keep memtrace itself busy.
_MAX_LIVE_VMAS = 5000


class Life(Protocol):
    """Tells whether the watched process still lives (tracer.target.ProcessHandle)."""

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        ...

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it has ended; whether it has."""
        ...


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What the user asked for; times in seconds, no duration for until Ctrl-C; ``full`` reads smaps at any cost."""

    duration: float | None = None
    interval: float = 1.0
    full: bool = False


class WatchSession:
    """Watches one process; its readers and its handle are the caller's to close."""

    def __init__(
        self,
        target: TargetInfo,
        options: WatchOptions,
        readers: Readers,
        life: Life,
        *,
        say: Callable[[str], None],
        stop_requested: Callable[[], str | None],
        clock: Callable[[], float],
    ) -> None:
        self._target = target
        self._options = options
        self._readers = readers
        self._life = life
        self._say = say
        self._stop_requested = stop_requested
        self._clock = clock
        self._meter = ReadMeter(clock)
        self._command = target.command
        self._notes: list[str] = []
        self._status = ""
        self._limits: list[MemoryLimit] = []
        self._limits_read: float | None = None

    def run(self, view: View[WatchState]) -> WatchSummary:
        """Watch until the duration is over, the user stops it or the process ends.

        Raises TargetError and PrivilegeError where there never was anything to see.
        """
        self._begin()
        with view:
            view.update(self._state())
            ended = self._follow(view)
            ended = self._last_look(ended, view)
        return self._summary(ended)

    def _begin(self) -> None:
        most = float("inf") if self._options.full else MAX_SMAPS_SECONDS
        self._ladder = Ladder(self._readers, self._meter, self._clock, most, self._announce)
        self._began = self._clock()
        self._started = datetime.now(UTC).astimezone()
        self._looks: Thinned[Look] = Thinned(_MAX_LOOKS)
        self._looks.add(self._ladder.first)

    def _announce(self, plan: SnapshotPlan) -> None:
        size = f"smaps of {plural(plan.vma_count, 'VMA')} and {human_bytes(plan.rss)}"
        takes = f"takes about {human_seconds(plan.smaps_seconds)}, in which the process may wait in mmap"
        if plan.source == "smaps":
            self._say(f"reading {size} at start and end {takes}")
        else:
            self._note(f"{size} {takes}: not read, the page map is; --full reads it all the same")

    def _note(self, line: str) -> None:
        if line not in self._notes:
            self._notes.append(line)

    def _follow(self, view: View[WatchState]) -> str:
        """Look at every interval; returns in words what ended it."""
        began = self._began  # an exec begins the books anew, but not the duration
        due = began + self._options.interval
        while True:
            self._life.wait(min(_POLL_SECONDS, max(0.0, due - self._clock())))
            if reason := self._stop_requested():
                return reason
            if view.poll():
                return "the key q"
            if self._life.has_ended:
                return _PROCESS_ENDED
            now = self._clock()
            if self._options.duration is not None and now - began >= self._options.duration:
                return "the duration was over"
            if now >= due:
                due = max(due + self._options.interval, now)
                try:
                    self._look(view)
                except TargetError:
                    return _PROCESS_ENDED
                except PrivilegeError as error:
                    return f"{error.cause} any more"

    def _look(self, view: View[WatchState]) -> None:
        if self._readers.was_replaced():
            self._restart()
        else:
            self._looks.add(self._ladder.look())
        view.update(self._state())

    def _restart(self) -> None:
        """The process runs another program now: what is known of the old one says nothing of it."""
        elapsed = self._clock() - self._began
        self._command = self._readers.command()
        self._status = f"exec after {human_seconds(elapsed)}: watching the new program"
        self._note(
            f"the process ran another program (exec) {human_seconds(elapsed)} into the watch: {self._command}; "
            "everything here is about the time since"
        )
        self._begin()

    def _last_look(self, ended: str, view: View[WatchState]) -> str:
        """One more whole snapshot, if there is still something to look at."""
        try:
            if not self._life.has_ended:
                if self._readers.was_replaced():
                    self._restart()
                self._looks.add(self._ladder.finish())
                view.update(self._state())
        except MemtraceError:
            pass  # it ended, or became another user's, since the last look
        if self._life.has_ended or ended == _PROCESS_ENDED:
            age = self._clock() - self._began - self._looks.items()[-1].seconds
            self._note(f"the process has ended: the last look was {human_seconds(age)} before")
            return _PROCESS_ENDED
        return ended

    def _state(self) -> WatchState:
        verdict = self._verdict()
        few = len(self._ladder.detail.usages) <= _MAX_LIVE_VMAS
        return WatchState(
            pid=self._target.pid,
            command=self._command,
            looks=tuple(self._looks.items()),
            regions=tuple(self._regions()) if few else (),
            verdict=verdict,
            projection=self._projection(verdict),
            share=self._meter.share(),
            status=self._status,
        )

    def _verdict(self) -> WatchVerdict:
        looks = self._looks.items()
        first, last = looks[0].counters, looks[-1].counters
        findings = WatchFindings(
            points=self._ladder.series.points(),
            looks=self._looks.seen,
            exact=self._ladder.series.exact_count,
            rss_growth=last.rss - first.rss,
            file_growth=last.file - first.file,
            shared_growth=last.shmem - first.shmem,
        )
        return judge_watch(findings)

    def _projection(self, verdict: WatchVerdict) -> Projection | None:
        if verdict.kind != "growing":
            return None
        now = self._clock()
        if self._limits_read is None or now - self._limits_read >= _LIMITS_MAX_AGE:
            self._limits, self._limits_read = self._readers.limits(), now
        return project(verdict.recent, self._limits)

    def _regions(self) -> list[RegionChange]:
        start, now = self._ladder.start, self._ladder.detail
        return compare(start.usages, now.usages, self._ladder.classes, with_private=start.is_smaps and now.is_smaps)

    def _class_changes(self) -> list[ClassChange]:
        start, now, classes = self._ladder.start, self._ladder.detail, self._ladder.classes
        before = totals_by_class(start.usages, classes, occupied)
        after = totals_by_class(now.usages, classes, occupied)
        own: dict[str, int] | None = None
        if start.is_smaps and now.is_smaps:
            own = totals_by_class(now.usages, classes, private)
            for name, size in totals_by_class(start.usages, classes, private).items():
                own[name] = own.get(name, 0) - size
        return [
            ClassChange(name, before.get(name, 0), after.get(name, 0), own.get(name, 0) if own is not None else None)
            for name in sorted(before.keys() | after.keys())
        ]

    def _summary(self, ended: str) -> WatchSummary:
        verdict = self._verdict()
        self._limits_read = None
        if self._ladder.torn:
            self._note("the process changed its mappings while they were read: figures of single VMAs may be off")
        looks = self._looks.items()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return WatchSummary(
            pid=self._target.pid,
            command=self._command,
            started=self._started,
            seconds=looks[-1].seconds,
            ended=ended,
            count=self._looks.seen,
            looks=tuple(looks),
            classes=tuple(self._class_changes()),
            regions=tuple(self._regions()),
            verdict=verdict,
            projection=self._projection(verdict),
            cost=WatchCost(
                share=self._meter.share(),
                edges=self._ladder.edges,
                reads=self._meter.costs(),
                self_cpu=usage.ru_utime + usage.ru_stime,
                self_rss=read_counters(os.getpid()).rss,
            ),
            notes=tuple(self._notes),
        )
