"""Where the fields of smaps stand in a block, and their values in many blocks, a column at a time."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence

from tracer.procfs.smaps_fields import SmapsFields, Value, parse_fields

_KIB = 1024
_DIGITS_TO_BLANKS = bytes.maketrans(b"0123456789", b" " * 10)
# A field whose value is a number: what stands between the colon and the unit or the line's end. Kernels fill name and
# value up to 24 places, so that a short name is followed by many blanks: 20 places for "Rss:".
_NUMBER = re.compile(rb"^([A-Za-z_]\w{0,63}):([ 0-9]{0,23}[0-9])( kB)?$", re.MULTILINE | re.ASCII)


def skeleton(body: bytes) -> bytes:
    """The text of a block without its digits: equal for blocks that have the same fields in the same places."""
    return body.translate(_DIGITS_TO_BLANKS)


class BlockFields:
    """The fields of distinct blocks; a ``vma_table.FieldColumns``.

    Values are parsed when a column is asked for: from their places in blocks of the usual form, line by line in others.
    """

    def __init__(self, bodies: Sequence[bytes], odd: Iterable[int]) -> None:
        """``bodies`` are the lines between header and flags; all have the same skeleton, but for the ``odd`` ones."""
        self._bodies = bodies
        self._odd: dict[int, SmapsFields] = {number: parse_fields(bodies[number]) for number in odd}
        self._columns: dict[str, Sequence[Value | None]] = {}
        self._places: dict[str, tuple[int, int]] = {}
        model = next((body for number, body in enumerate(bodies) if number not in self._odd), b"")
        known = [parse_fields(model), *self._odd.values()]
        self.sizes: tuple[str, ...] = tuple(dict.fromkeys(name for fields in known for name in fields.sizes))
        self.others: tuple[str, ...] = tuple(
            name for name in dict.fromkeys(name for fields in known for name in fields.others) if name not in self.sizes
        )
        self._learn(model)

    def column(self, name: str) -> Sequence[Value | None]:
        """The values of a field in each block; None where it has none of the name."""
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = self._parse(name)
        return column

    def _parse(self, name: str) -> Sequence[Value | None]:
        place = self._places.get(name)
        if place is not None:
            with contextlib.suppress(ValueError):  # blanks amid digits: no kernel writes that
                return self._by_place(name, *place)
        return [self._value(self._fields(number), name) for number in range(len(self._bodies))]

    def _value(self, fields: SmapsFields, name: str) -> Value | None:
        """A column is of sizes if one block has the field as a size; what is no size in another is not known then."""
        return fields.sizes.get(name) if name in self.sizes else fields.others.get(name)

    def _learn(self, body: bytes) -> None:
        for match in _NUMBER.finditer(body):
            name = match[1].decode("ascii")
            if bool(match[3]) == (name in self.sizes):
                self._places[name] = match.span(2)

    def _by_place(self, name: str, start: int, end: int) -> list[Value | None]:
        factor = _KIB if name in self.sizes else 1
        values: list[Value | None]
        if not self._odd:
            values = [int(body[start:end]) * factor for body in self._bodies]
            return values
        values = []
        for number, body in enumerate(self._bodies):
            odd = self._odd.get(number)
            values.append(int(body[start:end]) * factor if odd is None else self._value(odd, name))
        return values

    def _fields(self, number: int) -> SmapsFields:
        return self._odd.get(number) or parse_fields(self._bodies[number])
