"""The HTML report in a browser, by what a reader sees and does: real clicks and keys, and figures read back."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.browser.big import big_report
from tests.browser.chromium import DOWN, ENTER, ESCAPE, HOME, LEFT, RIGHT, Browser
from tests.browser.conftest import Show
from tests.unit.reports import FAULTED, KIB, LIBC, MAPPED, MIB, STORE, frame, sample_report, stack
from tests.unit.test_report_html import HOSTILE, tagged
from tracer.model.report import Report
from tracer.model.timeline import Marker, Timeline
from tracer.report.html import write_html
from tracer.report.safe import printable
from tracer.units import human_bytes, human_count, human_rate, human_seconds, percent

ROW = 20  # of the flame graph, in CSS pixels
UNITS = Path(__file__).resolve().parents[2] / "tracer/report/html/assets/units.js"


def two_branches(**changes: Any) -> Report:
    """The function main calls left (3 MiB: 2 in leak_a, 1 in leak_b) and right (1 MiB, mapped)."""
    main, left, right = (frame(name, "/usr/bin/server", at) for at, name in enumerate(("main", "left", "right")))
    malloc = frame("malloc", LIBC, 0x99)
    stacks = (
        stack("aa01", 2 * MIB, frames=(malloc, frame("leak_a", "/lib/liba.so"), left, main)),
        stack("aa02", 1 * MIB, frames=(malloc, frame("leak_b", "/lib/liba.so", 7), left, main), trend="steady"),
        stack("aa03", 1 * MIB, frames=(frame("mmap", LIBC, 1), right, main), kind="mmap", count=1),
    )
    return sample_report(stacks=stacks, **changes)


def text(browser: Browser, selector: str) -> str:
    found: str = browser.run("return document.querySelector(arguments[0]).textContent", selector)
    return " ".join(found.split())


def texts(browser: Browser, selector: str) -> list[str]:
    found: list[str] = browser.run(
        "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector
    )
    return found


def point_at(browser: Browser, row: int, share: float, *, click: bool = False) -> None:
    """Point into the flame graph: at which row, and where in its width."""
    browser.run("document.getElementById('graph').scrollIntoView()")
    size = browser.driver.find_element("id", "flame").size
    right, down = (share - 0.5) * size["width"], (row + 0.5) * ROW - size["height"] / 2
    browser.point("#flame", round(right), round(down), click=click)


def choose(browser: Browser, control: str, option: str) -> None:
    browser.driver.find_element("css selector", f"#{control} option[value='{option}']").click()


def colours(browser: Browser) -> dict[str, int]:
    """The colours on the canvas and how many pixels each has."""
    found: dict[str, int] = browser.run("""
        const canvas = document.getElementById("flame-canvas");
        const copy = document.createElement("canvas");
        Object.assign(copy, { width: canvas.width, height: canvas.height });
        const pen = copy.getContext("2d", { willReadFrequently: true });
        pen.drawImage(canvas, 0, 0);
        const { data } = pen.getImageData(0, 0, copy.width, copy.height);
        const seen = {};
        for (let at = 0; at < data.length; at += 4) {
            const name = `${data[at]},${data[at + 1]},${data[at + 2]},${data[at + 3]}`;
            seen[name] = (seen[name] || 0) + 1;
        }
        return seen;
    """)
    return found


def colour(browser: Browser, style: str) -> str:
    """The colour of a class of boxes, as ``colours`` writes it."""
    resolved: str = browser.run(
        "const probe = document.createElement('b'); probe.className = arguments[0]; document.body.append(probe);"
        "const colour = getComputedStyle(probe).backgroundColor; probe.remove(); return colour",
        f"p-{style}",
    )
    return ",".join(re.findall(r"\d+", resolved)[:3]) + ",255"


def fragment(browser: Browser) -> str:
    found: str = browser.run("return location.hash")
    return found


def test_opens_without_a_request_or_a_complaint(show: Show) -> None:
    browser = show(sample_report())
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.driver.title.startswith("leak: samba (25568)")


def test_flame_graph_is_drawn_in_the_colours_that_its_legend_explains(show: Show) -> None:
    browser = show(two_branches())
    drawn = colours(browser)
    for style in ("root", "m0", "m1", "m2"):
        assert drawn.get(colour(browser, style), 0) > 1000, style
    assert texts(browser, "#flame-legend .name") == ["server", "liba.so", "libc.so.6"]


def test_figures_on_the_page_are_those_of_the_report(show: Show) -> None:
    report = sample_report()
    browser = show(report)
    assert text(browser, "#ledger-sum") == text(browser, "#rss-growth") == human_bytes(report.growth, signed=True)
    assert (
        text(browser, "#flame-status") == f"all stacks {human_bytes(sum(s.bytes for s in report.stacks))} in 3 stacks"
    )
    held = browser.run(
        "return [...document.querySelectorAll('#stacks-table td.strong [title]')].map((one) => one.title)"
    )
    assert [int(re.sub(r"\D", "", one)) for one in held] == [one.bytes for one in (STORE, MAPPED, FAULTED)]
    shares = texts(browser, "#stacks-table tbody tr td:nth-child(3)")
    assert shares == [percent(one.bytes, report.growth) for one in (STORE, MAPPED, FAULTED)]
    grown = browser.run(
        "return [...document.querySelectorAll('#vmas-table td.strong [title]')].map((one) => one.title)"
    )
    figures = [int(one.replace(",", "").split()[0]) for one in grown]
    assert sorted(figures) == sorted(row.growth for row in report.vmas if row.growth)
    assert sum(figures) == sum(row.growth for row in report.vmas)


def test_a_click_zooms_in_and_escape_out(show: Show) -> None:
    browser = show(two_branches())
    point_at(browser, 2, 0.3, click=True)
    assert text(browser, "#flame-status").startswith(
        "left server 3.0 MiB in 2 stacks · 75.0 % of all · 75.0 % of its parent"
    )
    # Zoomed in, its children share the whole width: leak_b begins at two thirds.
    point_at(browser, 3, 0.9)
    assert text(browser, "#flame-status").startswith(
        "leak_b liba.so 1.0 MiB in 1 stack · 25.0 % of all · 33.3 % of its parent"
    )
    assert "z=aa01.2" in fragment(browser)
    browser.run("document.getElementById('flame').focus()")
    browser.press(ESCAPE, ESCAPE)
    assert text(browser, "#flame-status").startswith("all stacks 4.0 MiB in 3 stacks")
    assert "z=" not in fragment(browser)


def test_hover_tells_share_of_all_and_of_the_parent(show: Show) -> None:
    browser = show(two_branches())
    point_at(browser, 3, 0.6)
    tip = text(browser, "#tip")
    assert "leak_b" in tip
    assert "25.0 % of all · 33.3 % of its parent" in tip
    assert browser.run("return document.getElementById('tip').hidden") is False
    point_at(browser, 0, 0.5)
    assert "all stacks" in text(browser, "#tip")


def test_keys_move_zoom_and_reset(show: Show) -> None:
    browser = show(two_branches())
    browser.run("document.getElementById('flame').focus()")
    browser.press(DOWN, DOWN, RIGHT)
    assert text(browser, "#flame-status").startswith("right server 1.0 MiB")
    browser.press(LEFT, DOWN, ENTER)
    assert text(browser, "#flame-status").startswith("leak_a liba.so 2.0 MiB")
    assert "z=aa01.3" in fragment(browser)
    browser.press(HOME)
    assert text(browser, "#flame-status").startswith("all stacks")


def test_a_deep_stack_scrolls_within_its_frame(show: Show) -> None:
    deep = stack("01", MIB, frames=tuple(frame(f"f{depth}") for depth in range(120, 0, -1)))
    browser = show(sample_report(stacks=(deep,)))
    browser.run("document.getElementById('flame').focus()")
    browser.press(*[DOWN] * 100)
    assert text(browser, "#flame-status").startswith("f100 ")
    assert browser.run("return document.getElementById('flame').scrollTop") > 40 * ROW
    # What the pointer meets in the last row in sight is what stands there.
    top = browser.run("return document.getElementById('flame').scrollTop")
    point_at(browser, 5, 0.5)
    assert text(browser, "#flame-status").startswith(f"f{int((top + 5.5 * ROW) // ROW)} ")


def test_search_says_what_share_matches_and_marks_the_boxes(show: Show) -> None:
    browser = show(two_branches())
    browser.press("/", "leak_[ab]|malloc")
    assert text(browser, "#found") == "Matches 75.0 % of all (3.0 MiB) in 2 stacks"
    assert colours(browser).get(colour(browser, "match"), 0) > 1000
    browser.press(ESCAPE)
    assert text(browser, "#found") == ""
    assert colour(browser, "match") not in colours(browser)


def test_a_search_that_is_no_regular_expression_is_plain_text(show: Show) -> None:
    report = sample_report(stacks=(stack("01", MIB, frames=(frame("operator()("), frame("main"))),))
    browser = show(report)
    browser.press("/", "()(")
    assert text(browser, "#found").startswith("No valid regular expression, so searched as plain text: matches 100.0 %")


def test_stacks_through_a_match_count_once(show: Show) -> None:
    recursive = stack("01", MIB, frames=(frame("f"), frame("f"), frame("f"), frame("main")))
    browser = show(sample_report(stacks=(recursive, stack("02", MIB, frames=(frame("g"), frame("main"))))))
    browser.press("/", "^f$")
    assert text(browser, "#found") == "Matches 50.0 % of all (1.0 MiB) in 1 stack"


def test_inverted_begins_with_the_innermost_function(show: Show) -> None:
    browser = show(two_branches())
    choose(browser, "order", "1")
    point_at(browser, 1, 0.1)
    assert text(browser, "#flame-status").startswith("leak_a liba.so 2.0 MiB in 1 stack · 50.0 % of all")
    point_at(browser, 2, 0.1)
    assert text(browser, "#flame-status").startswith("left server 2.0 MiB")
    assert "i=1" in fragment(browser)
    browser.run("document.getElementById('flame').focus()")
    browser.press("i")
    point_at(browser, 1, 0.1)
    assert text(browser, "#flame-status").startswith("main server 4.0 MiB")


def test_metric_kinds_and_allocator_frames(show: Show) -> None:
    browser = show(two_branches())
    browser.driver.find_element("css selector", "#kinds input[value='mmap']").click()
    assert text(browser, "#flame-status").startswith("all stacks 3.0 MiB in 2 stacks")
    assert "k=malloc" in fragment(browser)
    choose(browser, "metric", "count")
    assert text(browser, "#flame-status").startswith(
        f"all stacks {human_count(2 * MIB // 320 + MIB // 320)} in 2 stacks"
    )
    browser.driver.find_element("id", "allocator").click()
    point_at(browser, 4, 0.1)
    assert text(browser, "#flame-status").startswith("malloc libc.so.6")


def test_the_address_brings_back_the_view(show: Show) -> None:
    view = "#m=allocated&c=kind&q=leak_b&k=malloc&z=aa01.2"
    browser = show(two_branches(), fragment=view)
    assert text(browser, "#flame-status").startswith("left server 3.0 MiB in 2 stacks · 100.0 % of all")
    assert text(browser, "#found").endswith("in 1 stack")
    assert browser.run("return document.getElementById('search').value") == "leak_b"
    assert texts(browser, "#flame-legend .name") == ["malloc 100.0 %"]


def test_an_address_that_asks_for_what_is_not_there_shows_the_whole(show: Show) -> None:
    browser = show(two_branches(), fragment="#m=nonsense&c=%3Cb%3E&k=x&z=ffff.900000&s=zz&i=7&z=__proto__.1")
    browser.run("document.getElementById('reset').click()")
    assert text(browser, "#flame-status").startswith("all stacks")


def test_dark_by_the_system_and_by_the_button(show: Show) -> None:
    browser = show(two_branches())
    paper = "return getComputedStyle(document.body).backgroundColor"
    light, drawn = browser.run(paper), colours(browser)
    browser.driver.find_element("id", "theme").click()
    dark = browser.run(paper)
    assert dark != light
    assert colours(browser).keys().isdisjoint({name for name, size in drawn.items() if size > 1000} - {"0,0,0,0"})
    browser.driver.find_element("id", "theme").click()
    assert browser.run(paper) == light
    assert browser.requests() == []
    browser.prefer("dark")
    browser.driver.refresh()
    assert browser.run(paper) == dark
    assert text(browser, "#theme") == "Light"


def test_hostile_names_are_inert(show: Show) -> None:
    browser = show(tagged(list(HOSTILE)))
    for opener in browser.driver.find_elements("css selector", ".opener button"):
        opener.click()
    point_at(browser, 2, 0.5)
    browser.press("/", "script")
    assert browser.run("return document.scripts.length") == 2
    assert browser.run("return document.querySelectorAll('img, main script, [onmouseover]').length") == 0
    shown = browser.run("return document.body.textContent")
    assert printable(HOSTILE[0]) in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    # Ten thousand letters widen nothing.
    assert browser.run("return document.documentElement.scrollWidth") <= 1280


def test_policy_stops_what_got_into_the_page(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with page.open("w", encoding="utf-8") as file:
        write_html(sample_report(), file)
    evil = "<script>owned = 1</script><img src=x onerror='owned = 2'><style>h1 { color: #123456 }</style>"
    page.write_text(page.read_text(encoding="utf-8").replace("<main>", f"<main>{evil}"), encoding="utf-8")
    browser.open(page)
    assert browser.run("return window.owned === undefined")
    assert browser.run("return getComputedStyle(document.querySelector('h1')).color") != "rgb(18, 52, 86)"
    complaints = " ".join(browser.console())
    for rule in ("script-src", "style-src", "img-src"):
        assert rule in complaints
    assert browser.run(
        "try { document.body.insertAdjacentHTML('beforeend', '<b></b>') } catch (error) { return error.name }"
    )
    browser.console()


def test_stacks_sort_filter_and_open(show: Show) -> None:
    browser = show(two_branches())
    first = "#stacks-table tbody tr:first-child .stack b"
    assert text(browser, first) == "leak_a"
    by_name = browser.driver.find_element("xpath", "//table[@id='stacks-table']//button[text()='Call stack']")
    by_name.click()
    by_name.click()
    assert text(browser, first) == "right"
    assert browser.run("return document.querySelectorAll('#stacks-table [aria-sort=descending]').length") == 1
    browser.driver.find_element("id", "stacks-filter").send_keys("leak_b")
    assert texts(browser, "#stacks-table .stack b") == ["leak_b"]
    browser.driver.find_element("css selector", "#stacks-table .opener button").click()
    assert texts(browser, "#stacks-table .frames td:nth-child(2)") == ["malloc", "leak_b", "left", "main"]
    assert texts(browser, "#stacks-table .frames .culprit td:nth-child(3)") == ["/lib/liba.so+0x7"]
    assert texts(browser, "#stacks-table .frames tr.dim td:nth-child(2)") == ["malloc"]
    assert "s=aa02" in fragment(browser)
    browser.driver.find_element("css selector", "#stacks-table .detail button").click()
    assert text(browser, "#flame-status").startswith("leak_b liba.so 1.0 MiB")


def test_the_ledger_leads_to_the_stack_behind_a_cause(show: Show) -> None:
    browser = show(sample_report())
    browser.driver.find_element("css selector", ".ledger a").click()
    assert len(texts(browser, "#stacks-table .detail .frames tbody tr")) == len(STORE.frames)


def test_vmas_show_what_changed_and_the_causes_of_their_class(show: Show) -> None:
    report = sample_report()
    browser = show(report)
    rows = "#vmas-table tbody tr[data-row]"
    assert len(texts(browser, rows)) == sum(row.growth != 0 for row in report.vmas)
    browser.driver.find_element("id", "vmas-all").click()
    assert len(texts(browser, rows)) == len(report.vmas)
    browser.driver.find_element("css selector", "#vmas-table .opener button").click()
    detail = text(browser, "#vmas-table .detail")
    assert "No other VMA of this class changed" in detail
    assert "+56.1 MiBlive allocationsstore_attributes < dsdb_convert_object_ex" in detail


def test_chart_of_a_course_reads_back_its_figures(show: Show) -> None:
    seconds = tuple(float(at) for at in range(31))
    heap = tuple(80 * MIB + at * MIB for at in range(31))
    other = tuple(4 * KIB if at % 10 == 0 else None for at in range(31))
    course = Timeline(seconds, heap, {"heap": heap, "file": other}, (Marker(12.0, "sampled from here on"),))
    browser = show(sample_report(), course)
    assert len(texts(browser, "#chart-picture path.line")) == 2
    assert texts(browser, "#chart-markers li") == ["12 s: sampled from here on"]
    assert texts(browser, "#chart-picture text.axis:not(.strong)")[:4] == ["0", "+10 MiB", "+20 MiB", "+30 MiB"]
    browser.run("document.getElementById('chart').focus()")
    browser.press(LEFT)
    assert text(browser, "#chart-status") == "30 s: RSS +30.0 MiB, heap +30.0 MiB"
    browser.press(LEFT)
    assert text(browser, "#chart-status") == "29 s: RSS +29.0 MiB, heap +29.0 MiB"


def test_chart_of_two_ends_says_that_it_is_no_course(show: Show) -> None:
    browser = show(sample_report())
    assert text(browser, "#chart-lead").startswith("Only the start and the end were measured")
    few = sample_report(rss_end=replace(sample_report().rss_start, anon=112 * MIB + 1_800 * KIB), classes=())
    ticks = texts(show(few), "#chart-picture text.axis")[:5]
    assert ticks == ["0", "+512 KiB", "+1 MiB", "+1.5 MiB", "+2 MiB"]


def test_chart_draws_what_changed_in_dashes_where_only_the_ends_are_known(show: Show) -> None:
    browser = show(sample_report())
    assert len(texts(browser, "#chart-picture path.dashed")) == len(texts(browser, "#chart-picture path.line")) == 5


@pytest.mark.parametrize("width", [1280, 400, 320])
def test_nothing_is_wider_than_the_window(show: Show, width: int) -> None:
    browser = show(tagged(list(HOSTILE)))
    browser.resize(width, 900)
    for opener in browser.driver.find_elements("css selector", ".opener button"):
        opener.click()
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_empty_report_says_why(show: Show) -> None:
    browser = show(
        sample_report(stacks=(), ledger=(), vmas=(), classes=(), probed=(), notes=("no allocator was found",))
    )
    assert "no allocator was found" in text(browser, ".nothing")
    assert browser.run("return document.getElementById('flame-panel').hidden")


def test_paper_gets_all_rows_and_the_whole_flame_graph_in_light(show: Show, browser: Browser) -> None:
    browser.prefer("dark")
    show(big_report(150, vmas=60))
    before = browser.run("return document.querySelectorAll('#stacks-table tr[data-row]').length")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert before < browser.run("return document.querySelectorAll('#stacks-table tr[data-row]').length") == 150
    assert browser.run("return document.querySelectorAll('#stacks-table .frames').length") == 10
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert colours(browser).get(colour(browser, "m0"), 0) > 1000
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("return document.querySelectorAll('#stacks-table tr[data-row]').length") == before
    assert browser.pdf().startswith(b"%PDF")


def test_many_stacks_are_shown_a_part_at_a_time(show: Show) -> None:
    report = big_report(5_000, vmas=300)
    browser = show(report)
    rows = "return document.querySelectorAll('#stacks-table tr[data-row]').length"
    assert browser.run(rows) == 20
    assert text(browser, "#stacks-more").startswith("4,980 stacks more")
    browser.driver.find_element("css selector", "#stacks-more button").click()
    assert browser.run(rows) == 120
    total = human_bytes(sum(one.bytes for one in report.stacks))
    assert text(browser, "#flame-status") == f"all stacks {total} in 5,000 stacks"
    # A link to a stack that is far down the table leads to it all the same.
    last = report.stacks[-1].id
    browser.run("location.hash = arguments[0]", f"#s={last}")
    browser.driver.find_element("css selector", "#stacks-table tr.open")
    assert last in text(browser, "#stacks-table .detail")


def test_without_scripts_the_text_is_open(show: Show, browser: Browser) -> None:
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        show(sample_report())
        assert browser.driver.find_element("tag name", "pre").is_displayed()
        assert browser.driver.find_element("css selector", "noscript .callout").is_displayed()
        assert not browser.driver.find_element("id", "flame").is_displayed()
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)


def test_units_are_written_as_in_python(browser: Browser) -> None:
    sizes = [0, 1, 1023, 1024, 1075, 1126, 1280, 1536, 1792, 1_047_999, 1_048_064, -1280, 5 * MIB + 1, 1 << 40, 3 << 60]
    sizes += [(7 * at * at * 977 + at) << (at % 45) for at in range(1, 300)]
    sizes = [size for size in sizes if abs(size) < 1 << 53 or size & (size - 1) == 0]
    times = [0, 0.0004, 0.0005, 0.25, 0.9994, 0.9995, 1.25, 2.5, 9.94, 9.95, 10.5, 11.5, 59.5, 61, 3599.5, 3630, 86399]
    times += [at * 0.25 for at in range(400)] + [at * 1801.5 for at in range(200)]
    shares = [(at, 1000) for at in range(-300, 300)] + [(1, 10**6), (-1, 10**6), (0, 5), (1, 0), (1, 3)]
    source = UNITS.read_text(encoding="utf-8")
    found = browser.run(
        source
        + "const [sizes, times, shares] = arguments; return ["
        + "sizes.map((n) => [humanBytes(n), humanBytes(n, true), humanRate(n, true), humanCount(n)]),"
        + "times.map(humanSeconds), shares.map(([part, whole]) => percent(part, whole))];",
        sizes,
        times,
        shares,
    )
    assert found[0] == [
        [human_bytes(n), human_bytes(n, signed=True), human_rate(n, signed=True), human_count(n)] for n in sizes
    ]
    assert found[1] == [human_seconds(seconds) for seconds in times]
    assert found[2] == [percent(part, whole) for part, whole in shares]
