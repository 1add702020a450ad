"""How a recorded session went over its window: series for charts, and rates with their errors."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

from tracer.model.rates import Rate, rate_of
from tracer.model.report import Report
from tracer.model.timeline import Timeline
from tracer.store.recording import Recording, SeenLook

# A chart shows no more, and a page is to stay small.
MAX_POINTS = 512


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
    if len(looks) < 2:
        return {}
    first, last = looks[0].number, looks[-1].number
    before: dict[int, int] = {}
    changes: dict[int, dict[int, int]] = {}
    for number, stack, held in recording.stack_changes():
        if number <= first:
            before[stack] = held
        elif number <= last:
            changes.setdefault(stack, {})[number] = held
    rates = {}
    for stack, known in changes.items():
        rate = rate_of(_samples(looks, before.get(stack, 0), known))
        if rate is not None:
            rates[stack] = rate
    return rates


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


def _samples(looks: Sequence[SeenLook], held: int, changes: Mapping[int, int]) -> list[tuple[float, float]]:
    samples = []
    for look in looks:
        held = changes.get(look.number, held)
        samples.append((look.seconds, float(held)))
    return samples
