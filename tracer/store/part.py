"""A report of part of a recording, or of one that has no end, from the looks that there are.

What a look can tell: RSS by member, classes of memory, VMAs, and what each stack held. What it cannot: which of a
class's growth belongs to which stack, what the allocator kept, how old blocks are. That is worked out only at the end
of a session, from all live blocks and the pages that are resident; so here the ledger says "not reconciled" for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from tracer.errors import UsageError
from tracer.model.history import History, Point
from tracer.model.look import Held
from tracer.model.rates import Outlook
from tracer.model.report import ClassGrowth, LedgerRow, Overhead, Report, StackGrowth, Verdict, VmaGrowth
from tracer.model.selfcheck import BETWEEN_READS
from tracer.model.verdict import Findings, judge
from tracer.store.course import evenly, held_at
from tracer.store.recording import Recording, SeenClass, SeenLook, require_window
from tracer.units import human_bytes, human_rate, human_seconds, plural

NOT_RECONCILED = "not-reconciled"
# In which class of memory a stack's blocks lie is not known from looks.
_SOME_CLASS = "memory"
_NO_END = "the recording ends here, without the session's end: memtrace goes on, was killed, or its disk was full"
_NOTHING = Held(0, 0, 0, 0, 0, 0)
# tracer.model.history keeps no more.
_HISTORY_POINTS = 23


def report_of_recording(recording: Recording, begin: float | None = None, end: float | None = None) -> Report:
    """The report at the end of a recording; where it has none, or a part is asked for, one of its looks.

    ``begin`` and ``end`` are seconds since the start of the window. Raises RecordingError, and UsageError where the
    part holds no two looks.
    """
    require_window(recording)
    whole = recording.report() if begin is None and end is None else None
    return (
        whole or _Part(recording, *looks_between(recording, begin, end), is_asked=(begin, end) != (None, None)).report()
    )


def looks_between(recording: Recording, begin: float | None, end: float | None) -> tuple[SeenLook, ...]:
    """The looks of a part, from the one nearest to its beginning to the one nearest to its end. Raises UsageError."""
    looks = recording.looks
    last = looks[-1].seconds
    first, until = 0.0 if begin is None else begin, last if end is None else end
    indices = range(len(looks))
    start, stop = (min(indices, key=lambda i: abs(looks[i].seconds - moment)) for moment in (first, until))
    if (begin, end) != (None, None) and (first >= until or stop <= start):
        raise UsageError(
            f"the recording has no two looks from {first:g} s to {until:g} s",
            f"it lasts from 0 s to {last:.1f} s, with a look each {human_seconds(_distance(looks))}",
        )
    return looks[start : stop + 1]


def _distance(looks: Sequence[SeenLook]) -> float:
    return (looks[-1].seconds - looks[0].seconds) / max(1, len(looks) - 1)


class _Part:
    """Two looks and what lies between."""

    def __init__(self, recording: Recording, *looks: SeenLook, is_asked: bool) -> None:
        self._recording = recording
        self._looks = looks
        self._first, self._last = looks[0], looks[-1]
        self._is_asked = is_asked
        self._whole = recording.report() if is_asked else None
        self.seconds = self._last.seconds - self._first.seconds

    def report(self) -> Report:
        origin = self._recording.origin
        assert origin.started is not None
        history = self._history()
        stacks = self._stacks(history)
        classes, ledger = self._classes()
        outlook = history.rss_outlook(self.seconds, self._last.rss.rss)
        known = self._whole
        return Report(
            pid=origin.pid,
            command=origin.command,
            verdict=self._verdict(stacks, ledger, outlook),
            started=origin.started + timedelta(seconds=self._first.seconds),
            seconds=self.seconds,
            ended=self._ended(),
            rss_start=self._first.rss,
            rss_end=self._last.rss,
            classes=classes,
            vmas=self._vmas(),
            stacks=stacks,
            ledger=ledger,
            probed=known.probed if known else origin.probed,
            rate=outlook.whole,
            rss_source=known.rss_source if known else origin.rss_source,
            basis="looks",
            overhead=self._overhead(),
            losses=dict(origin.losses),
            notes=(*self._notes(classes), *(known.notes if known else origin.notes)),
            sampling=known.sampling if known else origin.sampling,
        )

    def _history(self) -> History:
        """The course of this part, as the session would have kept it."""
        history = History()
        for look in self._looks:
            history.sample(look.seconds - self._first.seconds, look.rss.rss)
        kept = evenly(self._looks, _HISTORY_POINTS)
        for look, live in zip(kept, held_at(self._recording, kept), strict=True):
            history.add(Point(look.seconds - self._first.seconds, look.rss.rss, live))
        return history

    def _stacks(self, history: History) -> tuple[StackGrowth, ...]:
        before, after = self._recording.stacks_at(self._first), self._recording.stacks_at(self._last)
        better = {(stack.kind, stack.id): stack for stack in self._whole.stacks} if self._whole else {}
        found = []
        for number, held in after.items():
            known = self._recording.stacks.get(number)
            was = before.get(number, _NOTHING)
            if known is None or (held == was and not held.bytes):
                continue
            grown = self._growth(known.stack, number, held, was, history)
            whole = better.get((known.kind, known.stack))
            found.append(replace(grown, vma_class=whole.vma_class, frames=whole.frames) if whole else grown)
        return tuple(sorted(found, key=lambda stack: (-stack.bytes, stack.kind, stack.id)))

    def _growth(self, identity: str, number: int, held: Held, was: Held, history: History) -> StackGrowth:
        known = self._recording.stacks[number]
        allocated, freed = held.allocated_bytes - was.allocated_bytes, held.freed_bytes - was.freed_bytes
        grown = held.bytes - was.bytes
        trend = history.trend_of_stack(number, held.bytes, freed / allocated if allocated > 0 else 0.0)
        return StackGrowth(
            id=identity,
            kind=known.kind,
            bytes=grown,
            count=max(0, held.blocks - was.blocks),
            allocated_bytes=allocated,
            freed_bytes=freed,
            allocated_count=held.allocated_count - was.allocated_count,
            freed_count=held.freed_count - was.freed_count,
            rate=grown / self.seconds if self.seconds else 0.0,
            oldest=0.0,
            vma_class=_SOME_CLASS,
            complete=known.complete,
            frames=known.frames or (),
            trend=trend if known.kind == "malloc" else "unknown",
        )

    def _classes(self) -> tuple[tuple[ClassGrowth, ...], tuple[LedgerRow, ...]]:
        before, after = self._recording.classes_at(self._first), self._recording.classes_at(self._last)
        none = SeenClass(0, 0, 0.0)
        rows = []
        for name in {*before, *after}:
            was, now = before.get(name, none), after.get(name, none)
            if was.rss or now.rss or was.size or now.size:
                rows.append(ClassGrowth(name, was.rss, now.rss, now.size - was.size))
        rows.sort(key=lambda row: (-abs(row.growth), row.name))
        ledger = [LedgerRow(row.name, NOT_RECONCILED, None, row.growth) for row in rows if row.growth]
        between = self._last.rss.rss - self._first.rss.rss - sum(row.growth for row in rows)
        if between:
            ledger.append(LedgerRow(BETWEEN_READS, NOT_RECONCILED, None, between))
        return tuple(rows), tuple(ledger)

    def _vmas(self) -> tuple[VmaGrowth, ...]:
        before, after = self._recording.vmas_at(self._first), self._recording.vmas_at(self._last)
        known = self._recording.vmas
        rows = []
        for number in (before.keys() | after.keys()) & known.keys():
            vma, name = known[number]
            gone = number not in after
            end, rss = before[number] if gone else after[number]
            was = before.get(number, (0, 0))[1]
            vma = replace(vma, end=max(end, vma.start))
            rows.append(VmaGrowth(vma, name, 0 if gone else rss, (0 if gone else rss) - was, gone))
        return tuple(sorted(rows, key=lambda row: (-abs(row.growth), row.vma.start)))

    def _verdict(self, stacks: Sequence[StackGrowth], ledger: Sequence[LedgerRow], outlook: Outlook) -> Verdict:
        growth = self._last.rss.rss - self._first.rss.rss
        live = sum(stack.bytes for stack in stacks if stack.bytes > 0)
        # For the rules only: as much of the growth counts as caused as the stacks took.
        caused = [LedgerRow(_SOME_CLASS, "live", None, min(live, growth))] if min(live, growth) > 0 else []
        judged = judge(Findings(self._first.rss.rss, growth, self.seconds, outlook, [*ledger, *caused], stacks))
        growing = sum(stack.bytes > 0 for stack in stacks)
        rate = human_rate(growth / self.seconds if self.seconds else 0.0)
        words = judged.text[judged.text.rindex("(") + 1 : -1]
        moved = f"{'shrank by' if growth < 0 else 'grew'} {human_bytes(abs(growth))}"
        text = (
            f"RSS {moved} in {human_seconds(self.seconds)} ({rate}); {plural(growing, 'call stack')} took "
            f"{human_bytes(live)} in that time ({words}; {self._label()})"
        )
        return Verdict(judged.kind, text, judged.evidence)

    def _label(self) -> str:
        if not self._is_asked:
            return "a recording without an end"
        return f"{self._first.seconds:.1f} s to {self._last.seconds:.1f} s of a recording"

    def _ended(self) -> str:
        if self._is_asked and self._last is not self._recording.looks[-1]:
            return f"end of the part ({self._last.seconds:.1f} s into the recording)"
        if self._recording.origin.ended is not None:
            return self._recording.origin.ended
        return _NO_END

    def _notes(self, classes: Sequence[ClassGrowth]) -> list[str]:
        notes = [
            f"{self._label()}: stacks are shown by the difference of what they held at two looks; which of a class's "
            "growth was theirs, what the allocator kept, and how old blocks are is worked out only at the end of a "
            "session"
        ]
        unread = sum(1 for stack in self._recording.stacks.values() if stack.frames is None)
        if unread:
            notes.append(f"the frames of {plural(unread, 'stack')} had not been read yet")
        ages = [look.seconds - self._read_at(look) for look in (self._first, self._last)]
        if max(ages) >= 1.0:
            notes.append(
                f"VMAs and classes were read {human_seconds(ages[0])} before the first look and "
                f"{human_seconds(ages[1])} before the last"
            )
        origin = self._recording.origin
        if origin.lean is not None:
            notes.append(f"the recording had reached its limit: from {human_seconds(origin.lean)} on it has no stacks")
        if origin.dropped:
            notes.append(f"{plural(origin.dropped, 'look')} left out as the disk was too slow")
        return notes

    def _read_at(self, look: SeenLook) -> float:
        return max((seen.seconds for seen in self._recording.classes_at(look).values()), default=0.0)

    def _overhead(self) -> Overhead:
        hits = sum(
            self._last.counters.get(name, 0) - self._first.counters.get(name, 0) for name in ("probe_hits", "free_hits")
        )
        return Overhead(None, self._last.self_cpu - self._first.self_cpu, self._last.self_rss, max(0, hits))
