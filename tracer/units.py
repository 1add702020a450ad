"""Sizes, rates, counts, times and shares as people read them; KiB, MiB and GiB are powers of 1024, as in /proc."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


def human_bytes(n: int, signed: bool = False) -> str:
    """``12.3 MiB``; below 1 KiB exact (``512 B``). ``signed`` writes the plus of a growth; zero has no sign."""
    sign = "-" if n < 0 else "+" if signed and n > 0 else ""
    size, unit = float(abs(n)), 0
    # 1023.95 and not 1024: what would be rounded to "1024.0 KiB" reads "1.0 MiB".
    while size >= (1024 if unit == 0 else 1023.95) and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{sign}{size:.0f} B" if unit == 0 else f"{sign}{size:.1f} {_UNITS[unit]}"


def short_bytes(n: int, signed: bool = False) -> str:
    """``12.3M`` for tables of many sizes: K, M, G, ... are KiB, MiB, GiB, ...; zero is ``0``."""
    number, unit = human_bytes(n, signed).split(" ")
    return "0" if not n else f"{number}{unit[0]}"


def human_rate(bytes_per_second: float, signed: bool = False) -> str:
    """``1.0 MiB/s``."""
    return human_bytes(round(bytes_per_second), signed) + "/s"


def human_count(n: int) -> str:
    """``40,312``: exact, for counts are compared digit by digit."""
    return f"{n:,}"


def plural(n: int, noun: str, ending: str = "s") -> str:
    """``1 block``, ``40,312 blocks``."""
    return f"{human_count(n)} {noun}{'' if n == 1 else ending}"


def human_seconds(seconds: float) -> str:
    """``250 ms``, ``2.5 s``, ``30 s``, ``2 min 5 s``, ``1 h 3 min``, ``2 d 4 h``: the two units that matter."""
    if seconds <= 0:
        return "0 s"
    if seconds < 0.9995:
        return f"{max(1, round(seconds * 1000))} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return _two_units(whole, _MINUTE, "min", 1, "s")
    whole = round(seconds / _MINUTE) * _MINUTE
    if whole < _DAY:
        return _two_units(whole, _HOUR, "h", _MINUTE, "min")
    return _two_units(round(seconds / _HOUR) * _HOUR, _DAY, "d", _HOUR, "h")


def _two_units(seconds: int, large: int, large_name: str, small: int, small_name: str) -> str:
    """``seconds`` in two units; a smaller part of zero is left out."""
    rest = seconds % large // small
    return f"{seconds // large} {large_name}" + (f" {rest} {small_name}" if rest else "")


def percent(part: float, whole: float = 1.0) -> str:
    """``91.7 %`` of ``whole``; ``<0.1 %`` for a small part that is not nothing; ``-`` where the whole is zero."""
    if not whole:
        return "-"
    share = 100 * part / whole
    if 0 < abs(share) < 0.05:
        return "<0.1 %" if share > 0 else "-<0.1 %"
    return f"{share:.1f} %"
