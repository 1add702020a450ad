"""A comparison for people, and as JSON under the contract ``memtrace-diff/1``: rates in bytes per second."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from rich.text import Text

from tracer.report.comparison import Change, Comparison, Measured, Speed, StackChange
from tracer.report.console import console_for
from tracer.report.frame_lines import frame_lines
from tracer.report.json import frame_values
from tracer.report.safe import Column, Page, valid_unicode
from tracer.report.stack_keys import program_of
from tracer.report.words import KINDS
from tracer.units import human_bytes, human_rate, human_seconds, plural

SCHEMA = "memtrace-diff/1"

_STYLES = {"new": "bold red", "faster": "red", "gone": "bold green", "slower": "green", "unchanged": "dim"}


@dataclass(frozen=True, slots=True)
class DiffText:
    """A comparison as text: at most ``top`` stacks, and of each at most ``max_frames`` frames."""

    comparison: Comparison
    top: int = 10
    max_frames: int = 8
    allocator_frames: bool = False

    def render(self, file: TextIO, *, width: int | None = None, colour: bool = False) -> None:
        """Write it; without ``width`` as wide as the terminal, or 80 columns into a pipe or a file."""
        console = console_for(file, width=width, colour=colour)
        page = Page(console.width, ascii_only=not console.encoding.startswith("utf"))
        for line in self.lines(page):
            console.print(line, soft_wrap=True)

    def lines(self, page: Page) -> Iterator[Text]:
        """The comparison line by line."""
        for line in page.wrap(_headline(self.comparison)):
            yield Text(line, style="bold")
        for letter, side in (("A", self.comparison.a), ("B", self.comparison.b)):
            yield Text(page.shorten(f"{letter}  {page.clean(_side(side))}", page.width, "both"))
        yield Text()
        yield from self._classes(page)
        yield Text()
        yield from self._stacks(page)
        if self.comparison.notes:
            yield Text()
        for note in self.comparison.notes:
            for line in page.wrap(page.clean(note), f"{'note':<10}"):
                yield Text(line)

    def _classes(self, page: Page) -> Iterator[Text]:
        rows = [("total (RSS)", self.comparison.rss), *self.comparison.classes]
        columns = (
            Column("Rates by class", keep="start"),
            Column("A", right=True),
            Column("B", right=True),
            Column("change", right=True),
            Column(""),
        )
        lines = page.align(columns, [_row(page.clean(name), change) for name, change in rows])
        yield Text(lines[0], style="bold")
        for line, (_, change) in zip(lines[1:], rows, strict=True):
            yield _coloured(line, change)

    def _stacks(self, page: Page) -> Iterator[Text]:
        changed = [each for each in self.comparison.stacks if each.change.status != "unchanged"]
        counts = Counter(each.change.status for each in self.comparison.stacks)
        words = ", ".join(f"{counts[status]} {status}" for status in ("new", "gone", "faster", "slower"))
        for line in page.wrap(f"Stacks: {words}; {counts['unchanged']} without a clear change"):
            yield Text(line, style="bold")
        shown = changed[: self.top]
        columns = (*(Column("", right=True) for _ in range(2)), Column(""), Column(""))
        rows = [
            (f"#{rank}", human_rate(each.change.change, signed=True), each.change.status, _from_to(each.change))
            for rank, each in enumerate(shown, 1)
        ]
        for each, line in zip(shown, page.align(columns, rows)[1:], strict=True):
            yield Text()
            yield _coloured(" " + line, each.change)
            yield Text(page.shorten("      " + page.clean(_details(each)), page.width))
            yield from frame_lines(each.example, page, self.max_frames, allocator_frames=self.allocator_frames)
        if changed[self.top :]:
            yield Text()
            yield Text(f"... {plural(len(changed) - self.top, 'more stack')} changed", style="dim")


def write_diff_json(comparison: Comparison, file: TextIO, limit: float | None = None) -> None:
    """Write the comparison as one line; ``limit`` is that of --fail-above, in bytes per second."""
    document = {
        "schema": SCHEMA,
        "a": _side_json(comparison.a),
        "b": _side_json(comparison.b),
        "rss": _change_json(comparison.rss),
        "classes": [{"class": valid_unicode(name), **_change_json(change)} for name, change in comparison.classes],
        "stacks": [_stack_json(each) for each in comparison.stacks],
        "limit": limit,
        "notes": [valid_unicode(note) for note in comparison.notes],
    }
    file.write(json.dumps(document, allow_nan=False) + "\n")


def _side_json(side: Measured) -> dict[str, Any]:
    report = side.report
    return {
        "name": valid_unicode(side.name),
        "pid": report.pid,
        "command": valid_unicode(report.command),
        "window": {
            "start": report.started.isoformat(),
            "seconds": report.seconds,
            "ended": valid_unicode(report.ended),
        },
        "basis": report.basis,
        "verdict": {"kind": report.verdict.kind, "text": valid_unicode(report.verdict.text)},
    }


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "status": change.status,
        "change": change.change,
        "a": {"bytes": change.bytes_a, "rate": change.a.mean, "rate_error": change.a.error},
        "b": {"bytes": change.bytes_b, "rate": change.b.mean, "rate_error": change.b.error},
    }


def _stack_json(each: StackChange) -> dict[str, Any]:
    change = _change_json(each.change)
    change["a"]["ids"], change["b"]["ids"] = list(each.ids_a), list(each.ids_b)
    return {
        "kind": each.example.kind,
        "name": [valid_unicode(name) for name in each.name[1:]],
        **change,
        "frames": [frame_values(frame) for frame in each.example.frames],
    }


def _headline(comparison: Comparison) -> str:
    change = comparison.rss
    words = {
        "new": "it has begun to grow",
        "gone": "it has stopped growing",
        "faster": "it grows faster",
        "slower": "it grows more slowly",
        "unchanged": "no clear change",
    }[change.status]
    return f"RSS grew {_speed(change.a)} in A and {_speed(change.b)} in B: {words}"


def _side(side: Measured) -> str:
    report = side.report
    program = program_of(report.command) or "?"
    return (
        f"{side.name}, {human_seconds(report.seconds)} from {report.started:%Y-%m-%d %H:%M:%S}, "
        f"process {report.pid} ({program})"
    )


def _row(name: str, change: Change) -> tuple[str, str, str, str, str]:
    return (
        name,
        human_rate(change.a.mean),
        human_rate(change.b.mean),
        human_rate(change.change, signed=True),
        change.status,
    )


def _from_to(change: Change) -> str:
    return f"{_speed(change.a)} -> {_speed(change.b)}"


def _speed(speed: Speed) -> str:
    return human_rate(speed.mean) + (f" +- {human_rate(speed.error)}" if speed.error else "")


def _details(each: StackChange) -> str:
    change = each.change
    return (
        f"{KINDS[each.example.kind][0]}: held {human_bytes(change.bytes_a)} at the end of A, "
        f"{human_bytes(change.bytes_b)} of B"
    )


def _coloured(line: str, change: Change) -> Text:
    return Text(line, style=_STYLES[change.status])
