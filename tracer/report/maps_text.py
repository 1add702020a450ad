"""The mappings of a process as a table: numbers and titles are never cut, the paths are where the page is narrow.

Made for 60,000 rows: what repeats in a column is formatted and aligned once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal, TextIO

from tracer.maps.columns import Cell, Column
from tracer.maps.process import ProcessMaps, Totals, totals
from tracer.maps.selection import Group
from tracer.model.coded import Coded
from tracer.procfs.vmflags import meaning
from tracer.report.safe import Page, cells
from tracer.units import human_bytes, human_count, plural

Unit = Literal["B", "KiB", "MiB", "GiB", "auto"]
UNITS: Final[tuple[Unit, ...]] = ("B", "KiB", "MiB", "GiB", "auto")

_SHIFTS = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30}
_UNKNOWN = "-"
_ADDRESSES = ("address", "end")
_ADDRESS_DIGITS = 12
# A path that is cut keeps at least as many cells; the usual view leaves out columns before it cuts deeper.
_LEAST_PATH, _USUAL_PATH = 8, 14
# What the usual view leaves out on a narrow page, in this order.
_DISPENSABLE = ("swap", "pss", "dirty")
# Narrower pages have one blank between columns.
_ROOMY = 100
_LINES_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class Style:
    """How tables are set. ``width`` is None where lines may be of any length. ``usual`` lets columns give way."""

    width: int | None = None
    ascii_only: bool = False
    unit: Unit = "KiB"
    bare: bool = False
    usual: bool = False
    explain_flags: bool = False
    device_totals: bool = False

    @property
    def gap(self) -> str:
        """What stands between columns."""
        return " " if self.width and self.width < _ROOMY else "  "

    @property
    def page(self) -> Page:
        """The page for what may be cut."""
        return Page(self.width or 1 << 20, self.ascii_only)


def write_maps(process: ProcessMaps, columns: Sequence[Column], style: Style, file: TextIO) -> None:
    """A heading, the table, its totals, and what has to be said of it; ``bare`` leaves only the rows."""
    sums = totals(process)
    left_out: list[str] = []
    if style.usual:
        columns, left_out = _fitting(process, columns, sums, style)
    table = _Table(process, columns, sums, style)
    if not style.bare:
        print(style.page.shorten(f"{process.pid}: {style.page.clean(process.command)}", style.page.width), file=file)
        print(table.titles, file=file)
    _write_lines(table.rows(), file)
    if style.bare:
        return
    print(table.total, file=file)
    for line in _remarks(process, columns, sums, left_out, style):
        print("\n".join(style.page.wrap(line) if style.width else [line]), file=file)
    if style.explain_flags:
        _write_flags(process, file)


def write_groups(
    process: ProcessMaps, key: str, found: Sequence[Group], columns: Sequence[Column], style: Style, file: TextIO
) -> None:
    """The sums of groups of VMAs: a row for each, and the total."""
    sizes = [column for column in columns if column.summable]
    show = _sizes(style.unit)
    rows = []
    for group in found:
        sums = totals(group.process)
        numbers = [_optional(show, column.total(group.process, sums)) for column in sizes]
        rows.append([human_count(len(group.process.table)), *numbers, style.page.clean(group.name)])
    sums = totals(process)
    numbers = [_optional(show, column.total(process, sums)) for column in sizes]
    last = [human_count(len(process.table)), *numbers, "total"]
    titles = ["VMAs", *(column.name for column in sizes), key]
    widths = [max(map(cells, texts)) for texts in zip(titles, *rows, last, strict=True)]
    room = max(_LEAST_PATH, style.page.width - sum(widths[:-1]) - len(style.gap) * (len(widths) - 1))
    if not style.bare:
        print(style.page.shorten(f"{process.pid}: {style.page.clean(process.command)}", style.page.width), file=file)
    for row in rows if style.bare else [titles, *rows, last]:
        *numbers, name = row
        aligned = [text.rjust(width) for text, width in zip(numbers, widths, strict=False)]
        print(style.gap.join([*aligned, style.page.shorten(name, room, "end")]), file=file)
    if not style.bare:
        for line in _remarks(process, sizes, sums, [], style):
            print("\n".join(style.page.wrap(line) if style.width else [line]), file=file)


class _Table:
    """The lines of a table. The path, wherever it stands among the columns, is set last."""

    def __init__(self, process: ProcessMaps, columns: Sequence[Column], sums: Totals, style: Style) -> None:
        self._style = style
        show = _sizes(style.unit)
        numbers = [column for column in columns if column.name != "path"]
        has_path = len(numbers) < len(columns)
        self._columns: list[Coded[str]] = []
        titles, last = [], []
        for index, column in enumerate(numbers):
            sum_text = _optional(show, column.total(process, sums)) if column.summable else ""
            if index == 0 and not column.summable:
                sum_text = "total"
            texts, adjust = _aligned(process, column, max(len(column.name), len(sum_text)), style)
            self._columns.append(texts)
            titles.append(adjust(column.name))
            last.append(adjust(sum_text))
        taken = sum(map(len, titles)) + len(style.gap) * len(titles)
        self._paths = _labels(process, columns, style, taken) if has_path else None
        end = [plural(len(process.table), "VMA")] if has_path else []
        self.titles = style.gap.join([*titles, *(["path"] if has_path else [])]).rstrip()
        self.total = style.gap.join([*last, *end]).rstrip()

    def rows(self) -> Iterator[str]:
        """The rows, in order."""
        columns = [*self._columns, *([self._paths] if self._paths is not None else [])]
        pieces = [column.expand() for column in _merged(columns, self._style.gap)]
        if len(pieces) == 1:
            return iter(pieces[0])
        return map(self._style.gap.join, zip(*pieces, strict=True))


def _merged(columns: Iterable[Coded[str]], gap: str) -> list[Coded[str]]:
    """Neighbours that repeat together (they come from the same line of maps, or block of smaps) as one column."""
    merged: list[Coded[str]] = []
    for column in columns:
        if merged and merged[-1].ids is column.ids:
            texts = map(gap.join, zip(merged[-1].values, column.values, strict=True))
            merged[-1] = Coded(column.ids, list(texts))
        else:
            merged.append(column)
    return merged


def _write_lines(lines: Iterator[str], file: TextIO) -> None:
    while block := list(islice(lines, _LINES_AT_ONCE)):
        # Texts without a path end in blanks.
        file.write("\n".join(map(str.rstrip, block)) + "\n")


def _fitting(
    process: ProcessMaps, columns: Sequence[Column], sums: Totals, style: Style
) -> tuple[list[Column], list[str]]:
    """The columns that leave room for paths, and the names of those that had to go."""
    kept, left_out = list(columns), list[str]()
    if style.width is None:
        return kept, left_out
    for name in _DISPENSABLE:
        if _needed(process, kept, sums, style) + _USUAL_PATH <= style.width:
            break
        gone = [column for column in kept if column.name == name]
        kept = [column for column in kept if column.name != name]
        left_out += [column.name for column in gone]
    return kept, left_out


def _needed(process: ProcessMaps, columns: Sequence[Column], sums: Totals, style: Style) -> int:
    """The cells that all columns but the path take, blanks between them included."""
    show = _sizes(style.unit)
    needed = 0
    for column in columns:
        if column.name in _ADDRESSES:
            needed += len(style.gap) + len(_addresses(column.cells(process), len(column.name))[1](""))
        elif column.name != "path":
            widest = max(map(cells, _texts(process, column, style).values), default=0)
            last = len(_optional(show, column.total(process, sums))) if column.summable else 0
            needed += len(style.gap) + max(widest, last, len(column.name))
    return needed


def _aligned(process: ProcessMaps, column: Column, least: int, style: Style) -> tuple[Coded[str], Callable[[str], str]]:
    """The texts of a column, all of one width, and what aligns its title with them."""
    if column.name in _ADDRESSES:
        return _addresses(column.cells(process), least)
    texts = _texts(process, column, style)
    adjust = _adjust(column, max(least, *map(cells, texts.values), 0))
    return texts.map(adjust), adjust


def _addresses(values: Coded[Cell], least: int) -> tuple[Coded[str], Callable[[str], str]]:
    """Addresses are the one column of which each row is different, so this goes straight to the text."""
    widest = max((value for value in values.values if isinstance(value, int)), default=0)
    width = max(least, _ADDRESS_DIGITS, len(f"{widest:x}"))
    form = " " * (width - _ADDRESS_DIGITS) + f"%0{_ADDRESS_DIGITS}x"
    texts = [form % value for value in values.values]
    if texts and widest >> 4 * _ADDRESS_DIGITS:
        texts = [text[-width:] for text in texts]
    return Coded(values.ids, texts), lambda text: text.rjust(width)


def _texts(process: ProcessMaps, column: Column, style: Style) -> Coded[str]:
    """What the rows show of a column, not yet aligned."""
    values = column.cells(process)
    format_cell = _format(column, style)
    return values.map(lambda cell: _UNKNOWN if cell is None else format_cell(cell))


def _format(column: Column, style: Style) -> Callable[[Cell], str]:
    if column.kind == "hex":
        return lambda cell: f"{cell:012x}" if column.name in _ADDRESSES else f"{cell:08x}"
    if column.kind == "size":
        show = _sizes(style.unit)
        return lambda cell: show(int(cell or 0))
    if column.kind == "number":
        return str
    clean = style.page.clean
    return lambda cell: clean(str(cell))


def _sizes(unit: Unit) -> Callable[[int], str]:
    if unit == "auto":
        return human_bytes
    shift = _SHIFTS[unit]
    if shift <= 10:
        return lambda size: str(size >> shift)
    return lambda size: f"{size / (1 << shift):.1f}"


def _optional(show: Callable[[int], str], size: int | None) -> str:
    return _UNKNOWN if size is None else show(size)


def _adjust(column: Column, width: int) -> Callable[[str], str]:
    if column.kind == "text":
        return lambda text: text + " " * (width - cells(text))
    return lambda text: text.rjust(width)


def _labels(process: ProcessMaps, columns: Sequence[Column], style: Style, taken: int) -> Coded[str]:
    """The last column: the path, else whose stack it is, else the class, where that is no column of its own."""
    page = style.page
    # Where the numbers alone are too wide for the page, lines wrap anyway.
    room = max(_LEAST_PATH, page.width - taken) if taken < page.width else 1 << 20
    has_class = any(column.name == "class" for column in columns)

    def shown(label: str) -> str:
        return page.shorten(page.clean(label), room, "end")

    table = process.table
    names = table.attributes.map(lambda attributes: _path_text(attributes.path, attributes.inode))
    if has_class and not process.threads:
        return names.map(shown)
    kinds = process.classes.map(lambda name: "" if has_class else f"[{name or 'anon'}]")
    labels = []
    for start, name, kind in zip(table.starts, names, kinds, strict=True):
        threads = process.threads.get(start)
        owner = ", ".join(f"{thread.tid} {thread.name}" for thread in threads) if threads else ""
        labels.append(name or (f"[stack of {owner}]" if owner else kind))
    return Coded.of(labels).map(shown)


def _path_text(path: bytes, inode: int) -> str:
    text = path.decode("utf-8", "surrogateescape")
    # SysV shared memory: the inode is the segment's id (ipc/shm.c).
    return f"{text} [shmid=0x{inode:x}]" if path.startswith(b"/SYSV") else text


def _remarks(
    process: ProcessMaps, columns: Sequence[Column], sums: Totals, left_out: Sequence[str], style: Style
) -> Iterator[str]:
    show = _sizes(style.unit)
    unit = "" if style.unit in ("auto", "B") else f" {style.unit}"
    if style.unit != "auto":
        yield f"sizes in {style.unit}" + (f"; no room for {', '.join(left_out)} (-X has all)" if left_out else "")
    if style.device_totals:
        yield _mapped_totals(process, show, unit)
    if not process.is_whole:
        yield f"{human_count(len(process.table))} of {plural(process.vma_count, 'VMA')} shown"
    for field in dict.fromkeys(field for column in columns for field in column.fields):
        if field in sums.rounded:
            yield (
                f"{field.lower()}: {show(sums.exact[field])}{unit} is exact (smaps_rollup); the VMAs' own figures, "
                f"each rounded down to a KiB, sum to {show(sums.sums[field])}{unit}"
            )
    if sums.moved and process.rollup is not None:
        pss = process.rollup.get("Pss", 0)
        yield f"the process moved on meanwhile: a moment later smaps_rollup has a pss of {show(pss)}{unit}"
    if process.torn:
        yield "torn: the process changed its mappings while they were read; some may be missing, or twice there"
    if process.reader == "pagemap":
        yield "read from page tables: hugetlb counts as rss, swap is that of private memory, no other field is known"
    yield from (style.page.clean(note) for note in process.notes)


def _mapped_totals(process: ProcessMaps, show: Callable[[int], str], unit: str) -> str:
    """The footer of ``pmap -d``."""
    writable = shared = 0
    lengths = process.table.lengths()
    for size, attributes in zip(lengths, process.table.attributes, strict=True):
        if attributes.perms.endswith("s"):
            shared += size
        elif attributes.perms[1:2] == "w":
            writable += size
    numbers = {"mapped": sum(lengths), "writable and private": writable, "shared": shared}
    return ", ".join(f"{name} {show(size)}{unit}" for name, size in numbers.items())


def _write_flags(process: ProcessMaps, file: TextIO) -> None:
    codes = sorted({code for flags in process.table.flags.used() for code in flags})
    for code in codes:
        print(f"  {code:<4}{meaning(code)}" if code.isprintable() else f"  {code!r}", file=file)
