"""The class of each VMA of a process, and the threads whose stacks they hold.

Those of a capture were found on the machine that it is
of, where the memory could be read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tracer.errors import MemtraceError
from tracer.maps.process import Thread
from tracer.model.classes import ANONYMOUS, THREAD_STACK, classify_ranges, dominant_classes
from tracer.model.coded import Coded, Numbers
from tracer.model.vma import Vma
from tracer.procfs.classify import classify_process
from tracer.procfs.source import LiveSource, ProcSource
from tracer.procfs.vma_table import VmaTable

# A process with more VMAs than this has few kinds of them (10 us each would be too much), and of those that only
# their memory tells apart, as many are looked into as ``_MAX_LOOKS``: those with the most memory.
_MANY = 5000
_MAX_LOOKS = 1000

_Row = tuple[Vma, tuple[str, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """Classes row by row; threads by the start of the VMA; and how many VMAs were not looked into."""

    names: Coded[str]
    threads: Mapping[int, tuple[Thread, ...]] = field(default_factory=dict)
    not_looked_into: int = 0


def classes_of(source: ProcSource, pid: int, table: VmaTable) -> Classes:
    """The classes of a process's VMAs; never raises for a process that has ended or may not be looked into."""
    is_live = isinstance(source, LiveSource)
    if not is_live and (kept := _kept(source, pid, table)) is not None:
        return kept
    of = _of_all if len(table) <= _MANY else _of_kinds
    classes = of(pid if is_live else None, table)
    if not is_live or THREAD_STACK not in classes.names.values:
        return classes
    return Classes(classes.names, _stack_owners(source, pid, table, classes.names), classes.not_looked_into)


def _kept(source: ProcSource, pid: int, table: VmaTable) -> Classes | None:
    """The classes that a capture has of these VMAs."""
    from tracer.procfs.capture import CaptureSource

    kept = source.classes(pid) if isinstance(source, CaptureSource) else None
    if kept is None or len(kept.ids) != len(table):
        return None
    threads = {start: tuple(Thread(*row) for row in rows) for start, rows in kept.threads.items()}
    return Classes(Coded(kept.ids, kept.names), threads)


def _classify(pid: int | None, rows: Sequence[_Row]) -> dict[int, str]:
    """The start of each VMA to its class; without ``pid`` by what maps and smaps say alone."""
    return dominant_classes(rows, classify_ranges(rows) if pid is None else classify_process(pid, rows))


def _rows(table: VmaTable, numbers: Iterable[int]) -> list[_Row]:
    return [(table.vma(row), table.flags[row]) for row in numbers]


def _of_all(pid: int | None, table: VmaTable) -> Classes:
    classes = _classify(pid, _rows(table, range(len(table))))
    return Classes(Coded.of([classes[start] for start in table.starts]))


def _of_kinds(pid: int | None, table: VmaTable) -> Classes:
    """Classes by the first VMA of each kind (attributes and flags), and by a look where these leave it open."""
    kinds = Numbers[tuple[int, int]]()
    ids = [kinds[kind] for kind in zip(table.attributes.ids, table.flags.ids, strict=True)]
    first = dict(zip(reversed(ids), reversed(range(len(ids))), strict=True))
    classes = _classify(None, _rows(table, sorted(first.values())))
    names = Numbers[str]()
    by_kind = [names[classes[table.starts[first[kind]]]] for kind in range(len(kinds))]
    rows = [by_kind[kind] for kind in ids]
    if pid is None:
        return Classes(Coded(rows, list(names)))
    perms = table.attributes.values
    is_open = [
        by_kind[kind] == names[ANONYMOUS] and perms[attributes].perms == "rw-p"
        for (attributes, _), kind in kinds.items()
    ]
    candidates = [row for row, kind in enumerate(ids) if is_open[kind]]
    looked_into = _most_resident(table, candidates)
    around = {near for row in looked_into for near in (row - 1, row, row + 1) if 0 <= near < len(table)}
    classes = _classify(pid, _rows(table, sorted(around)))
    for row in looked_into:
        rows[row] = names[classes[table.starts[row]]]
    return Classes(Coded(rows, list(names)), not_looked_into=len(candidates) - len(looked_into))


def _most_resident(table: VmaTable, rows: list[int]) -> list[int]:
    if "Rss" not in table.size_names:
        return rows[:_MAX_LOOKS]
    rss = table.sizes("Rss")
    return sorted(rows, key=lambda row: rss[row] or 0, reverse=True)[:_MAX_LOOKS]


def _stack_owners(source: ProcSource, pid: int, table: VmaTable, classes: Coded[str]) -> dict[int, tuple[Thread, ...]]:
    """The threads whose stack pointer is in a thread stack; a thread that is running just now does not show it.

    proc(5), /proc/PID/task/TID/syscall: the last two words are the stack pointer and the program counter.
    """
    owners: dict[int, tuple[Thread, ...]] = {}
    try:
        tids = source.threads(pid)
    except MemtraceError:
        return owners
    for tid in tids:
        try:
            words = source.read(pid, f"task/{tid}/syscall").split()
            pointer = int(words[-2], 16)
            name = source.read(pid, f"task/{tid}/comm").removesuffix(b"\n").decode("utf-8", "surrogateescape")
        except (MemtraceError, OSError, ValueError, IndexError):
            continue
        row = bisect_right(table.starts, pointer) - 1
        if row < 0 or pointer >= table.ends[row] or classes[row] != THREAD_STACK:
            continue
        start = table.starts[row]
        owners[start] = (*owners.get(start, ()), Thread(tid, name))
    return owners
