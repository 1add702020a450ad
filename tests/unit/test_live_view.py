from __future__ import annotations

import io
import os
import pty
import sys
import termios
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from tests.unit.reports import MIB, sample_state
from tests.unit.test_report_text import HOSTILE, assert_golden
from tracer.model.live import LiveStack, LiveState
from tracer.report.live import KeyReader, LineView, LiveView, open_view, screen_lines, sparkline
from tracer.report.safe import Page, cells


def screen(state: LiveState, page: Page, height: int, **options: Any) -> str:
    return "".join(line.plain + "\n" for line in screen_lines(state, page, height, **options))


class FakeKeys(KeyReader):
    """Keys that a test presses."""

    def __init__(self, keys: str = "") -> None:
        super().__init__(io.StringIO())
        self.keys = list(keys)

    def poll(self) -> str | None:
        return self.keys.pop(0) if self.keys else None


def view(keys: KeyReader, height: int = 14) -> tuple[LiveView, io.StringIO]:
    file = io.StringIO()
    console = Console(
        file=file, width=80, height=height, force_terminal=True, color_system=None, _environ={"TERM": "xterm"}
    )
    return LiveView(console, keys), file


class TestScreen:
    def test_golden(self) -> None:
        assert_golden(screen(sample_state(losses={"events_lost": 1200}), Page(80), 12), "live_80.txt")

    def test_golden_in_ascii_with_help(self) -> None:
        text = screen(sample_state(), Page(60, ascii_only=True), 16, show_help=True)
        assert text.isascii()
        assert_golden(text, "live_help_ascii_60.txt")

    @pytest.mark.parametrize("height", [1, 3, 5, 8, 24])
    @pytest.mark.parametrize("width", [20, 60, 200])
    def test_fits_the_terminal(self, width: int, height: int) -> None:
        many = tuple(LiveStack(f"{i:016x}", "malloc", f"f{i}", i * MIB, i, float(i)) for i in range(50))
        lines = screen_lines(sample_state(stacks=many), Page(width), height)
        assert len(lines) == height
        if width >= 60:
            assert max(cells(line.plain) for line in lines) <= width

    def test_the_key_help_is_the_last_line(self) -> None:
        assert screen_lines(sample_state(), Page(80), 10)[-1].plain.startswith("q quit and report")

    def test_sorts(self) -> None:
        stacks = (LiveStack("a", "malloc", "bytes", 9, 1, 1.0), LiveStack("b", "malloc", "rate", 1, 9, 9.0))
        by_bytes, by_rate = (
            screen(sample_state(stacks=stacks), Page(80), 9, sort=sort).splitlines()[5] for sort in ("bytes", "rate")
        )
        assert by_bytes.endswith("bytes")
        assert by_rate.endswith("rate")

    def test_hostile_text_is_harmless(self) -> None:
        stacks = (LiveStack("a", "malloc", HOSTILE, 9, 1, 1.0),)
        state = sample_state(command=HOSTILE, status=HOSTILE, stacks=stacks, losses={HOSTILE: 1})
        assert all(line.plain.isprintable() for line in screen_lines(state, Page(200), 12))

    def test_no_rate_before_there_is_a_time_to_divide_by(self) -> None:
        assert "(0 B/s)" in screen(sample_state(seconds=0.0), Page(80), 9)

    def test_numbers_are_left_out_rather_than_cut(self) -> None:
        numbers = screen(sample_state(), Page(60), 9).splitlines()[1]
        assert numbers == "RSS 124.3 MiB  +12.3 MiB (1.0 MiB/s)"

    def test_nothing_yet(self) -> None:
        text = screen(sample_state(stacks=(), rss_history=()), Page(80), 9)
        assert "no call stack holds memory yet" in text


class TestSparkline:
    def test_levels(self) -> None:
        assert sparkline(range(8), 8) == "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
        assert sparkline([5, 5], 8) == "\u2581\u2581"
        assert sparkline([0, 7], 8, ascii_only=True).isascii()

    def test_a_peak_survives_gathering(self) -> None:
        assert "\u2588" in sparkline([0] * 500 + [9] + [0] * 499, 20)
        assert len(sparkline(range(1000), 20)) == 20


class TestLiveView:
    def test_shows_the_state_and_restores_the_screen(self) -> None:
        live, file = view(FakeKeys())
        with live:
            live.update(sample_state())
            assert not live.poll()
        out = file.getvalue()
        assert out.startswith("\x1b[?1049h")
        assert "store_attributes" in out
        assert out.endswith("\x1b[?25h\x1b[?1049l")

    def test_restores_the_screen_after_an_error(self) -> None:
        live, file = view(FakeKeys())
        with pytest.raises(SystemExit), live:
            raise SystemExit(1)
        assert file.getvalue().endswith("\x1b[?25h\x1b[?1049l")

    def test_q_stops(self) -> None:
        live, _ = view(FakeKeys("xq"))
        with live:
            live.update(sample_state())
            assert live.poll()

    def test_pause_holds_the_display_and_then_shows_the_newest(self) -> None:
        keys = FakeKeys("p")
        live, file = view(keys)
        with live:
            live.update(sample_state(seconds=1))
            live.poll()
            live.update(sample_state(seconds=55))
            assert "display held" in file.getvalue()
            assert "55 s" not in file.getvalue()
            keys.keys.append("p")
            live.poll()
            assert "55 s" in file.getvalue()

    def test_keys_redraw_at_once(self) -> None:
        live, file = view(FakeKeys("sh"))
        with live:
            live.update(sample_state())
            live.poll()
        assert "s sort (by blocks)" in file.getvalue()
        assert "show or hide this help" in file.getvalue()

    def test_keys_before_the_first_state(self) -> None:
        live, _ = view(FakeKeys("psh"))
        with live:
            assert not live.poll()


@pytest.fixture
def terminal() -> Iterator[tuple[int, Any]]:
    """A pseudo-terminal: the end that types, and the file that a program reads."""
    typing, reading = pty.openpty()
    with os.fdopen(reading, "r") as file:
        yield typing, file
    os.close(typing)


class TestKeyReader:
    def test_reads_keys_without_waiting_and_restores_the_terminal(self, terminal: tuple[int, Any]) -> None:
        typing, file = terminal
        before = termios.tcgetattr(file)
        with KeyReader(file) as keys:
            assert not termios.tcgetattr(file)[3] & (termios.ICANON | termios.ECHO)
            assert termios.tcgetattr(file)[3] & termios.ISIG, "Ctrl-C must stay a signal"
            assert keys.poll() is None
            os.write(typing, b"pq")
            assert [keys.poll(), keys.poll(), keys.poll()] == ["p", "q", None]
        assert termios.tcgetattr(file) == before

    def test_restores_the_terminal_after_an_error(self, terminal: tuple[int, Any]) -> None:
        _, file = terminal
        before = termios.tcgetattr(file)
        with pytest.raises(SystemExit), KeyReader(file):
            raise SystemExit(1)
        assert termios.tcgetattr(file) == before

    @pytest.mark.parametrize("typed", [b"\x1b[A", b"\x1bOq", b"\xff", b"\x1b"])
    def test_drops_what_is_no_key(self, terminal: tuple[int, Any], typed: bytes) -> None:
        typing, file = terminal
        with KeyReader(file) as keys:
            os.write(typing, typed)
            assert keys.poll() is None
            os.write(typing, b"q")
            assert keys.poll() == "q"

    def test_a_terminal_that_goes_away_is_silence(self) -> None:
        typing, reading = pty.openpty()
        with os.fdopen(reading, "r") as file, KeyReader(file) as keys:
            os.close(typing)
            assert keys.poll() is None

    def test_no_terminal_no_keys(self) -> None:
        with KeyReader(io.StringIO("q")) as keys:
            assert keys.poll() is None
        with KeyReader(None) as keys:
            assert keys.poll() is None

    def test_a_background_job_leaves_the_terminal_alone(
        self, terminal: tuple[int, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        typing, file = terminal
        before = termios.tcgetattr(file)
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
        with KeyReader(file) as keys:
            assert termios.tcgetattr(file) == before
            os.write(typing, b"q\n")
            assert keys.poll() is None


class TestLineView:
    def test_one_line_per_state(self) -> None:
        file = io.StringIO()
        with LineView(file) as lines:
            lines.update(sample_state())
            lines.update(sample_state(seconds=3725, losses={"events_lost": 1200}, stacks=(), status="sampling 1 in 64"))
            assert not lines.poll()
        first, second = file.getvalue().splitlines()
        assert first == (
            " 12 s  RSS  124.3 MiB  +12.3 MiB (1.0 MiB/s)  live +11.9 MiB in 40,312 blocks"
            "  top: store_attributes < ldb_msg_add < dsdb_replicated_objects_co\u2026 9.1 MiB"
        )
        assert second.startswith("3725 s  RSS")
        assert second.endswith("lost: events lost 1,200  now: sampling 1 in 64")

    def test_ascii(self) -> None:
        raw = io.BytesIO()
        file = io.TextIOWrapper(raw, encoding="ascii")
        LineView(file).update(sample_state(stacks=(LiveStack("a", "malloc", HOSTILE + "\u6f22" * 99, 9, 1, 1.0),)))
        assert raw.getvalue().count(b"\n") == 1
        assert b"\x1b" not in raw.getvalue()


class TestOpenView:
    def test_a_pipe_gets_lines(self) -> None:
        assert isinstance(open_view(io.StringIO(), sys.stderr, {"TERM": "xterm"}), LineView)

    @pytest.mark.parametrize(("term", "kind"), [("xterm", LiveView), ("dumb", LineView), ("", LineView)])
    def test_a_terminal_gets_the_screen_unless_it_is_dumb(
        self, terminal: tuple[int, Any], term: str, kind: type[object]
    ) -> None:
        typing, _ = terminal
        with os.fdopen(os.dup(typing), "w") as stdout:
            assert isinstance(open_view(stdout, sys.stderr, {"TERM": term}), kind)


def test_lines_are_never_markup() -> None:
    stacks = (LiveStack("a", "malloc", "[/usr/lib/x] [bold]f[/bold]", 9, 1, 1.0),)
    live, file = view(FakeKeys())
    with live:
        live.update(sample_state(stacks=stacks))
    assert "[/usr/lib/x] [bold]f[/bold]" in Text.from_ansi(file.getvalue()).plain
