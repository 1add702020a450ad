"""A straight line through a series, and how far its slope may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Residuals that follow each other this closely say that no straight line fits; more would make the error infinite.
_MAX_CORRELATION = 0.95


@dataclass(frozen=True, slots=True)
class Slope:
    """Bytes per second, and the standard error of that figure."""

    per_second: float
    error: float

    @property
    def margin(self) -> float:
        """Twice the standard error: the true slope is that close in about 95 of 100 cases."""
        return 2 * self.error

    @property
    def is_positive(self) -> bool:
        """True where the slope is above zero by more than its margin."""
        return self.per_second > self.margin


def fit_slope(points: Sequence[tuple[float, float]]) -> Slope | None:
    """Least squares through (seconds, bytes); None where fewer than three points, or no time, lie behind it.

    Memory goes up and down in waves (garbage collection, requests), so that neighbouring points are off to the same
    side and the plain standard error would be far too small: it is widened by sqrt((1 + r) / (1 - r)), with r the
    correlation of each residual with the next (the effective sample size of a first-order autoregressive series).
    """
    n = len(points)
    if n < 3:
        return None
    mean_t = math.fsum(t for t, _ in points) / n
    mean_v = math.fsum(v for _, v in points) / n
    spread = math.fsum((t - mean_t) ** 2 for t, _ in points)
    if spread <= 0:
        return None
    slope = math.fsum((t - mean_t) * (v - mean_v) for t, v in points) / spread
    residuals = [v - mean_v - slope * (t - mean_t) for t, v in points]
    squares = math.fsum(r * r for r in residuals)
    error = math.sqrt(squares / (n - 2) / spread) * _widening(residuals, squares)
    return Slope(slope, error)


def _widening(residuals: Sequence[float], squares: float) -> float:
    if squares <= 0:
        return 1.0
    following = math.fsum(a * b for a, b in pairwise(residuals))
    correlation = min(max(following / squares, 0.0), _MAX_CORRELATION)
    return math.sqrt((1 + correlation) / (1 - correlation))
