"""What a user may ask of a tracing session."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.model.report import RssSource


@dataclass(frozen=True, slots=True)
class Options:
    """Times in seconds; ``duration`` None: until Ctrl-C. ``rss_source`` is the best source of RSS changes to use."""

    duration: float | None = None
    interval: float = 1.0
    rss_source: RssSource = "rss-stat"
