"""The report against golden text; MEMTRACE_UPDATE_GOLDEN=1 writes it anew, to be read before it is kept."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from tests.unit.reports import KIB, LIBC, MIB, STORE, frame, sample_report, stack, vma
from tracer.model.report import Frame, LedgerRow, Overhead, Report, Sampling, Verdict, VmaGrowth
from tracer.model.vma import RssCounters
from tracer.report.safe import Column, Page, cells, printable
from tracer.report.text import TextReport

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "\x1b]0;owned\x07\x1b[2Jevil\r\n[/usr/lib/x] [bold]b[/bold] [heap] \u202egnp.exe \udcff"


def render(report: Report, width: int = 80, *, encoding: str = "utf-8", colour: bool = False, **options: Any) -> str:
    """The report as it arrives in a file of that encoding; what cannot be encoded is an error."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    TextReport.from_report(report, **options).render(file, width=width, colour=colour)
    file.flush()
    return raw.getvalue().decode(encoding)


def assert_golden(text: str, name: str) -> None:
    path = GOLDEN / name
    if os.environ.get("MEMTRACE_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def widest(text: str) -> int:
    return max(map(cells, text.splitlines()))


def hostile_report() -> Report:
    """Every text that comes from outside tries to act on the terminal."""
    evil = replace(
        STORE,
        vma_class="[heap]",
        frames=(
            frame(HOSTILE, f"/tmp/{HOSTILE}"),
            frame("f[abi:cxx11]", f"/lib/{HOSTILE}", file=f"/src/{HOSTILE}", line=1),
            frame(None, "/lib/[heap]"),
            frame("\u6f22\u5b57" * 40, LIBC),
            frame("operator new(unsigned long)" * 9, "/lib/" + "x" * 300),
            frame(None, None, 0x7FFF0010),
        ),
    )
    report = sample_report()
    return replace(
        report,
        command=HOSTILE * 3,
        verdict=Verdict("leak", HOSTILE, (HOSTILE,)),
        ended=HOSTILE,
        vmas=(
            VmaGrowth(vma(0x1000, MIB, b"[heap]"), "heap", MIB, 2 * MIB),
            VmaGrowth(vma(0x101000, MIB, b"[/usr/lib/x]" * 40), "[bold]", MIB, MIB),
            VmaGrowth(vma(0x202000, MIB, HOSTILE.encode("utf-8", "surrogateescape")), "file", MIB, MIB),
        ),
        stacks=(evil,),
        ledger=(*report.ledger, LedgerRow(HOSTILE, HOSTILE, None, 4 * KIB), LedgerRow("heap", "live", None, -4 * KIB)),
        probed=(HOSTILE,),
        notes=(HOSTILE,),
        losses={HOSTILE: 3},
    )


@pytest.mark.parametrize("width", [60, 80, 200])
def test_golden(width: int) -> None:
    text = render(sample_report(), width)
    assert widest(text) <= width
    assert_golden(text, f"report_{width}.txt")


def test_golden_in_ascii() -> None:
    text = render(sample_report(), 60, encoding="ascii")
    assert widest(text) <= 60
    assert_golden(text, "report_ascii_60.txt")


def test_golden_of_hostile_text() -> None:
    text = render(hostile_report())
    assert widest(text) <= 80
    assert all(line.isprintable() for line in text.splitlines())
    assert_golden(text, "report_hostile_80.txt")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_hostile_text_reaches_any_encoding_harmless(encoding: str) -> None:
    text = render(hostile_report(), encoding=encoding)
    assert all(line.isprintable() for line in text.splitlines())
    assert "[heap]" in text
    assert "[abi:cxx11]" in text
    assert "\\x1b" in text


def test_colour_adds_escapes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = render(sample_report(), colour=True)
    assert "\x1b[1;31mRSS grew" in coloured
    assert Text.from_ansi(coloured).plain.rstrip() == render(sample_report()).rstrip()


def test_no_color_leaves_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in render(sample_report(), colour=True)
    assert "\x1b[1;31m" not in render(sample_report(), colour=True)


def test_a_dumb_terminal_gets_no_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in render(sample_report(), colour=True)


def test_a_pipe_is_80_columns_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "133")
    file = io.StringIO()
    TextReport.from_report(sample_report()).render(file)
    assert file.getvalue() == render(sample_report(), 80)


@pytest.mark.parametrize("width", [1, 10, 30])
def test_absurd_widths_do_not_fail_and_keep_numbers_whole(width: int) -> None:
    assert "+60.6 MiB" in render(sample_report(), width)


class TestNoStacks:
    def test_golden(self) -> None:
        calm = RssCounters(anon=64 * MIB)
        report = sample_report(
            verdict=Verdict("not-growing", "RSS did not grow in 30 s"),
            rss_start=calm,
            rss_end=calm,
            classes=(),
            vmas=(),
            stacks=(),
            ledger=(),
            overhead=Overhead(None, 0.42, 48 * MIB, 812),
        )
        assert_golden(render(report), "report_empty_80.txt")

    def test_notes_hold_the_reason_and_are_printed_once(self) -> None:
        text = render(sample_report(stacks=(), notes=("uprobes are refused by this kernel",)))
        assert text.count("uprobes are refused") == 1
        assert "No call stack holds memory" in text

    @pytest.mark.parametrize(
        ("probed", "hits", "reason"),
        [
            ((), 0, "no allocator was probed"),
            (("glibc",), 0, "none of the probed functions was called"),
            (("glibc",), 7, "7 probe hits, yet nothing that was allocated is still held"),
        ],
    )
    def test_reason_without_notes(self, probed: tuple[str, ...], hits: int, reason: str) -> None:
        report = sample_report(stacks=(), probed=probed, overhead=Overhead(None, 0.1, MIB, hits))
        assert reason in render(report)

    def test_stacks_whose_blocks_were_all_freed_are_none(self) -> None:
        assert "nothing that was allocated is still held" in render(sample_report(stacks=(stack("0" * 16, 0),)))


class TestBooks:
    def test_causes_of_a_class_add_up_or_say_so(self) -> None:
        report = sample_report()
        text = render(replace(report, ledger=report.ledger[1:]), 200)
        assert "not in the ledger" in text
        assert "DOES NOT CLOSE: sum of the causes +4.5 MiB, growth of RSS +60.6 MiB, difference" in text

    def test_a_class_that_only_the_ledger_names_is_shown(self) -> None:
        report = sample_report()
        text = render(replace(report, ledger=(*report.ledger, LedgerRow("uprobes", "memtrace", None, 8 * KIB))))
        assert "uprobes " in text
        assert text.count("memtrace itself") == 2

    def test_swap_is_shown_where_there_is_some(self) -> None:
        report = sample_report()
        swapped = replace(report, rss_end=replace(report.rss_end, swap=3 * MIB))
        assert "swap (no part of RSS)           0 B    3.0 MiB    +3.0 MiB" in render(swapped)
        assert "swap" not in render(report)

    def test_share_is_of_live_bytes_where_growth_would_mislead(self) -> None:
        report = sample_report()
        assert "93.1 % of growth" not in render(replace(report, rss_end=report.rss_start))
        assert "95.7 % of live bytes" in render(replace(report, rss_end=report.rss_start))

    def test_losses_are_named(self) -> None:
        text = render(sample_report(losses={"live_full": 1200, "events_lost": 0, "a_new_counter": 3}))
        assert "losses    1,200 blocks not tracked: the table of live blocks was full" in text
        assert "losses    3 a new counter" in text
        assert "ring buffer" not in text
        assert "nothing was lost" not in text
        assert "exact but for the losses below" in text
        assert "every allocation seen" not in text

    def test_sampling_is_said(self) -> None:
        sampled = sample_report(sampling=Sampling(512 * KIB, exact=False), stacks=(replace(STORE, bytes_error=MIB),))
        assert "sampled every 512.0 KiB" in render(sampled)
        assert "56.1 MiB \N{PLUS-MINUS SIGN} 1.0 MiB" in render(sampled)
        assert "give or take 1.0 MiB" in render(sampled, width=60), "no room in the line of numbers"

    def test_exact_is_not_claimed_where_no_allocator_was_probed(self) -> None:
        assert "; no allocator probed; ended" in render(sample_report(probed=()))


class TestWhatIsLeftOut:
    def test_stacks_beyond_top_are_summed_up(self) -> None:
        stacks = tuple(stack(f"{i:016x}", (20 - i) * MIB) for i in range(20))
        text = render(sample_report(stacks=stacks), top=3)
        assert " #3 " in text
        assert " #4 " not in text
        assert "... 17 more stacks holding 153.0 MiB" in text

    def test_noise_is_summed_up_unless_asked_for(self) -> None:
        report = sample_report(stacks=(STORE, stack("0" * 16, 4 * KIB)))
        assert "... 1 more stack holding 4.0 KiB" in render(report)
        assert " #2 " in render(report, min_share=0.0)

    def test_one_frame_too_many_is_shown_not_counted(self) -> None:
        frames = tuple(frame(f"f{i}") for i in range(5))
        report = sample_report(stacks=(replace(STORE, frames=frames),))
        assert "more\n" not in render(report, max_frames=4)
        assert "... 2 more\n" in render(report, max_frames=3)

    def test_hidden_frames_of_a_recursion_are_counted_each(self) -> None:
        frames = (*(frame(f"f{i}") for i in range(3)), *(frame("again") for _ in range(40)), frame("main"))
        report = sample_report(stacks=(replace(STORE, frames=frames),))
        assert "again [40 times]" in render(report)
        assert "... 41 more\n" in render(report, max_frames=3)


class TestPrintable:
    @given(st.text())
    def test_is_printable_and_harmless(self, text: str) -> None:
        assert printable(text).isprintable()
        assert printable(text, ascii_only=True).isascii()

    @given(st.text(st.characters(categories=("L", "N", "P", "S"))))
    def test_leaves_visible_text_alone(self, text: str) -> None:
        assert printable(text) == text

    def test_bytes_that_are_no_utf8_show_as_bytes(self) -> None:
        assert printable(b"a\xffb".decode("utf-8", "surrogateescape")) == "a\\xffb"


class TestPage:
    @given(st.text(st.characters(categories=("L", "M", "N", "P"))), st.integers(0, 40), st.booleans())
    def test_shorten_fits(self, text: str, width: int, ascii_only: bool) -> None:
        page = Page(80, ascii_only)
        assert all(cells(page.shorten(text, width, keep)) <= width for keep in ("start", "end", "both"))

    def test_shorten_keeps_what_tells_most(self) -> None:
        page = Page(80)
        assert page.shorten("/usr/lib/libc.so.6", 10, "end") == "\u2026libc.so.6"
        assert page.shorten("ns::Class<int>::method", 11, "both") == "ns::C\u2026ethod"
        assert Page(80, ascii_only=True).shorten("abcdefgh", 6) == "abc..."

    def test_wrap_keeps_a_number_with_its_unit(self) -> None:
        assert Page(22).wrap("the growth is about 1.9 MiB now") == ["the growth is about", "1.9 MiB now"]

    def test_align_cuts_only_what_may_be_cut(self) -> None:
        columns = (Column("n", right=True), Column("name", keep="end", least=4))
        assert Page(12).align(columns, [("123.4 MiB", "abcdefgh"), ("1 B", "x")]) == [
            "        n  name",
            "123.4 MiB  \u2026fgh",
            "      1 B  x",
        ]


class TestFrames:
    LEAK = (
        frame("_int_malloc", LIBC),
        frame("malloc", LIBC),
        frame("operator new(unsigned long)", "/usr/lib/libstdc++.so.6", function_offset=0x1B),
        frame("std::vector<Row>::push_back(Row const&)", "/usr/bin/app", inlined=True, file="/usr/include/v.h", line=9),
        frame("void Table<Row>::add<Row>(Row const&)", "/usr/bin/app", file="/src/app/table.cc", line=40),
        frame("main", "/usr/bin/app", function_offset=0x10),
    )

    def lines(self, frames: tuple[Frame, ...], **options: Any) -> list[str]:
        text = render(sample_report(stacks=(replace(STORE, frames=frames),)), **options)
        return text.partition("malloc in heap")[2].partition("\n\n")[0].splitlines()[1:]

    def test_the_allocator_is_folded_away_and_the_culprit_marked(self) -> None:
        own = [
            "        operator new+0x1b  (libstdc++.so.6)",
            "        std::vector<…>::push_back [inlined]  include/v.h:9",
            "      > Table<…>::add<…>  app/table.cc:40",
            "        main+0x10  (app)",
        ]
        assert self.lines(self.LEAK) == own
        inner = ["        _int_malloc  (libc.so.6)", "        malloc  (libc.so.6)"]
        assert self.lines(self.LEAK, allocator_frames=True) == inner + own

    def test_the_culprit_is_shown_however_deep_it_is(self) -> None:
        wrappers = tuple(frame(f"std::f{i}()", "/usr/bin/app") for i in range(20))
        lines = self.lines((*wrappers, *self.LEAK[4:]), max_frames=3)
        assert lines[2:] == [
            "        std::f2  (app)",
            "        ... 17 more",
            "      > Table<…>::add<…>  app/table.cc:40",
            "        ... 1 more",
        ]

    def test_the_culprit_is_bold(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert any("\x1b[1mTable<" in line for line in self.lines(self.LEAK, colour=True))

    def test_recursion_of_the_culprit_is_one_line(self) -> None:
        same = (frame("walk", "/usr/bin/app"),) * 3
        assert self.lines((frame("malloc", LIBC), *same)) == ["      > walk [3 times]  (app)"]


def test_a_report_that_scrolls_ends_with_its_verdict() -> None:
    def lines(height: int | None) -> list[str]:
        out = io.StringIO()
        TextReport.from_report(sample_report()).render(out, width=80, height=height)
        return out.getvalue().splitlines()

    whole = lines(None)
    assert lines(len(whole) + 1) == whole
    scrolled = lines(24)
    assert scrolled[: len(whole)] == whole and scrolled[len(whole)] == ""
    assert scrolled[len(whole) + 1] == whole[0] and len(scrolled) < len(whole) + 5
