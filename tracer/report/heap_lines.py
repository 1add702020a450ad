"""The heap's inside, as lines of the report for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from tracer.model.report import HeapInside, HeapState
from tracer.report.safe import Column, Page
from tracer.report.words import plus
from tracer.units import human_bytes, plural

_PARTS = (
    ("in use", "live"),
    ("freed, but kept (resident)", "kept"),
    ("headers and tables", "overhead"),
    ("blocks mapped one by one", "mapped"),
    ("malloc_trim(0) would return", "returnable"),
)


def heap_lines(heap: HeapInside | None, page: Page) -> Iterator[Text]:
    """A table of what was read, and the finding with what helps; nothing where nothing is known."""
    if heap is None or not (heap.end or heap.finding):
        return
    if heap.end is not None:
        yield from _table(heap.start, heap.end, page)
    for line in (heap.finding, *heap.remedies, heap.reason):
        for text in page.wrap(page.clean(line), "  - ") if line else ():
            yield Text(text)


def _table(start: HeapState | None, end: HeapState, page: Page) -> Iterator[Text]:
    title = f"Inside malloc's heap ({plural(end.arenas, 'arena')})"
    columns = [Column(title, keep="start"), *(Column(name, right=True) for name in ("start", "end", "growth"))]
    rows = []
    for words, name in _PARTS:
        size = getattr(end, name)
        before = getattr(start, name) if start is not None else None
        if size or before:
            known = ("?", human_bytes(size), "?") if before is None else _both(before, size)
            rows.append((words, *known))
    for index, line in enumerate(page.align(columns, rows)):
        yield Text(line, style="" if index else "bold")


def _both(start: int, end: int) -> tuple[str, str, str]:
    return human_bytes(start), human_bytes(end), plus(end - start)
