"""Walking heaps made by hand: equal to the model, whatever they hold; and no harm from what is no heap."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.heap_images import (
    HEAP,
    LIBC_DATA,
    ChunkRow,
    Image,
    ImageMemory,
    cached_that_fit,
    make_image,
)
from tracer.heap.glibc import walk_memory
from tracer.heap.heap_walk import HeapWalk, Refused
from tracer.heap.spans import Run
from tracer.procfs.pagescan import PAGE

STATES = ("used", "free", "fast", "cached")
SIZES = st.one_of(
    st.integers(2, 12), st.integers(2, 80), st.integers(200, 1200), st.sampled_from([0x290 // 16, 0x2A0 // 16])
)
ROWS = st.lists(st.tuples(SIZES.map(lambda units: units * 16), st.sampled_from(STATES)), max_size=80)
EXTREMES = (
    0,
    1,
    2,
    0x10,
    0x11,
    0x20,
    0x21,
    0x291,
    0x2A5,
    1 << 20,
    1 << 31,
    1 << 40,
    (1 << 47) - 16,
    1 << 63,
    (1 << 64) - 1,
)


def walked(image: Image) -> HeapWalk:
    found = walk_memory(image.memory, image.vmas)
    assert isinstance(found, HeapWalk), found
    return found


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_every_chunk_is_what_the_model_says(rows: list[ChunkRow]) -> None:
    image = make_image(rows)
    walk = walked(image)
    chunks = cached_that_fit(image)
    use = walk.total

    def total(state: str) -> int:
        return sum(size for _, size, own in chunks if own == state)

    assert (use.system, use.free, use.fast, use.cached) == (image.system, total("free"), total("fast"), total("cached"))
    assert use.top == image.top[1] - image.top[0]
    assert use.chunks == len(chunks)
    assert use.live + use.overhead == total("used")
    names = {"used": "in use", "free": "free", "fast": "fast", "cached": "cached"}
    for chunk, size, state in chunks:
        found = walk.chunk_at(chunk + 16)
        assert found is not None
        assert (found.state, found.size) == (names[state], size - 8)
        assert walk.chunk_at(chunk + 32) is None or any(chunk + 16 == other for other, _, _ in chunks)
    blocks = [chunk + 16 for chunk, _, _ in chunks]
    assert walk.are_live(blocks) == [state == "used" for _, _, state in chunks]
    assert walk.are_live([image.top[0] + 16, HEAP + 5, 0, 1 << 63]) == [False] * 4
    assert not walk.changed


@settings(max_examples=100, deadline=None)
@given(ROWS, st.randoms(use_true_random=False), st.data())
def test_sums_of_ranges_are_those_of_their_bytes(
    rows: list[ChunkRow], chance: random.Random, data: st.DataObject
) -> None:
    image = make_image(rows)
    _drop_pages(image, chance)
    walk = walked(image)
    start = data.draw(st.integers(HEAP - PAGE, image.top[1] + PAGE))
    end = data.draw(st.integers(start, image.top[1] + PAGE))
    ours = walk.within(start, end)
    resident = [run for run in _resident(image) if run[0] < run[1]]
    cut = [(max(low, start), min(high, end)) for low, high in resident if max(low, start) < min(high, end)]
    chunks = cached_that_fit(image)
    for state, sum_ in (("free", ours.free), ("fast", ours.fast), ("cached", ours.cached)):
        wanted = [(chunk, chunk + size) for chunk, size, own in chunks if own == state]
        assert sum_ == _overlap(wanted, cut), state
    assert ours.top == _overlap([image.top], cut)
    assert ours.total == sum(high - low for low, high in cut)
    whole = walk.within(0, 1 << 64)
    assert whole.kept == walk.total.kept
    assert list(walk.free_ranges()) == [(chunk, chunk + size) for chunk, size, own in chunks if own == "free"]


@settings(max_examples=100, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_returnable_is_what_a_trim_of_the_model_returns(rows: list[ChunkRow], chance: random.Random) -> None:
    image = make_image(rows)
    _drop_pages(image, chance)
    assert walked(image).total.returnable == _trimmed(image)


def _trimmed(image: Image) -> int:
    """malloc_trim(0) on the model: fastbins are merged first, then whole pages go, 48 bytes of links stay."""
    resident = {page for low, high in _resident(image) for page in range(low, high, PAGE)}
    gone: set[int] = set()
    run_start: int | None = None
    top_start, top_end = image.top
    for chunk, size, state in cached_that_fit(image):
        if state in ("free", "fast"):
            run_start = chunk if run_start is None else run_start
            run_end = chunk + size
        elif run_start is not None:
            gone |= set(range((run_start + 48 + PAGE - 1) & -PAGE, run_end - PAGE + 1, PAGE))
            run_start = None
    if run_start is not None:
        top_start = run_start
    cut = (top_end - top_start - 33) // PAGE
    gone |= {top_end - PAGE * (index + 1) for index in range(cut)}
    return PAGE * len(gone & resident)


def _drop_pages(image: Image, chance: random.Random) -> None:
    """Take away some pages that hold no header, as the kernel may where they were never touched."""
    needed = {(address + 8) & -PAGE for address, _, _ in image.chunks} | {(image.top[0] + 8) & -PAGE}
    needed |= {(address + 16) & -PAGE for address, _, state in image.chunks if state in ("fast", "cached")}
    needed |= {chunk + offset & -PAGE for chunk, size, _ in image.chunks[:1] for offset in (0, size)}
    for page in range(HEAP, image.top[1], PAGE):
        if page not in needed and chance.random() < 0.5:
            image.memory.drop(page)


def _resident(image: Image) -> list[Run]:
    return list(image.memory.pages(HEAP, image.top[1]).resident)


def _overlap(spans: Iterable[Run], others: Iterable[Run]) -> int:
    pairs = [(max(a, c), min(b, d)) for a, b in spans for c, d in others]
    return sum(high - low for low, high in pairs if high > low)


def test_a_process_without_glibc_heap_is_refused() -> None:
    image = make_image([])
    empty = ImageMemory()
    for page in range(LIBC_DATA, LIBC_DATA + 0x4000, PAGE):
        empty.held[page] = bytearray(PAGE)
    found = walk_memory(empty, image.vmas)
    assert isinstance(found, Refused)
    assert found.kind == "no-glibc-heap"


def test_a_heap_in_swap_is_refused_rather_than_read() -> None:
    image = make_image([(64, "used")] * 500)
    image.memory.drop(HEAP + 3 * PAGE, swap=True)
    found = walk_memory(image.memory, image.vmas)
    assert isinstance(found, Refused)
    assert found.kind == "swapped"
    assert "swapped out" in found.reason


def test_swapped_pages_inside_blocks_do_no_harm_and_are_said() -> None:
    image = make_image([(0x8000, "used"), (64, "used")])
    image.memory.drop(HEAP + 2 * PAGE, swap=True)
    walk = walked(image)
    assert walk.notes == ("4.0 KiB of the heap are swapped out: not counted as resident",)


@pytest.mark.parametrize(("limits", "word"), [({"chunks": 100}, "100 chunks"), ({"seconds": 0.0}, "longer than 0 s")])
def test_what_would_take_too_much_is_refused(limits: dict[str, float], word: str) -> None:
    image = make_image([(64, "used")] * 500)
    found = walk_memory(image.memory, image.vmas, **limits)  # type: ignore[arg-type]
    assert isinstance(found, Refused)
    assert found.kind == "too-large"
    assert word in found.reason


def test_locked_memory_gives_only_the_top_back() -> None:
    image = make_image([(0x9000, "free"), (64, "used")])
    free = walk_memory(image.memory, image.vmas)
    locked = walk_memory(image.memory, image.vmas, locked=1 << 30)
    assert isinstance(free, HeapWalk)
    assert isinstance(locked, HeapWalk)
    assert free.total.returnable - locked.total.returnable == 0x8000
    assert "mlock" in locked.notes[0]


class TornMemory(ImageMemory):
    """Shows a wrong word at an address until it was read so many times, as a process that just changes it does."""

    def __init__(self, image: Image, address: int, wrong: int, times: int) -> None:
        super().__init__()
        self.held = image.memory.held
        self._torn = (address, wrong)
        self.times = times

    def fill(self, view: memoryview, start: int, runs: Iterable[Run]) -> None:
        super().fill(view, start, runs)
        address, wrong = self._torn
        if self.times and start <= address < start + len(view):
            self.times -= 1
            view[address - start : address - start + 8] = wrong.to_bytes(8, "little")


@pytest.mark.parametrize("wrong", EXTREMES)
def test_a_word_that_changes_while_it_is_read_is_read_again(wrong: int) -> None:
    image = make_image([(64, "used"), (96, "free")] * 300)
    memory = TornMemory(image, image.chunks[301][0] + 8, wrong, times=2)
    found = walk_memory(memory, image.vmas)
    assert isinstance(found, HeapWalk)
    assert found.total.free == image.total("free")
    assert found.total.chunks == len(image.chunks)


def test_a_word_that_stays_wrong_is_refused() -> None:
    image = make_image([(64, "used")] * 1000)
    memory = TornMemory(image, image.chunks[600][0] + 8, 0x7777, times=10**6)
    found = walk_memory(memory, image.vmas)
    assert isinstance(found, Refused)
    assert found.kind == "changing"
    assert "changed while it was walked" in found.reason


class GrowingMemory(ImageMemory):
    """An arena whose top takes in some pages more at each reading of its chunks, so many times."""

    def __init__(self, image: Image, times: int) -> None:
        super().__init__()
        self.held = image.memory.held
        self._image = image
        self._times = times
        self.end = image.top[1]

    def fill(self, view: memoryview, start: int, runs: Iterable[Run]) -> None:
        super().fill(view, start, runs)
        if self._times and start >= HEAP and start < LIBC_DATA:
            self._times -= 1
            self.held.setdefault(self.end, bytearray(PAGE))
            self.end += PAGE
            top, arena = self._image.top[0], self._image.arena
            self.write_word(top + 8, (self.end - top) | 1)
            for offset in (2072, 2080):
                self.write_word(arena + 112 + offset, self.end - HEAP)


def test_a_heap_that_grows_while_it_is_walked_is_walked_to_its_end() -> None:
    image = make_image([(64, "used"), (160, "free")] * 200)
    memory = GrowingMemory(image, times=5)
    found = walk_memory(memory, image.vmas)
    assert isinstance(found, HeapWalk)
    assert found.total.system == memory.end - HEAP
    assert found.total.free == image.total("free")
    assert found.changed


def test_memory_of_another_user_of_brk_is_told_apart() -> None:
    before = make_image([(64, "used"), (96, "free")] * 40, top=0x20)
    fence = before.top[0]
    start = before.top[1] + 5 * PAGE + 48
    after = make_image([(80, "used")] * 90, base=start)
    memory = after.memory
    for page, data in before.memory.held.items():
        if page < LIBC_DATA:
            memory.held[page] = data
    fence_at = before.top[1] - 32
    memory.write_word(fence + 8, (fence_at - fence) | 1)
    memory.write_word(fence_at + 8, 0x11)
    memory.write_word(fence_at + 24, 0x11)
    memory.write(before.top[1], b"\x21\0\0\0\0\0\0\0" * 700)
    for offset in (2072, 2080):
        memory.write_word(after.arena + 112 + offset, after.top[1] - HEAP)
    vmas = (before.vmas[0], *after.vmas)
    found = walk_memory(memory, vmas)
    assert isinstance(found, HeapWalk), found
    assert found.total.foreign == start - fence_at
    assert found.total.free == before.total("free")
    assert found.total.system == after.top[1] - HEAP


@settings(max_examples=300, deadline=None)
@given(
    ROWS,
    st.lists(
        st.tuples(
            st.sampled_from(["arena", "parameters", "header", "anywhere", "page"]),
            st.integers(0, 1 << 16),
            st.one_of(st.sampled_from(EXTREMES), st.integers(0, (1 << 64) - 1)),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_no_damage_makes_a_walk_fail_or_hang(rows: list[ChunkRow], damage: list[tuple[str, int, int]]) -> None:
    image = make_image(rows)
    for where, position, value in damage:
        _damage(image, where, position, value)
    found = walk_memory(image.memory, image.vmas, seconds=5)
    if isinstance(found, HeapWalk):
        use = found.total
        assert use.system == use.live + use.free + use.fast + use.cached + use.top + use.overhead
        assert found.within(0, 1 << 64).total == use.resident
    else:
        assert found.reason


def _damage(image: Image, where: str, position: int, value: int) -> None:
    memory = image.memory
    if where == "arena":
        memory.write_word(image.arena + position % 275 * 8, value)
    elif where == "parameters":
        memory.write_word(LIBC_DATA + 0x1800 + position % 16 * 8, value)
    elif where == "header":
        memory.write_word(image.chunks[position % len(image.chunks)][0] + position % 2 * 8, value)
    elif where == "anywhere":
        memory.write_word(HEAP + position * 8 % (image.top[1] - HEAP), value)
    else:
        pages = sorted(memory.held)
        memory.drop(pages[position % len(pages)], swap=bool(value % 2))


def test_random_pages_are_refused() -> None:
    chance = random.Random(3)
    for _ in range(50):
        image = make_image([(64, "used")] * 50)
        for page in image.memory.held:
            image.memory.held[page] = bytearray(chance.randbytes(PAGE))
        assert isinstance(walk_memory(image.memory, image.vmas), Refused)
