"""Two sessions, or two parts of one, compared by rates: by class of memory and by stack.

Rates and not bytes are compared, as windows differ in length. Where the course of both is known, a difference counts
only beyond its 95 % error; else from a tenth on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tracer.model.rates import Rate
from tracer.model.report import Report, StackGrowth
from tracer.report.stack_keys import StackName, build_ids, program_of, stack_name

Status = Literal["new", "gone", "faster", "slower", "unchanged"]

# What grows at less than this share of its former rate is gone, as is what no longer grows; the other way round, new.
_GONE_SHARE = 0.01
_CLEAR_SHARE = 0.1
# Bytes per second that are nothing: a byte a minute.
_NOTHING = 1 / 60


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes per second, and the half-width of the 95 % interval of that; None where it is not known."""

    mean: float = 0.0
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """One side: a report, and how fast its stacks (by kind and id) and classes grew, as far as looks tell."""

    name: str
    report: Report
    stack_rates: Mapping[tuple[str, str], Rate] = field(default_factory=dict)
    class_rates: Mapping[str, Rate] = field(default_factory=dict)

    @property
    def speed(self) -> Speed:
        """How fast RSS grew."""
        report = self.report
        return _speed(report.rate, report.growth / report.seconds if report.seconds > 0 else 0.0)


@dataclass(frozen=True, slots=True)
class Change:
    """How fast something grew on both sides. ``bytes_a`` and ``bytes_b`` are what it grew by, or held at the end.

    ``grows_a`` and ``grows_b``: whether it still grew at the end of the window; None where that is not known.
    """

    a: Speed
    b: Speed
    bytes_a: int
    bytes_b: int
    grows_a: bool | None = None
    grows_b: bool | None = None

    @property
    def change(self) -> float:
        """Bytes per second."""
        return self.b.mean - self.a.mean

    @property
    def is_clear(self) -> bool:
        """Whether the difference is more than chance."""
        if self.a.error is not None and self.b.error is not None:
            return abs(self.change) > math.hypot(self.a.error, self.b.error)
        return abs(self.change) > _CLEAR_SHARE * max(abs(self.a.mean), abs(self.b.mean))

    @property
    def status(self) -> Status:
        """The difference in a word."""
        a, b = self.a.mean, self.b.mean
        if max(a, b) < _NOTHING or not self.is_clear:
            return "unchanged"
        # What levels off at once has a rate over its window, too.
        if b > a and (a <= _GONE_SHARE * b or (self.grows_b and self.grows_a is False)):
            return "new"
        if a > b and (b <= _GONE_SHARE * a or (self.grows_a and self.grows_b is False)):
            return "gone"
        return "faster" if b > a else "slower"


@dataclass(frozen=True, slots=True)
class StackChange:
    """The stacks of one name on both sides; ``example`` is one of them, of the later side where it has one."""

    name: StackName
    change: Change
    example: StackGrowth
    ids_a: tuple[str, ...]
    ids_b: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What has changed from ``a`` to ``b``; classes and stacks are sorted by how much."""

    a: Measured
    b: Measured
    rss: Change
    classes: tuple[tuple[str, Change], ...]
    stacks: tuple[StackChange, ...]
    notes: tuple[str, ...]


def compare(a: Measured, b: Measured) -> Comparison:
    """Compare two sides."""
    stacks = _stacks(a, b)
    return Comparison(
        a=a,
        b=b,
        rss=Change(a.speed, b.speed, a.report.growth, b.report.growth),
        classes=_classes(a, b),
        stacks=tuple(sorted(stacks, key=lambda each: (-abs(each.change.change), each.name))),
        notes=tuple(_notes(a, b)),
    )


def _classes(a: Measured, b: Measured) -> tuple[tuple[str, Change], ...]:
    sides = []
    for side in (a, b):
        seconds = side.report.seconds
        growth = {row.name: row.growth for row in side.report.classes}
        speeds = {
            name: _speed(side.class_rates.get(name), size / seconds if seconds > 0 else 0.0)
            for name, size in growth.items()
        }
        sides.append((growth, speeds))
    (grown_a, speeds_a), (grown_b, speeds_b) = sides
    rows = [
        (
            name,
            Change(
                speeds_a.get(name, Speed(0.0, 0.0)),
                speeds_b.get(name, Speed(0.0, 0.0)),
                grown_a.get(name, 0),
                grown_b.get(name, 0),
            ),
        )
        for name in {*grown_a, *grown_b}
    ]
    moving = [row for row in rows if row[1].bytes_a or row[1].bytes_b]
    return tuple(sorted(moving, key=lambda row: (-abs(row[1].change), row[0])))


def _stacks(a: Measured, b: Measured) -> Iterable[StackChange]:
    same_files = build_ids(a.report.stacks) & build_ids(b.report.stacks)
    by_name: dict[StackName, tuple[list[StackGrowth], list[StackGrowth]]] = defaultdict(lambda: ([], []))
    for index, side in enumerate((a, b)):
        program = program_of(side.report.command)
        for stack in side.report.stacks:
            by_name[stack_name(stack, program, same_files)][index].append(stack)
    for name, (of_a, of_b) in by_name.items():
        change = Change(_sum(of_a, a), _sum(of_b, b), _bytes(of_a), _bytes(of_b), _grows(of_a), _grows(of_b))
        example = max(of_b or of_a, key=lambda stack: stack.bytes)
        yield StackChange(name, change, example, _ids(of_a), _ids(of_b))


def _sum(stacks: list[StackGrowth], side: Measured) -> Speed:
    """How fast stacks grew together; their errors are taken to be independent. Without stacks nothing grew, surely."""
    mean, square, is_known = 0.0, 0.0, True
    for stack in stacks:
        rate = side.stack_rates.get((stack.kind, stack.id))
        mean += rate.mean if rate else stack.rate
        square += rate.error**2 if rate else 0.0
        is_known &= rate is not None
    return Speed(mean, math.sqrt(square) if is_known else None)


def _grows(stacks: list[StackGrowth]) -> bool | None:
    """Whether the largest of them still grows; where there is none, nothing does."""
    largest = max(stacks, key=lambda stack: stack.bytes, default=None)
    if largest is None:
        return False
    return None if largest.trend == "unknown" else largest.trend == "growing"


def _bytes(stacks: list[StackGrowth]) -> int:
    return sum(stack.bytes for stack in stacks)


def _ids(stacks: list[StackGrowth]) -> tuple[str, ...]:
    return tuple(stack.id for stack in stacks)


def _speed(rate: Rate | None, mean: float) -> Speed:
    return Speed(rate.mean, rate.error) if rate else Speed(mean)


def _notes(a: Measured, b: Measured) -> Iterable[str]:
    for side in (a, b):
        held = sum(stack.bytes for stack in side.report.stacks if stack.bytes > 0)
        nameless = sum(
            stack.bytes
            for stack in side.report.stacks
            if stack.bytes > 0 and any(frame.function is None for frame in stack.frames)
        )
        if nameless > _CLEAR_SHARE * held:
            yield (
                f"{side.name}: {nameless / held:.0%} of the bytes are in stacks with frames that have no name; such "
                "stacks may be taken for new or gone after a rebuild"
            )
        lost = sum(side.report.losses.values())
        if lost:
            yield f"{side.name}: {lost:,} losses were counted there; its report says of what"
    if program_of(a.report.command) != program_of(b.report.command):
        yield f"two programs: {program_of(a.report.command)} and {program_of(b.report.command)}"
