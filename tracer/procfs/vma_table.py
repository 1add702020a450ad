"""The VMAs of one process as columns: what maps says of each, every field of smaps, and the flags.

A row is a VMA, in the order of the file. Columns that repeat are ``Coded``: see there. Sizes are bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, cast

from tracer.model.coded import Coded, total
from tracer.model.vma import Vma
from tracer.procfs.smaps_fields import SmapsBlock, SmapsFields, Value, is_summable


class Attributes(NamedTuple):
    """What follows the addresses in a line of maps; see ``Vma``."""

    perms: str
    offset: int
    device: str
    inode: int
    path: bytes


class FieldColumns(Protocol):
    """The fields of smaps for each distinct block, by the kernel's names."""

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the fields that are sizes, in the file's order."""
        ...

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the other fields."""
        ...

    def column(self, name: str) -> Sequence[Value | None]:
        """The value of a field in each distinct block; None where a block lacks it."""
        ...


class PlainFields:
    """Field columns from values that are at hand."""

    def __init__(self, columns: Mapping[str, Sequence[int]], count: int = 1) -> None:
        """Sizes by name, each with a value for every distinct block, of which there are ``count``."""
        self._columns = columns
        self._count = count
        self.sizes: tuple[str, ...] = tuple(columns)
        self.others: tuple[str, ...] = ()

    def column(self, name: str) -> Sequence[Value | None]:
        """See ``FieldColumns``."""
        return self._columns.get(name) or [None] * self._count


class VmaTable:
    """The VMAs of a process. All columns have one entry for each row."""

    __slots__ = ("_counts", "_fields", "attributes", "blocks", "ends", "flags", "starts")

    def __init__(
        self,
        starts: Sequence[int],
        ends: Sequence[int],
        attributes: Coded[Attributes],
        fields: FieldColumns | None = None,
        blocks: Sequence[int] | None = None,
        flags: Coded[tuple[str, ...]] | None = None,
    ) -> None:
        """``blocks`` has the number of each row's block in ``fields``; without both there are no fields."""
        self.starts = starts
        self.ends = ends
        self.attributes = attributes
        zeros = [0] * len(starts)
        self.blocks = zeros if blocks is None else blocks
        self.flags = Coded(zeros, [()]) if flags is None else flags
        self._fields = fields or PlainFields({})
        self._counts: Counter[int] | None = None

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def size_names(self) -> tuple[str, ...]:
        """The fields of smaps that are sizes, by the kernel's names and in its order."""
        return self._fields.sizes

    @property
    def other_names(self) -> tuple[str, ...]:
        """The other fields: numbers without a unit, text."""
        return self._fields.others

    def sizes(self, name: str) -> Coded[int | None]:
        """A size field of smaps in bytes; None in rows that lack it."""
        return cast("Coded[int | None]", self.field(name))

    def field(self, name: str) -> Coded[Value | None]:
        """Any field of smaps, by the kernel's name."""
        return Coded(self.blocks, self._fields.column(name))

    def lengths(self) -> list[int]:
        """The size of each VMA by its addresses."""
        return [end - start for start, end in zip(self.starts, self.ends, strict=True)]

    def sum(self, name: str) -> int:
        """A size field summed over the rows."""
        return total(self.sizes(name), self.counts())

    def sums(self) -> dict[str, int]:
        """All size fields that add up, summed over the rows."""
        return {name: self.sum(name) for name in self.size_names if is_summable(name)}

    def counts(self) -> Counter[int]:
        """How many rows have each block."""
        if self._counts is None:
            self._counts = Counter(self.blocks)
        return self._counts

    def vma(self, row: int) -> Vma:
        """The VMA of a row."""
        return Vma(self.starts[row], self.ends[row], *self.attributes[row])

    def vmas(self) -> list[Vma]:
        """All VMAs."""
        return [
            Vma(start, end, *attributes)
            for start, end, attributes in zip(self.starts, self.ends, self.attributes, strict=True)
        ]

    def block(self, row: int) -> SmapsBlock:
        """All that is known of a row."""
        fields = SmapsFields()
        for name in self.size_names:
            if (size := self.sizes(name)[row]) is not None:
                fields.sizes[name] = size
        for name in self.other_names:
            if (value := self.field(name)[row]) is not None:
                fields.others[name] = value
        return SmapsBlock(self.vma(row), fields, self.flags[row])

    def take(self, rows: Sequence[int]) -> VmaTable:
        """The rows of these numbers, in this order."""
        return VmaTable(
            [self.starts[row] for row in rows],
            [self.ends[row] for row in rows],
            Coded([self.attributes.ids[row] for row in rows], self.attributes.values),
            self._fields,
            [self.blocks[row] for row in rows],
            Coded([self.flags.ids[row] for row in rows], self.flags.values),
        )

    def overlapping(self) -> bool:
        """True where VMAs overlap or go backwards: the process changed its mappings while they were read.

        proc(5) promises that this cannot be; see ``tracer.procfs.maps.overlapping``.
        """
        return any(map(int.__gt__, self.ends, self.starts[1:]))
