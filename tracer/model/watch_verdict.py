"""Whether a watched process grows, by rules that are written down here; never by VSS, which costs nothing.

What is judged is private memory, Private_Dirty + Swap: file pages can be dropped again, shared ones are not the
process's own. In this order:

1. unknown: fewer than five looks or three seconds.
2. not-growing: less than 1 MiB gained; or less than 1 % and 256 KiB a minute; or the gain was all lost again in between
   and the straight line through the looks does not rise.
3. levelled-off: the last third of the time brought less than a tenth of the gain.
4. growing: the straight line through the looks rises by more than twice its standard error.
5. unknown: anything else, that is ups and downs larger than the gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracer.model.history import MIN_POINTS, STILL_GROWING_SHARE
from tracer.model.rates import MIN_RATE, MIN_SECONDS
from tracer.model.slope import Slope, fit_slope
from tracer.model.watch import MemoryLimit, Projection, WatchKind, WatchVerdict
from tracer.units import human_bytes, human_rate, human_seconds, plural

_MIN_GROWTH = 1 << 20
_MIN_SHARE = 0.01
# Beyond this (seconds) a projection says nothing: no process goes on so long in the same way.
_MAX_PROJECTION = 365 * 86_400


@dataclass(frozen=True, slots=True)
class WatchFindings:
    """What the rules look at: points are (seconds, bytes of private memory), thinned out; ``looks`` were made."""

    points: Sequence[tuple[float, int]]
    looks: int
    exact: int
    rss_growth: int = 0
    file_growth: int = 0
    shared_growth: int = 0

    @property
    def seconds(self) -> float:
        """How long the looks reach."""
        return self.points[-1][0] - self.points[0][0] if self.points else 0.0

    @property
    def growth(self) -> int:
        """Private memory gained between the first look and the last."""
        return self.points[-1][1] - self.points[0][1] if self.points else 0

    @property
    def gain_of_last_third(self) -> int:
        """What the last third of the time added to the most there had been before."""
        begin = self.points[0][0] + self.seconds * 2 / 3
        return self.points[-1][1] - max(value for seconds, value in self.points if seconds <= begin)


def judge_watch(findings: WatchFindings) -> WatchVerdict:
    """Apply the rules and put the answer into one sentence."""
    slope, recent = fit_slope(findings.points), _recent_slope(findings)
    kind = _kind(findings, slope)
    return WatchVerdict(kind, _sentence(findings, kind, recent), _evidence(findings, kind, slope), slope, recent)


def project(slope: Slope | None, limits: Sequence[MemoryLimit]) -> Projection | None:
    """The limit that is reached first if private memory goes on growing as it did; None where none is in sight."""
    if slope is None or not slope.is_positive or not limits:
        return None
    limit = min(limits, key=lambda limit: limit.room)
    seconds = limit.room / slope.per_second
    if seconds > _MAX_PROJECTION:
        return None
    latest = limit.room / (slope.per_second - slope.margin)
    earliest = limit.room / (slope.per_second + slope.margin)
    return Projection(limit, seconds, earliest, latest if latest <= _MAX_PROJECTION else None)


def _recent_slope(findings: WatchFindings) -> Slope | None:
    """The slope of the second half of the time; of all of it where too few looks lie there."""
    begin = findings.points[0][0] + findings.seconds / 2 if findings.points else 0.0
    half = [point for point in findings.points if point[0] >= begin]
    return fit_slope(half if len(half) >= MIN_POINTS else findings.points)


def _kind(findings: WatchFindings, slope: Slope | None) -> WatchKind:
    if findings.looks < MIN_POINTS or findings.seconds < MIN_SECONDS or slope is None:
        return "unknown"
    first, growth = findings.points[0][1], findings.growth
    slow = growth < _MIN_SHARE * first and growth < MIN_RATE * findings.seconds
    if growth < _MIN_GROWTH or slow or (not slope.is_positive and _was_lost_again(findings)):
        return "not-growing"
    if findings.gain_of_last_third < STILL_GROWING_SHARE * growth:
        return "levelled-off"
    return "growing" if slope.is_positive else "unknown"


def _was_lost_again(findings: WatchFindings) -> bool:
    """True where memory rose, came back to within a tenth of the gain of where it began, and rose again."""
    values = [value for _, value in findings.points]
    near_start = values[0] + 0.1 * findings.growth
    peak = max(range(len(values)), key=lambda index: values[index] if index < len(values) - 1 else -1)
    return values[peak] > near_start and min(values[peak:]) <= near_start


def _sentence(findings: WatchFindings, kind: WatchKind, recent: Slope | None) -> str:
    span = human_seconds(findings.seconds)
    if kind == "unknown" and (findings.looks < MIN_POINTS or findings.seconds < MIN_SECONDS):
        return f"not enough data for a verdict: {plural(findings.looks, 'look')} in {span}; watch longer"
    moved = f"{_grew_or_shrank(findings.growth)} in {span}"
    if kind == "growing" and recent is not None:
        return f"private memory {moved} and still grows: {rate_with_margin(recent)}"
    if kind == "levelled-off":
        return f"private memory {moved}, but has levelled off"
    if kind == "not-growing":
        return f"private memory does not grow: it {moved}"
    return f"private memory {moved}, with ups and downs too large to tell growth; watch longer"


def rate_with_margin(slope: Slope) -> str:
    """``1.9 MiB/s, give or take 12.0 KiB/s``."""
    return f"{human_rate(slope.per_second)}, give or take {human_rate(slope.margin)}"


def _grew_or_shrank(growth: int) -> str:
    if not growth:
        return "stayed the same"
    return f"grew {human_bytes(growth)}" if growth > 0 else f"shrank by {human_bytes(-growth)}"


def _evidence(findings: WatchFindings, kind: WatchKind, slope: Slope | None) -> tuple[str, ...]:
    lines = [_what_was_read(findings)]
    if findings.growth >= _MIN_GROWTH and kind != "unknown":
        share = 100 * findings.gain_of_last_third / findings.growth
        lines.append(f"the last third of the time brought {max(0.0, share):.0f} % of its growth")
    if kind in ("unknown", "not-growing") and slope is not None and findings.growth >= _MIN_GROWTH:
        lines.append(f"a straight line through it rises by {rate_with_margin(slope)}")
    lines.append(f"RSS {_grew_or_shrank(findings.rss_growth)}")
    if findings.file_growth >= _MIN_GROWTH:
        lines.append(f"{human_bytes(findings.file_growth)} of it are file pages, which the kernel can drop")
    if findings.shared_growth >= _MIN_GROWTH:
        lines.append(f"{human_bytes(findings.shared_growth)} of it is shared memory")
    return tuple(lines)


def _what_was_read(findings: WatchFindings) -> str:
    what = "private memory is Private_Dirty + Swap"
    if not findings.exact:
        return "private memory is taken to be RssAnon + VmSwap: Private_Dirty was not read"
    if findings.exact >= findings.looks:
        return f"{what}, read {_times(findings.exact)}"
    return f"{what}, read {_times(findings.exact)}; in between followed by RssAnon + VmSwap"


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n:,} times"
