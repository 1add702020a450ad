"""A report as a pprof profile (github.com/google/pprof, proto/profile.proto), gzipped.

What ``go tool pprof``, speedscope, Pyroscope, Parca and others read. The same report always gives the same bytes.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from tracer import __version__
from tracer.model.report import Frame, Report
from tracer.model.vma import Vma
from tracer.report.frames import ALLOCATOR_NAMES
from tracer.report.protobuf import integer, integers, message, text
from tracer.report.safe import printable
from tracer.report.samples import DEFAULT_METRIC, METRICS, Metric, Sample, name_of, samples

_UNITS = {metric: "count" if metric.endswith("_objects") else "bytes" for metric in METRICS}
# What has no mapping in the report is given one from address 0 up: addresses are then those within the file.
_NO_LIMIT = 1 << 63


def write_pprof(report: Report, file: BinaryIO) -> None:
    """Write the profile of all five metrics; the growth of RSS is the sum of ``rss_growth``."""
    file.write(to_pprof(report))


def to_pprof(report: Report, metrics: Sequence[Metric] = METRICS) -> bytes:
    """The profile with these metrics, compressed."""
    # Without a time the compressed bytes depend on nothing but the report.
    return gzip.compress(_Profile(report).encode(samples(report), metrics), compresslevel=6, mtime=0)


@dataclass(slots=True)
class _Mapping:
    """A mapped file, or a part of one; what is known of the names in it."""

    id: int
    start: int
    limit: int
    offset: int
    file: str
    build_id: str = ""
    has_files: bool = False
    has_lines: bool = False
    has_inlines: bool = False

    @property
    def is_placed(self) -> bool:
        """Whether it is known where in the process it was."""
        return self.limit < _NO_LIMIT


@dataclass(slots=True)
class _Profile:
    """The tables that samples refer to by number; numbers are given in the order of first use."""

    report: Report
    strings: dict[str, int] = field(default_factory=dict)
    functions: dict[tuple[int, int], int] = field(default_factory=dict)
    locations: dict[tuple[int, int, tuple[tuple[int, int], ...]], int] = field(default_factory=dict)
    mappings: dict[tuple[str, int], _Mapping] = field(default_factory=dict)
    vmas: dict[str, list[Vma]] = field(default_factory=dict)
    # The same frames come again and again, as the same objects: found by identity, and held so that they keep it.
    seen: dict[tuple[int, ...], tuple[int, Sequence[Frame]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Some versions of speedscope take the number of default_sample_type's text for the number of a sample type;
        # so the text has the number that the type has.
        for string in ("", DEFAULT_METRIC):
            self.string(string)
        code = sorted((row.vma for row in self.report.vmas if row.vma.is_executable), key=lambda vma: vma.start)
        for vma in code:
            self.vmas.setdefault(_path(vma), []).append(vma)
        # The first mapping is taken for the executable, and that lies lowest.
        executable = next((vma for vma in code if vma.is_file), None)
        if executable is not None:
            self._mapping(Frame(None, _path(executable), 0, address=executable.start))

    def encode(self, found: Iterable[Sample], metrics: Sequence[Metric]) -> bytes:
        types = [message(1, self._value_type(metric, _UNITS[metric])) for metric in metrics]
        columns = [METRICS.index(metric) for metric in metrics]
        held = [message(2, body) for body in self._samples(found, columns)]
        head = self._head()
        tables = [*self._mapping_table(), *self._location_table(), *self._function_table()]
        return b"".join([*types, *held, *tables, *(text(6, string) for string in self.strings), head])

    def string(self, value: str) -> int:
        return self.strings.setdefault(value, len(self.strings))

    def _value_type(self, kind: str, unit: str) -> bytes:
        return integer(1, self.string(kind)) + integer(2, self.string(unit))

    def _samples(self, found: Iterable[Sample], columns: Sequence[int]) -> Iterator[bytes]:
        for sample in found:
            values = [sample.values[column] for column in columns]
            if not any(values):
                continue
            labels = [(name, value) for name, value in (("kind", sample.kind), ("class", sample.vma_class)) if value]
            yield b"".join(
                [
                    integers(1, [self._location(group) for group in _groups(sample.frames)]),
                    integers(2, values),
                    *(message(3, self._value_type(name, printable(value))) for name, value in labels),
                ]
            )

    def _location(self, frames: Sequence[Frame]) -> int:
        """The number of a place in the code: its own function, and those inlined there, innermost first."""
        key = tuple(map(id, frames))
        if key not in self.seen:
            self.seen[key] = (self._new_location(frames), frames)
        return self.seen[key][0]

    def _new_location(self, frames: Sequence[Frame]) -> int:
        mapping = self._mapping(frames[-1])
        is_placed = mapping is None or mapping.is_placed
        address = (frames[-1].address if is_placed else 0) or frames[-1].offset
        lines = tuple((self._function(frame), frame.line or 0) for frame in frames)
        if mapping is not None:
            mapping.has_files |= any(frame.file is not None for frame in frames)
            mapping.has_lines |= any(line for _, line in lines)
            mapping.has_inlines |= len(lines) > 1
        key = (0 if mapping is None else mapping.id, address, lines)
        return self.locations.setdefault(key, len(self.locations) + 1)

    def _function(self, frame: Frame) -> int:
        key = (self.string(name_of(frame)), self.string(printable(frame.file or "")))
        return self.functions.setdefault(key, len(self.functions) + 1)

    def _mapping(self, frame: Frame) -> _Mapping | None:
        """Where a frame's code was mapped from; None where no file is known, or the file is but a list of names."""
        if not frame.module or frame.module.startswith("/tmp/perf-"):
            return None
        vma = next((vma for vma in self.vmas.get(frame.module, ()) if vma.start <= frame.address < vma.end), None)
        key = (frame.module, vma.start if vma else 0)
        known = self.mappings.get(key)
        if known is None:
            place = (vma.start, vma.end, vma.offset) if vma else (0, _NO_LIMIT, 0)
            known = self.mappings[key] = _Mapping(len(self.mappings) + 1, *place, frame.module)
        known.build_id = known.build_id or frame.build_id or ""
        return known

    def _mapping_table(self) -> Iterator[bytes]:
        for mapping in self.mappings.values():
            yield message(
                3,
                integer(1, mapping.id)
                + integer(2, mapping.start)
                + integer(3, mapping.limit)
                + integer(4, mapping.offset)
                + integer(5, self.string(printable(mapping.file)))
                + integer(6, self.string(mapping.build_id))
                + integer(7, True)
                + integer(8, mapping.has_files)
                + integer(9, mapping.has_lines)
                + integer(10, mapping.has_inlines),
            )

    def _location_table(self) -> Iterator[bytes]:
        for (mapping, address, lines), number in self.locations.items():
            body = [integer(1, number), integer(2, mapping), integer(3, address)]
            body += [message(4, integer(1, function) + integer(2, line)) for function, line in lines]
            yield message(4, b"".join(body))

    def _function_table(self) -> Iterator[bytes]:
        for (name, file), number in self.functions.items():
            yield message(5, integer(1, number) + integer(2, name) + integer(3, name) + integer(4, file))

    def _head(self) -> bytes:
        """What concerns the profile as a whole. Text in it goes into the table of strings, which is written later."""
        report = self.report
        return b"".join(
            [
                integer(7, self.string(ALLOCATOR_NAMES)),
                integer(9, round(report.started.timestamp() * 1e6) * 1000),
                integer(10, round(report.seconds * 1e9)),
                message(11, self._value_type("space", "bytes")),
                integer(12, report.sampling.interval),
                integers(13, [self.string(printable(line)) for line in _comments(report)]),
                integer(14, self.string(DEFAULT_METRIC)),
            ]
        )


def _groups(frames: Sequence[Frame]) -> Iterator[list[Frame]]:
    """The frames by place in the code: functions inlined there, innermost first, and the physical one."""
    group: list[Frame] = []
    for frame in frames:
        group.append(frame)
        if not frame.inlined:
            yield group
            group = []
    if group:
        yield group


def _comments(report: Report) -> Iterator[str]:
    yield f"memtrace {__version__}: process {report.pid}: {report.command}"
    yield report.verdict.text
    yield f"window: {report.started.isoformat()}, {report.seconds:.1f} s, ended: {report.ended}"
    if all(stack.bytes or not stack.allocated_bytes for stack in report.stacks):
        yield "alloc_space and alloc_objects are those of the stacks that hold memory at the end"
    yield from (f"lost: {count} {name}" for name, count in report.losses.items() if count)
    yield from (f"note: {note}" for note in report.notes)


def _path(vma: Vma) -> str:
    """The mapped file as frames name it."""
    return printable(vma.path.decode("utf-8", "backslashreplace"))
