"""Two sessions compared: what counts as the same stack, as a change, and how it is shown.

MEMTRACE_UPDATE_GOLDEN=1 writes the golden text anew, to be read before it is kept.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.recordings import LEAK, leaking, write_recording
from tests.unit.reports import KIB, LIBC, MIB, frame, sample_report, stack
from tracer.model.rates import Rate
from tracer.model.report import ClassGrowth, Frame, StackGrowth
from tracer.report.comparison import Change, Comparison, Measured, Speed, compare
from tracer.report.diff import DiffText, write_diff_json
from tracer.report.stack_keys import program_of, stack_name
from tracer.store.measure import measure
from tracer.store.recording import Recording

GOLDEN = Path(__file__).parent / "golden" / "diff_80.txt"
SERVER = "/srv/releases/41/server"


def of(*frames: Frame, identity: str = "1" * 16, size: int = MIB, **changes: Any) -> StackGrowth:
    return stack(identity, size, frames=frames, **changes)


def name(*frames: Frame, program: str = "server", **known: Any) -> tuple[str, ...]:
    return stack_name(of(*frames), program, **known)


# The same stack.


def test_addresses_paths_versions_and_lines_do_not_tell_stacks_apart() -> None:
    before = name(
        frame("malloc", LIBC, 0x99),
        frame("grow", "/usr/lib/libgrow.so.1.2.3", 0x10, function_offset=4, build_id="aa", file="g.c", line=3),
        frame("work.constprop.0", SERVER, 0x20),
        frame("main", SERVER, 0x30),
        frame("__libc_start_call_main", LIBC, 0x40),
        frame(None, LIBC, 0x41),
        frame("_start", SERVER, 0x50),
    )
    after = name(
        frame("__libc_malloc", "/opt/lib/libc-2.31.so", 0x11),
        frame("grow", "/opt/lib/libgrow.so.1.3", 0x77, function_offset=9, build_id="bb"),
        frame("work", "/srv/releases/42/server-new", 0x99),
        frame("main", "/srv/releases/42/server-new", 0x98),
        program="server-new",
    )
    assert before == after == ("malloc", "grow (libgrow.so)", "work ((program))", "main ((program))")


def test_what_tells_stacks_apart() -> None:
    one = name(frame("grow", "/usr/lib/libgrow.so.1"), frame("main", SERVER))
    assert one != name(frame("grow", "/usr/lib/libshrink.so.1"), frame("main", SERVER))
    assert one != name(frame("grow2", "/usr/lib/libgrow.so.1"), frame("main", SERVER))
    assert one != stack_name(of(frame("grow", "/usr/lib/libgrow.so.1"), frame("main", SERVER), kind="mmap"), "server")


def test_recursion_and_inlining_do_not_count() -> None:
    once = name(frame("walk", SERVER), frame("main", SERVER))
    assert once == name(*[frame("walk", SERVER, at) for at in range(5)], frame("main", SERVER))
    assert once == name(frame("visit", SERVER, inlined=True), frame("walk", SERVER), frame("main", SERVER))


def test_a_main_within_is_no_outermost_frame() -> None:
    assert (
        name(frame("f", SERVER), frame("main", SERVER), frame("run", "/usr/lib/libhost.so"))[-1] == "run (libhost.so)"
    )


def test_a_frame_without_a_name_is_told_by_its_offset_in_the_same_file_only() -> None:
    one, other = (
        frame(None, "/usr/lib/libx.so.1", 0x10, build_id="aa"),
        frame(None, "/usr/lib/libx.so.1", 0x20, build_id="aa"),
    )
    assert name(one) == name(other) == ("malloc", "libx.so+?")
    same = frozenset({"aa"})
    assert name(one, known_files=same) == ("malloc", "libx.so+0x10") != name(other, known_files=same)


def test_how_the_c_library_got_there_does_not_count() -> None:
    one = name(frame("mmap", LIBC), frame("log_rotate", SERVER), frame("main", SERVER))
    assert one == name(frame("__mmap64", LIBC), frame("log_rotate", SERVER), frame("main", SERVER))
    assert one == ("malloc", "log_rotate ((program))", "main ((program))")
    assert name(frame("__memcpy_avx512_unaligned_erms", LIBC), frame("f", SERVER)) == name(frame("f", SERVER))
    assert name(frame("getaddrinfo", LIBC)) == ("malloc", "getaddrinfo (libc.so)")


def test_rust_and_generated_code() -> None:
    assert name(frame("app::handle::h0123456789abcdef", SERVER)) == name(
        frame("app::handle::hfedcba9876543210", SERVER)
    )
    assert name(frame("LazyCompile:*f", "/tmp/perf-12.map")) == name(frame("LazyCompile:*f", "/tmp/perf-99.map"))


@pytest.mark.parametrize(("command", "program"), [("/a/b/server --x /y/z", "server"), ("", ""), ("server", "server")])
def test_the_program_is_told_by_the_command(command: str, program: str) -> None:
    assert program_of(command) == program


NAMES = st.text(st.characters(), max_size=12)


@given(st.lists(st.builds(frame, st.none() | NAMES, st.none() | NAMES, st.integers(0, 1 << 63)), max_size=6), NAMES)
def test_any_frames_have_a_name(frames: list[Frame], program: str) -> None:
    assert stack_name(of(*frames), program)[0] == "malloc"


# A change.


@pytest.mark.parametrize(
    ("a", "b", "status"),
    [
        ((0, 0), (1000, 10), "new"),
        ((5, None), (1000, None), "new"),
        ((1000, 10), (0, 0), "gone"),
        ((1000, None), (5, None), "gone"),
        ((1000, 10), (1500, 10), "faster"),
        ((1500, 10), (1000, 10), "slower"),
        ((1000, 400), (1500, 400), "unchanged"),
        ((1000, None), (1050, None), "unchanged"),
        ((1000, None), (1150, None), "faster"),
        ((1000, 10), (1150, None), "faster"),
        ((0, 0), (0, 0), "unchanged"),
        ((-500, 10), (-900, 10), "unchanged"),
        ((-500, 10), (900, 10), "new"),
    ],
)
def test_statuses(a: tuple[float, float | None], b: tuple[float, float | None], status: str) -> None:
    assert Change(Speed(*a), Speed(*b), 0, 0).status == status


def test_what_levels_off_is_gone_although_it_has_a_rate() -> None:
    fast, slow = Speed(1000, 10), Speed(200, 10)
    assert Change(fast, slow, 0, 0).status == "slower"
    assert Change(fast, slow, 0, 0, grows_a=True, grows_b=False).status == "gone"
    assert Change(fast, slow, 0, 0, grows_a=True, grows_b=None).status == "slower"
    assert Change(slow, fast, 0, 0, grows_a=False, grows_b=True).status == "new"


def sides() -> tuple[Measured, Measured]:
    """A leak that was fixed, a new one, one that grew faster, one that did not change."""
    caller = frame("main", SERVER)
    kept = of(frame("keep", SERVER), caller, identity="3" * 16, size=3 * MIB, rate=100 * KIB)
    fixed = of(frame("leak", SERVER), caller, identity="4" * 16, size=60 * MIB, rate=2 * MIB)
    steady = of(frame("cache", SERVER), caller, identity="5" * 16, size=MIB, rate=30 * KIB, trend="levelled-off")
    new = of(frame("fresh", SERVER), caller, identity="6" * 16, size=9 * MIB, rate=300 * KIB)
    before = sample_report(command=SERVER, stacks=(fixed, kept, steady), rate=Rate(2 * MIB, 20 * KIB))
    after = sample_report(
        pid=9,
        command="/srv/releases/42/server",
        stacks=tuple(
            replace(each, rate=each.rate * factor, frames=tuple(moved(each.frames)))
            for each, factor in ((new, 1), (kept, 2.5), (steady, 1))
        ),
        classes=(ClassGrowth("heap", 80 * MIB, 90 * MIB, 10 * MIB),),
        rate=Rate(400 * KIB, 10 * KIB),
        losses={"live_full": 3},
    )
    key = ("malloc", "3" * 16)
    return (
        Measured("before.memtrace", before, {key: Rate(100 * KIB, 5 * KIB)}),
        Measured("after.memtrace", after, {key: Rate(250 * KIB, 5 * KIB)}),
    )


def moved(frames: tuple[Frame, ...]) -> list[Frame]:
    return [replace(each, offset=each.offset + 64, module="/srv/releases/42/server") for each in frames]


def test_stacks_are_matched_and_sorted_by_their_change() -> None:
    comparison = compare(*sides())
    found = [(each.name[1].split()[0], each.change.status) for each in comparison.stacks]
    assert found == [("leak", "gone"), ("fresh", "new"), ("keep", "faster"), ("cache", "unchanged")]
    assert comparison.rss.status == "slower"
    assert comparison.classes[0][0] == "heap"
    leak = comparison.stacks[0]
    assert (leak.change.bytes_a, leak.change.bytes_b, leak.ids_b) == (60 * MIB, 0, ())


def test_stacks_of_one_name_are_taken_together() -> None:
    one = of(frame("leak", SERVER, 0x10), identity="1" * 16, size=MIB, rate=100.0)
    other = of(frame("leak", SERVER, 0x20), identity="2" * 16, size=MIB, rate=50.0)
    side = Measured("a", sample_report(stacks=(one, other), command=SERVER))
    comparison = compare(side, side)
    (only,) = comparison.stacks
    assert only.change.a.mean == 150.0 and only.ids_a == ("1" * 16, "2" * 16)
    assert only.change.status == "unchanged"


def rendered(comparison: Comparison, **options: Any) -> str:
    out = io.StringIO()
    DiffText(comparison, **options).render(out, width=80)
    return out.getvalue()


def test_the_text_is_the_golden_one() -> None:
    text = rendered(compare(*sides()))
    if os.environ.get("MEMTRACE_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 80


def test_the_number_of_stacks() -> None:
    text = rendered(compare(*sides()), top=1)
    assert "leak" in text and "fresh  (" not in text and "... 2 more stacks changed" in text


def test_hostile_names_are_escaped() -> None:
    bad = of(frame("\x1b[2J[bold]x\n", "/tmp/\u202e\udcff"), size=MIB, rate=5e5)
    side = Measured("\x1b[31m.memtrace", sample_report(stacks=(bad,), command="\x1b\n"))
    text = rendered(compare(Measured("a", sample_report(stacks=())), side))
    assert "\x1b" not in text and "\u202e" not in text and "[bold]" in text


def test_json() -> None:
    out = io.StringIO()
    write_diff_json(compare(*sides()), out, limit=100.0)
    document = json.loads(out.getvalue())
    assert document["schema"] == "memtrace-diff/1" and document["limit"] == 100.0
    assert set(document) == {"schema", "a", "b", "rss", "classes", "stacks", "limit", "notes"}
    assert document["rss"]["a"] == {"bytes": sample_report().growth, "rate": 2 * MIB, "rate_error": 20 * KIB}
    gone = document["stacks"][0]
    assert (gone["status"], gone["kind"], gone["name"]) == ("gone", "malloc", ["leak ((program))", "main ((program))"])
    assert gone["a"]["ids"] == ["4" * 16] and gone["b"] == {"bytes": 0, "rate": 0.0, "rate_error": 0.0, "ids": []}
    assert gone["frames"][0]["function"] == "leak"


# Recordings.


def test_a_recording_is_measured_with_errors(tmp_path: Path) -> None:
    with Recording(write_recording(tmp_path / "a.memtrace", leaking(30))) as recording:
        side = measure(recording, "a")
        half = measure(recording, "a", 15, 30)
    leak = side.stack_rates[("malloc", f"{LEAK:016x}")]
    assert leak.mean == pytest.approx(MIB) and leak.error == pytest.approx(0, abs=1)
    assert half.class_rates["heap"].mean == pytest.approx(MIB)
    assert half.stack_rates[("malloc", f"{0xC0FFEE:016x}")] == Rate(0.0, 0.0), "it was looked at and did not move"


def test_a_fix_is_found_between_two_recordings(tmp_path: Path) -> None:
    leaky = write_recording(tmp_path / "leaky.memtrace", leaking(30))
    fixed = write_recording(tmp_path / "fixed.memtrace", leaking(20, leak=0, cache=3 * MIB))
    with Recording(leaky) as before, Recording(fixed) as after:
        comparison = compare(measure(before, "before"), measure(after, "after"))
    status = {each.name[1].split()[0]: each.change.status for each in comparison.stacks}
    assert status["store_attributes"] == "gone" and comparison.rss.status == "slower"


def test_parts_of_one_recording(tmp_path: Path) -> None:
    with Recording(write_recording(tmp_path / "a.memtrace", leaking(30))) as recording:
        comparison = compare(measure(recording, "a", 0, 10), measure(recording, "a", 20, 30))
    status = {each.name[1].split()[0]: each.change.status for each in comparison.stacks}
    assert status == {"cache_insert": "gone", "store_attributes": "unchanged", "log_rotate": "unchanged"}
