"""Heaps of glibc's malloc made by hand, as memory that can be walked: for tests without a process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tracer.heap.spans import Run
from tracer.heap.target_memory import PageRuns
from tracer.model.vma import Vma
from tracer.procfs.pagescan import PAGE

State = Literal["used", "free", "fast", "cached"]
ChunkRow = tuple[int, State]  # size in bytes, a multiple of 16 from 32 on

LIBC_DATA = 0x7F00_0000_0000
HEAP = 0x5500_0000_0000
BINS = 112
CACHE_COUNT = 7
_MAIN_ARENA = LIBC_DATA + 0x100
_MP = LIBC_DATA + 0x1800
_PREVIOUS_IN_USE = 1


class ImageMemory:
    """Memory held in pages; implements tracer.heap.target_memory.TargetMemory."""

    def __init__(self) -> None:
        self.held: dict[int, bytearray] = {}
        self.swapped: set[int] = set()
        self.reads = 0

    def write(self, address: int, data: bytes) -> None:
        for offset, byte in enumerate(data):
            page, within = (address + offset) & -PAGE, (address + offset) % PAGE
            self.held.setdefault(page, bytearray(PAGE))[within] = byte

    def write_word(self, address: int, value: int) -> None:
        self.write(address, (value & (1 << 64) - 1).to_bytes(8, "little"))

    def word(self, address: int) -> int:
        return int.from_bytes(self.gather([address], 8), "little")

    def drop(self, page: int, *, swap: bool = False) -> None:
        if self.held.pop(page, None) is not None and swap:
            self.swapped.add(page)

    def pages(self, start: int, end: int) -> PageRuns:
        return PageRuns(_runs(self.held, start, end), _runs(self.swapped, start, end))

    def fill(self, view: memoryview, start: int, runs: Iterable[Run]) -> None:
        self.reads += 1
        view[:] = bytes(len(view))
        for low, high in runs:
            for page in range(low, high, PAGE):
                view[page - start : page - start + PAGE] = self.held[page]

    def gather(self, addresses: Sequence[int], size: int) -> bytes:
        return b"".join(self._bytes(address, size) for address in addresses)

    def _bytes(self, address: int, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            page, within = (address + len(data)) & -PAGE, (address + len(data)) % PAGE
            data += self.held.get(page, bytes(PAGE))[within : within + size - len(data)]
        return bytes(data)


def _runs(pages: Iterable[int], start: int, end: int) -> tuple[Run, ...]:
    runs: list[Run] = []
    for page in sorted(page for page in pages if start <= page < end):
        if runs and runs[-1][1] == page:
            runs[-1] = (runs[-1][0], page + PAGE)
        else:
            runs.append((page, page + PAGE))
    return tuple(runs)


@dataclass(slots=True)
class Image:
    """A heap with one arena, and where its chunks are: (chunk, size, state), the top apart."""

    memory: ImageMemory
    vmas: tuple[Vma, ...]
    chunks: list[tuple[int, int, State]]
    top: Run
    system: int
    arena: int = _MAIN_ARENA
    mapped: list[Run] = field(default_factory=list)

    def total(self, *states: State) -> int:
        return sum(size for _, size, state in self.chunks if state in states)


def make_image(rows: Sequence[ChunkRow], *, top: int = 0x5000, base: int = HEAP) -> Image:
    """A main arena of these chunks, then a top of at least ``top`` bytes.

    Free chunks touch neither each other nor the top, as malloc would have merged them: such rows are in use instead.
    """
    memory = ImageMemory()
    chunks: list[tuple[int, int, State]] = []
    at = base
    before_free = False
    for index, (size, state) in enumerate([(0x290, "used"), *rows]):
        if state == "free" and (before_free or index == len(rows)):
            state = "used"
        memory.write_word(at + 8, size | (0 if before_free else _PREVIOUS_IN_USE))
        before_free = state == "free"
        if before_free:
            memory.write_word(at + size, size)
        chunks.append((at, size, state))
        at += size
    end = (at + top + PAGE - 1) & -PAGE
    memory.write_word(at + 8, (end - at) | _PREVIOUS_IN_USE)
    for page in range(base & -PAGE, end, PAGE):
        memory.held.setdefault(page, bytearray(PAGE))
    _write_lists(memory, chunks)
    _write_arena(memory, at, end - base)
    _write_parameters(memory, base)
    vmas = (
        Vma(base & -PAGE, end, "rw-p", 0, "00:00", 0, b"[heap]"),
        Vma(LIBC_DATA, LIBC_DATA + 0x2000, "rw-p", 0, "08:01", 77, b"/usr/lib/x86_64-linux-gnu/libc.so.6"),
        Vma(LIBC_DATA + 0x2000, LIBC_DATA + 0x4000, "rw-p", 0, "00:00", 0, b""),
    )
    return Image(memory, vmas, chunks, (at, end), end - base)


def _write_lists(memory: ImageMemory, chunks: Sequence[tuple[int, int, State]]) -> None:
    """Fastbins into the arena, caches into the first chunk, which holds the thread's table."""
    table = chunks[0][0] + 16
    for state, sizes in (("fast", range(0x20, 0xC0, 16)), ("cached", range(0x20, 0x420, 16))):
        for position, size in enumerate(sizes):
            members = [chunk for chunk, own, kind in chunks if kind == state and own == size]
            if state == "cached":
                members = members[:CACHE_COUNT]
                memory.write(table + 2 * position, len(members).to_bytes(2, "little"))
            link_to = 16 if state == "cached" else 0
            for chunk, following in zip(members, [*members[1:], -link_to], strict=False):
                memory.write_word(chunk + 16, (chunk + 16) >> 12 ^ (following + link_to))
            head = members[0] + link_to if members else 0
            if state == "cached":
                memory.write_word(table + 128 + 8 * position, head)
            else:
                memory.write_word(_MAIN_ARENA + 16 + 8 * position, head)


def _write_arena(memory: ImageMemory, top: int, system: int) -> None:
    memory.write_word(_MAIN_ARENA + BINS - 16, top)
    for index in range(0, 254, 2):
        own = _MAIN_ARENA + BINS + 8 * index - 16
        memory.write_word(own + 16, own)
        memory.write_word(own + 24, own)
    memory.write_word(_MAIN_ARENA + BINS + 2048, _MAIN_ARENA)
    memory.write_word(_MAIN_ARENA + BINS + 2072, system)
    memory.write_word(_MAIN_ARENA + BINS + 2080, system)


def _write_parameters(memory: ImageMemory, base: int) -> None:
    """mp_ as from 2.35 on."""
    for index, value in enumerate((128 << 10, 128 << 10, 128 << 10, 8, 0, 0, 0)):
        memory.write_word(_MP + 8 * index, value)
    memory.write(_MP + 64, (65536).to_bytes(4, "little"))
    memory.write_word(_MP + 96, base)
    for index, value in enumerate((64, 1032, CACHE_COUNT)):
        memory.write_word(_MP + 104 + 8 * index, value)


def cached_that_fit(image: Image) -> list[tuple[int, int, State]]:
    """The chunks as a walk should see them: what a cache has no room for is in use, as is a size no list is for."""
    counts: dict[int, int] = {}
    seen: list[tuple[int, int, State]] = []
    for chunk, size, state in image.chunks:
        if state == "cached":
            counts[size] = counts.get(size, 0) + 1
            if counts[size] > CACHE_COUNT or size > 0x410:
                state = "used"
        if state == "fast" and size > 0xB0:
            state = "used"
        seen.append((chunk, size, state))
    return seen
