"""A recording as it is read: what it is of, its looks, and the report at its end. All that it holds is checked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from tracer.errors import RecordingError
from tracer.model.look import Held, StackKey
from tracer.model.report import Frame, Report, RssSource, Sampling, StackKind
from tracer.model.vma import RssCounters, Vma
from tracer.store.codec import DecodeError, decode
from tracer.store.database import open_database, reading
from tracer.store.rows import frame_of, from_json, ids_in, report_of, values_of, vma_of
from tracer.store.schema import columns_of

# More rows than a recording of 64 MiB could hold: a reader must not be made to fill its memory.
_MAX_ROWS = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a recording is of. ``started`` is None where tracing never began; ``ended`` None where it has no end."""

    host: str
    kernel: str
    arch: str
    page_size: int
    memtrace: str
    pid: int
    command: str = ""
    started: datetime | None = None
    ended: str | None = None
    options: dict[str, str | None] = field(default_factory=dict)
    probed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    losses: dict[str, int] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    rss_source: RssSource = "rss-stat"
    dropped: int = 0
    lean: float | None = None


@dataclass(frozen=True, slots=True)
class SeenLook:
    """A look at the process; ``number`` is its id in the file, which rises."""

    number: int
    seconds: float
    rss: RssCounters
    live_bytes: int
    live_count: int
    self_cpu: float
    self_rss: int
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class KnownStack:
    """A stack; ``frames`` is None where they were not read before the recording ended."""

    stack: str
    kind: StackKind
    complete: bool
    frames: tuple[Frame, ...] | None


@dataclass(frozen=True, slots=True)
class SeenClass:
    """Resident bytes and size of a class of memory, and when they were looked at."""

    rss: int
    size: int
    seconds: float


class Recording:
    """An open recording; a context manager. Every method raises RecordingError where the file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Raises RecordingError where the file is no recording."""
        with ExitStack() as stack:
            self._database: sqlite3.Connection = stack.enter_context(open_database(self.path))
            self._database.text_factory = _text
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def origin(self) -> Origin:
        """What the recording is of."""
        with reading(self.path):
            values = {row[0]: from_json(row[1]) for row in self._rows("meta")}
            options = values.get("options")
            if isinstance(options, dict):
                values["options"] = {name: None if value is None else str(value) for name, value in options.items()}
            origin: Origin = decode(Origin, values)
            return origin

    @cached_property
    def looks(self) -> tuple[SeenLook, ...]:
        """The looks, in order of time."""
        with reading(self.path):
            looks = tuple(_look(values) for values in self._values("looks", "ORDER BY id"))
            if any(later.seconds < sooner.seconds for sooner, later in pairwise(looks)):
                raise DecodeError("the looks are not in order")
            return looks

    @cached_property
    def frames(self) -> dict[int, Frame]:
        """Frames by their ids."""
        with reading(self.path):
            return {_int(values["id"]): frame_of(values) for values in self._values("frames")}

    @cached_property
    def stacks(self) -> dict[int, KnownStack]:
        """Stacks by their ids in the file."""
        with reading(self.path):
            return {_int(values["id"]): self._stack_of(values) for values in self._values("stacks")}

    @cached_property
    def vmas(self) -> dict[int, tuple[Vma, str]]:
        """VMAs and their classes, by their ids in the file; their ends are those of ``vmas_at``."""
        with reading(self.path):
            return {
                _int(values["id"]): (vma_of({**values, "end": values["start"]}), decode(str, values["class"]))
                for values in self._values("vmas")
            }

    def report(self) -> Report | None:
        """The report at the end; None where there is none, as the session was killed or its disk full."""
        with reading(self.path):
            names = ("report", "report_classes", "report_vmas", "report_stacks", "report_ledger")
            tables = {name: list(self._rows(name, "" if name == "report" else "ORDER BY rank")) for name in names}
            return report_of(tables, self._frames_in) if tables["report"] else None

    def stacks_at(self, look: SeenLook) -> dict[int, Held]:
        """What each stack held at a look, by its id in the file."""
        with reading(self.path):
            rows = self._rows("stack_looks", "WHERE look <= ? ORDER BY look", look.number)
            return {_int(row[1]): _held(row[2:]) for row in rows}

    def stack_changes(self) -> Iterator[tuple[int, int, int]]:
        """(look, stack, bytes held) in order of the looks, wherever it changed."""
        with reading(self.path):
            for row in self._rows("stack_looks", "ORDER BY look"):
                yield _int(row[0]), _int(row[1]), _int(row[2])

    def classes_at(self, look: SeenLook) -> dict[str, SeenClass]:
        """The classes of memory as they were known at a look."""
        return {name: seen for _, name, seen in self.class_changes(look.number)}

    def class_changes(self, until: int = 1 << 62) -> Iterator[tuple[int, str, SeenClass]]:
        """(look, class, what was seen) in order of the looks, wherever it changed."""
        with reading(self.path):
            for row in self._rows("class_looks", "WHERE look <= ? ORDER BY look", until):
                seen = SeenClass(_int(row[2]), _int(row[3]), decode(float, row[4]))
                yield _int(row[0]), decode(str, row[1]), seen

    def vmas_at(self, look: SeenLook) -> dict[int, tuple[int, int]]:
        """End and resident bytes of the VMAs that were mapped at a look, by their ids in the file."""
        with reading(self.path):
            rows = self._values("vma_looks", "WHERE look <= ? ORDER BY look", look.number)
            state = {_int(values["vma"]): (_int(values["end"]), _int(values["rss"])) for values in rows}
            return {number: known for number, known in state.items() if known[0]}

    def key_of(self, stack: int) -> StackKey:
        """Kind and id of a stack."""
        known = self.stacks[stack]
        return known.kind, int(known.stack, 16)

    def _stack_of(self, values: dict[str, Any]) -> KnownStack:
        kind: StackKind = decode(StackKind, values["kind"])
        frames = None if values["frames"] is None else self._frames_in(values["frames"])
        stack = decode(str, values["stack"])
        int(stack, 16)
        return KnownStack(stack, kind, values["complete"] == 1, frames)

    def _frames_in(self, value: Any) -> tuple[Frame, ...]:
        try:
            return tuple(self.frames[number] for number in ids_in(value))
        except KeyError:
            raise DecodeError("a stack with a frame that is not there") from None

    def _values(self, table: str, clause: str = "", *parameters: int) -> Iterator[dict[str, Any]]:
        return (values_of(table, row) for row in self._rows(table, clause, *parameters))

    def _rows(self, table: str, clause: str = "", *parameters: int) -> Iterator[Sequence[Any]]:
        names = ", ".join(f'"{name}"' for name in columns_of(table))
        for count, row in enumerate(self._database.execute(f"SELECT {names} FROM {table} {clause}", parameters)):
            if count >= _MAX_ROWS:
                raise DecodeError(f"too many rows in {table}")
            yield row


def _look(values: dict[str, Any]) -> SeenLook:
    rss = decode(RssCounters, {name: values[name] for name in ("anon", "file", "shmem", "swap")})
    counters = decode(dict[str, int], from_json(values["counters"]))
    names = ("seconds", "live_bytes", "live_count", "self_cpu", "self_rss")
    known = {name: decode(float if name in ("seconds", "self_cpu") else int, values[name]) for name in names}
    return SeenLook(number=_int(values["id"]), rss=rss, counters=counters, **known)


def _held(row: Sequence[Any]) -> Held:
    return Held(*(_int(value) for value in row))


def _int(value: Any) -> int:
    if type(value) is not int:
        raise DecodeError("no number")
    return value


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def require_window(recording: Recording) -> None:
    """Raises RecordingError where tracing had not begun when the recording ended."""
    if recording.origin.started is None or not recording.looks:
        raise RecordingError(f"{recording.path} holds nothing: it ended before tracing began", None)
