"""The tables of ps against golden text, in every width; MEMTRACE_UPDATE_GOLDEN=1 writes it anew, to be read."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from tests.unit.procs import IOMEM, MEMINFO
from tracer.errors import UsageError
from tracer.model.grouping import BYS, By, rows_of
from tracer.model.psview import PsView
from tracer.model.system import SystemMemory, system_memory
from tracer.model.usage import Part, ProcessUsage, Sizes, Survey, total_row, with_growth
from tracer.procfs.meminfo import parse_iomem, parse_meminfo
from tracer.report.lines import page_for, write_lines
from tracer.report.ps import PsStyle, bar, legend, ps_lines
from tracer.report.ps_columns import COLUMNS, default_columns, find_columns, sort_key
from tracer.report.ps_system import system_lines
from tracer.report.safe import Page, cells

GOLDEN = Path(__file__).parent / "golden"
MIB = 1 << 20
HOSTILE = "\x1b]0;owned\x07\x1b[2Jevil\r\n[bold]b[/bold] \u202egnp.exe \udcff"


def usage(pid: int, user: str, command: str, rss: float, pss: float, uss: float, swap: float = 0) -> ProcessUsage:
    sizes = Sizes(*(round(size * MIB) for size in (uss, pss, rss, rss * 3 + 20, swap, swap * 0.9, 0)))
    name = command.split(" ")[0].rpartition("/")[2][:15]
    parts = (
        Part("[heap]", 1, Sizes(*(round(size * 0.6 * MIB) for size in (uss, pss, rss, rss, swap)))),
        Part("/usr/lib/x86_64-linux-gnu/libc.so.6", 5, Sizes(0, round((pss - uss) * 0.4 * MIB), 3 * MIB, 4 * MIB, 0)),
    )
    return ProcessUsage(
        pid, user, pid, name, command, sizes, start=pid, threads=pid % 7 + 1, program=name,
        cgroup=f"/system.slice/{name}.service", maps=pid % 90, parts=parts,
    )  # fmt: skip


def unreadable(process: ProcessUsage) -> ProcessUsage:
    known = Sizes(rss=process.sizes.rss, vss=process.sizes.vss, swap=process.sizes.swap)
    return replace(process, sizes=known, refusal="no permission to read /proc/1/smaps_rollup", parts=())


JAVA = "/usr/lib/jvm/java-17/bin/java -Xmx8g -XX:+UseG1GC -jar /srv/shop/shop-server.jar --port 8080 --profile live"
PROCESSES = (
    usage(512, "redis", "/usr/bin/redis-server 127.0.0.1:6379", 812.5, 805.1, 803.9, 12.5),
    usage(733, "www-data", "nginx: worker process", 24.6, 9.4, 6.2),
    usage(734, "www-data", "nginx: worker process", 24.7, 9.3, 6.1),
    usage(90211, "shop", JAVA, 4210.4, 4198.7, 4190.2, 512),
    unreadable(usage(1, "root", "/sbin/init", 12.9, 8, 7)),
    usage(1201, "ann", "-bash", 5.5, 2.1, 1.6),
)
SURVEY = Survey(PROCESSES, kernel_threads=81, zombies=1, ended=2, itself=True)


def view(by: By = "process", survey: Survey = SURVEY, *, growth: bool = False, sort: str = "") -> PsView:
    rows = rows_of(survey.processes, by)
    if growth:
        shrunk = [replace(p, sizes=replace(p.sizes, rss=(p.sizes.rss or 0) - p.pid * 3000)) for p in PROCESSES[:-1]]
        rows = with_growth(rows, rows_of(shrunk, by))
    time = datetime(2026, 11, 23, 3, 12, 44, tzinfo=UTC)
    total = total_row(rows, 5 if by in ("mapping", "class") else None)
    made = PsView(by, time, rows, total, survey, seconds=2.5 if growth else None, memory=16 << 30, swap=2 << 30)
    column = COLUMNS[by][sort or ("drss" if growth else "pss")]
    return made.arranged(sort_key(by, column, made))


def style(by: By = "process", columns: str = "", *, growth: bool = False, **options: object) -> PsStyle:
    names = columns.split() or default_columns(by, growth=growth)
    found = tuple(COLUMNS[by][name] for name in names)
    return PsStyle(found, fixed=bool(columns), hint="run as root to see them", **options)  # type: ignore[arg-type]


def render(made: PsView, how: PsStyle, width: int = 80, *, encoding: str = "utf-8") -> str:
    page = Page(width, ascii_only=encoding == "ascii")
    return "".join(f"{text}\n" for text, _ in ps_lines(made, how, page)).encode(encoding).decode(encoding)


def assert_golden(text: str, name: str) -> None:
    path = GOLDEN / name
    if os.environ.get("MEMTRACE_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def widest(text: str) -> int:
    return max(map(cells, text.splitlines()))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_golden(width: int) -> None:
    text = render(view(), style(totals=True), width)
    assert widest(text) <= width
    assert_golden(text, f"ps_{width}.txt")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_golden_of_growth(width: int) -> None:
    text = render(view(growth=True), style(growth=True, totals=True), width)
    assert widest(text) <= width
    assert_golden(text, f"ps_growth_{width}.txt")


@pytest.mark.parametrize("by", [by for by in BYS if by != "process"])
def test_golden_of_groups(by: By) -> None:
    text = render(view(by), style(by, totals=True))
    assert widest(text) <= 80
    assert_golden(text, f"ps_by_{by}_80.txt")


@pytest.mark.parametrize("width", [60, 80])
def test_golden_with_bars_in_ascii(width: int) -> None:
    how = style(totals=True, bars=COLUMNS["process"]["pss"])
    text = render(view(), how, width, encoding="ascii")
    assert widest(text) <= width
    assert_golden(text, f"ps_bars_ascii_{width}.txt")


def test_golden_with_bars() -> None:
    assert_golden(render(view(), style(bars=COLUMNS["process"]["pss"]), 120), "ps_bars_120.txt")


@pytest.mark.parametrize("width", [60, 80])
def test_golden_of_hostile_text(width: int) -> None:
    evil = replace(PROCESSES[0], user=HOSTILE[:9], name=HOSTILE, command=HOSTILE * 4, cgroup=HOSTILE, program=HOSTILE)
    survey = Survey((*PROCESSES[1:3], evil))
    text = render(view(survey=survey), style(), width)
    assert all(line.isprintable() for line in text.splitlines())
    assert_golden(text, f"ps_hostile_{width}.txt")


class TestNumbers:
    def test_are_never_cut(self) -> None:
        for width in (1, 10, 40, 60):
            text = render(view(), style(columns="pid swap uss pss rss vss command"), width)
            assert "4.1G" in text and "90211" in text and "12.4G" in text

    def test_a_chosen_column_never_gives_way(self) -> None:
        assert "VSS" in render(view(), style(columns="pid vss swap command"), 20)
        assert "VSS" not in render(view(), style(), 60).splitlines()[0]

    @pytest.mark.parametrize(
        ("unit", "swap", "pss"),
        [("auto", "512.0M", "4.1G"), ("b", "536870912", "4402656051"), ("k", "524288", "4299469"), ("g", "0.5", "4.1")],
    )
    def test_units(self, unit: str, swap: str, pss: str) -> None:
        line = render(view(), style(columns="pid swap pss", unit=unit, header=False)).splitlines()[-1]
        assert line.split() == ["90211", swap, pss]

    def test_shares_of_the_machine_or_not_available(self) -> None:
        how = style(columns="pid swap pss", percent=True, header=False)
        assert render(view(), how).splitlines()[-1].split() == ["90211", "25.00%", "25.63%"]
        nowhere = replace(view(), swap=0, memory=None)
        assert render(nowhere, how).splitlines()[-1].split() == ["90211", "N/A", "N/A"]

    def test_what_is_not_known_is_a_dash(self) -> None:
        line = next(line for line in render(view(), style()).splitlines() if "/sbin/init" in line)
        assert line.split()[:7] == ["1", "root", "0", "-", "-", "12.9M", "58.7M"]

    def test_a_lower_bound_is_marked(self) -> None:
        total = render(view("user"), style("user", columns="user uss rss", totals=True), 200).splitlines()[-3]
        assert total.split() == [">4.9G", "5.0G"]


class TestOrder:
    def test_the_largest_is_next_to_the_prompt(self) -> None:
        lines = render(view(), style(header=False)).splitlines()
        assert "java" in lines[-1]

    def test_what_may_be_large_is_not_hidden_at_the_top(self) -> None:
        """An unreadable process has no PSS: its RSS, which is more, stands in for it."""
        huge = unreadable(usage(99, "root", "huge", 9000, 0, 0))
        lines = render(view(survey=Survey((*PROCESSES, huge))), style(header=False)).splitlines()
        assert "huge" in lines[-1]

    @pytest.mark.parametrize("by", BYS)
    def test_every_column_sorts_and_shows(self, by: By) -> None:
        for name in COLUMNS[by]:
            for growth in (False, True):
                assert render(view(by, growth=growth, sort=name), style(by, columns=name))


class TestColumns:
    def test_by_name_with_commas_or_blanks_and_smems_names(self) -> None:
        found = find_columns("mapping", "map,pids count AVGPSS", "-c")
        assert [column.name for column in found] == ["mapping", "pids", "maps", "avgpss"]
        assert [column.name for column in find_columns("user", "user count", "-c")] == ["user", "pids"]

    @pytest.mark.parametrize(
        ("by", "names"), [("process", "avguss"), ("mapping", "command"), ("user", "x"), ("user", " ")]
    )
    def test_a_wrong_one_is_told_with_what_there_is(self, by: By, names: str) -> None:
        with pytest.raises(UsageError, match="-c: ") as error:
            find_columns(by, names, "-c")
        assert error.value.exit_code == 2 and "\n" not in error.value.cause
        assert error.value.fix is not None and "pss" in error.value.fix

    def test_each_is_described(self) -> None:
        assert all(len(line) < 80 for by in BYS for line in legend(tuple(COLUMNS[by].values())))

    def test_vss_by_user_is_no_pss(self) -> None:
        row = next(row for row in view("user").rows if row.label == "shop")
        vss = COLUMNS["user"]["vss"].cell(row, view("user"))
        assert vss == PROCESSES[3].sizes.vss != PROCESSES[3].sizes.pss


class TestBars:
    @given(st.floats(0, 1), st.integers(1, 40), st.booleans())
    def test_fit_and_grow(self, share: float, length: int, ascii_only: bool) -> None:
        text = bar(share, length, ascii_only=ascii_only)
        assert len(text) == length and text.isascii() == (ascii_only or not text.strip())
        assert bool(text.strip(" .")) == (share > 0)

    def test_full_and_empty(self) -> None:
        assert bar(1, 3, ascii_only=False) == "\u2588" * 3 and bar(0, 3, ascii_only=True) == "..."

    def test_of_growth(self) -> None:
        text = render(view(growth=True), style(growth=True, bars=COLUMNS["process"]["drss"]), 200)
        assert "OF +RSS" in text and "\u2588" in text


class TestFooter:
    def test_says_who_is_not_there(self) -> None:
        text = render(view(), style(), 200)
        assert "6 processes; 81 kernel threads and 1 zombie without memory; 2 ended meanwhile" in text
        assert "memtrace itself is left out" in text
        assert "1 process (RSS 12.9M) could not be read for want of permission" in text and "run as root" in text

    def test_is_left_out_with_the_header(self) -> None:
        assert len(render(view(), style(header=False)).splitlines()) == len(PROCESSES)

    def test_rows_that_are_not_shown_are_counted(self) -> None:
        made = view()
        assert "4 smaller rows not shown" in render(replace(made, rows=made.rows[-2:], omitted=4), style())


class Terminal(io.StringIO):
    """A terminal of that encoding."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


class TestTerminal:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "90")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)

    def shown(self) -> str:
        terminal = Terminal()
        write_lines(ps_lines(view(), style(), page_for(terminal, cut_in_pipe=False)), terminal)
        return terminal.getvalue()

    def test_has_its_width_and_bold_titles(self) -> None:
        assert "\x1b[1m  PID" in self.shown() and widest(Text.from_ansi(self.shown()).plain) <= 90

    def test_no_color(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        coloured = [code for code in self.shown().split("\x1b[")[1:] if code.startswith(("3", "9", "4"))]
        assert coloured == []

    def test_dumb(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "dumb")
        assert "\x1b" not in self.shown()

    def test_ascii_only(self) -> None:
        assert page_for(Terminal("ANSI_X3.4-1968"), cut_in_pipe=False).ascii_only
        assert not page_for(Terminal("UTF-8"), cut_in_pipe=False).ascii_only

    def test_a_pipe_gets_whole_command_lines_and_no_escapes(self) -> None:
        pipe = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        write_lines(ps_lines(view(), style(), page_for(pipe, cut_in_pipe=False)), pipe)
        pipe.seek(0)
        text = pipe.read()
        assert JAVA in text and "\x1b" not in text


def system(iomem: bytes = IOMEM) -> SystemMemory:
    found = system_memory(parse_meminfo(MEMINFO), *parse_iomem(iomem))
    assert found is not None
    return found


def render_system(made: SystemMemory, width: int, *, ascii_only: bool = False, **options: object) -> str:
    return "".join(f"{text}\n" for text, _ in system_lines(made, Page(width, ascii_only), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [60, 80])
def test_golden_of_the_whole_machine(width: int) -> None:
    text = render_system(system(), width, totals=True, bars=True, ascii_only=width == 60)
    assert widest(text) <= width
    assert_golden(text, f"ps_system_{width}.txt")


def test_the_whole_machine_without_root() -> None:
    text = render_system(system(b""), 80)
    assert text.splitlines()[1].split() == ["reserved", "at", "boot", "N/A", "0", "N/A"]
    assert "only root may see it" in text


def test_the_whole_machine_in_shares() -> None:
    made = system()
    text = render_system(made, 80, base=made.total, header=False, totals=True)
    assert text.splitlines()[-1].split()[2] == "100.00%"
