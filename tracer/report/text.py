"""The report for people: the verdict first, then what grew, who grew it, and whether the books close.

Every size is written with its unit, numbers are never cut or wrapped, and only names and paths give way on a narrow
terminal. Text is laid out here and not by rich's tables, which cut digits and cannot shorten a path at its left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TextIO

from rich.text import Text

from tracer.model.report import Basis, LedgerRow, Report, StackGrowth, VmaGrowth
from tracer.report.console import console_for
from tracer.report.frame_lines import frame_lines
from tracer.report.heap_lines import heap_lines
from tracer.report.safe import Column, Page
from tracer.report.words import (
    KINDS,
    NO_STACKS,
    all_classes,
    balance,
    cause_in_words,
    changes,
    cost,
    growth_by_stack,
    loss_in_words,
    plus,
    precision,
    share_basis,
    why_no_stacks,
)
from tracer.units import human_bytes, human_count, human_rate, human_seconds, percent, plural

# Below this width the table of VMAs has room for one name only.
_ROOM_FOR_CLASS = 72
_VERDICT_STYLE = {"leak": "bold red", "not-growing": "bold green", "unknown": "bold"}
_TREND_STYLE = {"growing": "red", "levelled-off": "green"}
_STACKS: dict[Basis, str] = {
    "session": "Top stacks: memory acquired while traced and still held",
    "looks": "Top stacks: what they held more than at the first look",
}


@dataclass(frozen=True, slots=True)
class TextReport:
    """A report as text.

    At most ``top`` stacks and VMAs are shown, and of each stack at most ``max_frames`` frames. Stacks and VMAs with
    less than ``min_share`` of what all of them hold are noise. Whatever is left out is summed up in a line, but for
    the allocator's own frames, which only ``allocator_frames`` shows.
    """

    report: Report
    top: int = 10
    max_frames: int = 12
    min_share: float = 0.005
    allocator_frames: bool = False

    @classmethod
    def from_report(
        cls,
        report: Report,
        *,
        top: int = 10,
        max_frames: int = 12,
        min_share: float = 0.005,
        allocator_frames: bool = False,
    ) -> TextReport:
        """Prepare a report for rendering."""
        return cls(report, top, max_frames, min_share, allocator_frames)

    def render(
        self, file: TextIO, *, width: int | None = None, colour: bool = False, height: int | None = None
    ) -> None:
        """Write the report; without ``width`` as wide as the terminal, or 80 columns into a pipe or a file.

        Where the report is longer than ``height`` lines, its first line has scrolled away: the verdict ends it, too.
        """
        console = console_for(file, width=width, colour=colour)
        page = Page(console.width, ascii_only=not console.encoding.startswith("utf"))
        lines = list(self.lines(page))
        if height is not None and len(lines) >= height:
            lines += [Text(), *_verdict(self.report, page)]
        for line in lines:
            console.print(line, soft_wrap=True)

    def lines(self, page: Page) -> Iterator[Text]:
        """The report line by line; an empty line separates its sections."""
        yield from _heading(self.report, page)
        for section in (
            _classes(self.report, page),
            heap_lines(self.report.heap, page),
            self._vmas(page),
            self._stacks(page),
            _footer(self.report, page),
        ):
            lines = [*section]
            if lines:
                yield Text()
                yield from lines

    def _vmas(self, page: Page) -> Iterator[Text]:
        """The VMAs that grew most; the others are summed up in a line."""
        grown = sorted((row for row in self.report.vmas if row.growth > 0), key=lambda row: -row.growth)
        count = self._worth_showing([row.growth for row in grown])
        if grown:
            yield from _table(_vma_lines(grown[:count], page))
        rest = [] if grown else ["no VMA grew"]
        if grown[count:]:
            rest.append(f"{len(grown) - count} more grew by {human_bytes(sum(row.growth for row in grown[count:]))}")
        shrunk = [-row.growth for row in self.report.vmas if row.growth < 0]
        if shrunk:
            rest.append(f"{len(shrunk)} shrank by {human_bytes(sum(shrunk))}")
        yield from _prose(page, "; ".join(rest), style="dim")

    def _stacks(self, page: Page) -> Iterator[Text]:
        """The stacks that hold most; the others are summed up in a line."""
        held = sorted((stack for stack in self.report.stacks if stack.held > 0), key=lambda stack: -stack.held)
        if not held:
            yield from _no_stacks(self.report, page)
            return
        yield Text(_STACKS[self.report.basis], style="bold")
        count = self._worth_showing([stack.held for stack in held])
        for stack, header in zip(held[:count], _headers(self.report, held[:count], page), strict=True):
            yield Text()
            yield header
            yield from _prose(page, page.clean(_details(stack, page)), first="      ")
            yield from frame_lines(stack, page, self.max_frames, allocator_frames=self.allocator_frames)
        if held[count:]:
            yield Text()
            rest = human_bytes(sum(stack.held for stack in held[count:]))
            yield from _prose(page, f"... {plural(len(held) - count, 'more stack')} holding {rest}", style="dim")

    def _worth_showing(self, sizes: list[int]) -> int:
        """How many of the sizes, sorted downwards, to show: the first in any case."""
        least = self.min_share * sum(sizes)
        return sum(i == 0 or size >= least for i, size in enumerate(sizes[: self.top]))


def _heading(report: Report, page: Page) -> Iterator[Text]:
    yield from _verdict(report, page)
    for line in report.verdict.evidence:
        yield from _prose(page, page.clean(line), first="  - ")
    yield from _prose(page, page.clean(_window(report)))
    started = f"{report.started:%Y-%m-%d}  process {report.pid}  "
    yield Text(page.shorten(started + page.clean(report.command), page.width))


def _verdict(report: Report, page: Page) -> Iterator[Text]:
    style = _VERDICT_STYLE.get(report.verdict.kind, "bold yellow")
    yield from _prose(page, page.clean(report.verdict.text), style=style)


def _window(report: Report) -> str:
    seconds = f"{report.seconds:.1f} s" if report.seconds < 60 else human_seconds(report.seconds)
    return f"traced {seconds} from {report.started:%H:%M:%S}; {precision(report)}; ended: {report.ended}"


def _prose(page: Page, text: str, *, first: str = "", style: str = "") -> Iterator[Text]:
    for line in page.wrap(text, first):
        yield Text(line, style=style)


def _classes(report: Report, page: Page) -> Iterator[Text]:
    """Growth of each class and, indented beneath it, the causes that add up to it."""
    rows = [_growth_row("total (RSS)", report.rss_start.rss, report.rss_end.rss)]
    if report.rss_start.swap or report.rss_end.swap:
        rows.append(_growth_row("swap (no part of RSS)", report.rss_start.swap, report.rss_end.swap))
    styles = ["bold"] * len(rows)
    quiet: list[int] = []
    for row in sorted(all_classes(report), key=lambda row: -abs(row.growth)):
        causes = _causes_of(row.name, row.growth, report.ledger)
        if not causes:
            quiet.append(row.rss_end)
            continue
        rows.append(_growth_row(page.clean(row.name), row.rss_start, row.rss_end))
        rows += [("  " + page.clean(cause), "", "", plus(size)) for cause, size in causes]
        styles += ["", *("dim" for _ in causes)]
    columns = (
        Column("Growth by class", keep="start"),
        Column("start", right=True),
        Column("end", right=True),
        Column("growth", right=True),
    )
    yield from _table(page.align(columns, rows), styles)
    if quiet:
        unchanged = f"{plural(len(quiet), 'class', 'es')} did not change ({human_bytes(sum(quiet))})"
        yield from _prose(page, unchanged, style="dim")


def _growth_row(name: str, start: int, end: int) -> tuple[str, str, str, str]:
    return name, human_bytes(start), human_bytes(end), plus(end - start)


def _causes_of(name: str, growth: int, ledger: Iterable[LedgerRow]) -> list[tuple[str, int]]:
    """The causes of a class's growth, largest first, what is unexplained last; together they are ``growth``."""
    sums: dict[str, int] = {}
    for row in ledger:
        if row.vma_class == name:
            sums[row.cause] = sums.get(row.cause, 0) + row.bytes
    causes = [(cause_in_words(cause), size) for cause, size in sums.items() if size]
    causes.sort(key=lambda item: (item[0] == cause_in_words("unexplained"), -abs(item[1])))
    missing = growth - sum(sums.values())
    # The books of a class must close on paper too: what the ledger does not hold is shown, not hidden.
    return [*causes, ("not in the ledger", missing)] if missing else causes


def _vma_lines(vmas: list[VmaGrowth], page: Page) -> list[str]:
    columns = [
        Column("Growing VMAs"),
        Column("class", keep="start"),
        Column("rss", right=True),
        Column("growth", right=True),
        Column("path", keep="end", least=14 if page.width >= _ROOM_FOR_CLASS else 6),
    ]
    rows = [
        [
            f"{row.vma.start:x}-{row.vma.end:x}",
            page.clean(row.vma_class),
            human_bytes(row.rss),
            plus(row.growth),
            page.clean(row.vma.path.decode("utf-8", "surrogateescape")),
        ]
        for row in vmas
    ]
    if page.width < _ROOM_FOR_CLASS:
        # The path says more; memory without one is named by its class.
        del columns[1]
        rows = [[span, rss, growth, path or name] for span, name, rss, growth, path in rows]
    return page.align(columns, rows)


def _headers(report: Report, stacks: list[StackGrowth], page: Page) -> Iterator[Text]:
    """The line that is read first: rank, bytes, share, rate and trend, in columns over all stacks."""
    basis, shares = _shares(report, stacks)
    rows = [
        (
            f"#{rank}",
            _with_error(stack, page),
            f"{share} of {basis}",
            human_rate(stack.rate),
            "" if stack.trend == "unknown" else stack.trend.replace("-", " "),
        )
        for rank, (stack, share) in enumerate(zip(stacks, shares, strict=True), 1)
    ]
    columns = (*(Column("", right=True) for _ in range(4)), Column(""))
    for stack, line in zip(stacks, page.align(columns, rows)[1:], strict=True):
        header = Text(" " + line, style="bold")
        if stack.trend in _TREND_STYLE:
            header.stylize(_TREND_STYLE[stack.trend], len(header) - len(stack.trend))
        yield header


def _with_error(stack: StackGrowth, page: Page) -> str:
    """The bytes, and half of their 95 % interval where there is room for it."""
    size = human_bytes(stack.held)
    if not stack.bytes_error or page.width < _ROOM_FOR_CLASS:
        return size
    sign = "+-" if page.ascii_only else "\N{PLUS-MINUS SIGN}"
    return f"{size} {sign} {human_bytes(stack.bytes_error)}"


def _shares(report: Report, stacks: list[StackGrowth]) -> tuple[str, list[str]]:
    """What the shares are of, and each stack's."""
    of_growth = growth_by_stack(report)
    if share_basis(report, of_growth) == "growth":
        return "growth", [percent(of_growth.get(stack.id, 0), report.growth) for stack in stacks]
    held = sum(stack.held for stack in report.stacks)
    return "live bytes", [percent(stack.held, held) for stack in stacks]


def _details(stack: StackGrowth, page: Page) -> str:
    what, unit, undone = KINDS[stack.kind]
    parts = [f"{what} in {stack.vma_class}: {plural(stack.count, unit)}"]
    if stack.unverified_bytes:
        parts.append(f"{human_bytes(stack.unverified_bytes)} unverified: lived through a gap in tracing")
    if stack.bytes_error and page.width < _ROOM_FOR_CLASS:
        parts.append(f"give or take {human_bytes(stack.bytes_error)}")
    if stack.oldest > 0:
        parts.append(f"oldest {human_seconds(stack.oldest)}")
    if stack.allocated_count:
        parts.append(f"{undone} {human_count(stack.freed_count)} of {human_count(stack.allocated_count)}")
    return ", ".join(parts)


def _no_stacks(report: Report, page: Page) -> Iterator[Text]:
    """Why there is nothing to show: an empty table would be taken for good news."""
    yield Text(f"{NO_STACKS}:", style="bold")
    for reason in why_no_stacks(report):
        yield from _prose(page, page.clean(reason), first="  - ")


def _footer(report: Report, page: Page) -> Iterator[Text]:
    """Do the books close, what was lost, what was probed, and what it cost."""
    yield from _entry(page, "ledger", balance(report))
    if report.changes:
        yield from _entry(page, "changes", changes(report))
    losses = [f"{human_count(n)} {loss_in_words(name)}" for name, n in report.losses.items() if n]
    for loss in losses or ["nothing was lost"]:
        yield from _entry(page, "losses", loss, "yellow" if losses else "")
    yield from _entry(page, "probed", ", ".join(report.probed) or "no allocator")
    # Without stacks the notes stand where the stacks would be.
    for note in report.notes if any(stack.held > 0 for stack in report.stacks) else ():
        yield from _entry(page, "note", note)
    yield from _entry(page, "memtrace", cost(report.overhead))


def _entry(page: Page, label: str, text: str, style: str = "") -> Iterator[Text]:
    yield from _prose(page, page.clean(text), first=f"{label:<10}", style=style)


def _table(lines: list[str], styles: Iterable[str] = ()) -> Iterator[Text]:
    """Aligned lines with their styles; the first is the heading."""
    row_styles = [*styles]
    for i, line in enumerate(lines):
        yield Text(line, style="bold" if i == 0 else row_styles[i - 1] if i <= len(row_styles) else "")
