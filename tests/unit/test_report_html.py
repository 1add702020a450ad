"""The HTML report: inert against hostile names, closed against the network, and true to the report's figures.

MEMTRACE_UPDATE_GOLDEN=1 writes the golden outline anew, to be read before it is kept. What the script draws is tested
in a browser: tests/browser.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.reports import KIB, LEDGER, LIBC, MAPPED, MIB, STORE, frame, sample_report, stack, vma
from tracer.model.report import ClassGrowth, Frame, LedgerRow, Report, Sampling, StackGrowth, Verdict, VmaGrowth
from tracer.model.timeline import Marker, Timeline, timeline_of_ends
from tracer.report.html import write_html
from tracer.report.html.payload import payload
from tracer.report.safe import printable

GOLDEN = Path(__file__).parent / "golden" / "report_html_outline.txt"
ASSETS = files("tracer.report.html") / "assets"
SCRIPTS = sorted(one.name for one in ASSETS.iterdir() if one.name.endswith(".js"))
VOID = {"meta", "link", "input", "br", "hr", "wbr", "col", "img"}
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "]]></style><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "$script ${data} &amp; &lt;b&gt;",
    "a\u2028b\u2029c\x00\x1b[2J\r\n\x7f\x85\u202egnp.exe\udcff",
    "x" * 10_000,
)


def page(report: Report, timeline: Timeline | None = None) -> str:
    file = io.StringIO()
    write_html(report, file, timeline)
    return file.getvalue()


class Outline(HTMLParser):
    """Elements in their order with attributes, and the text within each, as a browser would see them."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.open: list[str] = []
        self.comments: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def shape(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    def content(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where and where[-1] == tag]


def data_of(source: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)
    assert found
    return json.loads(found[1])


def without_data(source: str) -> str:
    return re.sub(r'(<script type="application/json" id="data">).*?(</script>)', r"\1\2", source, flags=re.DOTALL)


def tagged(names: list[str]) -> Report:
    """A report in which every text from outside is one of the names, over and over."""
    turn = iter(range(1_000_000))

    def name() -> str:
        return names[next(turn) % len(names)]

    evil = replace(
        STORE,
        vma_class=name(),
        frames=tuple(
            Frame(name(), name(), 5, build_id=name(), file=name(), line=index, function_offset=9) for index in range(9)
        ),
    )
    kind, cause = name(), name()
    path = name().replace("\0", "0").encode("utf-8", "surrogatepass")
    return sample_report(
        command=name(),
        ended=name(),
        verdict=Verdict("leak", name(), (name(), name())),
        stacks=(evil,),
        classes=(ClassGrowth(kind, 0, MIB, MIB), ClassGrowth("class:" + name(), 5, 5, 0)),
        ledger=(LedgerRow(kind, "live", evil.id, MIB), LedgerRow("other:" + name(), "cause:" + cause, None, 7)),
        vmas=(VmaGrowth(vma(4096, 8192, b"/" + path), kind, MIB, 4096),),
        probed=(name(), name()),
        losses={name(): 3},
        notes=(name(),),
    )


def benign_shape() -> list[str]:
    return Outline(page(tagged(["a"]))).shape()


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_adds_no_element(name: str) -> None:
    outline = Outline(page(tagged([name])))
    assert outline.shape() == benign_shape()
    assert outline.open == []
    assert outline.comments == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(), max_size=30), min_size=1, max_size=5))
def test_no_name_adds_an_element_or_a_control_character(names: list[str]) -> None:
    source = page(tagged(names))
    assert Outline(source).shape() == benign_shape()
    assert all(character.isprintable() or character == "\n" for character in source)


def test_names_come_through_whole() -> None:
    for name in HOSTILE:
        source = page(tagged([name]))
        assert printable(name) in data_of(source)["strings"]
        assert printable(name) in Outline(source).content("h1")[0]


def test_data_is_inert_in_its_element() -> None:
    block = re.search(r'id="data">(.*?)</script>', page(tagged(list(HOSTILE))), re.DOTALL)
    assert block
    assert not re.search(r"[<>&]", block[1])
    assert block[1].isascii()


def digest(source: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'"


def test_policy_names_the_script_and_the_style_that_are_there_and_nothing_else() -> None:
    outline = Outline(page(tagged(list(HOSTILE))))
    [policy] = [
        attributes["content"]
        for tag, attributes in outline.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in (policy or "").split("; "))
    scripts = [text for where, text in outline.texts if where[-1:] == ("script",)]
    styles = [text for where, text in outline.texts if where[-1:] == ("style",)]
    assert rules == {
        "default-src": "'none'",
        "script-src": digest(scripts[-1]),
        "style-src": digest("".join(styles)),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_policy_comes_before_whatever_it_governs() -> None:
    source = page(sample_report())
    policy = source.index("Content-Security-Policy")
    assert policy < min(source.index(part) for part in ("<style", "<script", "<link", "<title"))


def test_nothing_in_the_page_asks_for_anything() -> None:
    source = without_data(page(sample_report()))
    assert not re.search(
        r"https?:|//[a-z]|url\(|@import|src=|srcset|<iframe|<object|<embed|<form|ping=", source.lower()
    )
    for tag, attributes in Outline(source).elements:
        links = {name: value for name, value in attributes.items() if name in ("href", "src", "action")}
        assert all((value or "").startswith(("#", "data:image/png;")) for value in links.values()), (tag, links)
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_build_elements_and_never_parse_markup(name: str) -> None:
    source = (ASSETS / name).read_text(encoding="utf-8")
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|DOMParser|fetch\(|XMLHttp|import\("
    )
    assert not re.search(forbidden, source)
    assert "</" not in source
    assert "<!--" not in source
    # Indentation is taken out of the page's script: no text may run over several lines.
    assert all(line.count("`") % 2 == 0 for line in source.splitlines())


def test_size_without_data() -> None:
    empty = sample_report(stacks=(), vmas=(), ledger=(), classes=())
    assert len(page(empty).encode()) < 90 * KIB


def test_same_report_same_bytes() -> None:
    assert page(sample_report()) == page(sample_report())


def sizes_by_row(source: str) -> list[tuple[str, list[int]]]:
    """The rows of the ledger: name, and its sizes in bytes as their titles state them."""
    rows: list[tuple[str, list[int]]] = []
    table = source[source.index('class="ledger"') :]
    for row in re.findall(r"<tr.*?</tr>", table[: table.index("</table>")], re.DOTALL)[1:]:
        name = re.search(r"<th[^>]*>(.*?)</th>", row, re.DOTALL)
        assert name
        sizes = [int(size.replace(",", "")) for size in re.findall(r'title="(-?[\d,]+) bytes"', row)]
        rows.append((name[1], sizes))
    return rows


def test_ledger_adds_up_on_the_page() -> None:
    report = sample_report()
    rows = sizes_by_row(page(report))
    sums: dict[str, int] = {}
    growth: dict[str, int] = {}
    current = ""
    for name, sizes in rows[:-2]:
        if len(sizes) == 3:
            current, growth[name], sums[name] = name, sizes[2], 0
            assert sizes[1] - sizes[0] == sizes[2]
        else:
            sums[current] += sizes[0]
    assert sums == growth
    assert sum(growth.values()) == report.growth
    assert rows[-2:] == [
        ("Sum of the causes", [report.growth]),
        ("RSS (VmRSS)", [report.rss_start.rss, report.rss_end.rss, report.growth]),
    ]


def test_books_that_do_not_close_say_so_twice() -> None:
    source = page(sample_report(ledger=LEDGER[:-1]))
    assert source.count("DOES NOT CLOSE") >= 2
    assert "the books close" not in source
    assert "not in the ledger" in source


def test_page_says_the_window_sampling_losses_and_notes_before_any_figure_of_a_stack() -> None:
    report = sample_report(
        sampling=Sampling(512 * KIB, exact=False), losses={"live_full": 7}, notes=("perf maps were not readable",)
    )
    source = page(report)
    panel = source[source.index('<dl class="window"') : source.index("</dl>", source.index('<dl class="window"'))]
    for said in (
        "30.0 s from 2026-02-03 14:03:22 UTC; ended: Ctrl-C",
        "sampled every 512.0 KiB",
        "7 blocks not tracked",
        "perf maps were not readable",
        "25568  /usr/sbin/samba",
    ):
        assert said in panel, said
    assert source.index('<dl class="window"') < source.index('id="ledger"')


def test_without_stacks_the_page_says_why() -> None:
    source = page(sample_report(stacks=(), notes=("no allocator was found",)))
    assert "No call stack holds memory" in source
    assert "<li>no allocator was found</li>" in source


def test_plain_text_is_the_text_report() -> None:
    text = "".join(Outline(page(sample_report())).content("pre"))
    assert text.startswith("RSS grew 60.6 MiB")
    assert " #1   56.1 MiB" in text


def test_outline_is_the_golden_one() -> None:
    outline = Outline(page(sample_report()))
    lines = []
    skipped = {"style", "script", "pre", "option"}
    for where, text in outline.texts:
        if text.strip() and not skipped & set(where):
            lines.append(f"{'/'.join(where[2:])}: {' '.join(text.split())}")
    written = "\n".join(lines) + "\n"
    if os.environ.get("MEMTRACE_UPDATE_GOLDEN"):
        GOLDEN.write_text(written, encoding="utf-8")
    assert written == GOLDEN.read_text(encoding="utf-8")


def frames_in(data: Any, number: int) -> list[tuple[Any, ...]]:
    """The frames of a stack, innermost first, as the page's script reads them."""

    def text(index: int) -> str | None:
        return None if index < 0 else data["strings"][index]

    found = []
    node = data["stacks"]["leaf"][number]
    while True:
        at = data["nodes"]["frame"][node]
        function = data["frames"]["function"][at]
        module = data["functions"]["module"][function]
        offset = data["frames"]["offset"][at]
        found.append(
            (
                text(data["functions"]["full"][function]) or text(data["functions"]["name"][function]),
                None if module < 0 else text(data["modules"]["path"][module]),
                None if module < 0 else text(data["modules"]["build_id"][module]),
                int(offset, 16) if isinstance(offset, str) else offset,
                data["frames"]["distance"][at],
                text(data["frames"]["file"][at]),
                data["frames"]["line"][at],
                bool(data["frames"]["inlined"][at]),
            )
        )
        if not data["nodes"]["up"][node]:
            break
        node -= data["nodes"]["up"][node]
    return found


FRAMES = st.builds(
    Frame,
    function=st.sampled_from(["f", "g", "main", "std::vector<int>::push_back(int&&)", "malloc"]),
    module=st.sampled_from([None, LIBC, "/usr/bin/server"]),
    offset=st.sampled_from([0, 1, (1 << 53) - 1, 1 << 53, (1 << 64) - 1]),
    function_offset=st.integers(0, 2),
    file=st.sampled_from([None, "a.c", "b.c"]),
    line=st.one_of(st.none(), st.integers(1, 3)),
    inlined=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(FRAMES, max_size=6), st.booleans(), st.integers(0, 1 << 40)), max_size=8))
def test_every_stack_comes_through(made: list[tuple[list[Frame], bool, int]]) -> None:
    stacks = tuple(
        stack(f"{number:016x}", size, frames=tuple(frames), complete=complete)
        for number, (frames, complete, size) in enumerate(made)
    )
    report = sample_report(stacks=stacks)
    data = json.loads(json.dumps(payload(report, timeline_of_ends(report))))
    by_id = {one.id: one for one in stacks}
    assert sorted(data["stacks"]["id"]) == sorted(by_id)
    assert data["stacks"]["bytes"] == sorted((one.bytes for one in stacks), reverse=True)
    for number, identity in enumerate(data["stacks"]["id"]):
        expected = [
            (one.function, one.module, None, one.offset, one.function_offset, one.file, one.line, one.inlined)
            for one in by_id[identity].frames
        ]
        found = frames_in(data, number)
        if not expected:
            assert [one[0] for one in found] == ["(no frames)"]
        elif by_id[identity].complete:
            assert found == expected
        else:
            assert found[:-1] == expected
            assert found[-1][0] == "(stack ends early)"


def test_shared_frames_are_stored_once() -> None:
    outer = tuple(frame(f"outer_{depth}", offset=depth) for depth in range(50))
    stacks = tuple(
        stack(f"{number:016x}", 1000 + number, frames=(frame(f"leaf_{number}", offset=99 + number), *outer))
        for number in range(20)
    )
    data = payload(sample_report(stacks=stacks), timeline_of_ends(sample_report()))
    assert len(data["nodes"]["frame"]) == 50 + 20
    assert len(data["frames"]["function"]) == 50 + 20


def test_allocator_frames_are_counted_and_the_culprit_marked() -> None:
    one = stack("01", MIB, frames=(frame("malloc", LIBC), frame("xmalloc"), frame("store"), frame("main")))
    data = payload(sample_report(stacks=(one,)), timeline_of_ends(sample_report()))
    assert data["stacks"]["folded"] == [1]
    assert data["stacks"]["culprit"] == [2]


def test_growth_of_a_stack_is_what_the_ledger_books_to_it() -> None:
    report = sample_report(
        stacks=(STORE, MAPPED), ledger=(LedgerRow("heap", "live", STORE.id, 5), LedgerRow("x", "reused", STORE.id, -2))
    )
    data = payload(report, timeline_of_ends(report))
    assert data["stacks"]["growth"] == [3, 0]
    assert data["ledger"]["stack"] == [0, 0]


def test_without_a_timeline_the_chart_has_the_two_ends_and_says_that_it_has_no_more() -> None:
    report = sample_report()
    data = data_of(page(report))["timeline"]
    assert data["seconds"] == [0.0, 30.04]
    assert data["rss"] == [report.rss_start.rss, report.rss_end.rss]
    assert data["has_course"] is False
    series = {data_of(page(report))["strings"][name]: values for name, values in data["classes"]}
    assert series["heap"] == [80 * MIB, 80 * MIB + 59_721 * KIB]


def test_a_timeline_is_passed_on_with_its_gaps_and_markers() -> None:
    given_ = Timeline((0.0, 1.0, 2.0), (1, None, 3), {"heap": (None, 2, 3)}, (Marker(1.5, "<sampled>"),))
    data = data_of(page(sample_report(), given_))
    assert data["timeline"]["rss"] == [1, None, 3]
    assert data["timeline"]["classes"][0][1] == [None, 2, 3]
    assert data["timeline"]["has_course"] is True
    [[seconds, name]] = data["timeline"]["markers"]
    assert (seconds, data["strings"][name]) == (1.5, "<sampled>")


@pytest.mark.parametrize(
    "broken",
    [
        {"rss": (1,)},
        {"classes": {"heap": (1, 2, 3)}},
        {"seconds": (1.0, 0.5)},
    ],
    ids=["rss too short", "class too long", "time runs back"],
)
def test_a_timeline_that_does_not_fit_is_refused(broken: dict[str, Any]) -> None:
    known: dict[str, Any] = {"seconds": (0.0, 1.0), "rss": (1, 2)}
    with pytest.raises(ValueError, match=r"values for|must rise"):
        Timeline(**(known | broken))


def test_a_window_without_length_is_drawn_all_the_same() -> None:
    assert timeline_of_ends(sample_report(seconds=0.0)).seconds == (0.0, 0.0)
    assert "0 B" in page(sample_report(seconds=0.0, ledger=(), stacks=(), classes=(), vmas=()))


def test_stack_kinds_have_words_on_the_page() -> None:
    data = data_of(page(sample_report()))
    known: tuple[StackGrowth, ...] = sample_report().stacks
    assert {one.kind for one in known} <= set(data["kinds"])
