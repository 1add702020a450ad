"""How RSS and each class of memory went over the window: the series that a growth chart draws.

Only what was measured is in it. A look that did not tell classes apart has None there, and nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tracer.model.report import Report


@dataclass(frozen=True, slots=True)
class Marker:
    """Something that happened ``seconds`` after the start, such as a step of the overhead budget."""

    seconds: float
    text: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Looks at the process: ``seconds`` since the start of the window, rising, and what each look saw, in bytes.

    ``rss`` and every series of ``classes`` have one value for each look; None where it was not measured.
    Raises ValueError where a series has another length or the times do not rise.
    """

    seconds: tuple[float, ...]
    rss: tuple[int | None, ...]
    classes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    markers: tuple[Marker, ...] = ()

    def __post_init__(self) -> None:
        for name, series in (("rss", self.rss), *self.classes.items()):
            if len(series) != len(self.seconds):
                raise ValueError(f"{name}: {len(series)} values for {len(self.seconds)} looks")
        if any(later < earlier for earlier, later in zip(self.seconds, self.seconds[1:], strict=False)):
            raise ValueError("the times of a timeline must rise")

    @property
    def has_course(self) -> bool:
        """Whether more than the two ends of the window was seen."""
        return len(self.seconds) > 2


def timeline_of_ends(report: Report) -> Timeline:
    """The two looks that every report holds: the start and the end of the window."""
    return Timeline(
        seconds=(0.0, max(report.seconds, 0.0)),
        rss=(report.rss_start.rss, report.rss_end.rss),
        classes={row.name: (row.rss_start, row.rss_end) for row in report.classes},
    )
