"""Moments of a recording as people name them: seconds or a share of it, a time of day, or a distance from its end."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from tracer.errors import UsageError

_SPAN = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:ms|s|min|m|h|d)?", re.ASCII)
_PART = re.compile(r"([\d.]+)(ms|s|min|m|h|d)?", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?", re.ASCII)
_SHARE = re.compile(r"\d{1,3}(?:\.\d{1,6})?%", re.ASCII)
_HINT = "give seconds from the start (90, 1.5min, 50%), a time of day (14:03:22), or a distance from the end (-30s)"
_MAX_DIGITS = 12


def parse_moment(text: str, started: datetime, seconds: float) -> float:
    """Seconds since the start of a recording that began at ``started`` and lasted ``seconds``; may lie outside of it.

    A time of day is in the time zone of ``started``, and of the day on which it came first. Raises UsageError.
    """
    word = text.strip()
    if _SHARE.fullmatch(word):
        return seconds * float(word[:-1]) / 100
    clock = _CLOCK.fullmatch(word)
    if clock:
        return _of_clock(text, clock, started)
    sign, digits = (-1, word[1:]) if word.startswith("-") else (1, word.removeprefix("+"))
    if not _SPAN.fullmatch(digits) or len(digits) > _MAX_DIGITS:
        raise UsageError(f"{text!r} is no moment of a recording", _HINT)
    part = _PART.fullmatch(digits)
    assert part is not None
    span = float(part[1]) * _UNITS[part[2] or "s"]
    return span if sign > 0 else seconds - span


def _of_clock(text: str, clock: re.Match[str], started: datetime) -> float:
    hour, minute, second = int(clock[1]), int(clock[2]), float(clock[3] or 0)
    if hour > 23 or minute > 59 or second >= 60:
        raise UsageError(f"{text!r} is no time of day", _HINT)
    midnight = started.replace(hour=0, minute=0, second=0, microsecond=0)
    since = (midnight - started + timedelta(hours=hour, minutes=minute)).total_seconds() + second
    # 23:59:58 to 00:10:00: the latter is of the day after.
    return since if since > -1.0 else since + _UNITS["d"]
