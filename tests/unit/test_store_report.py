"""A report in a recording is the report that the session made: in every part, and in every form."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.recordings import finished, leaking, write_recording
from tests.unit.reports import FAULTED, MAPPED, STORE, frame, sample_report, vma
from tracer.model.rates import Rate
from tracer.model.report import (
    ClassGrowth,
    Frame,
    HeapInside,
    HeapState,
    LedgerRow,
    Overhead,
    OverheadStep,
    Report,
    RssMove,
    Sampling,
    StackGrowth,
    Verdict,
    VmaGrowth,
)
from tracer.model.vma import RssCounters, Vma
from tracer.report.formats import FORMATS, Choice
from tracer.report.text import TextReport
from tracer.store.codec import DecodeError, decode, encode
from tracer.store.course import timeline_of
from tracer.store.recording import Recording

HOSTILE = "a\u2028b\x00\x1b[2J\r\n\x7f\u202e\udcff'; DROP TABLE looks; --</script>\"\ud800"
I64 = st.integers(-(1 << 63), (1 << 63) - 1)
SIZES = st.integers(-(1 << 62), 1 << 62)
U64 = st.integers(0, (1 << 64) - 1)
TIMES = st.floats(0, 1e9)
TEXTS = st.text(st.characters(), max_size=20) | st.just(HOSTILE)
FRAMES = st.builds(
    Frame,
    function=st.none() | TEXTS,
    module=st.none() | TEXTS,
    offset=U64,
    function_offset=U64,
    build_id=st.none() | st.just("ab12"),
    file=st.none() | TEXTS,
    line=st.none() | st.integers(0, 1 << 31),
    inlined=st.booleans(),
    language=st.sampled_from(["native", "python"]),
    address=U64,
)
STACKS = st.builds(
    StackGrowth,
    id=st.text("0123456789abcdef", min_size=16, max_size=16),
    kind=st.sampled_from(["malloc", "mmap", "fault", "brk"]),
    bytes=SIZES,
    count=SIZES,
    allocated_bytes=SIZES,
    freed_bytes=SIZES,
    allocated_count=SIZES,
    freed_count=SIZES,
    rate=st.floats(-1e12, 1e12),
    oldest=TIMES,
    vma_class=TEXTS,
    complete=st.booleans(),
    frames=st.lists(FRAMES, max_size=5).map(tuple),
    trend=st.sampled_from(["growing", "levelled-off", "steady", "unknown"]),
    bytes_error=SIZES,
    survival=st.none() | st.floats(0, 1),
    unverified_bytes=SIZES,
)
VMAS = st.builds(
    lambda start, size, **rest: Vma(start, min(start + size, (1 << 64) - 1), **rest),
    U64,
    st.integers(0, 1 << 40),
    perms=st.sampled_from(["rw-p", "r-xs", "---p"]),
    offset=U64,
    device=st.just("fd:01"),
    inode=U64,
    path=st.binary(max_size=20),
)
COUNTERS = st.builds(RssCounters, anon=SIZES, file=SIZES, shmem=SIZES, swap=SIZES)
ZONES = st.integers(-23, 23).map(lambda hours: timezone(timedelta(hours=hours)))


SHARES = st.none() | st.floats(0, 1)


def lists_of(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(strategy, max_size=4).map(tuple)


STATES = st.none() | st.builds(HeapState, SIZES, SIZES, SIZES, SIZES, SIZES, st.integers(0, 1 << 20))
HEAPS = st.builds(HeapInside, TEXTS, STATES, STATES, st.none() | TEXTS, st.none() | TEXTS, lists_of(TEXTS))
OVERHEADS = st.builds(
    Overhead,
    target_share=SHARES,
    self_cpu=TIMES,
    self_rss=SIZES,
    probe_hits=SIZES,
    map_memory=SIZES,
    limit=SHARES,
    steps=lists_of(st.builds(OverheadStep, TIMES, TEXTS, st.floats(0, 1))),
    probed_share=st.floats(0, 1),
    cpu_share=SHARES,
)


REPORTS = st.builds(
    Report,
    pid=st.integers(1, 1 << 22),
    command=TEXTS,
    verdict=st.builds(Verdict, kind=st.sampled_from(["leak", "unknown"]), text=TEXTS, evidence=lists_of(TEXTS)),
    started=st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=ZONES | st.just(UTC)),
    seconds=TIMES,
    ended=TEXTS,
    rss_start=COUNTERS,
    rss_end=COUNTERS,
    classes=lists_of(st.builds(ClassGrowth, TEXTS, SIZES, SIZES, SIZES)),
    vmas=lists_of(st.builds(VmaGrowth, VMAS, TEXTS, SIZES, SIZES, st.booleans())),
    stacks=lists_of(STACKS),
    ledger=lists_of(st.builds(LedgerRow, TEXTS, TEXTS, st.none() | TEXTS, SIZES)),
    probed=lists_of(TEXTS),
    sampling=st.builds(Sampling, st.integers(1, 1 << 30), st.booleans()),
    rate=st.none() | st.builds(Rate, st.floats(-1e12, 1e12), st.floats(0, 1e12)),
    rss_source=st.sampled_from(["rss-stat", "faults", "none"]),
    changes=lists_of(st.builds(RssMove, TEXTS, st.just("anon"), SIZES, SIZES)),
    changes_complete=st.booleans(),
    basis=st.sampled_from(["session", "looks"]),
    heap=st.none() | HEAPS,
    overhead=OVERHEADS,
    losses=st.dictionaries(TEXTS, st.integers(0, 1 << 62), max_size=3),
    notes=lists_of(TEXTS),
)


def read_back(report: Report, directory: Path) -> Report:
    path = write_recording(directory / "a.memtrace", leaking(3), report)
    with Recording(path) as recording:
        read = recording.report()
    assert read is not None
    return read


@given(report=REPORTS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_report_is_read_as_it_was_written(report: Report, tmp_path: Path) -> None:
    assert read_back(report, tmp_path) == report


def hostile_report() -> Report:
    bad = frame(HOSTILE, HOSTILE, (1 << 64) - 1, file=HOSTILE, line=7, build_id="ab")
    return sample_report(
        command=HOSTILE,
        stacks=(replace(STORE, frames=(bad, bad, *STORE.frames)), MAPPED, FAULTED),
        vmas=(VmaGrowth(vma(0xFFFFFFFFFF600000, 4096, b"/a\xff\n'"), HOSTILE, 1, 1),),
        notes=(HOSTILE,),
        losses={HOSTILE: 3},
    )


@pytest.mark.parametrize("report", [sample_report(), hostile_report()], ids=["sample", "hostile"])
def test_every_form_of_it_is_the_same(report: Report, tmp_path: Path) -> None:
    def forms(shown: Report) -> list[str | bytes]:
        text = io.StringIO()
        TextReport.from_report(shown, allocator_frames=True).render(text)
        made: list[str | bytes] = [text.getvalue()]
        for each in FORMATS.values():
            for part in (None, *each.parts) if each.writer else ():
                out: Any = io.BytesIO() if each.binary else io.StringIO()
                Choice(each, part).write(shown, out)
                made.append(out.getvalue())
        assert all(made) and len(made) > len(FORMATS)
        return made

    assert forms(read_back(report, tmp_path)) == forms(report)


def test_the_chart_has_the_course_of_the_session(tmp_path: Path) -> None:
    with Recording(finished(tmp_path / "a.memtrace", 30)) as recording:
        report = recording.report()
        assert report is not None
        timeline = timeline_of(recording, report)
    assert timeline is not None and timeline.has_course
    assert (timeline.seconds[0], timeline.seconds[-1]) == (0.0, report.seconds)
    assert timeline.rss[0] == report.rss_start.rss and timeline.rss[-1] == report.rss_end.rss
    looks = leaking(30)
    assert timeline.rss[1:-1] == tuple(look.rss.rss for look in looks)
    assert timeline.classes["heap"][1:-1] == tuple(look.snapshot.usages[0].rss for look in looks)
    assert timeline.classes["thread stack"][1:-1] == (None,) * 30, "a class that no look saw"


def test_what_a_later_version_adds_is_passed_over_and_what_it_lacks_has_its_default() -> None:
    plain = encode(LedgerRow("heap", "live", None, 5)) | {"certainty": 0.9}
    assert decode(LedgerRow, plain) == LedgerRow("heap", "live", None, 5)
    known = encode(STORE)
    del known["survival"], known["bytes_error"]
    assert decode(StackGrowth, known) == replace(STORE, survival=None, bytes_error=0)


def test_a_field_without_a_column_is_kept() -> None:
    from tracer.store.rows import row_of, values_of

    row = row_of(
        "report_ledger", {"rank": 1, "cause": "live", "bytes": 1, "unverified": 5, "vma_class": "a", "stack": None}
    )
    assert json.loads(str(row[-1])) == {"unverified": 5}
    assert values_of("report_ledger", row)["unverified"] == 5


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, "1"),
        (int, True),
        (int, 1.5),
        (int, 1 << 70),
        (float, "x"),
        (float, float("nan")),
        (float, float("inf")),
        (float, 1e300),
        (bool, 2),
        (str, 5),
        (str, "x" * (2 << 20)),
        (bytes, "\u20ac"),
        (bytes, 5),
        (datetime, "yesterday"),
        (datetime, "2026-02-03T14:03:22"),
        (datetime, "0001-01-01T00:00:00+00:00"),
        (tuple[int, ...], {"0": 1}),
        (tuple[int, int], [1]),
        (dict[str, int], []),
        (LedgerRow, []),
        (LedgerRow, {"vma_class": "heap"}),
        (int | None, "x"),
    ],
)
def test_what_is_not_of_its_type_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(DecodeError):
        decode(kind, value)
