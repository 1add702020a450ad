from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.reports import MAPPED, MIB, STARTED, STORE, frame, sample_report, stack, vma
from tracer.model.report import Report, VmaGrowth
from tracer.report.json import to_json, write_json

# DESIGN.md, section 7: these names are fixed.
CONTRACT = {
    "": "schema pid command verdict window rss classes vmas stacks ledger unexplained sampling overhead losses notes",
    "verdict": "kind text",
    "window": "start seconds",
    "rss": "start end growth anon file shmem swap",
    "classes": "class rss_start rss_end growth size_growth",
    "vmas": "start end perms path class rss growth",
    "stacks": "id kind bytes count bytes_error allocated_bytes freed_bytes rate oldest class complete frames",
    "ledger": "class cause stack bytes",
    "sampling": "interval exact",
    "overhead": "target_share self_cpu self_rss",
}
FRAME = "function module offset build_id file line inlined language"


def parsed(report: Report) -> dict[str, Any]:
    """The report as a reader of the file gets it."""
    file = io.StringIO()
    write_json(report, file)
    text = file.getvalue()
    assert text.count("\n") == 1, "one report, one line"
    assert text.endswith("\n")
    document: dict[str, Any] = json.loads(text)
    return document


@pytest.mark.parametrize("part", CONTRACT)
def test_contract_names(part: str) -> None:
    document = parsed(sample_report())
    value = document[part] if part else document
    for each in value if isinstance(value, list) else [value]:
        assert set(CONTRACT[part].split()) <= set(each)


def test_frames_hold_the_contract_names() -> None:
    for each in parsed(sample_report())["stacks"]:
        for one in each["frames"]:
            assert set(FRAME.split()) <= set(one)


def test_values() -> None:
    document = parsed(sample_report())
    assert document["schema"] == "memtrace/1"
    assert document["window"] == {"start": STARTED.isoformat(), "seconds": 30.04, "ended": "Ctrl-C"}
    assert document["rss"]["growth"] == document["rss"]["anon"] + document["rss"]["file"] + document["rss"]["shmem"]
    assert document["rss"]["end"] - document["rss"]["start"] == document["rss"]["growth"]
    assert document["vmas"][0]["start"] == "55d0c0a00000"
    assert document["vmas"][-1]["start"] == "ffffffffff600000"
    assert document["vmas"][-2]["gone"] is True
    assert document["stacks"][0]["frames"][0]["function"] == "_talloc_memdup"
    assert document["stacks"][1]["complete"] is False


def test_the_ledger_sums_to_the_growth_of_rss() -> None:
    document = parsed(sample_report())
    assert sum(row["bytes"] for row in document["ledger"]) == document["rss"]["growth"]
    assert document["unexplained"] == 288 * 1024


def test_stacks_are_complete_and_sorted_by_bytes() -> None:
    freed = stack("0" * 16, 0)
    document = parsed(sample_report(stacks=(freed, MAPPED, STORE)))
    assert [each["id"] for each in document["stacks"]] == [STORE.id, MAPPED.id, freed.id]


def test_text_that_is_no_unicode_is_escaped() -> None:
    weird = b"/tmp/\xff\n\xc3\xa9"
    report = sample_report(
        command=weird.decode("utf-8", "surrogateescape"),
        vmas=(VmaGrowth(vma(0x1000, MIB, weird), "file", 0, 0),),
        stacks=(replace(STORE, frames=(frame("lone\ud800", "/x\udcfe"),)),),
        losses={"bad\udc80": 1},
    )
    document = parsed(report)
    json.dumps(document, ensure_ascii=False).encode("utf-8")
    assert document["command"] == document["vmas"][0]["path"] == "/tmp/\\xff\n\u00e9"
    assert document["stacks"][0]["frames"][0]["function"] == "lone\\ud800"
    assert document["stacks"][0]["frames"][0]["module"] == "/x\\xfe"
    assert document["losses"] == {"bad\\x80": 1}


def test_a_number_that_json_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(sample_report(seconds=float("nan")), io.StringIO())


def test_what_was_not_measured_is_null() -> None:
    report = sample_report()
    unmeasured = replace(report, overhead=replace(report.overhead, target_share=None))
    assert to_json(unmeasured)["overhead"]["target_share"] is None
