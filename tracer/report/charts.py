"""Charts in files, by matplotlib: bars, shares, and growth over time, as SVG or PNG, 1000 pixels wide.

Functions of plain data: labels are foreign text of any length and content, sizes are bytes. The same data gives the
same bytes (with the same version of matplotlib). No display is needed, and no settings of the user's are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from tracer.report.axes import Ticks, byte_ticks, time_ticks
from tracer.report.canvas import DPI, FAINT, GRID, TEXT, WIDTH, Form, Lettering, canvas
from tracer.report.palette import COLOURS, GREY, colour
from tracer.units import human_bytes, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PIXELS = WIDTH * DPI
_LABEL_PIXELS = 0.32 * _PIXELS
# Beyond the seven colours, hatching tells things apart.
_HATCHES = ("", "///", "...", "xxx")


@dataclass(frozen=True, slots=True)
class ChartRow:
    """A label, and a size in bytes for each series."""

    label: str
    values: tuple[int, ...]


def draw_bars(
    rows: Sequence[ChartRow],
    file: BinaryIO,
    *,
    form: Form,
    title: str,
    series: Sequence[str] = ("",),
    note: str = "",
    top: int = 20,
) -> None:
    """Horizontal bars: a group for each row, in it a bar for each series; largest first, by the last series.

    Rows beyond the first ``top`` are summed up as "other"; a series without any size is left out. ``note`` stands at
    the foot.
    """
    shown = _top_rows(rows, top)
    used = [index for index in range(len(series)) if any(row.values[index] for row in shown)]
    height = 1.4 + (0.16 + 0.18 * max(1, len(used))) * max(1, len(shown))
    with canvas(height, form, file) as (figure, letters):
        axes = figure.subplots()
        _frame(figure, letters, title, note)
        for place, index in enumerate(used):
            _bar_series(axes, shown, index, _Slot(place, len(used)), letters.label(series[index]))
        axes.set_yticks(range(len(shown)), [letters.label(row.label, _LABEL_PIXELS) for row in shown])
        axes.set_ylim(max(1, len(shown)) - 0.5, -0.5)
        largest = max((value for row in shown for value in row.values), default=0)
        _scale_x(axes, byte_ticks(0, largest), largest)
        if len(used) > 1:
            axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncol=len(used), frameon=False)
        if not shown:
            _say_nothing(axes)


def draw_shares(
    rows: Sequence[ChartRow], file: BinaryIO, *, form: Form, title: str, note: str = "", top: int = 7
) -> None:
    """A ring in which each row has its share, by its last value, and beside it what, how much, and which share.

    Rows beyond the first ``top`` are summed up as "other"; those without a size are left out.
    """
    parts = _top_rows([ChartRow(row.label, row.values[-1:]) for row in rows if row.values[-1] > 0], top)
    height = max(4.6, 1.6 + 0.3 * len(parts))
    with canvas(height, form, file) as (figure, letters):
        _frame(figure, letters, title, note)
        ring = figure.add_axes((0.02, 0.08, 0.38, 0.82))
        if not parts:
            ring.set_axis_off()
            _say_nothing(ring)
            return
        wedges, _ = ring.pie(
            [row.values[0] for row in parts],
            startangle=90,
            counterclock=False,
            radius=1.2,
            wedgeprops={"width": 0.45, "edgecolor": "white", "linewidth": 1.5},
        )
        for index, (wedge, row) in enumerate(zip(wedges, parts, strict=True)):
            wedge.set_facecolor(_colour_of(row.label, index))
            wedge.set_hatch(_hatch_of(row.label, index))
        ring.text(0, 0, human_bytes(sum(row.values[0] for row in parts)), ha="center", va="center", fontsize=15)
        _share_table(figure, letters, parts, 0.3 / height)


def draw_growth(
    times: Sequence[float],
    series: Mapping[str, Sequence[int]],
    file: BinaryIO,
    *,
    form: Form,
    title: str,
    note: str = "",
    top: int = 7,
) -> None:
    """Two panels over time (seconds): what each of the ``series`` takes, stacked; and what it gained since the start.

    The stack shows how much there is, the lines show what of it grows, however small its part. Beyond the ``top``
    that changed most, the series are summed up as "other".
    """
    chosen = _top_series(series, top)
    with canvas(7.2, form, file) as (figure, letters):
        above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1, 1.3]})
        _frame(figure, letters, title, note)
        _stack(above, times, chosen)
        _gains(below, times, chosen, letters)
        last = times[-1] if times else 0.0
        ticks = time_ticks(last)
        below.set_xticks(ticks.places, ticks.labels)
        below.set_xlabel(f"time ({ticks.unit})")
        below.set_xlim(0.0, last or 1.0)
        figure.align_ylabels()


# What is drawn.

# A series is drawn on its own if it has that share of the whole, or moved by that share of the largest movement.
_WORTH_SHOWING = 0.01

_OTHER = "other ("


def _top_rows(rows: Sequence[ChartRow], top: int) -> list[ChartRow]:
    ranked = sorted(rows, key=lambda row: (-row.values[-1], row.label))
    if len(ranked) <= top + 1:  # "other (1)" would say less than the row itself
        return ranked
    rest = ranked[top:]
    sums = tuple(sum(values) for values in zip(*(row.values for row in rest), strict=True))
    return [*ranked[:top], ChartRow(f"{_OTHER}{len(rest)})", sums)]


def _top_series(series: Mapping[str, Sequence[int]], top: int) -> dict[str, list[int]]:
    """Those that moved most, or are large, the one that ends largest first; the rest added up."""
    used = {name: list(values) for name, values in series.items() if any(values)}
    whole = max((sum(values) for values in zip(*used.values(), strict=True)), default=0)
    moved = {name: max(map(abs, _since_start(values))) for name, values in used.items()}
    most = max(moved.values(), default=0)
    ranked = sorted(used, key=lambda name: (-moved[name], -max(used[name]), name))
    kept = [
        name
        for name in ranked[:top]
        if 0 < moved[name] >= _WORTH_SHOWING * most or max(used[name]) >= _WORTH_SHOWING * whole
    ]
    if len(kept) >= len(ranked) - 1:
        kept = ranked
    chosen = {name: used[name] for name in sorted(kept, key=lambda name: (-used[name][-1], name))}
    rest = [used[name] for name in ranked if name not in chosen]
    if rest:
        chosen[f"{_OTHER}{len(rest)})"] = [sum(values) for values in zip(*rest, strict=True)]
    return chosen


def _since_start(values: Sequence[int]) -> list[int]:
    return [value - values[0] for value in values]


def _colour_of(label: str, index: int) -> str:
    return GREY if label.startswith(_OTHER) else colour(index)


def _hatch_of(label: str, index: int) -> str:
    return "" if label.startswith(_OTHER) else _HATCHES[index // len(COLOURS) % len(_HATCHES)]


# How it is drawn.


@dataclass(frozen=True, slots=True)
class _Slot:
    """The place of a bar among ``count`` in a group."""

    place: int
    count: int

    @property
    def height(self) -> float:
        return 0.8 / self.count

    @property
    def offset(self) -> float:
        return (self.place - (self.count - 1) / 2) * self.height


def _bar_series(axes: Axes, rows: Sequence[ChartRow], index: int, slot: _Slot, name: str) -> None:
    sizes = [row.values[index] for row in rows]
    alone = slot.count == 1
    drawn = axes.barh(
        [number + slot.offset for number in range(len(rows))],
        [max(0, size) for size in sizes],
        height=slot.height * (0.8 if alone else 0.92),
        color=[_colour_of(row.label, index) for row in rows] if alone else colour(index),
        label=name,
        zorder=2,
    )
    figures = [human_bytes(size) if size or alone else "" for size in sizes]
    axes.bar_label(drawn, figures, padding=3, fontsize=10 if alone else 8, color=FAINT)


def _share_table(figure: Figure, letters: Lettering, parts: Sequence[ChartRow], pitch: float) -> None:
    """A line for each part: its colour, its name, and in columns its size and its share."""
    from matplotlib.patches import Rectangle

    whole = sum(row.values[0] for row in parts)
    table = figure.add_axes((0.44, 0.0, 0.54, 1.0))
    table.set_axis_off()
    table.set_xlim(0, 1)
    table.set_ylim(0, 1)
    room = 0.54 * _PIXELS * 0.66
    for index, row in enumerate(parts):
        y = 0.49 + pitch * ((len(parts) - 1) / 2 - index)
        face, hatch = _colour_of(row.label, index), _hatch_of(row.label, index)
        table.add_patch(
            Rectangle((0.0, y - pitch * 0.3), 0.03, pitch * 0.6, facecolor=face, hatch=hatch, edgecolor="white")
        )
        table.text(0.045, y, letters.label(row.label, room), va="center")
        table.text(0.87, y, human_bytes(row.values[0]), va="center", ha="right")
        table.text(1.0, y, percent(row.values[0], whole), va="center", ha="right")


def _stack(axes: Axes, times: Sequence[float], series: Mapping[str, Sequence[int]]) -> None:
    _prepare(axes)
    axes.set_ylabel("RSS + swap")
    if not series or len(times) < 2:
        _say_nothing(axes)
        return
    for index, (name, area) in enumerate(zip(series, axes.stackplot(times, *series.values()), strict=True)):
        area.set(facecolor=_colour_of(name, index), edgecolor="white", linewidth=0.4, hatch=_hatch_of(name, index))
    _scale_y(axes, 0, max(sum(values) for values in zip(*series.values(), strict=True)), 4)


def _gains(axes: Axes, times: Sequence[float], series: Mapping[str, Sequence[int]], letters: Lettering) -> None:
    _prepare(axes)
    axes.set_ylabel("growth since the start")
    gains = {name: _since_start(values) for name, values in series.items()}
    if not gains or len(times) < 2:
        _say_nothing(axes)
        return
    total = [sum(values) for values in zip(*gains.values(), strict=True)]
    for index, (name, values) in enumerate(gains.items()):
        style = "-" if index < len(COLOURS) else ":"
        label = f"{letters.label(name, 150)}  {_plus(values[-1])}"
        axes.plot(times, values, style, color=_colour_of(name, index), linewidth=2, label=label, zorder=3)
    axes.plot(times, total, "--", color=TEXT, linewidth=1.2, label=f"total  {_plus(total[-1])}", zorder=2)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0.0)
    axes.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
    amounts = [value for values in [total, *gains.values()] for value in values]
    _scale_y(axes, min(0, *amounts), max(0, *amounts), 5)


def _plus(size: int) -> str:
    return human_bytes(size, signed=True)


def _scale_x(axes: Axes, ticks: Ticks, largest: int) -> None:
    _prepare(axes)
    axes.set_xticks(ticks.places, ticks.labels)
    axes.set_xlim(0, max(largest, 1) * 1.14)  # room for the figures at the bars
    axes.grid(axis="x", color=GRID)
    axes.grid(visible=False, axis="y")


def _scale_y(axes: Axes, low: int, high: int, most: int) -> None:
    margin = max(high - low, 1) * 0.05
    ticks = byte_ticks(low, high, most)
    axes.set_yticks(ticks.places, ticks.labels)
    axes.set_ylim(low - margin if low < 0 else 0, high + margin)


def _frame(figure: Figure, letters: Lettering, title: str, note: str) -> None:
    figure.suptitle(letters.label(title, 0.95 * _PIXELS, 13), x=0.02, ha="left", fontsize=13)
    if note:
        figure.supxlabel(letters.label(note, 0.95 * _PIXELS, 9), x=0.02, ha="left", fontsize=9, color=FAINT)


def _prepare(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID)
    axes.tick_params(axis="both", length=0)


def _say_nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "nothing to show", ha="center", va="center", transform=axes.transAxes, color=FAINT)
