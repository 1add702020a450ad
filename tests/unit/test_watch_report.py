"""What watching shows: lines, the summary, the screen, JSON; against golden text at several widths."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from tests.unit.test_live_view import FakeKeys
from tests.unit.test_report_text import HOSTILE, assert_golden, widest
from tests.unit.watches import (
    GIB,
    GROWING,
    KIB,
    LOOKS,
    MIB,
    PROJECTION,
    REGIONS,
    look,
    region,
    sample_state,
    sample_summary,
)
from tracer.model.vma import RssCounters
from tracer.model.watch import ClassChange, MemoryLimit, Projection, WatchState, WatchSummary, WatchVerdict
from tracer.report.safe import Page
from tracer.report.screen import ScreenView
from tracer.report.watch_json import JsonView, sample_record, summary_record, write_summary
from tracer.report.watch_screen import WatchScreen, open_watch_view, watch_screen_lines
from tracer.report.watch_text import LineView, WatchText, look_line, most_grown_class, projection_text

NOT_GROWING = WatchVerdict(
    "not-growing", "private memory does not grow: it stayed the same in 30 s", ("RSS stayed the same",)
)


def text_of(summary: WatchSummary, width: int = 80, encoding: str = "utf-8", **options: Any) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    WatchText(summary, **options).render(file, width=width)
    file.flush()
    return raw.getvalue().decode(encoding)


def screen_of(state: WatchState, page: Page, height: int, **options: Any) -> str:
    return "".join(line.plain + "\n" for line in watch_screen_lines(state, page, height, 10, **options))


def hostile_summary() -> WatchSummary:
    return sample_summary(
        command=HOSTILE * 3,
        ended=HOSTILE,
        verdict=WatchVerdict("growing", HOSTILE, (HOSTILE,)),
        projection=Projection(MemoryLimit(HOSTILE, MIB, KIB), 1.0, 0.5, None),
        classes=(ClassChange(HOSTILE, 0, MIB, MIB), ClassChange("[bold]", 0, MIB, MIB)),
        regions=(
            region(0x1000, MIB, HOSTILE.encode("utf-8", "surrogateescape"), "[heap]"),
            region(0x9000000, MIB, b"[/usr/lib/x]" * 400),
        ),
        notes=(HOSTILE,),
    )


class TestSummary:
    @pytest.mark.parametrize("width", [60, 80, 200])
    def test_golden(self, width: int) -> None:
        text = text_of(sample_summary(), width)
        assert widest(text) <= width
        assert_golden(text, f"watch_{width}.txt")

    def test_golden_in_ascii(self) -> None:
        text = text_of(sample_summary(), 80, "ascii")
        assert_golden(text, "watch_ascii_80.txt")

    def test_golden_without_growth(self) -> None:
        still = tuple(look(second) for second in range(31))
        quiet = sample_summary(
            looks=still,
            verdict=NOT_GROWING,
            projection=None,
            classes=(ClassChange("heap", 12 * MIB, 12 * MIB, None), ClassChange("file", 5 * MIB, 5 * MIB, None)),
            regions=(),
            notes=(),
        )
        assert_golden(text_of(quiet), "watch_quiet_80.txt")

    def test_hostile_text_is_harmless(self) -> None:
        for width in (60, 80, 200):
            text = text_of(hostile_summary(), width)
            assert all(line.isprintable() for line in text.splitlines())
            assert "[bold]" in text

    def test_what_the_classes_do_not_hold_is_told(self) -> None:
        classes = (ClassChange("heap", 12 * MIB, 69 * MIB, 57 * MIB), ClassChange("file", 5 * MIB, 5 * MIB, 0))
        text = text_of(sample_summary(classes=classes))
        assert any(line.startswith("moved while being read") and "+1.0 MiB" in line for line in text.splitlines())

    def test_the_next_step_only_where_it_grows(self) -> None:
        assert "sudo memtrace 4711" in text_of(sample_summary())
        assert "sudo memtrace" not in text_of(sample_summary(verdict=NOT_GROWING))

    def test_the_number_of_vmas(self) -> None:
        assert "1 more grew by 1.0 MiB" in text_of(sample_summary(), top=1)

    def test_a_start_that_was_dear_is_told(self) -> None:
        cost = replace(sample_summary().cost, share=0.031, edges=0.9)
        assert "3.1 % of the time (900 ms of it at start and end)" in " ".join(
            text_of(sample_summary(cost=cost)).split()
        )

    def test_a_single_look(self) -> None:
        text = text_of(sample_summary(looks=LOOKS[:1], count=1, seconds=0.0, classes=()))
        assert "1 look;" in text


class TestProjection:
    @pytest.mark.parametrize(
        ("projection", "words"),
        [
            (PROJECTION, "is reached in 1 min 6 s, between 1 min 4 s and 1 min 9 s"),
            (Projection(PROJECTION.limit, 60.0, 60.0, 60.0), "is reached in 1 min"),
            (Projection(PROJECTION.limit, 60.0, 30.0, None), "in 1 min, 30 s at the earliest"),
            (Projection(MemoryLimit("memory.high of cgroup /a", MIB, 0), 0.0, 0.0, 0.0), "left) is used up already"),
        ],
    )
    def test_in_words(self, projection: Projection, words: str) -> None:
        assert projection_text(projection).endswith(words)


class TestLines:
    @pytest.mark.parametrize("width", [60, 80, 200])
    def test_golden(self, width: int) -> None:
        file = io.StringIO()
        view = LineView(file, Page(width))
        with view:
            for index in (0, 1, 12, 30):
                verdict = GROWING if index > 3 else WatchVerdict("unknown", "")
                view.update(sample_state(looks=LOOKS[: index + 1], verdict=verdict))
            view.update(sample_state(looks=LOOKS[:1], status="exec after 31 s: watching the new program"))
            assert not view.poll()
        assert widest(file.getvalue()) <= width
        assert_golden(file.getvalue(), f"watch_lines_{width}.txt")

    def test_swap_and_minutes(self) -> None:
        first = look()
        later = look(605.0, 20 * MIB, counters=RssCounters(anon=20 * MIB, swap=3 * MIB))
        line = look_line(sample_state(looks=(first, later)), Page(200))
        assert line.startswith("10 min 5 s  private   20.0 MiB  +8.0 MiB (13.5 KiB/s)  heap +8.0 MiB")
        assert "swap 3.0 MiB" in line

    def test_no_class_grew(self) -> None:
        assert most_grown_class(look(), look(1.0, 3 * MIB)) is None


class TestScreen:
    def test_golden(self) -> None:
        assert_golden(screen_of(sample_state(), Page(80), 20), "watch_screen_80.txt")

    def test_golden_in_ascii_with_help(self) -> None:
        text = screen_of(sample_state(), Page(60, ascii_only=True), 20, show_help=True)
        assert text.isascii()
        assert_golden(text, "watch_screen_help_ascii_60.txt")

    @pytest.mark.parametrize("height", [1, 3, 8, 24])
    @pytest.mark.parametrize("width", [20, 60, 200])
    def test_fits_the_terminal(self, width: int, height: int) -> None:
        state = sample_state(regions=REGIONS * 20)
        assert len(watch_screen_lines(state, Page(width), height, 30)) == height

    def test_a_look_that_is_not_of_now_says_so(self) -> None:
        old = (*LOOKS[:-1], look(30.0, 70 * MIB, detail_age=12.0))
        assert "as of 12 s ago" in screen_of(sample_state(looks=old), Page(80), 24)

    def test_hostile_text_is_harmless(self) -> None:
        state = sample_state(
            command=HOSTILE, status=HOSTILE, verdict=WatchVerdict("growing", HOSTILE), regions=hostile_summary().regions
        )
        assert all(line.plain.isprintable() for line in watch_screen_lines(state, Page(200), 24, 10))

    def test_keys(self) -> None:
        file = io.StringIO()
        console = Console(file=file, width=80, height=20, force_terminal=True, color_system=None)
        view = WatchScreen(console, FakeKeys("hpxq"), 10)
        with view:
            view.update(sample_state())
            assert view.poll()
            held = file.getvalue()
            view.update(sample_state(command="newer"))
            assert "newer" not in file.getvalue()[len(held) :]
        assert "q  stop and print the summary" in held and "display held" in held


@pytest.mark.parametrize("terminal", ["dumb", "", "xterm"])
def test_a_pipe_gets_lines(terminal: str) -> None:
    view = open_watch_view(io.StringIO(), {"TERM": terminal}, 10)
    assert isinstance(view, LineView) and not isinstance(view, ScreenView)


class TestJson:
    def test_a_record_for_each_look(self) -> None:
        file = io.StringIO()
        now = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
        with JsonView(file, lambda: now) as view:
            view.update(sample_state(looks=LOOKS[:1]))
            view.update(sample_state())
            assert not view.poll()
        first, last = map(json.loads, file.getvalue().splitlines())
        assert (first["schema"], first["record"], first["time"]) == (
            "memtrace-watch/1",
            "sample",
            "2026-02-03T04:05:06+00:00",
        )
        assert first["private"] == {"bytes": 12 * MIB, "growth": 0, "exact": True}
        assert last["private"]["growth"] == 58 * MIB
        assert {"class": "heap", "bytes": 70 * MIB, "growth": 58 * MIB} in last["classes"]
        assert last["rss"] == {"bytes": 75 * MIB, "anon": 70 * MIB, "file": 5 * MIB, "shmem": 0, "swap": 0}
        assert (last["verdict"], last["projection"]["limit"]) == ("growing", "memory.max of cgroup /web")

    def test_a_class_that_is_gone(self) -> None:
        record = sample_record(sample_state(looks=(look(), look(1.0, classes={}))), datetime.now(UTC))
        assert {"class": "heap", "bytes": 0, "growth": -12 * MIB} in record["classes"]

    def test_the_summary(self) -> None:
        file = io.StringIO()
        write_summary(sample_summary(), file)
        record = json.loads(file.getvalue())
        assert file.getvalue().count("\n") == 1
        assert (record["schema"], record["record"], record["pid"]) == ("memtrace-watch/1", "summary", 4711)
        assert record["verdict"]["kind"] == "growing"
        assert record["verdict"]["slope"]["bytes_per_second"] == pytest.approx(1.93 * MIB)
        assert record["private"] == {"start": 12 * MIB, "end": 70 * MIB, "growth": 58 * MIB}
        assert [row["class"] for row in record["classes"]] == ["heap", "anonymous", "file"]
        assert record["vmas"][0]["path"] == "[heap]" and record["vmas"][0]["growth"] == 57 * MIB
        assert record["projection"]["room"] == 128 * MIB
        assert record["cost"]["reads"]["smaps"]["count"] == 31
        assert record["window"]["looks"] == 31

    def test_hostile_text_stays_text(self) -> None:
        text = json.dumps(summary_record(hostile_summary()))
        assert json.loads(text)["vmas"][0]["path"].startswith("\x1b]0;owned")
        text.encode("ascii")

    def test_without_projection_and_slope(self) -> None:
        record = summary_record(sample_summary(projection=None, verdict=NOT_GROWING))
        assert record["projection"] is None and record["verdict"]["slope"] is None


def test_large_figures_do_not_break_the_table() -> None:
    looks = (look(0.0, 900 * GIB), look(30.0, 999 * GIB))
    assert widest(text_of(sample_summary(looks=looks), 60)) <= 62
