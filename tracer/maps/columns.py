"""The columns that a view of mappings may show: what maps says, every field of smaps, and sums of such fields.

A field of smaps is called by its name in lower case (``private_dirty``, ``swappss``), also one that is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tracer.errors import UsageError
from tracer.maps.process import ProcessMaps, Totals
from tracer.model.coded import Coded
from tracer.procfs.smaps_fields import FLAGS_FIELD, Value, is_summable

Kind = Literal["hex", "size", "number", "text"]
# A value of a column: None where it is not known.
Cell = Value | None

# By name: what stands in maps, and what is found out.
_OWN: Final[dict[str, Kind]] = {
    "pid": "number",
    "address": "hex",
    "end": "hex",
    "size": "size",
    "perms": "text",
    "offset": "hex",
    "device": "text",
    "inode": "number",
    "path": "text",
    "class": "text",
    "threads": "text",
    "vmflags": "text",
}
# Sums of fields of smaps. uss: what would be free if the process ended.
DERIVED: Final[dict[str, tuple[str, ...]]] = {
    "uss": ("Private_Clean", "Private_Dirty"),
    "dirty": ("Shared_Dirty", "Private_Dirty"),
    "private_dirty_swap": ("Private_Dirty", "Swap"),
    "pss_swap": ("Pss", "SwapPss"),
    "rss_swap": ("Rss", "Swap"),
    "hugetlb": ("Shared_Hugetlb", "Private_Hugetlb"),
}
_ALIASES: Final = {
    "start": "address",
    "kbytes": "size",
    "vss": "size",
    "mode": "perms",
    "mapping": "path",
    "dev": "device",
    "flags": "vmflags",
    "thread": "threads",
    "pss+swap": "pss_swap",
    "swap+pss": "pss_swap",
}
_OF_CLASSES = frozenset(("class", "threads"))

# The last columns of a narrow page that the usual view does without.
DEFAULT: Final = ("address", "perms", "size", "rss", "pss", "dirty", "swap", "class", "path")
BY_PAGEMAP: Final = ("address", "perms", "size", "rss", "anonymous", "swap", "class", "path")
BY_MAPS: Final = ("address", "perms", "size", "class", "path")
EXTENDED: Final = ("address", "size", "rss", "dirty", "perms", "path")
DEVICE: Final = ("address", "size", "perms", "offset", "device", "path")
_OF_MAPS: Final = ("address", "perms", "offset", "device", "inode", "size")


@dataclass(frozen=True, slots=True)
class Column:
    """A column by its name; ``fields`` are the smaps fields, by the kernel's names, whose sum it is."""

    name: str
    kind: Kind
    fields: tuple[str, ...] = ()

    @property
    def summable(self) -> bool:
        """True where a total makes sense."""
        return self.kind == "size" and all(map(is_summable, self.fields))

    @property
    def of_smaps(self) -> bool:
        """True where maps alone does not have it."""
        return bool(self.fields) or self.name == "vmflags"

    @property
    def of_classes(self) -> bool:
        """True where VMAs have to be classified for it."""
        return self.name in _OF_CLASSES

    def cells(self, process: ProcessMaps) -> Coded[Cell]:
        """The value in each row: addresses and sizes in bytes, and flags and paths as text."""
        if self.fields:
            return _field_cells(process, self.fields)
        return _own_cells(process, self.name)

    def total(self, process: ProcessMaps, totals: Totals) -> int | None:
        """The sum over the rows; None where there is none to tell."""
        if self.name == "size":
            return totals.size
        known = [totals.exact[name] for name in self.fields if name in totals.exact]
        return sum(known) if self.summable and known else None


def find_column(name: str, process: ProcessMaps | None = None) -> Column:
    """A column by its name, in any case, or by the name of another tool; of a process, if it is a field of its smaps.

    Without a process, what is not known here is taken for a field of smaps. Raises UsageError for an unknown name.
    """
    key = name.strip().lower().replace("-", "_")
    key = _ALIASES.get(key, key)
    if key in _OWN:
        return Column(key, _OWN[key])
    if key in DERIVED:
        return Column(key, "size", DERIVED[key])
    if process is None:
        return Column(key, "size", (key,))
    for columns in (size_columns(process), other_columns(process)):
        for column in columns:
            if column.name.replace("_", "") == key.replace("_", ""):
                return column
    if process.reader != "smaps":  # not read, but known to be a field: an empty column
        return Column(key, "size", (key,))
    known = [*_OWN, *DERIVED, *(column.name for column in (*size_columns(process), *other_columns(process)))]
    raise UsageError(f"there is no column {name.strip()!r}", f"columns: {', '.join(dict.fromkeys(known))}")


def size_columns(process: ProcessMaps) -> list[Column]:
    """The fields of smaps that are sizes, in the kernel's order; not ``Size``, which is a column of maps."""
    names = [name for name in process.table.size_names if name != "Size"]
    return [Column(shown_name(name), "size", (name,)) for name in names]


def other_columns(process: ProcessMaps) -> list[Column]:
    """The fields of smaps that are no sizes."""
    columns = []
    for name in process.table.other_names:
        values = process.table.field(name).values
        kind: Kind = "text" if any(isinstance(value, str) for value in values) else "number"
        columns.append(Column(shown_name(name), kind, (name,)))
    return columns


def shown_name(field: str) -> str:
    """The name of a field of smaps in views: in lower case, apart from the names of other columns."""
    name = field.lower()
    return f"smaps_{name}" if field != "Size" and (name in _OWN or name in DERIVED) else name


def most_columns(process: ProcessMaps) -> list[Column]:
    """As ``pmap -X``: every size that adds up."""
    sizes = [column for column in size_columns(process) if column.summable]
    return [*map(find_column, _OF_MAPS), *sizes, find_column("class"), find_column("path")]


def all_columns(process: ProcessMaps) -> list[Column]:
    """As ``pmap -XX``: everything that the kernel says."""
    fields = [*size_columns(process), *other_columns(process)]
    flags = [find_column(FLAGS_FIELD)] if process.reader == "smaps" else []
    return [*map(find_column, _OF_MAPS), *fields, *flags, find_column("class"), find_column("path")]


def _own_cells(process: ProcessMaps, name: str) -> Coded[Cell]:
    table = process.table
    rows = range(len(table))
    values: Sequence[Cell]
    if name == "pid":
        return Coded([0] * len(table), [process.pid])
    if name == "class":
        return process.classes.map(_same)
    if name == "vmflags":
        return table.flags.map(" ".join)
    if name in ("perms", "offset", "device", "inode"):
        return table.attributes.map(lambda attributes: getattr(attributes, name))
    if name == "path":
        return table.attributes.map(lambda attributes: attributes.path.decode("utf-8", "surrogateescape"))
    if name == "threads":
        values = [
            ", ".join(f"{thread.tid} {thread.name}" for thread in process.threads.get(start, ()))
            for start in table.starts
        ]
        return Coded(rows, values)
    if name == "size":
        if "Size" in table.size_names:
            return table.field("Size")
        return Coded.of(table.lengths()).map(_same)
    return Coded(rows, table.starts if name == "address" else table.ends)


def _same(value: Cell) -> Cell:
    return value


def _field_cells(process: ProcessMaps, fields: Sequence[str]) -> Coded[Cell]:
    first, *others = (process.table.field(name) for name in fields)
    if not others:
        return first
    sums: list[Cell] = []
    for parts in zip(first.values, *(other.values for other in others), strict=True):
        known = [part for part in parts if isinstance(part, int)]
        sums.append(sum(known) if known else None)
    return Coded(first.ids, sums)
