"""What a user may ask of a tracing session."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.model.report import RssSource


@dataclass(frozen=True, slots=True)
class Options:
    """Times in seconds; ``duration`` None: until Ctrl-C. ``rss_source`` is the best source of RSS changes to use.

    ``sample_bytes`` is the mean distance of samples (1: every allocation), ``max_overhead`` the share of the target's
    CPU time that tracing may take; None: no limit.
    """

    duration: float | None = None
    interval: float = 1.0
    rss_source: RssSource = "rss-stat"
    sample_bytes: int = 1
    max_overhead: float | None = None
