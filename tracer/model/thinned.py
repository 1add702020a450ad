"""A series that may go on for days in bounded memory."""

from __future__ import annotations

from typing import Generic, TypeVar

Item = TypeVar("Item")


class Thinned(Generic[Item]):
    """Keeps at most ``limit`` items at even distances, the first among them, and the newest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[Item] = []
        self._newest: list[Item] = []
        self._step = 1
        self._seen = 0

    def add(self, item: Item) -> None:
        """Keep an item for good, or until the next one comes: the distance doubles whenever there are too many."""
        if self._seen % self._step == 0:
            self._kept.append(item)
            self._newest = []
            if len(self._kept) > self._limit:
                self._kept = self._kept[::2]
                self._step *= 2
        if self._seen % self._step != 0:
            self._newest = [item]
        self._seen += 1

    def items(self) -> list[Item]:
        """What was kept, in order; the newest is always the last."""
        return self._kept + self._newest

    @property
    def seen(self) -> int:
        """How many items were added, kept or not."""
        return self._seen
