"""How much memory processes take, one by one or in groups: the rows of ``memtrace ps``. Sizes are bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace

Values = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a process, a mapping or a group; None where it is not known.

    ``uss`` is private memory (Private_Clean + Private_Dirty), ``pss`` has each page divided by the number of its
    users, ``vss`` is address space, ``hugetlb`` is no part of uss, pss and rss (proc(5), /proc/PID/smaps).
    """

    uss: int | None = None
    pss: int | None = None
    rss: int | None = None
    vss: int | None = None
    swap: int | None = None
    swap_pss: int | None = None
    hugetlb: int | None = None

    def minus(self, before: Sizes) -> Sizes:
        """What it grew by; None where one of the two is not known."""
        pairs = zip(astuple(self), astuple(before), strict=True)
        return Sizes(*(None if now is None or then is None else now - then for now, then in pairs))


SIZE_NAMES = tuple(field.name for field in fields(Sizes))
NOTHING = Sizes(*(0 for _ in SIZE_NAMES))


@dataclass(frozen=True, slots=True)
class Part:
    """What of a process belongs to one label (a mapped name, a class of memory): ``count`` mappings of it."""

    label: str
    count: int
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """A process that has memory, as far as the caller may see it.

    ``start`` (clock ticks since boot, 0: not asked for) tells it from a later one of its pid. ``maps`` is the number
    of its mappings, None where they were not counted. ``refusal`` says why its memory could not be read: then the
    sizes hold what /proc/PID/status tells everybody. ``parts`` are there where the survey asked for them.
    """

    pid: int
    user: str
    uid: int
    name: str
    command: str
    sizes: Sizes
    start: int = 0
    threads: int = 1
    program: str = ""
    cgroup: str = ""
    maps: int | None = None
    refusal: str | None = None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """The processes of one look, and how many others were met that have no memory to show.

    ``unjudged`` could not be read, so that nobody knows whether a filter would take them. ``ended`` went away while
    they were read; ``itself`` says that memtrace's own process was left out.
    """

    processes: tuple[ProcessUsage, ...]
    unjudged: tuple[ProcessUsage, ...] = ()
    kernel_threads: int = 0
    zombies: int = 0
    ended: int = 0
    itself: bool = False

    @property
    def unreadable(self) -> tuple[ProcessUsage, ...]:
        """The processes whose memory could not be read."""
        return (*(process for process in self.processes if process.refusal is not None), *self.unjudged)


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a process, or a group of ``pids`` processes with ``label`` in common.

    ``partial`` names the sizes that lack a member's, and so are lower bounds. ``growth`` is the difference to the
    look before, None without one. What a group does not have (pid, command, ...) is None.
    """

    key: object
    label: str
    sizes: Sizes
    partial: frozenset[str] = frozenset()
    growth: Sizes | None = None
    pids: int = 1
    maps: int | None = None
    threads: int | None = None
    unreadable: int = 0
    process: ProcessUsage | None = None
    is_new: bool = False


def total(parts: Iterable[Sizes]) -> tuple[Sizes, frozenset[str]]:
    """The sum, and the names of the sizes that some part does not know; a size that none knows is None."""
    columns = list(zip(*map(astuple, parts), strict=True)) or [()] * len(SIZE_NAMES)
    known = [[value for value in column if value is not None] for column in columns]
    partial = frozenset(
        name
        for name, column, values in zip(SIZE_NAMES, columns, known, strict=True)
        if values and len(values) < len(column)
    )
    sums = (sum(values) if values or not column else None for column, values in zip(columns, known, strict=True))
    return Sizes(*sums), partial


def total_row(rows: Sequence[Row], pids: int | None = None) -> Row:
    """All rows as one, of ``pids`` processes where that is no sum: one process may be in several rows."""
    sizes, partial = total(row.sizes for row in rows)
    grown = [row.growth for row in rows if row.growth is not None]
    return Row(
        key="total",
        label="total",
        sizes=sizes,
        partial=partial.union(*(row.partial for row in rows)),
        growth=total(grown)[0] if grown else None,
        pids=sum(row.pids for row in rows) if pids is None else pids,
        maps=_sum(row.maps for row in rows),
        threads=_sum(row.threads for row in rows),
        unreadable=sum(row.unreadable for row in rows),
    )


def with_growth(rows: Sequence[Row], before: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with what they grew by since ``before``; one that was not there then grew from nothing."""
    earlier = {row.key: row for row in before}
    return tuple(_grown(row, earlier.get(row.key)) for row in rows)


def _grown(row: Row, before: Row | None) -> Row:
    if before is None:
        return replace(row, growth=row.sizes.minus(NOTHING), is_new=True)
    growth = row.sizes.minus(before.sizes)
    # A lower bound less another one says nothing.
    blurred = dict.fromkeys(row.partial | before.partial)
    return replace(row, growth=replace(growth, **blurred))


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
