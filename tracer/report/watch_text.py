"""Watching, for people: one line for each look, and the summary with the verdict first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.text import Text

from tracer.model.watch import (
    ClassChange,
    Look,
    Projection,
    RegionChange,
    WatchCost,
    WatchState,
    WatchSummary,
    WatchVerdict,
)
from tracer.report.bars import bar
from tracer.report.live import sparkline
from tracer.report.palette import colour
from tracer.report.safe import Column, Page, cells
from tracer.units import human_bytes, human_rate, human_seconds, percent

PIPE_WIDTH = 80
VERDICT_STYLES = {"growing": "bold red", "levelled-off": "bold green", "not-growing": "bold green"}
# Below this width the table of VMAs has room for one name only.
_ROOM_FOR_CLASS = 72
_LEAST_CHART, _MOST_CHART = 8, 40
# Reads in between are kept within this share of the time; above it, those at start and end were dear.
_BOUND = 0.01
# What is less than this of all that grew is noise.
_MIN_SHARE = 0.005


def plain_console(file: TextIO, width: int | None, *, colour: bool) -> Console:
    """A console that takes text as it is; without ``width`` as wide as the terminal, or 80 columns elsewhere."""
    return Console(
        file=file,
        width=width or (None if file.isatty() else PIPE_WIDTH),
        force_terminal=colour,
        color_system="auto" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def page_of(console: Console) -> Page:
    """What can be set on a console."""
    return Page(console.width, ascii_only=not console.encoding.startswith("utf"))


def look_line(state: WatchState, page: Page) -> str:
    """``12 s  private 60.1 MiB  +58.1 MiB (4.8 MiB/s)  heap +57.3 MiB  growing``, as much as the width has room for."""
    first, look = state.looks[0], state.looks[-1]
    grown = look.private - first.private
    rate = grown / look.seconds if look.seconds >= 0.1 else 0.0
    top = most_grown_class(first, look)
    parts = [
        f"{human_seconds(int(look.seconds)) if look.seconds >= 60 else f'{int(look.seconds)} s':>6}",
        f"private {human_bytes(look.private):>10}",
        f"{_plus(grown)} ({human_rate(rate)})",
        f"{page.clean(top[0])} {_plus(top[1])}" if top else "",
        state.verdict.kind if state.verdict.kind != "unknown" else "",
        f"RSS {human_bytes(look.counters.rss)}",
        f"swap {human_bytes(look.counters.swap)}" if look.counters.swap else "",
    ]
    line = parts[0]
    for part in filter(None, parts[1:]):
        if cells(line) + 2 + cells(part) <= page.width:
            line += "  " + part
    return line


def most_grown_class(first: Look, look: Look) -> tuple[str, int] | None:
    """The class that gained most since the first look, and how much; None where none did."""
    gains = {name: size - first.classes.get(name, 0) for name, size in look.classes.items()}
    name = max(gains, key=lambda name: gains[name], default=None)
    return (name, gains[name]) if name is not None and gains[name] > 0 else None


class LineView:
    """One line for each look, flushed at once; what the process became (exec) is told in a line of its own."""

    def __init__(self, file: TextIO, page: Page) -> None:
        self._file = file
        self._page = page
        self._status = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, state: WatchState) -> None:
        """Write the newest look."""
        if state.status != self._status:
            self._status = state.status
            print(self._page.clean(state.status), file=self._file)
        print(look_line(state, self._page), file=self._file, flush=True)

    def poll(self) -> bool:
        """There are no keys."""
        return False


@dataclass(frozen=True, slots=True)
class WatchText:
    """The summary as text, with at most ``top`` VMAs. ``command`` is what finds the call stacks behind the growth."""

    summary: WatchSummary
    top: int = 10

    def render(self, file: TextIO, *, width: int | None = None, colour: bool = False) -> None:
        """Write it; without ``width`` as wide as the terminal, or 80 columns into a pipe or a file."""
        console = plain_console(file, width, colour=colour)
        for line in self.lines(page_of(console)):
            console.print(line, soft_wrap=True)

    def lines(self, page: Page) -> Iterator[Text]:
        """The summary line by line; an empty line separates its sections."""
        yield from verdict_lines(self.summary.verdict, self.summary.projection, page)
        yield from _window(self.summary, page)
        yield Text()
        yield from _classes(self.summary, page)
        yield Text()
        yield from region_lines(self.summary.regions, page, self.top)
        yield Text()
        yield from _footer(self.summary, page)


def verdict_lines(verdict: WatchVerdict, projection: Projection | None, page: Page) -> Iterator[Text]:
    """The verdict, when a limit is reached, and what the verdict rests on."""
    text = page.clean(verdict.text)
    yield from _prose(page, text[:1].upper() + text[1:], style=VERDICT_STYLES.get(verdict.kind, "bold"))
    if projection is not None:
        until = page.clean(projection_text(projection))
        yield from _prose(page, until[:1].upper() + until[1:], style="bold")
    for line in verdict.evidence:
        yield from _prose(page, page.clean(line), first="  - ")


def projection_text(projection: Projection) -> str:
    """When which limit is reached, and between which times that lies."""
    limit = projection.limit
    left = f"{limit.name} ({human_bytes(limit.size)}, {human_bytes(limit.room)} of it left)"
    if not limit.room:
        return f"{left} is used up already"
    when, earliest = human_seconds(projection.seconds), human_seconds(projection.earliest)
    latest = human_seconds(projection.latest) if projection.latest is not None else None
    span = f", between {earliest} and {latest}" if latest else f", {earliest} at the earliest"
    return f"at this rate {left} is reached in {when}{span if (earliest, latest) != (when, when) else ''}"


def projection_in_short(projection: Projection) -> str:
    """The same for a line that may be cut: the time first."""
    limit = projection.limit
    return (
        f"in {human_seconds(projection.seconds)} at {limit.name} "
        f"({human_bytes(limit.room)} of {human_bytes(limit.size)} left)"
    )


def _window(summary: WatchSummary, page: Page) -> Iterator[Text]:
    seconds = f"{summary.seconds:.1f} s" if summary.seconds < 60 else human_seconds(summary.seconds)
    looks = f"{summary.count:,} look{'' if summary.count == 1 else 's'}"
    line = f"watched {seconds} from {summary.started:%H:%M:%S}, {looks}; ended: {summary.ended}"
    yield from _prose(page, page.clean(line))
    started = f"{summary.started:%Y-%m-%d}  process {summary.pid}  "
    yield Text(page.shorten(started + page.clean(summary.command), page.width))


def _classes(summary: WatchSummary, page: Page) -> Iterator[Text]:
    """What each class took and takes. The first row is the kernel's own count; a last one says what they differ by."""
    first, last = summary.looks[0], summary.looks[-1]
    changed = sorted((row for row in summary.classes if row.growth), key=lambda row: -abs(row.growth))
    changed += [row for row in summary.classes if not row.growth and row.private_growth]
    with_private = bool(summary.classes) and all(row.private_growth is not None for row in summary.classes)
    total = sum(row.private_growth or 0 for row in summary.classes) if with_private else None
    rows = [ClassChange("total (RSS + swap)", first.occupied, last.occupied, total), *changed]
    before = sum(row.before for row in summary.classes)
    after = sum(row.after for row in summary.classes)
    if (before, after) != (first.occupied, last.occupied):
        rows.append(ClassChange("moved while being read", first.occupied - before, last.occupied - after, None))
    yield from class_table(rows, page, with_private=with_private, trend=[look.occupied for look in summary.looks])
    quiet = [row.after for row in summary.classes if not row.growth and not row.private_growth]
    if quiet:
        noun = "class" if len(quiet) == 1 else "classes"
        yield from _prose(page, f"{len(quiet)} {noun} did not change ({human_bytes(sum(quiet))})", style="dim")


def class_table(rows: Sequence[ClassChange], page: Page, *, with_private: bool, trend: Sequence[int]) -> Iterator[Text]:
    """A table of classes whose first row is the total; charts stand in what the width leaves."""
    columns = [
        Column("Memory by class", keep="start"),
        Column("start", right=True),
        Column("now", right=True),
        Column("growth", right=True),
    ]
    if with_private:
        columns.append(Column("private", right=True))
    table = [
        (
            page.clean(row.name),
            human_bytes(row.before),
            human_bytes(row.after),
            _plus(row.growth),
            *((_plus(row.private_growth) if row.private_growth is not None else "",) if with_private else ()),
        )
        for row in rows
    ]
    lines = page.align(columns, table)
    room = min(_MOST_CHART, page.width - max(map(cells, lines)) - 2)
    largest = max((row.growth for row in rows[1:]), default=0)
    charts = ["", sparkline(trend, max(1, room), ascii_only=page.ascii_only)]
    charts += [bar(row.growth, largest, room, ascii_only=page.ascii_only) for row in rows[1:]]
    widest = max(map(cells, lines))
    for index, (line, chart) in enumerate(zip_longest(lines, charts, fillvalue="")):
        text = Text(line, style="bold" if index < 2 else "")
        if room >= _LEAST_CHART and chart:
            text.append(" " * (widest - cells(line) + 2)).append(chart, colour(0))
        yield text


def region_lines(regions: Sequence[RegionChange], page: Page, top: int) -> Iterator[Text]:
    """The VMAs that grew most; the others are summed up."""
    grown = sorted((row for row in regions if row.growth > 0), key=lambda row: -row.growth)
    least = _MIN_SHARE * sum(row.growth for row in grown)
    count = sum(index == 0 or row.growth >= least for index, row in enumerate(grown[:top]))
    if grown:
        for index, line in enumerate(_region_table(grown[:count], page)):
            yield Text(line, style="bold" if index == 0 else "")
    rest = [] if grown else ["no VMA grew"]
    if grown[count:]:
        rest.append(f"{len(grown) - count} more grew by {human_bytes(sum(row.growth for row in grown[count:]))}")
    shrunk = [-row.growth for row in regions if row.growth < 0]
    if shrunk:
        rest.append(f"{len(shrunk)} shrank by {human_bytes(sum(shrunk))}")
    if rest:
        yield from _prose(page, "; ".join(rest), style="dim")


def _region_table(grown: Sequence[RegionChange], page: Page) -> list[str]:
    columns = [
        Column("Growing VMAs"),
        Column("class", keep="start"),
        Column("now", right=True),
        Column("growth", right=True),
        Column("path", keep="end", least=14 if page.width >= _ROOM_FOR_CLASS else 6),
    ]
    rows = [
        [
            f"{row.start:x}-{row.end:x}",
            page.clean(row.vma_class),
            human_bytes(row.after),
            _plus(row.growth),
            " ".join(filter(None, (page.clean(row.path.decode("utf-8", "surrogateescape")), _several(row.vmas)))),
        ]
        for row in grown
    ]
    if page.width < _ROOM_FOR_CLASS:
        del columns[1]
        rows = [[span, now, growth, path or name] for span, name, now, growth, path in rows]
    return page.align(columns, rows)


def _several(vmas: int) -> str:
    return f"({vmas:,} VMAs)" if vmas > 1 else ""


def _footer(summary: WatchSummary, page: Page) -> Iterator[Text]:
    yield from _entry(page, "cost", cost_text(summary.cost))
    for note in summary.notes:
        yield from _entry(page, "note", note)
    if summary.verdict.kind == "growing":
        advice = f"sudo memtrace {summary.pid}  names the call stacks behind the growth"
        yield from _entry(page, "next", advice, style="bold")


def cost_text(cost: WatchCost) -> str:
    """For how long the target may have waited for reads of it, and what memtrace itself took."""
    reads = ", ".join(f"{read.name} {read.count:,} x" for read in cost.reads) or "nothing"
    longest = max((read.longest for read in cost.reads), default=0.0)
    edges = f" ({human_seconds(cost.edges)} of it at start and end)" if cost.share > _BOUND else ""
    return (
        f"reads that the process may wait for: {human_seconds(cost.seconds)} in all, {percent(cost.share)} of the "
        f"time{edges}, the longest {human_seconds(longest)} ({reads}); memtrace: {human_seconds(cost.self_cpu)} CPU, "
        f"{human_bytes(cost.self_rss)} RSS"
    )


def _entry(page: Page, label: str, text: str, style: str = "") -> Iterator[Text]:
    yield from _prose(page, page.clean(text), first=f"{label:<6}", style=style)


def _prose(page: Page, text: str, *, first: str = "", style: str = "") -> Iterator[Text]:
    for line in page.wrap(text, first):
        yield Text(line, style=style)


def _plus(n: int) -> str:
    return human_bytes(n, signed=True)
