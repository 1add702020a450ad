"""Which VMAs of a process are shown, in which order, and what they are summed up by."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tracer.errors import UsageError
from tracer.maps.columns import Cell, Column, find_column
from tracer.maps.process import ProcessMaps
from tracer.model.coded import Coded

GroupKey = Literal["class", "library", "perms"]
GROUP_KEYS: Final[tuple[GroupKey, ...]] = ("class", "library", "perms")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_PERMS = re.compile(r"[rwxps?-]{1,4}")


@dataclass(frozen=True, slots=True)
class Filter:
    """What a VMA must be to be shown; what is None or empty does not matter. Sizes and addresses are bytes.

    ``perms`` is either a pattern of four places such as ``rw-p`` (``?`` stands for any), or letters that all have to be
    there. ``low`` and ``high`` are a range of addresses that the VMA must touch.
    """

    classes: tuple[str, ...] = ()
    path: re.Pattern[str] | None = None
    perms: str | None = None
    min_size: int = 0
    min_rss: int = 0
    low: int | None = None
    high: int | None = None

    def apply(self, process: ProcessMaps) -> ProcessMaps:
        """The process with the VMAs that pass."""
        table = process.table
        tests: list[Sequence[bool]] = []
        if self.classes:
            wanted = {name.lower() for name in self.classes}
            tests.append(process.classes.map(lambda name: name in wanted).expand())
        if self.path is not None:
            search = self.path.search
            tests.append(find_column("path").cells(process).map(lambda text: bool(search(str(text)))).expand())
        if self.perms is not None:
            matches = perms_test(self.perms)
            tests.append(table.attributes.map(lambda attributes: matches(attributes.perms)).expand())
        if self.min_size:
            tests.append([size >= self.min_size for size in table.lengths()])
        if self.min_rss:
            tests.append(table.sizes("Rss").map(lambda rss: (rss or 0) >= self.min_rss).expand())
        if self.low is not None and self.high is not None:
            low, high = self.low, self.high
            tests.append([start <= high and end > low for start, end in zip(table.starts, table.ends, strict=True)])
        if not tests:
            return process
        return process.take([row for row, passed in enumerate(zip(*tests, strict=True)) if all(passed)])


@dataclass(frozen=True, slots=True)
class Group:
    """VMAs that have something in common: its name, and their rows."""

    name: str
    process: ProcessMaps


def ordered(process: ProcessMaps, sort: str | None, *, reverse: bool, top: int | None) -> ProcessMaps:
    """The VMAs sorted by a column: numbers from the largest, text and addresses from the smallest; ``top`` of them."""
    rows: Sequence[int] = range(len(process.table))
    if sort is not None:
        column = find_column(sort, process)
        cells = column.cells(process)
        rows = sorted(rows, key=_sort_key(column, cells), reverse=_descends(column) != reverse)
    elif reverse:
        rows = range(len(process.table) - 1, -1, -1)
    elif top is None:
        return process
    return process.take(rows[:top])


def groups(process: ProcessMaps, key: GroupKey) -> list[Group]:
    """The VMAs by what they have in common, those with the most memory first."""
    names = _group_names(process, key)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    found = [Group(name, process.take(members)) for name, members in rows.items()]
    return sorted(found, key=lambda group: (-_weight(group.process), group.name))


def parse_size(text: str) -> int:
    """Bytes of ``4096``, ``64K``, ``1.5M``, ``2GiB``; raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or len(text) > 24:
        raise ValueError(f"{text!r} is no size: give bytes, or a number with K, M, G or T")
    return int(float(match[1]) * _FACTORS[match[2].upper()])


def parse_range(text: str) -> tuple[int, int]:
    """The addresses of ``LOW,HIGH`` in hexadecimal, or of ``LOW`` alone; raises ValueError."""
    low, _, high = text.replace("-", ",").partition(",")
    try:
        start = int(low, 16)
        end = int(high, 16) if high else start
    except ValueError:
        raise ValueError(f"{text!r} is no range of addresses: give LOW or LOW,HIGH in hexadecimal") from None
    if not 0 <= start <= end < 1 << 64:
        raise ValueError(f"{text!r} is an empty range")
    return start, end


def perms_test(pattern: str) -> Callable[[str], bool]:
    """What tells whether permissions match; raises UsageError for what is no pattern."""
    if not _PERMS.fullmatch(pattern):
        raise UsageError(f"{pattern!r} are no permissions", "give letters (rw), or four places (rw-p, r??s)")
    if len(pattern) == 4:
        return lambda perms: all(want in ("?", have) for want, have in zip(pattern, perms, strict=False))
    return lambda perms: all(letter in perms for letter in pattern)


def library_names(process: ProcessMaps) -> Coded[str]:
    """The mapped file of each VMA, the kernel's name ([heap], [vdso]), or its class in brackets."""
    paths = process.table.attributes.map(lambda attributes: attributes.path.decode("utf-8", "surrogateescape"))
    return Coded.of([path or f"[{name or 'anonymous'}]" for path, name in zip(paths, process.classes, strict=True)])


def _group_names(process: ProcessMaps, key: GroupKey) -> Coded[str]:
    if key == "class":
        return process.classes
    if key == "perms":
        return process.table.attributes.map(lambda attributes: attributes.perms)
    return library_names(process)


def _weight(process: ProcessMaps) -> int:
    table = process.table
    return table.sum("Rss") if "Rss" in table.size_names else sum(table.lengths())


def _descends(column: Column) -> bool:
    return column.kind in ("size", "number") and column.name not in ("inode", "pid")


def _sort_key(column: Column, cells: Coded[Cell]) -> Callable[[int], tuple[bool, str | int]]:
    """What is not known comes last."""
    descends, is_text = _descends(column), column.kind == "text"

    def key(row: int) -> tuple[bool, str | int]:
        cell = cells[row]
        missing: str | int = "" if is_text else 0
        present = (cell is not None) if descends else (cell is None)
        value = missing if cell is None else str(cell) if is_text else cell
        return present, value

    return key
