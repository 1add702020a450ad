"""What a walk over malloc's heap found within a VMA, as far as the ledger needs it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeapShare:
    """Resident bytes of a VMA that malloc keeps free, and those of its own headers and tables."""

    kept: int = 0
    overhead: int = 0

    def __add__(self, other: HeapShare) -> HeapShare:
        return HeapShare(self.kept + other.kept, self.overhead + other.overhead)

    def __sub__(self, other: HeapShare) -> HeapShare:
        return HeapShare(self.kept - other.kept, self.overhead - other.overhead)
