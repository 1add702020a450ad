"""What ``memtrace maps`` prints, against golden text; MEMTRACE_UPDATE_GOLDEN=1 writes it anew, to be read."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.proc_files import Files, block, size_line, status
from tracer.errors import UsageError
from tracer.maps.columns import all_columns, find_column, most_columns
from tracer.maps.process import ProcessMaps, Thread, totals
from tracer.maps.read import Needs, Target, Unreadable, find_target, read_process
from tracer.maps.selection import Filter, groups, ordered, parse_range, parse_size
from tracer.maps.view import View
from tracer.model.coded import Coded
from tracer.procfs.smaps_fields import parse_fields
from tracer.report.maps_json import write_csv, write_json
from tracer.report.maps_text import Style, write_groups, write_maps
from tracer.report.safe import cells

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = b"/srv/\x1b]0;owned\x07[bold]\xe9\xff\\012next 12 kB"
LIB = b"/usr/lib/x86_64-linux-gnu/libcrypto.so.3"

SMAPS = b"".join(
    (
        block(0x55D0C0000000, 0x55D0C0010000, b"r-xp", b"/usr/sbin/server", 9, Rss=64, Pss=64, Private_Clean=64),
        block(0x55D0C1000000, 0x55D0C5000000, b"rw-p", b"[heap]", Rss=65536, Pss=65536, Private_Dirty=65536, Swap=128),
        block(0x7F1000000000, 0x7F1000400000, b"r-xp", LIB, 5, Rss=2048, Pss=170, Shared_Clean=2048),
        block(0x7F1000400000, 0x7F1000420000, b"rw-p", LIB, 5, Rss=128, Pss=90, Private_Dirty=64, Shared_Dirty=64),
        block(0x7F1001000000, 0x7F1001800000, b"rw-p", b"", Rss=16, Pss=16, Private_Dirty=16, flags=b"rd wr nh "),
        block(0x7F1002000000, 0x7F1002010000, b"rw-s", b"/SYSV00000000 (deleted)", 32770, Rss=64, Pss=32),
        block(0x7F1003000000, 0x7F1003010000, b"r--p", HOSTILE, 6, extra=size_line("Novelty", 7)),
        block(0x7FFCB0000000, 0x7FFCB0021000, b"rw-p", b"[stack]", Rss=24, Pss=24, Private_Dirty=24),
        block(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000, b"--xp", b"[vsyscall]"),
    )
)
CLASSES = ("file", "heap", "file", "file", "thread stack", "shared memory", "file", "stack", "kernel")


def sample(smaps: bytes = SMAPS, **changes: Any) -> ProcessMaps:
    files: dict[str, bytes | None] = {
        "status": status(size=1, rss=1),
        "smaps": smaps,
        "cmdline": b"server\0--port\x0080\0",
    }
    source = Files({4711: files})
    target = find_target(source, 4711)
    assert isinstance(target, Target)
    process = read_process(source, target, Needs())
    assert isinstance(process, ProcessMaps)
    if smaps is SMAPS:  # what is printed does not depend on how well memory is told apart
        changes.setdefault("classes", Coded.of(CLASSES))
    return replace(process, threads={0x7F1001000000: (Thread(4713, "worker-1"),)}, **changes)


def rollup_of(process: ProcessMaps, **more: int) -> dict[str, int]:
    return {name: size + more.get(name, 0) for name, size in process.table.sums().items()}


def text(process: ProcessMaps, width: int | None, view: View = View(), encoding: str = "utf-8", **style: Any) -> str:  # noqa: B008
    """The table as it arrives in a file of that encoding; what cannot be encoded is an error."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    style.setdefault("usual", view.layout == "usual" and view.columns is None)
    chosen = Style(width=width, ascii_only=encoding == "ascii", **style)
    process = view.select(process)
    columns = view.columns_for(process)
    if view.by:
        write_groups(process, view.by, groups(process, view.by), columns, chosen, file)
    else:
        write_maps(process, columns, chosen, file)
    file.flush()
    return raw.getvalue().decode(encoding)


def assert_golden(out: str, name: str) -> None:
    path = GOLDEN / name
    if os.environ.get("MEMTRACE_UPDATE_GOLDEN"):
        path.write_text(out, encoding="utf-8")
    assert out == path.read_text(encoding="utf-8")


def exact() -> ProcessMaps:
    process = sample()
    return replace(process, rollup=rollup_of(process, Pss=2048))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_golden(width: int) -> None:
    out = text(exact(), width)
    assert max(map(cells, out.splitlines())) <= width
    assert_golden(out, f"maps_{width}.txt")


def test_golden_into_a_pipe_cuts_nothing() -> None:
    out = text(exact(), None)
    assert LIB.decode() in out and "…" not in out
    assert_golden(out, "maps_pipe.txt")


def test_golden_in_ascii() -> None:
    assert_golden(text(exact(), 60, encoding="ascii"), "maps_ascii_60.txt")


@pytest.mark.parametrize("by", ["class", "library", "perms"])
def test_golden_of_groups(by: Any) -> None:
    out = text(exact(), 80, View(by=by))
    assert max(map(cells, out.splitlines())) <= 80
    assert_golden(out, f"maps_by_{by}_80.txt")


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("x", View(layout="extended")),
        ("d", View(layout="device")),
        ("X", View(layout="most")),
        ("XX", View(layout="all", flags=True)),
        ("columns", View(columns=("start", "RSS", "swap+pss", "uss", "thpeligible", "novelty", "mapping"))),
    ],
)
def test_golden_of_layouts(name: str, view: View) -> None:
    out = text(exact(), 80, view, device_totals=name == "d", explain_flags=view.flags)
    assert_golden(out, f"maps_layout_{name}.txt")


def test_numbers_and_titles_are_never_cut() -> None:
    wide = block(0x1000, 0x1000 + (1 << 46), b"rw-p", b"/x" * 200, 1, Rss=123456789012, Swap=98765432109)
    out = text(sample(wide), 40)
    for number in (str(1 << 36), "123456789012", "98765432109"):
        assert number in out or "no room for swap" in " ".join(out.split())
    assert "123456789012" in out


def test_nothing_foreign_acts_on_the_terminal() -> None:
    out = text(sample(command="\x1b[2Jevil\udcff"), 200)
    assert all(line.isprintable() for line in out.splitlines())
    assert "\\x1b]0;owned\\x07[bold]" in out and "\\xff" in out and "\\012next 12 kB" in out


def test_bare_rows() -> None:
    out = text(exact(), None, bare=True)
    assert len(out.splitlines()) == 9 and out.startswith("    55d0c0000000")


@pytest.mark.parametrize(
    ("unit", "expected"), [("B", "67108864"), ("KiB", "65536"), ("MiB", "64.0"), ("GiB", "0.1"), ("auto", "64.0 MiB")]
)
def test_units(unit: Any, expected: str) -> None:
    (heap,) = [line for line in text(exact(), None, unit=unit).splitlines() if "[heap]" in line]
    assert expected in heap


def test_totals_are_exact_where_the_rollup_is_of_the_same_moment() -> None:
    process = sample()
    sums = totals(replace(process, rollup=rollup_of(process, Pss=4096)))
    assert sums.exact["Pss"] == sums.sums["Pss"] + 4096 and sums.rounded == {"Pss": sums.sums["Pss"]}
    assert not sums.moved


@pytest.mark.parametrize("more", [{"Rss": 4096, "Private_Dirty": 4096}, {"Pss": -1024}, {"Pss": 1 << 20}])
def test_a_rollup_of_another_moment_is_not_used(more: dict[str, int]) -> None:
    process = sample()
    process = replace(process, rollup=rollup_of(process, **more))
    sums = totals(process)
    assert sums.moved and sums.exact == sums.sums
    assert "moved on" in text(process, None)


def test_totals_of_a_part_are_sums() -> None:
    part = Filter(perms="rw-p").apply(exact())
    assert totals(part).rounded == {} and "5 of 9 VMAs shown" not in text(exact(), None)
    assert "4 of 9 VMAs shown" in text(part, None)


def test_page_sizes_are_never_summed() -> None:
    process = exact()
    columns = all_columns(process)
    summed = {column.name for column in columns if column.summable}
    assert not {"kernelpagesize", "mmupagesize", "thpeligible", "vmflags"} & summed
    assert {"novelty", "rss", "ksm"} <= summed
    assert "kernelpagesize" not in {column.name for column in most_columns(process)}


def test_a_torn_reading_is_said() -> None:
    assert "torn: the process changed its mappings" in " ".join(text(sample(torn=True), 80).split())


def decoded(processes: Sequence[ProcessMaps], unreadable: Sequence[Unreadable] = (), **options: Any) -> Any:
    file = io.StringIO()
    write_json([(process, None, ()) for process in processes], unreadable, file, **options)
    return json.loads(file.getvalue())


def test_json_has_every_field_in_bytes() -> None:
    found = decoded([exact()], [Unreadable(9, "gone", "it is gone")])
    assert found["schema"] == "memtrace-maps/1"
    assert found["unreadable"] == [{"pid": 9, "why": "gone", "text": "it is gone"}]
    (process,) = found["processes"]
    assert (process["pid"], process["command"], process["source"]) == (4711, "server --port 80", "smaps")
    heap = process["vmas"][1]
    assert (heap["start"], heap["end"], heap["perms"]) == ("55d0c1000000", "55d0c5000000", "rw-p")
    assert (heap["path"], heap["class"], heap["size"], heap["rss"]) == ("[heap]", "heap", 64 << 20, 64 << 20)
    assert (heap["swap"], heap["private_dirty_swap"], heap["uss"]) == (128 << 10, 65664 << 10, 64 << 20)
    assert heap["vmflags"] == ["rd", "wr", "mr", "mw", "me", "ac"] and heap["thpeligible"] == 0
    assert heap["kernelpagesize"] == 4096 and heap["novelty"] is None
    expected = parse_fields(SMAPS.split(b"VmFlags")[0])
    assert {name.lower() for name in (*expected.sizes, *expected.others)} <= set(heap)
    assert process["vmas"][4]["threads"] == [{"tid": 4713, "name": "worker-1"}]
    assert process["vmas"][6]["path"] == HOSTILE.decode("utf-8", "backslashreplace")
    assert process["vmas"][6]["novelty"] == 7 << 10


def test_json_totals() -> None:
    (process,) = decoded([exact()])["processes"]
    sums = process["totals"]
    for field in ("size", "rss", "swap", "uss", "shared_clean", "private_dirty"):
        assert sums[field] == sum(row[field] for row in process["vmas"]), field
    assert sums["pss"] == process["rollup"]["pss"] == sums["rounded"]["pss"] + 2048
    assert sums["vmas"] == len(process["vmas"]) == process["vma_count"] == 9
    assert not {"kernelpagesize", "mmupagesize", "thpeligible"} & set(sums)


def test_json_spells_out_flags_on_request() -> None:
    (process,) = decoded([exact()], flags=True)["processes"]
    assert process["vmas"][4]["vmflags_text"] == [
        *("readable", "writable", "no huge pages advised (thread stacks have it)"),
    ]


def test_json_of_groups() -> None:
    process = exact()
    file = io.StringIO()
    write_json([(process, "class", groups(process, "class"))], (), file)
    (found,) = json.loads(file.getvalue())["processes"]
    assert found["by"] == "class"
    assert {group["name"]: group["vmas"] for group in found["groups"]}["file"] == 4
    assert sum(group["rss"] for group in found["groups"]) == found["totals"]["rss"]


def test_a_field_with_the_name_of_a_column_keeps_apart() -> None:
    odd = block(0x1000, 0x2000, extra=size_line("Path", 7) + size_line("Uss", 8), Rss=4)
    ((row,),) = [process["vmas"] for process in decoded([sample(odd)])["processes"]]
    assert (row["path"], row["smaps_path"], row["smaps_uss"], row["uss"]) == ("", 7 << 10, 8 << 10, 0)


def test_csv_has_everything_in_bytes() -> None:
    file = io.StringIO()
    write_csv([exact(), exact()], None, file)
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert len(rows) == 18 and rows[1]["rss"] == str(64 << 20) and rows[1]["address"] == "55d0c1000000"
    assert rows[4]["threads"] == "4713 worker-1" and rows[4]["vmflags"] == "rd wr nh"
    assert rows[6]["novelty"] == "7168" and rows[5]["novelty"] == ""
    assert all(line.isprintable() for line in file.getvalue().splitlines())


def test_csv_of_chosen_columns() -> None:
    file = io.StringIO()
    write_csv([exact()], ["path", "pss"], file, header=False)
    assert file.getvalue().splitlines()[1] == "[heap],67108864"


def test_filters() -> None:
    process = exact()

    def kept(**options: Any) -> list[int]:
        return list(Filter(**options).apply(process).table.starts)

    assert kept(classes=("heap", "stack")) == [0x55D0C1000000, 0x7FFCB0000000]
    assert kept(path=re.compile("crypto")) == [0x7F1000000000, 0x7F1000400000]
    assert kept(perms="x") == [0x55D0C0000000, 0x7F1000000000, 0xFFFFFFFFFF600000]
    assert kept(perms="rw?s") == [0x7F1002000000]
    assert kept(min_size=64 << 20) == [0x55D0C1000000]
    assert kept(min_rss=2 << 20) == [0x55D0C1000000, 0x7F1000000000]
    assert kept(low=0x7F1000410000, high=0x7F1001000000) == [0x7F1000400000, 0x7F1001000000]
    assert kept(perms="w", min_rss=1 << 20, path=re.compile("heap")) == [0x55D0C1000000]


def test_sorting() -> None:
    process = exact()

    def order(sort: str | None, **options: Any) -> list[object]:
        chosen = ordered(process, sort, **{"reverse": False, "top": None, **options})
        return [chosen.table.starts[row] for row in range(len(chosen.table))]

    assert order("rss", top=2) == [0x55D0C1000000, 0x7F1000000000]
    assert order("rss", reverse=True, top=2) == [0x7F1003000000, 0xFFFFFFFFFF600000]
    assert order("address", reverse=True)[0] == 0xFFFFFFFFFF600000
    assert order(None, reverse=True)[0] == 0xFFFFFFFFFF600000
    assert order("path", top=3)[0] == 0x7F1001000000  # without a name
    assert order("novelty", top=1) == [0x7F1003000000]
    with pytest.raises(UsageError, match="no column 'rsss'"):
        order("rsss")


def test_column_names() -> None:
    process = exact()
    assert find_column("Private_Dirty", process) == find_column("privatedirty", process)
    assert find_column("KBYTES").name == "size" and find_column("swap-pss", process).name == "swappss"
    with pytest.raises(UsageError, match="there is no column"):
        find_column("", process)


@pytest.mark.parametrize(
    ("word", "size"),
    [("0", 0), ("4096", 4096), ("64K", 65536), ("1.5M", 3 << 19), ("2GiB", 2 << 30), ("1 tb", 1 << 40)],
)
def test_sizes(word: str, size: int) -> None:
    assert parse_size(word) == size


@pytest.mark.parametrize("word", ["", "K", "-1", "1X", "1e9", "nan", "9" * 5000])
def test_what_is_no_size(word: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(word)


def test_ranges() -> None:
    assert parse_range("7f00,7fff") == (0x7F00, 0x7FFF)
    assert parse_range("0x7f00") == (0x7F00, 0x7F00)
    for word in ("", "x", "2,1", ",", "1" * 20):
        with pytest.raises(ValueError, match="range"):
            parse_range(word)


@pytest.mark.parametrize(
    ("view", "smaps", "classes", "rollup"),
    [
        (View(), True, True, True),
        (View(layout="device"), False, False, False),
        (View(layout="extended"), True, True, False),
        (View(columns=("address", "size", "path")), False, False, False),
        (View(columns=("address", "class")), False, True, False),
        (View(columns=("address", "pss")), True, True, True),
        (View(columns=("size",), sort="swap"), True, True, False),
        (View(columns=("size",), filter=Filter(min_rss=1)), True, True, False),
        (View(columns=("size",), filter=Filter(classes=("heap",))), False, True, False),
        (View(form="json", columns=("size",)), True, True, True),
    ],
)
def test_only_what_is_shown_is_read(view: View, smaps: bool, classes: bool, rollup: bool) -> None:
    assert view.needs() == Needs(smaps, classes, rollup)


def test_an_unknown_kind_of_column_is_coded_once() -> None:
    column = Coded.of(["a", "b", "a"])
    assert column.expand() == ["a", "b", "a"] and list(column.values) == ["a", "b"] and column[2] == "a"
    assert column.map(str.upper).expand() == ["A", "B", "A"] and len(column) == 3
    assert Coded([0], ["a", "b"]).used() == {"a"}
