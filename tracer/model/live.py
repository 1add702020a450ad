"""What the live view shows while tracing goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tracer.model.vma import RssCounters


@dataclass(frozen=True, slots=True)
class LiveStack:
    """A stack's totals so far; ``label`` is its innermost meaningful frames, innermost first."""

    id: str
    kind: str
    label: str
    bytes: int
    count: int
    rate: float


@dataclass(frozen=True, slots=True)
class LiveState:
    """One tick of a running session. Sizes in bytes, times in seconds.

    ``rss_by_class`` is as of ``class_age`` seconds ago, the latest look at the VMAs.
    """

    pid: int
    command: str
    seconds: float
    rss_start: RssCounters
    rss: RssCounters
    rss_history: tuple[int, ...]
    live_bytes: int
    live_count: int
    stacks: tuple[LiveStack, ...]
    losses: dict[str, int]
    status: str
    rss_by_class: Mapping[str, int] = field(default_factory=dict)
    class_age: float = 0.0
    probe_hits: int = 0
