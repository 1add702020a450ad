"""Profiles, read back by the protobuf library and by `go tool pprof`."""

from __future__ import annotations

import io
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools import need_tool
from tests.unit.hostile import NAMES, reports
from tests.unit.profile_proto import Profile
from tests.unit.reports import LIBC, MAPPED, MIB, STARTED, STORE, frame, sample_report, stack, vma
from tracer.model.report import Report, Sampling, VmaGrowth
from tracer.report.pprof import to_pprof, write_pprof
from tracer.report.protobuf import integer, integers, message, varint
from tracer.report.samples import METRICS, name_of, samples


def read(report: Report) -> Profile:
    file = io.BytesIO()
    write_pprof(report, file)
    return Profile(file.getvalue())


@given(st.integers(-(1 << 63), (1 << 64) - 1))
def test_varint(value: int) -> None:
    encoded = varint(value)
    assert sum((byte & 0x7F) << 7 * i for i, byte in enumerate(encoded)) == value % (1 << 64)
    assert [byte >> 7 for byte in encoded] == [1] * (len(encoded) - 1) + [0] and len(encoded) <= 10


def test_fields() -> None:
    assert integer(3, 0) == b"" and integer(3, 150) == b"\x18\x96\x01"
    assert integers(4, []) == b"" and integers(4, [3, 270, 86942]) == b"\x22\x06\x03\x8e\x02\x9e\xa7\x05"
    assert message(2, b"testing") == b"\x12\x07testing" and message(2, b"") == b"\x12\x00"


@settings(deadline=None, max_examples=150)
@given(reports())
def test_any_report(report: Report) -> None:
    """Every sample arrives with its stack, figures and labels, whatever the names are; and is inert."""
    profile = read(report)
    assert profile.types == list(METRICS)
    expected = [each for each in samples(report) if any(each.values)]
    for sample, (frames, values, labels) in zip(expected, profile.samples(), strict=True):
        assert [name for name, _, _ in frames] == [name_of(each) for each in sample.frames]
        assert [line for _, _, line in frames] == [each.line or 0 for each in sample.frames]
        assert values == list(sample.values)
        assert labels.keys() <= {"kind", "class"}
    assert all(text.isprintable() for text in profile.strings)
    assert profile.total("rss_growth") == sum(row.bytes for row in report.ledger)
    assert profile.total("inuse_space") == sum(each.bytes for each in report.stacks)


@settings(deadline=None, max_examples=20)
@given(reports())
def test_the_same_report_gives_the_same_bytes(report: Report) -> None:
    assert to_pprof(report) == to_pprof(replace(report))


def test_growth_of_rss_is_the_sum_of_the_samples() -> None:
    report = sample_report()
    assert read(report).total("rss_growth") == sum(row.bytes for row in report.ledger)


def test_what_has_no_stack_is_named() -> None:
    named = {tuple(name for name, _, _ in frames): values[4] for frames, values, _ in read(sample_report()).samples()}
    assert named[("[released]", "[anonymous]")] == -MIB // 2
    assert named[("[kept-by-allocator]", "[heap]")] > 0


def test_a_stack_in_two_classes_has_a_sample_for_each() -> None:
    from tracer.model.report import LedgerRow

    report = sample_report(
        stacks=(STORE,), ledger=(LedgerRow("heap", "live", STORE.id, 70), LedgerRow("anonymous", "live", STORE.id, 30))
    )
    found = [(labels["class"], values) for _, values, labels in read(report).samples()]
    assert found == [
        ("heap", [STORE.count, STORE.bytes, STORE.allocated_count, STORE.allocated_bytes, 70]),
        ("anonymous", [0, 0, 0, 0, 30]),
    ]


def test_inlined_functions_share_a_location_with_the_one_they_are_in() -> None:
    profile = read(sample_report(stacks=(STORE,), ledger=()))
    found = [[name for name, _, _ in profile.lines(each)] for each in profile.raw.location]
    assert ["dsdb_convert_object_ex", "dsdb_replicated_objects_convert"] in found
    assert profile.mappings[profile.locations[3].mapping_id].has_inline_frames


def test_mappings_are_those_of_the_process() -> None:
    code = vma(0x7F0000001000, MIB, LIBC.encode(), "r-xp")
    code = replace(code, offset=0x26000)
    executable = vma(0x55D0C0000000, MIB, b"/usr/sbin/samba", "r-xp")
    report = sample_report(
        vmas=tuple(VmaGrowth(each, "file", 0, 0) for each in (code, executable, replace(code, perms="r--p"))),
        stacks=(
            stack("1" * 16, 320, frames=(frame("f", LIBC, 0x27010, address=code.start + 0x10, build_id="c0ffee"),)),
            stack("2" * 16, 320, frames=(frame("g", "/gone.so", 0x99, address=0x7E0000000099),)),
            stack("3" * 16, 320, frames=(frame("jitted", "/tmp/perf-7.map", 0x77, address=0x7D0000000077),)),
        ),
        ledger=(),
    )
    profile = read(report)
    first, second, third = profile.raw.mapping
    assert profile.strings[first.filename] == "/usr/sbin/samba", "the executable comes first"
    assert (second.memory_start, second.memory_limit, second.file_offset) == (code.start, code.end, 0x26000)
    assert profile.strings[second.build_id] == "c0ffee" and second.has_functions and not second.has_filenames
    places = [(each.mapping_id, each.address) for each in profile.raw.location]
    assert places == [(second.id, code.start + 0x10), (third.id, 0x99), (0, 0x7D0000000077)]
    assert third.memory_start == 0 < 0x99 < third.memory_limit


def test_the_profile_as_a_whole() -> None:
    report = sample_report(
        sampling=Sampling(524288, exact=False), losses={"live_full": 3, "events_lost": 0}, notes=("look",)
    )
    profile = read(report)
    raw = profile.raw
    assert raw.time_nanos == int(STARTED.timestamp() * 1e6) * 1000 and raw.duration_nanos == 30_040_000_000
    assert profile.strings[raw.default_sample_type] == "inuse_space" and raw.period == 524288
    assert raw.default_sample_type == profile.types.index("inuse_space"), (
        "for readers that take it for the type's number"
    )
    assert profile.strings[raw.period_type.type] == "space"
    assert report.verdict.text in profile.comments
    assert "lost: 3 live_full" in profile.comments and "note: look" in profile.comments
    assert not any("events_lost" in text for text in profile.comments)


@pytest.mark.parametrize(
    "name",
    [
        "malloc",
        "__libc_calloc",
        "_int_malloc",
        "je_malloc",
        "mi_malloc",
        "__mmap",
        "operator new",
        "operator new[]",
        "libjemalloc.so.2+0x1f0",
    ],
)
def test_allocators_are_dropped(name: str) -> None:
    profile = read(sample_report())
    assert re.fullmatch(profile.strings[profile.raw.drop_frames], name)


@pytest.mark.parametrize(
    "name", ["mallocate", "my_malloc_user", "main", "std::vector::push_back", "newer", "libfoo.so+0x1"]
)
def test_others_are_not(name: str) -> None:
    profile = read(sample_report())
    assert not re.fullmatch(profile.strings[profile.raw.drop_frames], name)


def go_pprof(*arguments: str | Path) -> str:
    tool = need_tool("pprof")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=60, env={"HOME": "/nonexistent"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def written(tmp_path: Path) -> Path:
    report = sample_report(
        stacks=(*sample_report().stacks, stack("5" * 16, MIB, frames=(frame("malloc", LIBC), frame("leaker"))))
    )
    path = tmp_path / "a.pb.gz"
    path.write_bytes(to_pprof(report))
    return path


def test_go_pprof_names_the_callers_of_the_allocator(written: Path) -> None:
    rows = [line.split() for line in go_pprof("-top", "-unit=b", written).splitlines()]
    assert [row[0] for row in rows if row and row[-1] == "leaker"] == [f"{MIB}B"]
    assert not any(row[-1] == "malloc" for row in rows if row)


@pytest.mark.parametrize("metric", METRICS)
def test_go_pprof_reads_every_metric(written: Path, metric: str) -> None:
    assert f"Type: {metric}" in go_pprof("-top", f"-sample_index={metric}", written)


def test_go_pprof_traces(written: Path) -> None:
    text = go_pprof("-traces", written)
    assert "store_attributes" in text and "kind:" in text and "class:" in text


def test_go_pprof_compares_two(written: Path, tmp_path: Path) -> None:
    later = tmp_path / "b.pb.gz"
    later.write_bytes(to_pprof(sample_report(stacks=(replace(STORE, bytes=STORE.bytes + 7 * MIB), MAPPED))))
    rows = [line.split() for line in go_pprof("-top", "-unit=mb", f"-base={written}", later).splitlines()]
    # No address is known here, so that the stacks meet by function and file.
    assert [row[0] for row in rows if row and row[-1] == "_talloc_memdup"] == ["7MB"]
    assert [row[0] for row in rows if row and row[-1] == "leaker"] == ["-1MB"]


def test_go_pprof_takes_hostile_names(tmp_path: Path) -> None:
    report = sample_report(
        stacks=tuple(stack(f"{i:016x}", 320 * (i + 1), frames=(frame(name),)) for i, name in enumerate(NAMES))
    )
    path = tmp_path / "h.pb.gz"
    path.write_bytes(to_pprof(report))
    text = go_pprof("-top", path)
    assert "\x1b" not in text and "two\\nlines 17" in text
    assert "Total samples" in text
