"""Watching as JSON lines, schema ``memtrace-watch/1``: a record ``sample`` for each look, and at the end ``summary``.

Every size is in bytes, every time in seconds. The names are fixed; later versions may add more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TextIO

from tracer.model.slope import Slope
from tracer.model.vma import RssCounters
from tracer.model.watch import Look, Projection, RegionChange, WatchCost, WatchState, WatchSummary

SCHEMA: Final = "memtrace-watch/1"


class JsonView:
    """A record for each look, flushed at once."""

    def __init__(self, file: TextIO, now: Callable[[], datetime]) -> None:
        self._file = file
        self._now = now

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, state: WatchState) -> None:
        """Write the newest look."""
        _write(sample_record(state, self._now()), self._file)
        self._file.flush()

    def poll(self) -> bool:
        """There are no keys."""
        return False


def write_summary(summary: WatchSummary, file: TextIO) -> None:
    """Write the last record."""
    _write(summary_record(summary), file)


def sample_record(state: WatchState, time: datetime) -> dict[str, Any]:
    """One look as what ``json.dumps`` takes."""
    first, look = state.looks[0], state.looks[-1]
    return {
        "schema": SCHEMA,
        "record": "sample",
        "time": time.isoformat(),
        "seconds": look.seconds,
        "pid": state.pid,
        "rss": _rss(look.counters),
        "size": look.size,
        "private": {
            "bytes": look.private,
            "growth": look.private - first.private,
            "exact": look.private_is_exact,
        },
        "classes": [
            {"class": name, "bytes": look.classes.get(name, 0), "growth": _growth(name, first, look)}
            for name in sorted(first.classes.keys() | look.classes.keys())
        ],
        "detail_age": look.detail_age,
        "verdict": state.verdict.kind,
        "projection": _projection(state.projection),
        "cost_share": state.share,
    }


def summary_record(summary: WatchSummary) -> dict[str, Any]:
    """The summary as what ``json.dumps`` takes; VMAs are sorted by growth."""
    first, last = summary.looks[0], summary.looks[-1]
    return {
        "schema": SCHEMA,
        "record": "summary",
        "pid": summary.pid,
        "command": summary.command,
        "verdict": {
            "kind": summary.verdict.kind,
            "text": summary.verdict.text,
            "evidence": list(summary.verdict.evidence),
            "slope": _slope(summary.verdict.slope),
            "recent_slope": _slope(summary.verdict.recent),
        },
        "window": {
            "start": summary.started.isoformat(),
            "seconds": summary.seconds,
            "ended": summary.ended,
            "looks": summary.count,
        },
        "rss": {
            "start": first.counters.rss,
            "end": last.counters.rss,
            "growth": last.counters.rss - first.counters.rss,
            "anon": last.counters.anon - first.counters.anon,
            "file": last.counters.file - first.counters.file,
            "shmem": last.counters.shmem - first.counters.shmem,
            "swap": last.counters.swap - first.counters.swap,
        },
        "private": {"start": first.private, "end": last.private, "growth": last.private - first.private},
        "classes": [
            {
                "class": row.name,
                "start": row.before,
                "end": row.after,
                "growth": row.growth,
                "private_growth": row.private_growth,
            }
            for row in sorted(summary.classes, key=lambda row: -row.growth)
        ],
        "vmas": [_region(row) for row in sorted(summary.regions, key=lambda row: -row.growth)],
        "projection": _projection(summary.projection),
        "cost": _cost(summary.cost),
        "notes": list(summary.notes),
    }


def _growth(name: str, first: Look, look: Look) -> int:
    return look.classes.get(name, 0) - first.classes.get(name, 0)


def _rss(counters: RssCounters) -> dict[str, int]:
    return {
        "bytes": counters.rss,
        "anon": counters.anon,
        "file": counters.file,
        "shmem": counters.shmem,
        "swap": counters.swap,
    }


def _region(row: RegionChange) -> dict[str, Any]:
    return {
        "start": f"{row.start:x}",
        "end": f"{row.end:x}",
        "perms": row.perms,
        "path": row.path.decode("utf-8", "backslashreplace"),
        "class": row.vma_class,
        "vmas": row.vmas,
        "bytes": row.after,
        "growth": row.growth,
        "private_growth": row.private_growth,
    }


def _slope(slope: Slope | None) -> dict[str, float] | None:
    return None if slope is None else {"bytes_per_second": slope.per_second, "standard_error": slope.error}


def _projection(projection: Projection | None) -> dict[str, Any] | None:
    if projection is None:
        return None
    return {
        "limit": projection.limit.name,
        "size": projection.limit.size,
        "room": projection.limit.room,
        "seconds": projection.seconds,
        "earliest": projection.earliest,
        "latest": projection.latest,
    }


def _cost(cost: WatchCost) -> dict[str, Any]:
    return {
        "share": cost.share,
        "seconds": cost.seconds,
        "edges": cost.edges,
        "reads": {
            read.name: {"count": read.count, "seconds": read.seconds, "longest": read.longest} for read in cost.reads
        },
        "self_cpu": cost.self_cpu,
        "self_rss": cost.self_rss,
    }


def _write(record: dict[str, Any], file: TextIO) -> None:
    file.write(json.dumps(record, allow_nan=False) + "\n")
