"""What is shown while tracing goes on: a full-screen view on a terminal, else one line per interval on stderr."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.text import Text

from tracer.model.live import LiveStack, LiveState
from tracer.report.safe import Column, Page
from tracer.report.screen import HELD, ScreenView, can_move_cursor
from tracer.report.screen import GuardedView as GuardedView
from tracer.report.screen import KeyReader as KeyReader
from tracer.report.screen import View as AnyView
from tracer.units import human_bytes, human_count, human_rate, human_seconds, plural

_BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_ASCII_BLOCKS = "_.-~=+*#"
_KEYS = "q quit and report   p pause   s sort (by {})   h help"
_HELP = (
    "q  stop, detach and print the report (as does Ctrl-C)",
    "p  hold the display still; tracing goes on",
    "s  sort the stacks by bytes, blocks or rate",
    "h  show or hide this help",
    "",
    "RSS    resident memory, its growth, and growth per second",
    "live   allocated since the start and not yet freed",
    "stack  who holds it: innermost frame first",
)
_SORTS = ("bytes", "blocks", "rate")

View = AnyView[LiveState]


def open_view(stdout: TextIO, stderr: TextIO, environ: Mapping[str, str]) -> View:
    """The full-screen view if standard output is a terminal that can move its cursor, else lines on stderr."""
    if can_move_cursor(stdout, environ):
        console = Console(file=stdout, highlight=False, markup=False, emoji=False)
        return LiveView(console, KeyReader(sys.stdin))
    return LineView(stderr)


class LiveView(ScreenView[LiveState]):
    """The full-screen view of a trace."""

    def __init__(self, console: Console, keys: KeyReader) -> None:
        super().__init__(console, keys)
        self._help = False
        self._sort = 0

    def _act(self, key: str) -> None:
        if key == "s":
            self._sort = (self._sort + 1) % len(_SORTS)
        elif key in ("h", "?"):
            self._help = not self._help

    def _lines(self, state: LiveState, page: Page, height: int, *, held: bool) -> list[Text]:
        if held:
            state = replace(state, status=HELD)
        return screen_lines(state, page, height, sort=_SORTS[self._sort], show_help=self._help)


def screen_lines(
    state: LiveState, page: Page, height: int, *, sort: str = "bytes", show_help: bool = False
) -> list[Text]:
    """A state as at most ``height`` lines, the key help on the last one."""
    head = _header(state, page)
    foot = [*_losses(state.losses, page), Text(page.shorten(_KEYS.format(sort), page.width), style="reverse")]
    room = max(0, height - len(head) - len(foot))
    body = [Text(page.shorten(line, page.width)) for line in _HELP] if show_help else _stacks(state, page, sort)
    body = body[:room] + [Text()] * (room - len(body))
    return [*head, *body, *foot][:height]


def _header(state: LiveState, page: Page) -> list[Text]:
    title = f"memtrace {state.pid}  {_clock(state.seconds)}  {page.clean(state.status)}  {page.clean(state.command)}"
    history = state.rss_history or (state.rss.rss,)
    extent = f"{human_bytes(min(history))} to {human_bytes(max(history))}"
    chart = sparkline(history, max(8, min(60, page.width - len(extent) - 2)), ascii_only=page.ascii_only)
    return [
        Text(page.shorten(title, page.width), style="bold"),
        Text(_numbers((f"RSS {human_bytes(state.rss.rss)}", _growth(state), f"live {_live(state)}"), page.width)),
        Text.assemble((chart, "cyan"), "  ", page.shorten(extent, page.width - len(chart) - 2)),
        Text(),
    ]


def _numbers(parts: Sequence[str], width: int) -> str:
    """As many of the parts as there is room for: half a number would be a wrong one."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += "  " + part
    return line


def _clock(seconds: float) -> str:
    return f"{int(seconds)} s" if seconds < 60 else human_seconds(int(seconds))


def _growth(state: LiveState) -> str:
    grown = state.rss.rss - state.rss_start.rss
    # A rate over a few milliseconds would be wild: the first is shown after a tenth of a second.
    rate = grown / state.seconds if state.seconds >= 0.1 else 0.0
    return f"{human_bytes(grown, signed=True)} ({human_rate(rate)})"


def _live(state: LiveState) -> str:
    return f"{human_bytes(state.live_bytes, signed=True)} in {plural(state.live_count, 'block')}"


def _stacks(state: LiveState, page: Page, sort: str) -> list[Text]:
    if not state.stacks:
        return [Text("no call stack holds memory yet", style="dim")]
    ranked = sorted(state.stacks, key=lambda stack: -_sort_key(stack, sort))
    columns = (
        Column("bytes", right=True),
        Column("blocks", right=True),
        Column("rate", right=True),
        Column("kind"),
        Column("stack", keep="start", least=4),
    )
    rows = [
        (
            human_bytes(stack.bytes),
            human_count(stack.count),
            human_rate(stack.rate),
            stack.kind,
            page.clean(stack.label),
        )
        for stack in ranked
    ]
    heading, *lines = page.align(columns, rows)
    return [Text(heading, style="bold"), *map(Text, lines)]


def _sort_key(stack: LiveStack, sort: str) -> float:
    return {"bytes": stack.bytes, "blocks": stack.count, "rate": stack.rate}[sort]


def _losses(losses: Mapping[str, int], page: Page) -> list[Text]:
    lost = losses_in_short(losses)
    return [Text(page.shorten(page.clean(lost), page.width), style="yellow")] if lost else []


def losses_in_short(losses: Mapping[str, int]) -> str:
    """``lost: events lost 12, stacks full 3``; nothing where nothing was lost."""
    named = [f"{name.replace('_', ' ')} {human_count(n)}" for name, n in losses.items() if n]
    return "lost: " + ", ".join(named) if named else ""


def sparkline(values: Sequence[int], width: int, *, ascii_only: bool = False) -> str:
    """The values in eight levels between their extremes; more than ``width`` are gathered by their maximum."""
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    if len(values) > width:
        edges = [i * len(values) // width for i in range(width + 1)]
        values = [max(values[start:end]) for start, end in pairwise(edges)]
    low, high = min(values), max(values)
    return "".join(blocks[(value - low) * 7 // max(1, high - low)] for value in values)


class LineView:
    """One line per state, for logs and terminals that cannot move their cursor."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._page = Page(0, ascii_only=not (file.encoding or "utf").lower().startswith("utf"))
        self._status: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, state: LiveState) -> None:
        """Write one line and flush it, so that a log shows it when it happens."""
        parts = [
            f"{int(state.seconds):>3} s",
            f"RSS {human_bytes(state.rss.rss):>10}",
            f"{_growth(state)}",
            f"live {_live(state)}",
        ]
        if state.stacks:
            top = max(state.stacks, key=lambda stack: stack.bytes)
            parts.append(f"top: {self._page.shorten(self._page.clean(top.label), 60)} {human_bytes(top.bytes)}")
        if lost := losses_in_short(state.losses):
            parts.append(self._page.clean(lost))
        if self._status not in (None, state.status):
            parts.append(f"now: {self._page.clean(state.status)}")
        self._status = state.status
        print("  ".join(parts), file=self._file, flush=True)

    def poll(self) -> bool:
        """There are no keys; the session ends by a signal or after its time."""
        return False
