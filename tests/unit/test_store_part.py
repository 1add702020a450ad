"""Reports from looks: of part of a recording, and of one that has no end."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.unit.recordings import CACHE, FRAMES, LEAK, LOG, finished, leaking, write_recording
from tests.unit.reports import KIB, MIB, STARTED, sample_report
from tracer.errors import RecordingError, UsageError
from tracer.model.report import Report, Sampling
from tracer.model.selfcheck import discrepancy
from tracer.report.json import to_json
from tracer.report.text import TextReport
from tracer.store.moments import parse_moment
from tracer.store.part import report_of_recording
from tracer.store.recording import Recording


def part(path: Path, begin: float | None = None, end: float | None = None) -> Report:
    with Recording(path) as recording:
        return report_of_recording(recording, begin, end)


def by_stack(report: Report) -> dict[str, int]:
    return {stack.id: stack.bytes for stack in report.stacks}


# A recording without an end.


def test_without_an_end_the_looks_name_the_leak(tmp_path: Path) -> None:
    report = part(write_recording(tmp_path / "a.memtrace", leaking(30)))
    leak = report.stacks[0]
    assert (leak.id, leak.bytes, leak.count, leak.trend) == (f"{LEAK:016x}", 30 * MIB, 2996, "growing")
    assert (leak.allocated_count, leak.freed_count, leak.rate) == (3000, 4, MIB)
    assert leak.frames == FRAMES[LEAK]
    cache = report.stacks[1]
    assert (cache.bytes, cache.trend) == (2 * MIB, "levelled-off")
    assert report.stacks[2].kind == "mmap" and report.stacks[2].bytes == 120 * KIB
    assert report.verdict.kind == "leak" and "a recording without an end" in report.verdict.text
    assert "ends here" in report.ended and report.basis == "looks"
    assert (report.rss_start.rss, report.rss_end.rss) == (9 * MIB, 41 * MIB)
    assert report.rate is not None and report.rate.mean == pytest.approx(32 * MIB / 30)
    assert any("worked out only at the end" in note for note in report.notes)
    assert report.overhead.self_cpu == pytest.approx(0.3) and report.overhead.probe_hits == 3000


def test_it_says_how_it_was_traced(tmp_path: Path) -> None:
    looks = [replace(each, sampling=Sampling(32 * KIB, False), rss_source="faults") for each in leaking(10)]
    report = part(write_recording(tmp_path / "a.memtrace", looks))
    assert (report.sampling, report.rss_source) == (Sampling(32 * KIB, False), "faults")
    out = io.StringIO()
    TextReport.from_report(report).render(out)
    assert "sampled every 32.0 KiB" in out.getvalue()


def test_its_books_close(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a.memtrace", leaking(30))
    for begin, end in ((None, None), (3.0, 20.0)):
        report = part(path, begin, end)
        assert discrepancy(report) is None
        assert sum(row.bytes for row in report.ledger) == report.growth
        assert {row.cause for row in report.ledger} == {"not-reconciled"}


def test_stacks_whose_frames_were_not_read_are_told(tmp_path: Path) -> None:
    report = part(write_recording(tmp_path / "a.memtrace", leaking(30), named=(LEAK,)))
    assert [len(stack.frames) for stack in report.stacks] == [4, 0, 0]
    assert any(note.startswith("the frames of 2 stacks") for note in report.notes)
    out = io.StringIO()
    TextReport.from_report(report).render(out)
    assert "store_attributes" in out.getvalue()


# A part.


def test_a_part_has_the_differences(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.memtrace", 30)
    report = part(path, 10, 20)
    assert (report.seconds, report.started) == (10.0, STARTED + timedelta(seconds=10))
    assert by_stack(report)[f"{LEAK:016x}"] == 10 * MIB
    assert by_stack(report)[f"{CACHE:016x}"] == 0, "it was full by then"
    assert report.growth == 10 * MIB
    classes = {row.name: row.growth for row in report.classes}
    assert classes == {"heap": 10 * MIB, "file": 0, "kernel": 0}
    assert {row.vma.path: row.growth for row in report.vmas}[b"[heap]"] == 10 * MIB
    assert "10.0 s to 20.0 s of a recording" in report.verdict.text and "end of the part" in report.ended


def test_the_parts_make_up_the_whole(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a.memtrace", leaking(30))
    whole = by_stack(part(path))
    first, second = by_stack(part(path, None, 13)), by_stack(part(path, 13, None))
    assert {stack: first.get(stack, 0) + second.get(stack, 0) for stack in whole} == whole


def test_a_part_knows_what_the_end_knew(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.memtrace", 30)
    with Recording(path) as recording:
        report, whole = report_of_recording(recording, 5, 10), recording.report()
    assert whole is not None and report.probed == whole.probed
    assert to_json(report)["basis"] == "looks" and to_json(whole)["basis"] == "session"


def test_the_nearest_looks_are_taken(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.memtrace", 30)
    assert part(path, 9.6, 20.4).seconds == 10
    assert part(path, None, 500).seconds == 30 and part(path, -100, 5).seconds == 5


@pytest.mark.parametrize(("begin", "end"), [(31, None), (10, 10.2), (20, 10), (None, -1), (None, 0)])
def test_a_part_without_two_looks_is_refused(tmp_path: Path, begin: float | None, end: float | None) -> None:
    with pytest.raises(UsageError) as refusal:
        part(finished(tmp_path / "a.memtrace", 30), begin, end)
    assert refusal.value.fix == "it lasts from 0 s to 30.0 s, with a look each 1.0 s"


def test_a_mapping_that_was_given_back_counts_as_shrunk(tmp_path: Path) -> None:
    looks = leaking(10)
    looks[7:] = [
        type(each)(**{name: getattr(each, name) for name in each.__slots__} | {"mapped": {}}) for each in looks[7:]
    ]
    report = part(write_recording(tmp_path / "a.memtrace", looks), 5, 10)
    assert by_stack(report)[f"{LOG:016x}"] == -20 * KIB
    out = io.StringIO()
    TextReport.from_report(report).render(out)
    assert "log_rotate" not in out.getvalue()


# Moments.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("1.5min", 90),
        ("2m", 120),
        ("1h", 3600),
        ("500ms", 0.5),
        ("-30s", 270),
        ("-1min", 240),
        ("+5", 5),
        ("50%", 150),
        ("14:03:22", -0.118),
        ("14:03:23.118", 1),
        ("14:05", 97.882),
        ("00:10", 36_397.882),
    ],
)
def test_moments(text: str, seconds: float) -> None:
    assert parse_moment(text, STARTED, 300.0) == pytest.approx(seconds)


def test_a_time_of_day_is_that_of_the_recorded_machine() -> None:
    started = datetime(2026, 2, 3, 23, 59, 58, tzinfo=timezone(timedelta(hours=5)))
    assert parse_moment("23:59:59", started, 60.0) == 1.0
    assert parse_moment("00:00:08", started, 60.0) == 10.0
    assert parse_moment("00:00:08", started.astimezone(UTC), 60.0) != 10.0


@pytest.mark.parametrize(
    "text", ["", "x", "1:2:3:4", "25:00", "10:61", "1e9", "nan", "--5", "5 s s", "9" * 20, "\u0663", "-%"]
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(UsageError, match="no "):
        parse_moment(text, STARTED, 300.0)


def test_nothing_was_recorded(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a.memtrace", [])
    assert part(path).growth == 0
    with pytest.raises(UsageError):
        part(path, 0, 1)
    with pytest.raises(RecordingError):
        part(tmp_path / "none")


def test_the_whole_is_not_made_of_looks(tmp_path: Path) -> None:
    assert part(finished(tmp_path / "a.memtrace", 30)) == sample_report()
