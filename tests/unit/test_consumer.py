"""What the BPF programs leave in maps and the ring buffer, turned into the model's data."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any, cast

import pytest

from tracer.model.events import (
    Attached,
    Detaching,
    Kept,
    Mapped,
    Protected,
    Remapped,
    Remapping,
    RssChange,
    Unmapped,
    VmaEvent,
)
from tracer.model.vma import RssCounters
from tracer.probes import consumer, layout
from tracer.probes.consumer import RawStack, brings_code, decode_event, needs_resync
from tracer.probes.layout import CERTAIN, Event, EventKind, RssCause, StackStatus, Totals
from tracer.probes.program import Program

READ, WRITE, EXEC = 1, 2, 4
SHARED, PRIVATE, SHARED_VALIDATE, FIXED, ANONYMOUS = 0x01, 0x02, 0x03, 0x10, 0x20
MAYMOVE, MREMAP_FIXED, DONTUNMAP = 1, 2, 4
BASE = 0x7F1234560000


def event(kind: EventKind, **fields: int) -> Event:
    blank = dict.fromkeys(Event._fields, 0)
    return Event(**{**blank, "kind": int(kind), "fd": -1, "tid": 11, "time_ns": 99, **fields})


class FakeMap:
    """A map that hands its elements out in chunks of two, as the kernel does in larger ones."""

    def __init__(self) -> None:
        self.elements: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.elements.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.elements[key] = value

    def delete(self, key: bytes) -> None:
        self.elements.pop(key, None)

    def read(self) -> Iterator[tuple[bytes, bytes]]:
        rows = list(self.elements.items())
        for i in range(0, len(rows), 2):
            yield b"".join(key for key, _ in rows[i : i + 2]), b"".join(value for _, value in rows[i : i + 2])

    def drain(self) -> Iterator[tuple[bytes, bytes]]:
        yield from list(self.read())
        self.elements.clear()


class FakeProgram:
    def __init__(self) -> None:
        self.maps: dict[str, FakeMap] = {}

    def map(self, name: str) -> FakeMap:
        return self.maps.setdefault(name, FakeMap())


@pytest.fixture
def fake() -> FakeProgram:
    return FakeProgram()


@pytest.fixture
def program(fake: FakeProgram) -> Program:
    return cast(Program, fake)


@pytest.mark.parametrize(
    ("prot", "flags", "perms", "is_file"),
    [
        (READ | WRITE, PRIVATE | ANONYMOUS, "rw-p", False),
        (READ | EXEC, PRIVATE, "r-xp", True),
        (READ, SHARED, "r--s", True),
        (READ | WRITE, SHARED_VALIDATE, "rw-s", True),
        (READ | WRITE, SHARED | ANONYMOUS, "rw-s", False),
        (0, PRIVATE | ANONYMOUS | FIXED, "---p", False),
        (READ | WRITE | EXEC | 0x01000000, PRIVATE | ANONYMOUS, "rwxp", False),
    ],
)
def test_mapped(prot: int, flags: int, perms: str, is_file: bool) -> None:
    sent = event(EventKind.MAP, address=BASE, length=8192, prot=prot, flags=flags, offset=4096, stack=5)
    assert decode_event(sent) == Mapped(99, BASE, 8192, perms, is_file, 4096, 5, False, "mmap")


HUGETLB, HUGE_1GB, DROPPABLE = 0x40000, 30 << 26, 0x08


def test_droppable_memory_is_private() -> None:
    decoded = decode_event(event(EventKind.MAP, length=4096, flags=DROPPABLE | ANONYMOUS))
    assert isinstance(decoded, Mapped) and decoded.perms == "---p"


@pytest.mark.parametrize(
    ("flags", "length", "expected"),
    [(HUGETLB, 4096, 2 << 20), (HUGETLB, 4 << 20, 4 << 20), (HUGETLB | HUGE_1GB, 2 << 20, 1 << 30), (0, 4096, 4096)],
)
def test_huge_pages_are_mapped_whole(flags: int, length: int, expected: int) -> None:
    decoded = decode_event(event(EventKind.MAP, length=length, flags=PRIVATE | ANONYMOUS | flags))
    assert isinstance(decoded, Mapped) and decoded.length == expected


def test_mapped_by_an_allocator() -> None:
    decoded = decode_event(event(EventKind.MAP, length=4096, flags=PRIVATE, in_allocator=1))
    assert isinstance(decoded, Mapped) and decoded.in_allocator is True


@pytest.mark.parametrize("in_allocator", [0, 1])
def test_the_brk_heap_grew(in_allocator: int) -> None:
    sent = event(EventKind.BRK_GROW, address=BASE, length=4096, stack=6, in_allocator=in_allocator)
    assert decode_event(sent) == Mapped(99, BASE, 4096, "rw-p", False, 0, 6, bool(in_allocator), "brk")


@pytest.mark.parametrize(
    ("prot", "perms"), [(0, "---"), (READ, "r--"), (WRITE, "-w-"), (READ | WRITE, "rw-"), (READ | EXEC, "r-x")]
)
def test_protected(prot: int, perms: str) -> None:
    assert decode_event(event(EventKind.PROTECT, address=BASE, length=4096, prot=prot)) == Protected(BASE, 4096, perms)


def remap(kind: EventKind, flags: int, address: int = 0) -> VmaEvent | None:
    return decode_event(
        event(kind, address=address, length=12288, old_address=BASE, old_length=8192, flags=flags, tid=7)
    )


@pytest.mark.parametrize(("flags", "keeps"), [(0, False), (MAYMOVE | MREMAP_FIXED, False), (MAYMOVE | DONTUNMAP, True)])
def test_remapped(flags: int, keeps: bool) -> None:
    assert remap(EventKind.REMAP_ENTER, flags) == Remapping(7, BASE, 8192, keeps)
    assert remap(EventKind.REMAP, flags, BASE + 65536) == Remapped(7, BASE, 8192, BASE + 65536, 12288, keeps)


@pytest.mark.parametrize("code", [1, 12, 4095])
def test_a_remap_that_failed(code: int) -> None:
    assert remap(EventKind.REMAP, MAYMOVE, (1 << 64) - code) == Remapped(7, BASE, 8192, None, 12288, False)


def test_the_highest_address_is_no_error() -> None:
    decoded = remap(EventKind.REMAP, MAYMOVE, (1 << 64) - 4096)
    assert isinstance(decoded, Remapped) and decoded.new_start == (1 << 64) - 4096


def test_unmapped() -> None:
    assert decode_event(event(EventKind.UNMAP, address=BASE, length=4096)) == Unmapped(BASE, 4096, 11)


def test_a_segment_is_attached_and_detached() -> None:
    sent = event(EventKind.ATTACH, address=BASE, old_address=32770, prot=READ | WRITE, stack=5)
    assert decode_event(sent) == Attached(99, BASE, 32770, "rw-s", 5, False)
    assert decode_event(event(EventKind.DETACH, address=BASE)) == Detaching(BASE, 11)
    assert decode_event(event(EventKind.KEPT)) == Kept(11)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (event(EventKind.RESYNC), True),
        (event(EventKind.REMAP, address=(1 << 64) - 12, flags=MAYMOVE | MREMAP_FIXED), True),
        (event(EventKind.REMAP, address=(1 << 64) - 12, flags=MAYMOVE), False),
        (event(EventKind.REMAP, address=BASE, flags=MAYMOVE | MREMAP_FIXED), False),
        (event(EventKind.KEPT), False),
        (event(EventKind.MAP, address=BASE, flags=FIXED), False),
    ],
)
def test_what_cannot_be_told_from_the_event(sent: Event, expected: bool) -> None:
    assert needs_resync(sent) is expected


@pytest.mark.parametrize("kind", [EventKind.ADVISE, EventKind.RESYNC, EventKind.EXEC])
def test_what_changes_no_mapping(kind: EventKind) -> None:
    assert decode_event(event(kind, address=BASE, length=4096)) is None


def test_every_kind_is_decoded_or_known_to_change_no_mapping() -> None:
    without = {EventKind.ADVISE, EventKind.RESYNC, EventKind.EXEC}
    assert {kind for kind in EventKind if decode_event(event(kind)) is None} == without


def test_an_event_survives_the_ring_buffer() -> None:
    sent = Event._make([*range(1, 12), -1, 1])
    assert Event._make(layout.EVENT.unpack(layout.EVENT.pack(*sent))) == sent


def test_what_brings_code() -> None:
    assert brings_code(event(EventKind.MAP, prot=READ | EXEC))
    assert brings_code(event(EventKind.PROTECT, prot=READ | EXEC))
    assert not brings_code(event(EventKind.MAP, prot=READ | WRITE))
    assert not brings_code(event(EventKind.UNMAP, prot=EXEC))


def put_totals(fake: FakeProgram, stack: int, epoch: int, *totals: float) -> None:
    """Blocks, bytes, blocks, ...: the kernel counts blocks in fractions."""
    values = [round(value * (1 << layout.WEIGHT_SHIFT)) if i % 2 == 0 else value for i, value in enumerate(totals)]
    fake.map("totals").put(layout.TOTALS_KEY.pack(stack, epoch), layout.TOTALS_VALUE.pack(*values, 3, 0))


def put_live(
    fake: FakeProgram, address: int, epoch: int, size: int, stack: int, time_ns: int, chance: int = CERTAIN
) -> None:
    key = layout.LIVE_KEY.pack(address, 4711, epoch)
    fake.map("live").put(key, layout.LIVE_VALUE.pack(size, stack, time_ns, chance))


def test_totals_of_the_program_that_runs_now(fake: FakeProgram, program: Program) -> None:
    put_totals(fake, 1, 0, 9, 9, 9, 9, 9, 9)
    put_totals(fake, 1, 1, 10, 1000, 4, 300, 1, 8)
    put_totals(fake, 1 << 63, 1, 2, 20, 0, 0, 0, 0)
    totals = consumer.read_totals(program, 1)
    assert totals == {1: Totals(10, 1000, 4, 300, 1, 8, 3), 1 << 63: Totals(2, 20, 0, 0, 0, 0, 3)}
    assert (totals[1].live_bytes, totals[1].live_count) == (700, 6)


def test_totals_of_sampled_calls_are_whole_blocks(fake: FakeProgram, program: Program) -> None:
    put_totals(fake, 1, 1, 10.499, 1000, 4.5, 300, 0.2, 8)
    assert consumer.read_totals(program, 1) == {1: Totals(10, 1000, 5, 300, 0, 8, 3)}


def columns(program: Program, epoch: int) -> list[list[int]]:
    blocks = consumer.read_live(program, epoch)
    return [list(column) for column in (blocks.addresses, blocks.sizes, blocks.stacks, blocks.times)]


def test_no_live_blocks(program: Program) -> None:
    assert columns(program, 0) == [[], [], [], []]


def test_live_blocks(fake: FakeProgram, program: Program) -> None:
    for i in (3, 1, 2):
        put_live(fake, BASE + i, 5, 10 * i, 100 * i, 1000 * i)
    assert columns(program, 5) == [[BASE + 1, BASE + 2, BASE + 3], [10, 20, 30], [100, 200, 300], [1000, 2000, 3000]]


def test_sampled_blocks_keep_their_chance(fake: FakeProgram, program: Program) -> None:
    put_live(fake, BASE + 16, 0, 10, 7, 1, CERTAIN // 4)
    put_live(fake, BASE, 0, 10, 7, 1)
    assert list(consumer.read_live(program, 0).chances) == [CERTAIN, CERTAIN // 4]


def test_live_blocks_of_another_program_are_left_out(fake: FakeProgram, program: Program) -> None:
    for i in range(1, 8):
        put_live(fake, i, 1 if i in (2, 3, 6) else 0, 10 * i, 100 * i, 1000 * i)
    assert columns(program, 1) == [[2, 3, 6], [20, 30, 60], [200, 300, 600], [2000, 3000, 6000]]
    assert columns(program, 0)[0] == [1, 4, 5, 7]


def test_another_programs_blocks_and_totals_are_forgotten(fake: FakeProgram, program: Program) -> None:
    for epoch in (0, 1, 2):
        put_live(fake, BASE, epoch, 1, 1, 1)
        put_totals(fake, 7, epoch, 1, 1, 1, 1, 1, 1)
    consumer.forget_other_epochs(program, 1)
    assert list(fake.map("live").elements) == [layout.LIVE_KEY.pack(BASE, 4711, 1)]
    assert list(fake.map("totals").elements) == [layout.TOTALS_KEY.pack(7, 1)]


def test_changes_of_rss_are_taken_out(fake: FakeProgram, program: Program) -> None:
    expected = []
    for cause in RssCause:
        for index, member in enumerate(layout.RSS_MEMBERS):
            size = (index + 1) * (-1) ** cause * 4096
            key = layout.RSS_KEY.pack(50 + cause, BASE, index, size < 0, cause)
            fake.map("rss_sums").put(key, layout.RSS_VALUE.pack(size, 5))
            call = "system call 0" if cause == RssCause.OTHER_CALL else ""
            expected.append(RssChange(50 + cause, BASE, 5, member, cause.name.lower(), size, call))
    assert list(consumer.drain_rss(program)) == expected
    assert list(consumer.drain_rss(program)) == []


def test_a_change_by_a_system_call_tells_which(fake: FakeProgram, program: Program) -> None:
    fake.map("rss_sums").put(
        layout.RSS_KEY.pack(0, 0, 1, 1, RssCause.OTHER_CALL | 77 << 8), layout.RSS_VALUE.pack(-8192, 0)
    )
    assert list(consumer.drain_rss(program)) == [RssChange(0, 0, 0, "anon", "other_call", -8192, "ftruncate")]


def test_runs_of_faults_in_progress_are_read(fake: FakeProgram, program: Program) -> None:
    def put(cpu: int, epoch: int, size: int) -> None:
        value = layout.FAULT_RUN.pack(1, 0, epoch, 9, 0, 0, 1, 2, 3, 4, 50, BASE, 1, 0, 0, size, 0b110, 0, 0, 0, 0)
        fake.map("fault_runs").put(cpu.to_bytes(4, "little"), value)

    put(0, 1, 8192)
    put(1, 1, 0)
    put(2, 0, 4096)  # of a program that ran before an exec
    assert list(consumer.unsummed_rss(program, 1)) == [RssChange(50, BASE, 0b110, "anon", "fault", 8192)]


def test_the_rss_counters_go_in_and_out(fake: FakeProgram, program: Program) -> None:
    counters = RssCounters(anon=1 << 40, file=2, shmem=3, swap=4)
    consumer.seed_rss(program, counters)
    assert consumer.last_rss(program) == counters
    assert layout.RSS_LAST.unpack(fake.map("rss_last").elements[bytes(4)]) == (counters.file, 1), "MM_FILEPAGES is 0"


def test_rss_counters_that_were_never_told(fake: FakeProgram, program: Program) -> None:
    consumer.seed_rss(program, RssCounters(anon=5, file=6))
    swap = layout.RSS_MEMBERS.index("swap").to_bytes(4, "little")
    fake.map("rss_last").put(swap, layout.RSS_LAST.pack(-4096, 1))  # counters are approximate and may go below zero
    fake.map("rss_last").delete(layout.RSS_MEMBERS.index("file").to_bytes(4, "little"))
    assert consumer.last_rss(program) == RssCounters(anon=5)


def put_stack(fake: FakeProgram, stack: int, status: int, *ips: int) -> None:
    frames = array("Q", [*ips, *[0xBAD] * (layout.MAX_DEPTH - len(ips))])
    fake.map("stacks").put(stack.to_bytes(8, "little"), layout.STACK_HEAD.pack(len(ips), status) + frames.tobytes())


def test_the_frames_of_a_stack(fake: FakeProgram, program: Program) -> None:
    put_stack(fake, 0xFEDCBA9876543210, StackStatus.COMPLETE, BASE, BASE + 1, BASE + 2)
    assert consumer.read_stack(program, 0xFEDCBA9876543210) == RawStack((BASE, BASE + 1, BASE + 2), 1)


def test_the_deepest_stack(fake: FakeProgram, program: Program) -> None:
    ips = range(BASE, BASE + layout.MAX_DEPTH)
    put_stack(fake, 1, StackStatus.TRUNCATED, *ips)
    assert consumer.read_stack(program, 1) == RawStack(tuple(ips), StackStatus.TRUNCATED)


def test_a_stack_without_frames(fake: FakeProgram, program: Program) -> None:
    put_stack(fake, 1, StackStatus.READ_FAILED)
    assert consumer.read_stack(program, 1) == RawStack((), StackStatus.READ_FAILED)


def test_a_stack_that_found_no_place(program: Program) -> None:
    assert consumer.read_stack(program, 1) is None


@pytest.mark.parametrize("status", list(StackStatus))
def test_only_a_walk_to_the_threads_beginning_is_complete(status: StackStatus) -> None:
    stack: Any = RawStack((BASE,), status)
    assert stack.complete == (status is StackStatus.COMPLETE)
    assert RawStack((BASE,), status | StackStatus.COMPLETE).complete
