"""One look at the machine's processes, sorted and cut as asked: what every output form of ``memtrace ps`` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tracer.model.grouping import By
from tracer.model.usage import Row, Survey

SortKey = Callable[[Row], float | int | str | None]


@dataclass(frozen=True, slots=True)
class PsView:
    """The rows in the order of showing, their sum (of those left out by ``omitted``, too), and what is known around.

    ``seconds`` is the time between the two looks that growth is of, None for a single look. ``memory`` and ``swap``
    are the machine's in bytes, None where they are not known.
    """

    by: By
    time: datetime
    rows: tuple[Row, ...]
    total: Row
    survey: Survey
    omitted: int = 0
    seconds: float | None = None
    memory: int | None = None
    swap: int | None = None

    def arranged(self, key: SortKey, *, reverse: bool = False, top: int | None = None) -> PsView:
        """The same, sorted and cut: see ``ordered``."""
        shown = ordered(self.rows, key, reverse=reverse, top=top)
        return replace(self, rows=shown, omitted=len(self.rows) - len(shown))

    def rate(self, growth: int | None) -> float | None:
        """Growth in bytes per second."""
        return growth / self.seconds if growth is not None and self.seconds else None


def ordered(rows: Sequence[Row], key: SortKey, *, reverse: bool = False, top: int | None = None) -> tuple[Row, ...]:
    """Rows by ``key``, ascending, so that the largest stands last, next to the prompt; ``top`` keeps the largest.

    Rows of equal keys stand in the order of their labels and pids, whatever the order they came in.
    """

    def rank(row: Row) -> tuple[bool, float | int | str, str, int]:
        value = key(row)
        return value is not None, "" if value is None else value, row.label, row.process.pid if row.process else 0

    # A row without a value compares by the flag alone; the values of all others are of one kind.
    ascending = sorted(rows, key=rank)
    kept = ascending[-top:] if top is not None else ascending
    return tuple(reversed(kept)) if reverse else tuple(kept)
