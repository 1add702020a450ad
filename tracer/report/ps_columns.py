"""The columns of ``memtrace ps``: what they are called, what they hold, and which are shown where nothing is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tracer.errors import UsageError
from tracer.model.grouping import By
from tracer.model.psview import PsView, SortKey
from tracer.model.usage import ProcessUsage, Row

Kind = Literal["text", "number", "size", "swap", "growth", "rate", "share"]
Value = int | float | str | None
Cell = Callable[[Row, PsView], Value]


@dataclass(frozen=True, slots=True)
class PsColumn:
    """A column: ``name`` is what the user asks for and the field in CSV, ``title`` stands above it.

    ``of`` names the sizes that it is made of, ``needs`` what the survey must read for it.
    """

    name: str
    title: str
    kind: Kind
    help: str
    cell: Cell
    of: tuple[str, ...] = ()
    needs: Literal["", "maps", "cgroup", "program"] = ""

    def is_lower_bound(self, row: Row) -> bool:
        """Whether some member of the row's group is not in its value."""
        return not row.partial.isdisjoint(self.of)


def _columns(*columns: PsColumn) -> dict[str, PsColumn]:
    return {column.name: column for column in columns}


def _size(name: str, title: str, help_text: str, of: str = "", kind: Kind = "size") -> PsColumn:
    of = of or name
    return PsColumn(name, title, kind, help_text, lambda row, _: getattr(row.sizes, of), (of,))


def _growth(name: str, title: str, of: str) -> PsColumn:
    def cell(row: Row, _: PsView) -> Value:
        return getattr(row.growth, of) if row.growth is not None else None

    return PsColumn(name, title, "growth", f"growth of {of} (with --interval)", cell)


def _rate(name: str, title: str, of: str) -> PsColumn:
    def cell(row: Row, view: PsView) -> Value:
        return view.rate(getattr(row.growth, of)) if row.growth is not None else None

    return PsColumn(name, title, "rate", f"growth of {of} per second", cell)


def _average(of: str) -> PsColumn:
    def cell(row: Row, _: PsView) -> Value:
        size = getattr(row.sizes, of)
        return None if size is None or not row.pids else size // row.pids

    return PsColumn(f"avg{of}", f"AVG{of.upper()}", "size", f"{of} per process", cell, (of,))


def _process(get: Callable[[ProcessUsage], Value]) -> Cell:
    return lambda row, _: get(row.process) if row.process is not None else None


def _shared(row: Row, _: PsView) -> Value:
    return None if row.sizes.pss is None or row.sizes.uss is None else row.sizes.pss - row.sizes.uss


def _with_swap(row: Row, _: PsView) -> Value:
    if row.sizes.pss is None or row.sizes.swap_pss is None:
        return None
    return row.sizes.pss + row.sizes.swap_pss


def _share(row: Row, view: PsView) -> Value:
    whole = view.total.sizes.pss
    return None if row.sizes.pss is None or not whole else row.sizes.pss / whole


_SIZES = _columns(
    _size("swap", "SWAP", "swapped out, sharing ignored", kind="swap"),
    _size("swappss", "SWAPPSS", "swapped out, its share of it", "swap_pss", "swap"),
    _size("uss", "USS", "private memory: what would be free without it"),
    _size("pss", "PSS", "memory, shared pages divided by their users"),
    PsColumn("pss+swap", "PSS+SWAP", "size", "pss and swappss together", _with_swap, ("pss", "swap_pss")),
    PsColumn("shared", "SHARED", "size", "its part of shared memory: pss less uss", _shared, ("uss", "pss")),
    _size("rss", "RSS", "resident memory, sharing ignored"),
    _size("vss", "VSS", "address space, touched or not (VmSize)"),
    _size("hugetlb", "HUGETLB", "huge pages of hugetlbfs; no part of rss"),
    PsColumn("share", "SHARE", "share", "its part of the pss of all that is listed", _share, ("pss",)),
)
_GROWTH = _columns(
    _growth("duss", "+USS", "uss"),
    _growth("dpss", "+PSS", "pss"),
    _growth("drss", "+RSS", "rss"),
    _growth("dswap", "+SWAP", "swap"),
    _rate("ussrate", "USS/S", "uss"),
    _rate("pssrate", "PSS/S", "pss"),
    _rate("rate", "RSS/S", "rss"),
)
_OF_PROCESS = _columns(
    PsColumn("pid", "PID", "number", "process id", _process(lambda process: process.pid)),
    PsColumn("user", "USER", "text", "its owner (effective user)", _process(lambda process: process.user)),
    PsColumn("name", "NAME", "text", "its name (comm)", _process(lambda process: process.name)),
    PsColumn("threads", "THREADS", "number", "threads", lambda row, _: row.threads),
    PsColumn("maps", "MAPS", "number", "mappings", lambda row, _: row.maps, needs="maps"),
    PsColumn("program", "PROGRAM", "text", "its program", _process(lambda process: process.program), needs="program"),
    PsColumn("cgroup", "CGROUP", "text", "its control group", _process(lambda process: process.cgroup), needs="cgroup"),
    PsColumn("command", "COMMAND", "text", "its command line", lambda row, _: row.label),
)
_OF_GROUP = _columns(
    PsColumn("pids", "PIDS", "number", "processes", lambda row, _: row.pids),
    PsColumn("maps", "MAPS", "number", "mappings", lambda row, _: row.maps, needs="maps"),
    *map(_average, ("uss", "pss", "rss")),
)
_OF_PROCESSES = _columns(
    PsColumn("threads", "THREADS", "number", "threads", lambda row, _: row.threads),
    PsColumn("unreadable", "UNREAD", "number", "processes that could not be read", lambda row, _: row.unreadable),
)


def _label(by: By, help_text: str) -> dict[str, PsColumn]:
    needs: Literal["", "cgroup", "program"] = by if by in ("cgroup", "program") else ""
    return _columns(PsColumn(by, by.upper(), "text", help_text, lambda row, _: row.label, needs=needs))


COLUMNS: Mapping[By, Mapping[str, PsColumn]] = {
    "process": _OF_PROCESS | _SIZES | _GROWTH,
    "mapping": _OF_GROUP | _SIZES | _GROWTH | _label("mapping", "what is mapped"),
    "class": _OF_GROUP | _SIZES | _GROWTH | _label("class", "class of memory"),
    "user": _OF_GROUP | _OF_PROCESSES | _SIZES | _GROWTH | _label("user", "owner"),
    "cgroup": _OF_GROUP | _OF_PROCESSES | _SIZES | _GROWTH | _label("cgroup", "control group (container)"),
    "program": _OF_GROUP | _OF_PROCESSES | _SIZES | _GROWTH | _label("program", "program"),
}
# Shown where no columns are asked for; from the right, those before the label of a row give way on a narrow terminal.
_DEFAULT: Mapping[By, tuple[str, ...]] = {
    "process": ("pid", "user", "swap", "uss", "pss", "rss", "vss", "command"),
    "mapping": ("pids", "maps", "swap", "uss", "avgpss", "pss", "rss", "mapping"),
    "class": ("pids", "maps", "swap", "uss", "pss", "rss", "vss", "class"),
    "user": ("pids", "swap", "uss", "pss", "rss", "vss", "user"),
    "cgroup": ("pids", "swap", "uss", "pss", "rss", "vss", "cgroup"),
    "program": ("pids", "swap", "uss", "shared", "pss", "program"),
}
_DEFAULT_GROWTH: Mapping[By, tuple[str, ...]] = {
    "process": ("pid", "user", "swap", "uss", "pss", "rss", "duss", "dpss", "drss", "rate", "command"),
    **{
        by: ("pids", "swap", "uss", "pss", "rss", "duss", "dpss", "drss", "rate", by)
        for by in ("mapping", "class", "user", "cgroup", "program")
    },
}
GIVE_WAY = ("vss", "swap", "avgpss", "maps", "uss", "pss", "dpss", "user", "pids")
# What smem calls them.
_ALIASES: Mapping[str, str] = {"map": "mapping", "swap_pss": "swappss", "pss+swappss": "pss+swap", "size": "vss"}
_STAND_INS = {"uss": "rss", "pss": "rss", "pss+swap": "rss", "shared": "rss", "share": "rss", "duss": "drss"} | {
    "dpss": "drss",
    "ussrate": "rate",
    "pssrate": "rate",
}


def default_columns(by: By, *, growth: bool) -> tuple[str, ...]:
    """What is shown where nothing else is asked for."""
    return (_DEFAULT_GROWTH if growth else _DEFAULT)[by]


def find_columns(by: By, text: str, option: str) -> tuple[PsColumn, ...]:
    """The columns that a user names, separated by commas or blanks; raises UsageError, which lists what there is."""
    names = text.replace(",", " ").split()
    if not names:
        raise UsageError(f"{option}: no column is named", _known(by))
    return tuple(_find(by, name, option) for name in names)


def _find(by: By, name: str, option: str) -> PsColumn:
    known = COLUMNS[by]
    wanted = _ALIASES.get(name.lower(), name.lower())
    if wanted == "count":  # smem's word for what a group holds
        wanted = "maps" if by in ("mapping", "class") else "pids"
    column = known.get(wanted)
    if column is None:
        raise UsageError(f"{option}: there is no column {name!r} by {by}", _known(by))
    return column


def _known(by: By) -> str:
    return f"there are: {' '.join(COLUMNS[by])}"


def sort_key(by: By, column: PsColumn, view: PsView) -> SortKey:
    """How to sort by a column. RSS stands in for what is not known of a process: it may well be the largest."""
    stand_in = COLUMNS[by].get(_STAND_INS.get(column.name, ""))

    def key(row: Row) -> float | int | str | None:
        value = column.cell(row, view)
        return stand_in.cell(row, view) if value is None and stand_in is not None else value

    return key


def describe_columns(by: By) -> Sequence[tuple[str, str]]:
    """Names and meanings, for a user who asks."""
    return [(column.name, column.help) for column in COLUMNS[by].values()]
