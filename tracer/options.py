"""What a user may ask of a tracing session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.model.report import RssSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Times in seconds; ``duration`` None: until Ctrl-C. ``rss_source`` is the best source of RSS changes to use.

    ``sample_bytes`` is the mean distance of samples (1: every allocation), ``max_overhead`` the share of the target's
    CPU time that tracing may take (None: no limit), ``max_live`` how many live blocks are told apart.
    ``children``: children made in the window are traced, too, each by a memtrace of its own.
    """

    duration: float | None = None
    interval: float = 1.0
    sample_bytes: int = 1
    max_overhead: float | None = None
    rss_source: RssSource = "rss-stat"
    max_live: int = 1 << 20
    children: bool = False
