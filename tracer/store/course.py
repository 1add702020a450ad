"""How a recorded session went over its window: series for charts, and rates with their errors."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

from tracer.model.rates import Rate, rate_of
from tracer.model.report import Report
from tracer.model.timeline import Timeline
from tracer.store.recording import Recording, SeenLook

# A chart shows no more, and a page is to stay small.
MAX_POINTS = 512
# A rate is that of ten parts (tracer.model.rates): so many looks are enough for their edges.
_RATE_LOOKS = 40


def timeline_of(recording: Recording, report: Report) -> Timeline | None:
    """The looks of the report's window, as a chart draws them; None where there are not enough.

    A class has a value at the looks that read the VMAs, and at both ends, where the report has it.
    """
    if recording.origin.started is None:
        return None
    begin = (report.started - recording.origin.started).total_seconds()
    between = [look for look in recording.looks if 0 < look.seconds - begin < report.seconds]
    if not between:
        return None
    looks = between[:: -(-len(between) // MAX_POINTS)]
    rss = (report.rss_start.rss, *(look.rss.rss for look in looks), report.rss_end.rss)
    seen = _classes_of(recording, looks, begin)
    classes = {
        row.name: (row.rss_start, *seen.get(row.name, [None] * len(looks)), row.rss_end) for row in report.classes
    }
    return Timeline((0.0, *(look.seconds - begin for look in looks), report.seconds), rss, classes)


def _classes_of(recording: Recording, looks: Sequence[SeenLook], begin: float) -> dict[str, list[int | None]]:
    """Resident bytes of each class at those looks at which the VMAs were read; else None."""
    numbers = [look.number for look in looks]
    read: set[int] = set()
    changes: dict[str, list[tuple[int, int]]] = {}
    for number, name, seen in recording.class_changes():
        changes.setdefault(name, []).append((number, seen.rss))
        # The first look kept from then on stands for it.
        index = bisect_left(numbers, number)
        if seen.seconds >= begin and index < len(looks):
            read.add(index)
    series: dict[str, list[int | None]] = {}
    for name, known in changes.items():
        at = [number for number, _ in known]
        values: list[int | None] = [None] * len(looks)
        for index in read:
            last = bisect_right(at, numbers[index]) - 1
            values[index] = known[last][1] if last >= 0 else 0
        series[name] = values
    return series


def stack_rates(recording: Recording, looks: Sequence[SeenLook]) -> dict[int, Rate]:
    """How fast the memory that each stack holds grew over these looks, by its id in the file."""
    kept = evenly(looks, _RATE_LOOKS)
    states = held_at(recording, kept)
    moved = {
        stack for before, after in pairwise(states) for stack, held in after.items() if before.get(stack, 0) != held
    }
    times = [look.seconds for look in kept]
    rates = {}
    for stack in moved:
        rate = rate_of([(seconds, float(state.get(stack, 0))) for seconds, state in zip(times, states, strict=True)])
        if rate is not None:
            rates[stack] = rate
    return rates


def held_at(recording: Recording, looks: Sequence[SeenLook]) -> list[dict[int, int]]:
    """What each stack held at each of these looks, by its id in the file."""
    states: list[dict[int, int]] = []
    held: dict[int, int] = {}
    changes = recording.stack_changes()
    change = next(changes, None)
    for look in looks:
        while change is not None and change[0] <= look.number:
            held[change[1]] = change[2]
            change = next(changes, None)
        states.append(dict(held))
    return states


def evenly(looks: Sequence[SeenLook], most: int) -> list[SeenLook]:
    """About ``most`` of the looks, at even distances, the first and the last among them."""
    kept = list(looks[:: -(-len(looks) // most)])
    return kept if kept[-1] is looks[-1] else [*kept, looks[-1]]


def class_rates(recording: Recording, looks: Sequence[SeenLook]) -> dict[str, Rate]:
    """How fast each class of memory grew over these looks."""
    if len(looks) < 2:
        return {}
    samples: dict[str, list[tuple[float, float]]] = {}
    for number, name, seen in recording.class_changes(looks[-1].number):
        known = samples.setdefault(name, [])
        if number <= looks[0].number:
            known[:] = [(looks[0].seconds, float(seen.rss))]
        elif not known or seen.seconds > known[-1][0]:
            known.append((seen.seconds, float(seen.rss)))
    end = looks[-1].seconds
    rates = {
        name: rate_of([*known, *([(end, known[-1][1])] if known[-1][0] < end else [])])
        for name, known in samples.items()
    }
    return {name: rate for name, rate in rates.items() if rate is not None}
