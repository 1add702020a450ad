"""What each part of a process's memory is for: text, heap, thread stack, malloc arena, file, shared memory, ...

By ranges, not by VMAs: the kernel makes one VMA of neighbours that are alike (a library's bss and what was mapped
behind it, several thread stacks, malloc's chunks and other memory). What maps, VmFlags and program headers say is
exact; the rest is recognised by what its owner writes into it, where the memory can be read, and else is anonymous.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tracer.model.class_names import (
    ANONYMOUS,
    ARENA,
    BSS,
    CLASSES,
    DATA,
    FILE,
    FILE_CLASSES,
    GUARD,
    HEAP,
    IMAGE_CLASSES,
    JIT,
    KERNEL,
    MEMTRACE,
    MMAPPED,
    RELRO,
    RESERVE,
    RODATA,
    SHARED,
    STACK,
    TEXT,
    THREAD_STACK,
    ClassRange,
)
from tracer.model.elf_layout import ElfLayout, image_ranges
from tracer.model.heap_signs import ARENA_SIZE, HEAD_SIZE, HeapWalk, ReadMany, ReadMemory, arenas_within
from tracer.model.language_heaps import language_heaps, runs_python
from tracer.model.named_memory import SMALL_GUARD, base_name, class_by_line, is_inaccessible, is_unnamed
from tracer.model.painting import OPEN, Claims, joined, paint
from tracer.model.thread_stacks import FindGuards, StackFinder, Thread
from tracer.model.vma import Vma

__all__ = [
    "ANONYMOUS",
    "ARENA",
    "BSS",
    "CLASSES",
    "DATA",
    "FILE",
    "FILE_CLASSES",
    "GUARD",
    "HEAP",
    "IMAGE_CLASSES",
    "JIT",
    "KERNEL",
    "MEMTRACE",
    "MMAPPED",
    "RELRO",
    "RESERVE",
    "RODATA",
    "SHARED",
    "STACK",
    "TEXT",
    "THREAD_STACK",
    "ClassRange",
    "ProcessFacts",
    "ReadMemory",
    "classify_all",
    "classify_ranges",
    "dominant_classes",
]

# A VMA and its VmFlags, or none where they were not read (smaps has them).
Row = tuple[Vma, tuple[str, ...]]

_MAX_GUARD = 1 << 20


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What is known of a process beyond its VMAs; each may be missing, and then less can be told.

    ``images`` are the layouts of mapped ELF files by device and inode. ``threads`` begin with the main thread.
    """

    images: Mapping[tuple[str, int], ElfLayout] = field(default_factory=dict)
    threads: Sequence[Thread] = ()
    is_go: bool = False
    read: ReadMemory | None = None
    read_many: ReadMany | None = None
    guards: FindGuards | None = None


_NOTHING_MORE = ProcessFacts()


def classify_ranges(rows: Iterable[Row], facts: ProcessFacts = _NOTHING_MORE) -> list[ClassRange]:
    """The classes of all memory of a process: each VMA is covered completely, in the order of ``rows``.

    No range reaches over the end of a VMA; neighbours within one VMA differ in class or detail.
    """
    return _Classifier(list(rows), facts).ranges()


def dominant_classes(rows: Iterable[Row], ranges: Iterable[ClassRange]) -> dict[int, str]:
    """Start addresses of VMAs to the class that most of the VMA is of; ``ranges`` are those of ``classify_ranges``."""
    classes: dict[int, str] = {}
    following = iter(ranges)
    for vma, _ in rows:
        sizes: dict[str, int] = defaultdict(int)
        position = vma.start
        while position < vma.end and (range_ := next(following, None)) is not None:
            sizes[range_.name] += range_.size
            position = range_.end
        classes[vma.start] = max(sizes, key=lambda name: sizes[name], default=ANONYMOUS)
    return classes


def classify_all(
    vmas_with_flags: Iterable[tuple[Vma, tuple[str, ...]]], read_memory: ReadMemory | None = None
) -> dict[int, str]:
    """Start addresses to the class of most of each VMA, without a look at the process's files and threads."""
    rows = list(vmas_with_flags)
    return dominant_classes(rows, classify_ranges(rows, ProcessFacts(read=read_memory)))


class _Classifier:
    def __init__(self, rows: list[Row], facts: ProcessFacts) -> None:
        self._rows = rows
        self._facts = facts
        self._stacks = StackFinder(facts.threads, facts.read, facts.guards)
        vmas = [vma for vma, _ in rows]
        self._parts, self._bss = self._claims_of_images(vmas)
        self._languages = Claims(language_heaps(vmas, is_go=facts.is_go))
        python = runs_python(vmas)
        self._walk = HeapWalk(self._read_many, python=python) if self._can_read else None
        self._pieces: list[list[ClassRange]] = []

    def ranges(self) -> list[ClassRange]:
        """All steps, from what is certain to what is only recognised."""
        self._pieces = [self._by_line_and_image(vma, flags) for vma, flags in self._rows]
        for index in self._with_open_parts():
            self._find_arenas_and_stacks(index)
        self._walk_heaps()
        for index, (vma, _) in enumerate(self._rows):
            if is_inaccessible(vma) and is_unnamed(vma):
                self._pieces[index] = [self._inaccessible(index, vma)]
        return [range_ for index in range(len(self._rows)) for range_ in self._finished(index)]

    @property
    def _can_read(self) -> bool:
        return self._facts.read is not None or self._facts.read_many is not None

    def _read_many(self, addresses: Sequence[int], size: int) -> Sequence[bytes | None]:
        if self._facts.read_many is not None:
            return self._facts.read_many(addresses, size)
        read = self._facts.read
        return [read(address, size) if read is not None else None for address in addresses]

    def _claims_of_images(self, vmas: Iterable[Vma]) -> tuple[Claims, Claims]:
        by_file: dict[tuple[str, int], list[Vma]] = defaultdict(list)
        for vma in vmas:
            if vma.inode and (vma.device, vma.inode) in self._facts.images:
                by_file[(vma.device, vma.inode)].append(vma)
        parts: list[ClassRange] = []
        bss: list[ClassRange] = []
        for key, mapped in by_file.items():
            of_file, of_bss = image_ranges(self._facts.images[key], mapped, base_name(mapped[0].path))
            parts += of_file
            bss += of_bss
        return Claims(parts), Claims(bss)

    def _by_line_and_image(self, vma: Vma, flags: tuple[str, ...]) -> list[ClassRange]:
        name, detail = class_by_line(vma, flags)
        whole = ClassRange(vma.start, vma.end, name, detail)
        if name in (TEXT, FILE):
            return paint([whole], self._parts, over=name)
        if name == HEAP:  # the brk heap of a program without randomised addresses begins in the page behind its bss
            return paint([whole], self._bss, over=HEAP)
        if name == STACK and self._facts.threads and not detail:
            return [ClassRange(vma.start, vma.end, STACK, self._facts.threads[0].label)]
        if name not in (ANONYMOUS, JIT) or not is_unnamed(vma):
            return [whole]
        pieces = paint([ClassRange(vma.start, vma.end, OPEN, detail)], self._bss)
        return pieces if vma.is_executable else paint(pieces, self._languages)

    def _with_open_parts(self) -> list[int]:
        return [
            index
            for index, (vma, _) in enumerate(self._rows)
            if "w" in vma.perms and any(piece.name == OPEN for piece in self._pieces[index])
        ]

    def _find_arenas_and_stacks(self, index: int) -> None:
        vma, flags = self._rows[index]
        for piece in [piece for piece in self._pieces[index] if piece.name == OPEN]:
            if not vma.is_executable:
                self._claim(index, self._arenas(index, piece))
            has_guard = piece.start == vma.start and self._has_guard(index)
            part = Vma(piece.start, piece.end, vma.perms, 0, vma.device, 0, b"")
            if self._stacks.may_hold(part, flags, has_guard):
                self._claim(index, self._stacks.find(part, flags, has_guard))

    def _claim(self, index: int, claims: Sequence[ClassRange]) -> None:
        if claims:
            self._pieces[index] = paint(self._pieces[index], Claims(claims))

    def _arenas(self, index: int, piece: ClassRange) -> list[ClassRange]:
        if self._can_read:
            return list(arenas_within(piece.start, piece.end, self._read_many))
        # By its shape alone: 64 MiB at a multiple of 64 MiB, of which the upper part is not accessible yet.
        after = self._rows[index + 1][0] if index + 1 < len(self._rows) else None
        has_reserve = after is not None and after.start == piece.end and is_inaccessible(after) and not after.is_file
        end = after.end if after is not None and has_reserve else piece.end
        if piece.start % ARENA_SIZE == 0 and (end - piece.start) % ARENA_SIZE == 0:
            return [ClassRange(piece.start, piece.end, ARENA)]
        return []

    def _has_guard(self, index: int) -> bool:
        if not index:
            return False
        below = self._rows[index - 1][0]
        return below.end == self._rows[index][0].start and is_inaccessible(below) and not below.is_file

    def _walk_heaps(self) -> None:
        """Chunks that malloc has mapped, and heaps that are known by their content."""
        if self._walk is None:
            return
        candidates = [
            (index, piece)
            for index, (vma, _) in enumerate(self._rows)
            if vma.perms.startswith("rw-p")
            for piece in self._pieces[index]
            if piece.name == OPEN
        ]
        heads = self._read_many([piece.start for _, piece in candidates], HEAD_SIZE) if candidates else ()
        for (index, piece), head in zip(candidates, heads, strict=True):
            if claims := list(self._walk.walk(piece.start, piece.end, head)):
                self._claim(index, claims)

    def _inaccessible(self, index: int, vma: Vma) -> ClassRange:
        """A stack's guard, an arena's or a runtime's reserve, or either by its size."""
        above = self._pieces[index + 1][0] if index + 1 < len(self._pieces) else None
        if above is not None and above.start == vma.end and above.name == THREAD_STACK and vma.size <= _MAX_GUARD:
            return ClassRange(vma.start, vma.end, GUARD, above.detail)
        below = self._pieces[index - 1][-1] if index else None
        if below is not None and below.end == vma.start and below.name == ARENA:
            return ClassRange(vma.start, vma.end, RESERVE, below.detail)
        owners = self._languages.within(vma.start, vma.end)
        if owners and owners[0].start <= vma.start and vma.end <= owners[0].end:
            return ClassRange(vma.start, vma.end, RESERVE, owners[0].detail)
        return ClassRange(vma.start, vma.end, GUARD if vma.size <= SMALL_GUARD else RESERVE)

    def _finished(self, index: int) -> list[ClassRange]:
        pieces = self._pieces[index]
        if len(pieces) == 1 and pieces[0].name != OPEN:
            return pieces
        name = JIT if self._rows[index][0].is_executable else ANONYMOUS
        return joined(
            ClassRange(piece.start, piece.end, name, piece.detail) if piece.name == OPEN else piece for piece in pieces
        )
