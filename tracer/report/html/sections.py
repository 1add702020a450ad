"""The parts of the page that need no script: verdict, window, where the growth went, the ledger, counters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from tracer.model.report import ClassGrowth, Report, StackGrowth, VerdictKind
from tracer.model.vma import RssCounters
from tracer.report.frames import label
from tracer.report.html.markup import Markup, join, tag
from tracer.report.words import (
    NO_STACKS,
    all_classes,
    balance,
    cause_in_words,
    loss_in_words,
    precision,
    why_no_stacks,
)
from tracer.units import human_bytes, human_count, human_rate, human_seconds, percent, plural

# What the kind of verdict is called where there is room for a word or two.
_KIND_NAMES: dict[VerdictKind, str] = {
    "leak": "Looks like a leak",
    "plateau": "Levelled off",
    "retention": "Kept by the allocator",
    "file-cache": "File pages",
    "stacks": "Thread stacks",
    "not-growing": "Not growing",
    "unknown": "No verdict yet",
}
_KNOWN_CAUSES = ("live", "kept-by-allocator", "mapped", "faulted", "before-attach", "memtrace", "reused", "released")
_LABEL_NAMES = 3


@dataclass(frozen=True, slots=True)
class _Cause:
    """A cause of growth in one class or in all, and the stack that is behind most of it."""

    name: str
    bytes: int
    stacks: int = 0
    largest: str | None = None


def verdict(report: Report) -> Markup:
    """The answer, with what it rests on; the first thing on the page."""
    kind = report.verdict.kind
    rate = human_rate(report.growth / report.seconds, signed=True) if report.seconds > 0 else "-"
    figures = (
        ("RSS growth", human_bytes(report.growth, signed=True), f"{report.growth:,} bytes"),
        ("per second", rate, "mean over the window"),
        ("RSS now", human_bytes(report.rss_end.rss), f"{report.rss_end.rss:,} bytes"),
        ("unexplained", human_bytes(report.unexplained), f"{report.unexplained:,} bytes"),
    )
    return tag(
        "section",
        tag("p", tag("span", _KIND_NAMES.get(kind, kind), class_="badge"), class_="kind"),
        tag("h1", report.verdict.text, id="verdict"),
        tag("ul", *(tag("li", line) for line in report.verdict.evidence), class_="evidence"),
        tag(
            "dl",
            *(tag("div", tag("dt", name), tag("dd", value, title=title)) for name, value, title in figures),
            class_="figures",
        ),
        class_=f"verdict k-{kind}",
        aria_labelledby="verdict",
    )


def window(report: Report) -> Markup:
    """What these figures are about, and what is missing from them: before any of them is read."""
    losses = [f"{human_count(n)} {loss_in_words(name)}" for name, n in report.losses.items() if n]
    zone = report.started.tzname()
    began = f"{report.started:%Y-%m-%d %H:%M:%S}{f' {zone}' if zone else ''}"
    traced = f"{report.seconds:.1f} s" if report.seconds < 60 else human_seconds(report.seconds)
    rows: list[tuple[str, Sequence[str], str]] = [
        ("Process", (f"{report.pid}  {report.command}",), "name"),
        ("Window", (f"{traced} from {began}; ended: {report.ended}",), ""),
        ("Precision", (precision(report),), "" if report.sampling.exact else "warn"),
        ("Lost", losses or ("nothing was lost",), "warn" if losses else ""),
        ("Ledger", (balance(report),), "" if _closes(report) else "bad"),
        ("Probed", report.probed or ("no allocator",), "name"),
        ("Notes", report.notes, "warn"),
    ]
    entries = (
        tag("div", tag("dt", name), *(tag("dd", line, class_=style) for line in lines))
        for name, lines, style in rows
        if lines
    )
    return tag("dl", *entries, class_="window")


def composition(report: Report) -> Markup:
    """All of the growth in one bar: its causes, over all classes."""
    causes = _causes((row.cause, row.bytes, row.stack) for row in report.ledger)
    positive = [cause for cause in causes if cause.bytes > 0]
    total = sum(cause.bytes for cause in positive)
    bar: list[Markup] = []
    at = 0.0
    for cause in positive:
        width = 1000 * cause.bytes / total
        bar.append(tag("rect", x=f"{at:.2f}", width=f"{width:.2f}", height="1", class_=_cause_class(cause.name)))
        at += width
    legend = (
        tag(
            "li",
            tag("span", class_=f"swatch {_cause_class(cause.name)}{' minus' if cause.bytes < 0 else ''}"),
            tag("span", cause_in_words(cause.name), class_="what"),
            " ",
            tag("b", human_bytes(cause.bytes, signed=True), title=f"{cause.bytes:,} bytes"),
            " ",
            tag("span", percent(cause.bytes, report.growth) if report.growth > 0 else "", class_="dim"),
        )
        for cause in causes
    )
    if not causes:
        return tag("p", "Nothing came and nothing went: the ledger has no row.", class_="dim")
    picture = tag(
        "svg", *bar, viewBox="0 0 1000 1", preserveAspectRatio="none", role="img", aria_label=_in_words(positive)
    )
    given = sum(cause.bytes for cause in causes if cause.bytes < 0)
    note = f"The bar holds what was added ({human_bytes(total, True)}); what was taken off it: {human_bytes(given)}."
    return join(
        tag("div", picture, class_="bar"),
        tag("ul", *legend, class_="legend"),
        tag("p", note, class_="dim") if given else Markup(),
    )


def ledger(report: Report) -> Markup:
    """Each class of memory and, beneath it, the causes that add up to its growth; at the end the sums."""
    stacks = {stack.id: stack for stack in report.stacks}
    # The sort is stable: classes keep the order of the report among equals.
    classes = sorted(all_classes(report), key=lambda row: -abs(row.growth))
    scale = max((abs(row.growth) for row in classes), default=0)
    quiet: list[ClassGrowth] = []
    bodies: list[Markup] = []
    for row in classes:
        causes = _causes((one.cause, one.bytes, one.stack) for one in report.ledger if one.vma_class == row.name)
        missing = row.growth - sum(cause.bytes for cause in causes)
        if missing:
            causes.append(_Cause("not in the ledger", missing))
        if causes:
            bodies.append(_class_body(row, causes, stacks, scale))
        else:
            quiet.append(row)
    columns = (
        ("Class and cause", ""),
        ("Start", "n"),
        ("End", "n"),
        ("Growth", "n"),
        ("", "wide"),
        ("Behind it", "wide"),
    )
    head = tag("tr", *(tag("th", name, class_=style, scope="col") for name, style in columns))
    table = tag("table", tag("thead", head), *bodies, _ledger_foot(report), class_="ledger")
    if quiet:
        size = human_bytes(sum(row.rss_end for row in quiet))
        names = ", ".join(row.name for row in quiet)
        rest = tag("p", f"{plural(len(quiet), 'class', 'es')} did not change ({size}): {names}", class_="dim name")
        return join(tag("div", table, class_="scroll"), rest)
    return tag("div", table, class_="scroll")


def _class_body(row: ClassGrowth, causes: Sequence[_Cause], stacks: Mapping[str, StackGrowth], scale: int) -> Markup:
    first = tag(
        "tr",
        tag("th", row.name, scope="rowgroup", class_="name"),
        _number(row.rss_start),
        _number(row.rss_end),
        _number(row.growth, signed=True),
        tag("td", _meter(row.growth, scale), class_="wide"),
        tag("td", class_="wide"),
        class_="class",
    )
    rest = (
        tag(
            "tr",
            tag("th", cause_in_words(cause.name), scope="row", class_="name"),
            tag("td"),
            tag("td"),
            _number(cause.bytes, signed=True),
            tag("td", _meter(cause.bytes, scale, _cause_class(cause.name)), class_="wide"),
            tag("td", _behind(cause, stacks), class_="wide"),
            class_="cause",
        )
        for cause in causes
    )
    return tag("tbody", first, *rest)


def _behind(cause: _Cause, stacks: Mapping[str, StackGrowth]) -> Markup:
    if cause.largest is None:
        return Markup()
    more = f" and {human_count(cause.stacks - 1)} more" if cause.stacks > 1 else ""
    if cause.largest not in stacks:
        return tag("span", f"a stack that is not in the report{more}", class_="dim")
    name = label(stacks[cause.largest].frames, _LABEL_NAMES) or "(no frames)"
    link = tag("a", name, href=f"#s={cause.largest}", class_="name code")
    return join(link, tag("span", more, class_="dim"))


def _ledger_foot(report: Report) -> Markup:
    total = sum(row.bytes for row in report.ledger)
    closes = _closes(report)
    sums = tag(
        "tr",
        tag("th", "Sum of the causes", scope="row"),
        tag("td"),
        tag("td"),
        _number(total, signed=True, id_="ledger-sum"),
        tag("td", "= growth of RSS: the books close" if closes else "", class_="good wide", colspan="2"),
    )
    rss = tag(
        "tr",
        tag("th", "RSS (VmRSS)", scope="row"),
        _number(report.rss_start.rss),
        _number(report.rss_end.rss),
        _number(report.growth, signed=True, id_="rss-growth"),
        tag("td", "" if closes else balance(report), class_="bad", colspan="2"),
    )
    return tag("tfoot", sums, rss)


def counters(report: Report) -> Markup:
    """The members of RSS, what was lost and what tracing cost, counter by counter."""
    members = [(name, _member(report.rss_start, name), _member(report.rss_end, name)) for name in _MEMBERS]
    rss_rows = (
        tag("tr", tag("th", name, scope="row"), _number(start), _number(end), _number(end - start, signed=True))
        for name, start, end in members
    )
    head = tag("tr", *(tag("th", name, scope="col", class_=style) for name, style in _RSS_COLUMNS))
    overhead = report.overhead
    share = "not measured" if overhead.target_share is None else percent(overhead.target_share)
    costs = (
        ("share of the target's CPU time", share),
        ("memtrace's CPU time", human_seconds(overhead.self_cpu)),
        ("memtrace's RSS", human_bytes(overhead.self_rss)),
        ("BPF maps", human_bytes(overhead.map_memory)),
        ("probe hits", human_count(overhead.probe_hits)),
        (
            "sampling",
            "every allocation" if report.sampling.exact else f"one in {human_bytes(report.sampling.interval)}",
        ),
    )
    losses = [(loss_in_words(name), human_count(n)) for name, n in report.losses.items()]
    return tag(
        "div",
        tag("div", tag("h3", "Resident memory"), tag("table", tag("thead", head), tag("tbody", *rss_rows))),
        tag("div", tag("h3", "What tracing cost"), _pairs(costs)),
        tag("div", tag("h3", "Losses"), _pairs(losses) if losses else tag("p", "no counter of losses", class_="dim")),
        class_="columns",
    )


_MEMBERS = ("anon", "file", "shmem", "swap")
_RSS_COLUMNS = (("Member", ""), ("Start", "n"), ("End", "n"), ("Growth", "n"))


def no_stacks(report: Report) -> Markup:
    """Why there is no flame graph, as an empty picture would be taken for good news; nothing where there are stacks."""
    if any(stack.bytes > 0 for stack in report.stacks):
        return Markup()
    reasons = (tag("li", reason) for reason in why_no_stacks(report))
    return tag("div", tag("p", f"{NO_STACKS}:"), tag("ul", *reasons), class_="nothing")


def _pairs(rows: Iterable[tuple[str, str]]) -> Markup:
    return tag(
        "table",
        tag("tbody", *(tag("tr", tag("th", name, scope="row"), tag("td", value, class_="n")) for name, value in rows)),
    )


def _member(counters: RssCounters, name: str) -> int:
    return int(getattr(counters, name))


def _number(size: int, *, signed: bool = False, id_: str = "") -> Markup:
    return tag("td", human_bytes(size, signed), class_="n", title=f"{size:,} bytes", id=id_ or False)


def _meter(size: int, scale: int, style: str = "c-class") -> Markup:
    """A bar for the eye alone; the figure stands beside it."""
    if not scale or not size:
        return Markup()
    width = max(100 * abs(size) / scale, 0.5)
    rect = tag("rect", width=f"{min(width, 100):.2f}", height="1", class_=style)
    sign = " minus" if size < 0 else ""
    return tag("svg", rect, viewBox="0 0 100 1", preserveAspectRatio="none", class_=f"meter{sign}", aria_hidden="true")


def _causes(rows: Iterable[tuple[str, int, str | None]]) -> list[_Cause]:
    """Causes with their sums, largest first, what is unexplained last."""
    ordered = sorted(rows, key=lambda row: row[0])
    causes = [_cause(name, [*group]) for name, group in groupby(ordered, key=lambda row: row[0])]
    return sorted((one for one in causes if one.bytes), key=lambda one: (one.name == "unexplained", -abs(one.bytes)))


def _cause(name: str, rows: Sequence[tuple[str, int, str | None]]) -> _Cause:
    sums: dict[str, int] = {}
    for _, size, stack in rows:
        if stack is not None:
            sums[stack] = sums.get(stack, 0) + size
    largest = max(sums, key=lambda stack: (abs(sums[stack]), stack), default=None)
    return _Cause(name, sum(size for _, size, _ in rows), len(sums), largest)


def _cause_class(cause: str) -> str:
    return f"c-{cause}" if cause in _KNOWN_CAUSES or cause == "unexplained" else "c-other"


def _in_words(causes: Sequence[_Cause]) -> str:
    return "; ".join(f"{cause_in_words(cause.name)} {human_bytes(cause.bytes)}" for cause in causes)


def _closes(report: Report) -> bool:
    return sum(row.bytes for row in report.ledger) == report.growth
