"""A column of a table in which each distinct value is kept once, and each row has the number of its value.

What is computed from a column, or printed of it, then costs as much as there are distinct values: a process of 60,000
VMAs seldom has more than a few hundred different ones in any column but the address.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True, eq=False)
class Coded(Generic[T]):
    """Row ``i`` has the value ``values[ids[i]]``."""

    ids: Sequence[int]
    values: Sequence[T]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> T:
        return self.values[self.ids[row]]

    def __iter__(self) -> Iterator[T]:
        return map(self.values.__getitem__, self.ids)

    def expand(self) -> list[T]:
        """The values row by row."""
        return list(self)

    def map(self, function: Callable[[T], U]) -> Coded[U]:
        """The same rows with ``function`` of their values, which is called once for each distinct one."""
        return Coded(self.ids, [function(value) for value in self.values])

    def used(self) -> set[T]:
        """The values that rows have: after rows were taken out, some of ``values`` may be of none."""
        return {self.values[i] for i in set(self.ids)}

    @classmethod
    def of(cls, rows: Sequence[T]) -> Coded[T]:
        """A column from one value for each row; the values must be hashable."""
        numbers = Numbers[T]()
        return cls([numbers[value] for value in rows], list(numbers))


class Numbers(dict[T, int]):
    """Numbers values in the order in which they first come up: ``numbers[value]``."""

    def __missing__(self, value: T) -> int:
        number = self[value] = len(self)
        return number


def total(column: Coded[int | None], counts: Counter[int]) -> int:
    """The sum over the rows, where ``counts`` says how many rows have each number; None counts as 0."""
    return sum((column.values[i] or 0) * n for i, n in counts.items())
