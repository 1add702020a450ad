from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given, settings

from tests.unit.hostile import NAMES, reports
from tests.unit.reports import STORE, frame, sample_report, stack, vma
from tracer.model.report import Report, VmaGrowth
from tracer.report.tables import TABLES, Table, inert, write_csv

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def written(report: Report, table: Table) -> str:
    file = io.StringIO()
    write_csv(report, file, table)
    return file.getvalue()


def rows(report: Report, table: Table) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(written(report, table)), strict=True))


def test_classes() -> None:
    assert written(sample_report(), "classes").splitlines() == [
        "class,rss_start,rss_end,growth,size_growth",
        "heap,83886080,145040384,61154304,61865984",
        "anonymous,33427456,35000320,1572864,2097152",
        "file,11956224,12775424,819200,0",
        "thread stack,122880,126976,4096,0",
        "kernel,4096,4096,0,0",
    ]


def test_ledger_sums_to_the_growth() -> None:
    report = sample_report()
    assert sum(int(row["bytes"]) for row in rows(report, "ledger")) == sum(row.bytes for row in report.ledger)
    assert rows(report, "ledger")[1] == {"class": "heap", "cause": "kept-by-allocator", "stack": "", "bytes": "1991680"}


def test_stacks() -> None:
    first = rows(sample_report(), "stacks")[0]
    assert (first["id"], first["bytes"], first["culprit"]) == (STORE.id, str(STORE.bytes), "store_attributes")
    assert first["frames"].startswith("_talloc_memdup < store_attributes < ")


def test_vmas() -> None:
    first, *_, last = rows(sample_report(), "vmas")
    assert (first["start"], first["size"], first["path"]) == ("55d0c0a00000", str(140 << 20), "[heap]")
    assert (last["perms"], last["path"], last["gone"]) == ("--xp", "[vsyscall]", "0")


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_a_formula(name: str) -> None:
    report = sample_report(
        stacks=(stack("1" * 16, 320, vma_class=name, frames=(frame(name),)),),
        vmas=(VmaGrowth(vma(0x1000, 4096, name.encode("utf-8", "surrogateescape")), name, 0, 0),),
    )
    for table, columns in (("stacks", ("class", "culprit", "frames")), ("vmas", ("class", "path"))):
        for row in rows(report, table):  # type: ignore[arg-type]
            assert not any(row[column].lstrip().startswith(FORMULA) for column in columns)


def test_harmless_text_stays_as_it_is() -> None:
    assert [inert(text) for text in ("main", "[heap]", "a=b", "x-1", "")] == ["main", "[heap]", "a=b", "x-1", ""]


@settings(deadline=None, max_examples=100)
@given(reports())
def test_any_report_is_a_table(report: Report) -> None:
    for table in TABLES:
        text = written(report, table)
        read = rows(report, table)
        assert len(text.splitlines()) == len(read) + 1, "one row, one line"
        assert all(None not in row and None not in row.values() for row in read)
        assert all(line.isprintable() for line in text.splitlines())
