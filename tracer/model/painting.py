"""Cutting address ranges along the claims that rules make on them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from tracer.model.class_names import ClassRange

# The class of what no rule has claimed yet.
OPEN = ""


class Claims:
    """Claims in order of address; of those that overlap, the one that begins first keeps what they share."""

    def __init__(self, claims: Iterable[ClassRange] = ()) -> None:
        self._claims: list[ClassRange] = []
        for claim in sorted(claims, key=lambda claim: claim.start):
            start = max(claim.start, self._claims[-1].end) if self._claims else claim.start
            if start < claim.end:
                self._claims.append(ClassRange(start, claim.end, claim.name, claim.detail))
        self._ends = [claim.end for claim in self._claims]

    def __bool__(self) -> bool:
        return bool(self._claims)

    def within(self, start: int, end: int) -> Sequence[ClassRange]:
        """The claims, disjoint and ascending, that have an address between ``start`` and ``end``."""
        if not self._claims:
            return ()
        first = bisect_right(self._ends, start)
        last = first
        while last < len(self._claims) and self._claims[last].start < end:
            last += 1
        return self._claims[first:last]


def paint(pieces: Sequence[ClassRange], claims: Claims, over: str = OPEN) -> list[ClassRange]:
    """``pieces`` with those parts of class ``over`` that a claim covers in the claim's class; the rest as it was.

    The pieces must be ascending and disjoint, and so are those returned, which cover the same addresses.
    """
    painted: list[ClassRange] = []
    for piece in pieces:
        position = piece.start
        for claim in claims.within(piece.start, piece.end) if piece.name == over else ():
            start, end = max(position, claim.start), min(piece.end, claim.end)
            if position < start:
                painted.append(ClassRange(position, start, piece.name, piece.detail))
            painted.append(ClassRange(start, end, claim.name, claim.detail))
            position = end
        if position == piece.start:
            painted.append(piece)
        elif position < piece.end:
            painted.append(ClassRange(position, piece.end, piece.name, piece.detail))
    return painted


def joined(pieces: Iterable[ClassRange]) -> list[ClassRange]:
    """Neighbours that are alike made one."""
    result: list[ClassRange] = []
    for piece in pieces:
        last = result[-1] if result else None
        if last is not None and last.end == piece.start and (last.name, last.detail) == (piece.name, piece.detail):
            result[-1] = ClassRange(last.start, piece.end, piece.name, piece.detail)
        else:
            result.append(piece)
    return result
