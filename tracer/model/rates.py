"""How fast a quantity grew, how sure that is, and whether it goes on.

The growth is cut into parts of equal time, whose increments are taken as a sample of how much the quantity grows in
such a time: their mean is the rate, and its 95 % interval follows from their spread by Student's t. Unlike the errors
of a fitted line, this holds for what grows by chance and by steps (a random walk with drift), where the distances from
the line depend on each other.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Trend = Literal["growing", "levelled-off", "steady", "unknown"]

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom (any table of the distribution).
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_PARTS = len(_T95) + 1
# Fewer looks or a shorter time (seconds) say nothing about how a quantity goes on.
_MIN_SAMPLES = 10
MIN_SECONDS = 3.0
# What still grows: its second half goes at this share of the rate of the whole, or faster, and ...
_STILL_SHARE = 0.10
# ... faster than this, in bytes per second: less takes hours to matter.
MIN_RATE = (256 << 10) / 60

Samples = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes per second, and the half-width of the 95 % interval of that."""

    mean: float
    error: float

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.error

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.error


@dataclass(frozen=True, slots=True)
class Outlook:
    """How a quantity went: over the whole window, and over its second half. Without rates there were too few looks."""

    trend: Trend
    whole: Rate | None = None
    late: Rate | None = None


def rate_of(samples: Samples) -> Rate | None:
    """The rate over ``samples``, which are (seconds, bytes) in ascending order; None for fewer than four."""
    parts = min(_PARTS, len(samples) - 1)
    if parts < 3 or samples[-1][0] <= samples[0][0]:
        return None
    edges = _edges(samples, parts)
    # Each part is as long as it is: where looks are few, they do not come at the edges to the second.
    rates = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(edges)]
    if len(rates) < 3:
        return None
    error = _T95[len(rates) - 2] * statistics.stdev(rates) / math.sqrt(len(rates))
    return Rate((samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0]), error)


def _edges(samples: Samples, parts: int) -> list[tuple[float, float]]:
    """The looks nearest to the edges of equal parts of the time, each once."""
    times = [seconds for seconds, _ in samples]
    span = (times[-1] - times[0]) / parts
    found: list[tuple[float, float]] = [samples[0]]
    for i in range(1, parts + 1):
        edge = times[0] + span * i
        after = min(bisect_left(times, edge), len(times) - 1)
        nearest = min((max(0, after - 1), after), key=lambda index: abs(times[index] - edge))
        if i == parts:
            nearest = len(times) - 1
        if times[nearest] > found[-1][0]:
            found.append(samples[nearest])
    return found


def outlook(samples: Samples) -> Outlook:
    """Whether a quantity still grows at the end, as far as that can be said with 95 % confidence."""
    if len(samples) < _MIN_SAMPLES or samples[-1][0] - samples[0][0] < MIN_SECONDS:
        return Outlook("unknown")
    middle = (samples[0][0] + samples[-1][0]) / 2
    whole, late = rate_of(samples), rate_of([sample for sample in samples if sample[0] >= middle])
    if whole is None or late is None:
        return Outlook("unknown", whole, late)
    if whole.mean <= 0:
        return Outlook("steady", whole, late)
    least = max(_STILL_SHARE * whole.mean, MIN_RATE)
    if late.mean >= least and late.low > 0:
        return Outlook("growing", whole, late)
    return Outlook("levelled-off" if late.high < least else "unknown", whole, late)
