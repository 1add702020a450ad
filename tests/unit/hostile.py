"""Names that other people's binaries may hold, and reports made of them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tests.unit.reports import frame, sample_report, stack
from tracer.model.report import Frame, LedgerRow, Report, StackGrowth

NAMES = (
    "</script><script>alert(1)</script>",
    "a;b;c",
    "two\nlines 17",
    "\x1b[2J\x1b]0;title\x07",
    '=HYPERLINK("http://evil")',
    "@SUM(A1)",
    "+1+1",
    "-1|calc",
    "\t=1",
    "right\u202eleft",
    "not \udcff utf-8",
    "x" * 10_000,
    "",
    " ",
    "# comment",
    "name 42",
    '"quoted", with, commas',
)

_text = st.one_of(st.sampled_from(NAMES), st.text(st.characters(codec=None), max_size=12))
_size = st.integers(0, 1 << 48)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """Any frame; few enough different ones that the same appear in several stacks."""
    return frame(
        draw(st.one_of(st.none(), _text)),
        draw(
            st.one_of(
                st.none(), st.sampled_from(("/usr/lib/libldb.so", "/bin/x;y", "[vdso]", "/tmp/perf-1.map")), _text
            )
        ),
        draw(st.integers(0, (1 << 64) - 1)),
        build_id=draw(st.sampled_from((None, "a1b2", "ff" * 20))),
        file=draw(st.one_of(st.none(), _text)),
        line=draw(st.one_of(st.none(), st.integers(0, 1 << 31))),
        inlined=draw(st.booleans()),
        address=draw(st.sampled_from((0, 0x7F3A20000010, 0x55D0C0A00000, (1 << 64) - 1))),
    )


@st.composite
def stacks(draw: st.DrawFn, identity: str) -> StackGrowth:
    return replace(
        stack(identity, 0, frames=tuple(draw(st.lists(frames(), max_size=6)))),
        kind=draw(st.sampled_from(("malloc", "mmap", "fault", "brk"))),
        vma_class=draw(st.sampled_from(("heap", "anonymous", "=x"))),
        bytes=draw(_size),
        count=draw(_size),
        allocated_bytes=draw(_size),
        allocated_count=draw(_size),
    )


@st.composite
def reports(draw: st.DrawFn) -> Report:
    """Any report; its ledger may name stacks that are not in it."""
    found = [draw(stacks(f"{number:016x}")) for number in range(draw(st.integers(0, 5)))]
    rows = st.builds(
        LedgerRow,
        st.sampled_from(("heap", "anonymous", "")),
        st.sampled_from(("live", "mapped", "faulted", "kept-by-allocator", "released", "unexplained")),
        st.one_of(st.none(), st.sampled_from([f"{number:016x}" for number in range(7)])),
        st.integers(-(1 << 40), 1 << 40),
    )
    return sample_report(
        command=draw(_text),
        stacks=tuple(found),
        ledger=tuple(draw(st.lists(rows, max_size=8))),
        notes=tuple(draw(st.lists(_text, max_size=2))),
        losses=draw(st.dictionaries(_text, st.integers(0, 3), max_size=2)),
    )
