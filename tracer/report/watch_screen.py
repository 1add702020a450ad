"""Watching on a terminal: the verdict so far, memory by class, and the VMAs that grow, in a full-screen view."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.text import Text

from tracer.model.watch import ClassChange, WatchState, WatchVerdict
from tracer.model.watch_verdict import rate_with_margin
from tracer.report.live import sparkline
from tracer.report.safe import Page
from tracer.report.screen import HELD, KeyReader, ScreenView, View, can_move_cursor
from tracer.report.watch_text import (
    VERDICT_STYLES,
    LineView,
    class_table,
    page_of,
    plain_console,
    projection_in_short,
    region_lines,
)
from tracer.units import human_bytes, human_rate, human_seconds, percent

_KEYS = "q quit with the summary   p pause   h help"
_HELP = (
    "q  stop and print the summary (as does Ctrl-C)",
    "p  hold the display still; watching goes on",
    "h  show or hide this help",
    "",
    "private  Private_Dirty + Swap: what only this process holds",
    "         and nobody can drop; the verdict is about it",
    "RSS      resident memory, with file pages and shared ones",
    "reads    share of the time that went into reads which the",
    "         process may wait for; bounded to 1 %",
)


class WatchScreen(ScreenView[WatchState]):
    """The full-screen view, with at most ``top`` VMAs."""

    def __init__(self, console: Console, keys: KeyReader, top: int) -> None:
        super().__init__(console, keys)
        self._top = top
        self._help = False

    def _act(self, key: str) -> None:
        if key in ("h", "?"):
            self._help = not self._help

    def _lines(self, state: WatchState, page: Page, height: int, *, held: bool) -> list[Text]:
        return watch_screen_lines(state, page, height, self._top, show_help=self._help, held=held)


def open_watch_view(stdout: TextIO, environ: Mapping[str, str], top: int) -> View[WatchState]:
    """The full-screen view if standard output is a terminal that can move its cursor, else lines there."""
    if can_move_cursor(stdout, environ):
        console = Console(file=stdout, highlight=False, markup=False, emoji=False)
        return WatchScreen(console, KeyReader(sys.stdin), top)
    return LineView(stdout, page_of(plain_console(stdout, None, colour=False)))


def watch_screen_lines(
    state: WatchState, page: Page, height: int, top: int, *, show_help: bool = False, held: bool = False
) -> list[Text]:
    """A state as exactly ``height`` lines, the key help on the last one."""
    head = _header(state, page, HELD if held else state.status)
    foot = [Text(page.shorten(_KEYS, page.width), style="reverse")]
    room = max(0, height - len(head) - len(foot))
    body = [Text(page.shorten(line, page.width)) for line in _HELP] if show_help else _tables(state, page, top)
    body = body[:room] + [Text()] * (room - len(body))
    return [*head, *body, *foot][:height]


def _header(state: WatchState, page: Page, status: str) -> list[Text]:
    first, look = state.looks[0], state.looks[-1]
    clock = human_seconds(int(look.seconds)) if look.seconds >= 60 else f"{int(look.seconds)} s"
    title = "  ".join(filter(None, (f"memtrace watch {state.pid}", clock, status, state.command)))
    grown = look.private - first.private
    numbers = [
        f"private {human_bytes(look.private)}",
        f"{human_bytes(grown, signed=True)} ({human_rate(grown / look.seconds if look.seconds >= 0.1 else 0.0)})",
        f"RSS {human_bytes(look.counters.rss)}",
        *([f"swap {human_bytes(look.counters.swap)}"] if look.counters.swap else []),
        f"reads {percent(state.share)}",
    ]
    lines = [
        Text(page.shorten(page.clean(title), page.width), style="bold"),
        Text(_fitting(numbers, page.width)),
        _chart([look.private for look in state.looks], page),
        Text(
            page.shorten(page.clean(_verdict(state.verdict)), page.width),
            style=VERDICT_STYLES.get(state.verdict.kind, ""),
        ),
    ]
    if state.projection is not None:
        lines.append(Text(page.shorten(page.clean(projection_in_short(state.projection)), page.width)))
    return [*lines, Text()]


def _verdict(verdict: WatchVerdict) -> str:
    """The sentence, or, of growth, the part that is not said elsewhere on the screen."""
    if verdict.kind == "growing" and verdict.recent is not None:
        return f"still grows: {rate_with_margin(verdict.recent)}"
    return verdict.text


def _fitting(parts: list[str], width: int) -> str:
    """As many of the parts as there is room for: half a number would be a wrong one."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += "  " + part
    return line


def _chart(values: list[int], page: Page) -> Text:
    extent = f"{human_bytes(min(values))} to {human_bytes(max(values))}"
    chart = sparkline(values, max(8, min(60, page.width - len(extent) - 2)), ascii_only=page.ascii_only)
    return Text.assemble((chart, "cyan"), "  ", page.shorten(extent, page.width - len(chart) - 2))


def _tables(state: WatchState, page: Page, top: int) -> list[Text]:
    first, look = state.looks[0], state.looks[-1]
    names = first.classes.keys() | look.classes.keys()
    rows = [ClassChange(name, first.classes.get(name, 0), look.classes.get(name, 0), None) for name in sorted(names)]
    rows = [row for row in rows if row.before or row.after]
    rows.sort(key=lambda row: (-row.growth, -row.after))
    total = ClassChange("total (RSS + swap)", first.occupied, look.occupied, None)
    lines = list(class_table([total, *rows], page, with_private=False, trend=[look.occupied for look in state.looks]))
    if look.detail_age >= 1:
        age = f"classes and VMAs as of {human_seconds(look.detail_age)} ago: reading them is not cheap"
        lines.append(Text(page.shorten(age, page.width), style="dim"))
    return [*lines, Text(), *region_lines(state.regions, page, top)]
