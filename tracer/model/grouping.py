"""Processes as rows: one by one, or summed by user, cgroup, program, mapping or class of memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from tracer.model.usage import ProcessUsage, Row, Sizes, total

By = Literal["process", "mapping", "user", "class", "cgroup", "program"]
BYS: Final[tuple[By, ...]] = get_args(By)
# What these need is in smaps, not in smaps_rollup.
BY_PART: Final = ("mapping", "class")


@dataclass(slots=True)
class _Member:
    sizes: Sizes
    maps: int | None
    threads: int | None
    unreadable: bool


def rows_of(processes: Sequence[ProcessUsage], by: By) -> tuple[Row, ...]:
    """The rows of this view, in no particular order.

    By mapping and by class, processes that could not be read are in no row: nobody knows what they have mapped.
    """
    if by == "process":
        return tuple(_process_row(process) for process in processes)
    if by in BY_PART:
        return _groups(_parts(processes))
    label = _LABELS[by]
    return _groups((label(process), _whole(process)) for process in processes)


_LABELS: dict[str, Callable[[ProcessUsage], str]] = {
    "user": lambda process: process.user,
    "cgroup": lambda process: process.cgroup,
    "program": lambda process: process.program,
}


def _process_row(process: ProcessUsage) -> Row:
    return Row(
        key=(process.pid, process.start),
        label=process.command,
        sizes=process.sizes,
        maps=process.maps,
        threads=process.threads,
        unreadable=int(process.refusal is not None),
        process=process,
    )


def _whole(process: ProcessUsage) -> _Member:
    return _Member(process.sizes, process.maps, process.threads, process.refusal is not None)


def _parts(processes: Iterable[ProcessUsage]) -> Iterable[tuple[str, _Member]]:
    for process in processes:
        for part in process.parts:
            yield part.label, _Member(part.sizes, part.count, None, False)


def _groups(members: Iterable[tuple[str, _Member]]) -> tuple[Row, ...]:
    groups: dict[str, list[_Member]] = defaultdict(list)
    for label, member in members:
        groups[label].append(member)
    return tuple(_group_row(label, group) for label, group in groups.items())


def _group_row(label: str, members: Sequence[_Member]) -> Row:
    sizes, partial = total(member.sizes for member in members)
    maps = [member.maps for member in members if member.maps is not None]
    threads = [member.threads for member in members if member.threads is not None]
    return Row(
        key=label,
        label=label,
        sizes=sizes,
        partial=partial,
        pids=len(members),
        maps=sum(maps) if maps else None,
        threads=sum(threads) if threads else None,
        unreadable=sum(member.unreadable for member in members),
    )
