from __future__ import annotations

import io
from collections import Counter

import pytest
from hypothesis import given, settings

from tests.unit.hostile import reports
from tests.unit.reports import MAPPED, STORE, frame, sample_report, stack
from tracer.model.report import LedgerRow, Report
from tracer.report.folded import write_folded
from tracer.report.samples import METRICS, Metric, samples


def written(report: Report, metric: Metric = "inuse_space") -> list[str]:
    file = io.StringIO()
    write_folded(report, file, metric)
    text = file.getvalue()
    assert not text or text.endswith("\n")
    return text.split("\n")[:-1]


def test_golden() -> None:
    leak = stack(
        "1" * 16, 640, frames=(frame("malloc"), frame("leak"), frame(None, "/usr/bin/app", 0xA1F0), frame("main"))
    )
    assert written(sample_report(stacks=(leak, MAPPED), ledger=())) == [
        "libldb.so.2.6.2+0x7c3a;__mmap 2097152",
        "main;app+0xa1f0;leak;malloc 640",
    ]


def test_stacks_that_look_alike_are_one_line() -> None:
    alike = [stack(f"{i:016x}", 320 * (i + 1), frames=(frame("f", offset=i), frame("main"))) for i in range(3)]
    assert written(sample_report(stacks=tuple(alike), ledger=())) == ["main;f 1920"]


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("inuse_space", STORE.bytes),
        ("inuse_objects", STORE.count),
        ("alloc_space", STORE.allocated_bytes),
        ("alloc_objects", STORE.allocated_count),
        ("rss_growth", 4096),
    ],
)
def test_metrics(metric: Metric, value: int) -> None:
    report = sample_report(stacks=(STORE,), ledger=(LedgerRow("heap", "live", STORE.id, 4096),))
    assert [int(line.rpartition(" ")[2]) for line in written(report, metric)] == [value]


def test_what_shrank_is_left_out() -> None:
    lines = written(sample_report(), "rss_growth")
    assert not any("released" in line for line in lines)
    assert "[heap];[kept-by-allocator] 1991680" in lines


@settings(deadline=None, max_examples=150)
@given(reports())
def test_any_report_can_be_read_back(report: Report) -> None:
    """As flamegraph.pl and inferno do: the value is behind the last blank, frames are between semicolons."""
    for index, metric in enumerate(METRICS):
        sums: Counter[int] = Counter()
        for line in written(report, metric):
            names, value = line.rsplit(" ", 1)
            assert line.isprintable() and not line.startswith("#") and int(value) > 0
            assert all(name and name == name.strip() for name in names.split(";"))
            sums[len(names.split(";"))] += int(value)
        if metric != "rss_growth":
            expected: Counter[int] = Counter()
            for sample in samples(report):
                expected[max(1, len(sample.frames))] += sample.values[index]
            assert sums == expected
