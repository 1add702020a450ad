"""Ticks at round numbers: of bytes in powers of 1024, of time in the steps of a clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
# Steps of a clock, in seconds, and what they are counted in.
_TIMES = (
    ("s", 1, (1, 2, 5, 10, 15, 20, 30)),
    ("min", 60, (1, 2, 5, 10, 15, 20, 30)),
    ("h", 3600, (1, 2, 3, 6, 12)),
    ("d", 86_400, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)),
)


@dataclass(frozen=True, slots=True)
class Ticks:
    """Where the ticks are, what is written at them, and, where that is not part of it, the unit."""

    places: list[float]
    labels: list[str]
    unit: str = ""


def byte_ticks(low: float, high: float, most: int = 6) -> Ticks:
    """Ticks from ``low`` to ``high`` bytes, at most ``most`` + 1 of them: ``0``, ``50 MiB``, ``100 MiB``."""
    largest = max(abs(low), abs(high), 1)
    unit = min(int(math.log(largest, 1024)), len(_UNITS) - 1)
    scale = 1024**unit
    step = _round_step((max(high, 0) - min(low, 0)) / scale / most)
    first = math.ceil(min(low, 0) / scale / step)
    last = math.floor(max(high, 0) / scale / step)
    numbers = [index * step for index in range(first, last + 1)]
    labels = [f"{number:g} {_UNITS[unit]}" if number else "0" for number in numbers]
    return Ticks([number * scale for number in numbers], labels)


def time_ticks(seconds: float, most: int = 8) -> Ticks:
    """Ticks from 0 to ``seconds``, at most ``most`` + 1 of them, and the unit that they count: s, min, h or d."""
    if seconds < 2:
        return _of_clock(seconds, "s", 1, _round_step(seconds / most))
    for unit, scale, steps in _TIMES:
        for step in steps:
            if seconds <= step * scale * most:
                return _of_clock(seconds, unit, scale, step)
    return _of_clock(seconds, "d", 86_400, _round_step(seconds / most / 86_400))


def _of_clock(seconds: float, unit: str, scale: int, step: float) -> Ticks:
    numbers = [index * step for index in range(math.floor(seconds / scale / step + 1e-9) + 1)]
    return Ticks([number * scale for number in numbers], [f"{number:g}" for number in numbers], unit)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5, 10, ... (times a power of ten) that is not below ``least``."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))
