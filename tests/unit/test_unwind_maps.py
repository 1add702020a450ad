"""What UnwindMaps writes for the kernel, read back as the kernel's unwinder reads it."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest

from tests.unit.test_ehframe import section, small_elf
from tracer.model.vma import Vma
from tracer.unwind.access import MAX_MAPPINGS, BufferWriter, UnwindSizes, UnwindWriters
from tracer.unwind.mappings import MAPPING, PERF_TRAMPOLINE, PROCESS, ImageState, UnwindMaps
from tracer.unwind.rules import RULE_FRAME_POINTER, RULE_NONE, RULE_PENDING, RULE_PERF_TRAMPOLINE, Cfa, encode
from tracer.unwind.space import GRACE_SECONDS, Space

PID = 42


class Kernel:
    """The four maps, and the lookups of bpf/unwind.bpf.c."""

    def __init__(self, sizes: UnwindSizes) -> None:
        self.rows, self.pages = bytearray(8 * sizes.rows), bytearray(8 * sizes.pages)
        self.mappings = bytearray(MAPPING.size * sizes.mappings)
        self.processes: dict[int, bytes] = {}
        self.room = sizes.processes
        self.writers = UnwindWriters(
            BufferWriter(memoryview(self.rows), 8),
            BufferWriter(memoryview(self.pages), 8),
            BufferWriter(memoryview(self.mappings), MAPPING.size),
            self,
        )

    def set(self, tgid: int, value: bytes) -> None:
        if tgid not in self.processes and len(self.processes) >= self.room:
            raise OSError(7, "full")
        self.processes[tgid] = value

    def delete(self, tgid: int) -> None:
        self.processes.pop(tgid, None)

    def records(self, entry: bytes) -> list[tuple[int, ...]]:
        first, count, _ = PROCESS.unpack(entry)
        return [MAPPING.unpack_from(self.mappings, MAPPING.size * i) for i in range(first, first + count)]

    def rule(self, pid: int, address: int) -> int | None:
        """The rule at an address; None where it is in no mapping."""
        for start, length, bias, page, pages in self.records(self.processes[pid]):
            if start <= address < start + length:
                if not pages:
                    return page
                relative = (address - bias) & (1 << 64) - 1
                if relative >> 8 >= pages:
                    return RULE_NONE
                (entry,) = struct.unpack_from("<Q", self.pages, 8 * (page + (relative >> 8)))
                found = [
                    struct.unpack_from("<Q", self.rows, 8 * i)[0]
                    for i in range(entry & 0xFFFFFFFF, (entry & 0xFFFFFFFF) + (entry >> 32))
                ]
                return int(max(row for row in found if row >> 32 <= relative)) & 0xFFFFFFFF
        return None


class Machine:
    """A manager over a fake kernel; images are small ELF files by inode."""

    def __init__(self, directory: Path, sizes: UnwindSizes | None = None) -> None:
        self.directory = directory
        self.now = 0.0
        self.memory: dict[int, bytes] = {}
        sizes = sizes or UnwindSizes(rows=100, pages=100, mappings=100, processes=4)
        self.kernel = Kernel(sizes)
        self.maps = UnwindMaps(sizes, self.kernel.writers, open_file=self.open, read=self.read, clock=lambda: self.now)

    def image(self, inode: int, units: int, functions: int = 1) -> None:
        """Code at 0x1000 in which CFA = rsp + 8 * units."""
        code = b"\x0e" + bytes([8 * units])
        parts = [(0x1000 + 256 * i, 100, code) for i in range(functions)]
        self.file(inode, small_elf(section(*parts), text=bytes(256 * functions)))

    def file(self, inode: int, data: bytes) -> None:
        new = self.directory / f"{inode}.new"
        new.write_bytes(data)
        new.replace(self.directory / str(inode))

    def open(self, _pid: int, vma: Vma) -> int:
        return os.open(self.directory / str(vma.inode), os.O_RDONLY)

    def read(self, _pid: int, address: int, size: int) -> bytes:
        return self.memory.get(address, b"")[:size]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def code(start: int, inode: int, size: int = 0x1000, path: bytes = b"/lib/x.so") -> Vma:
    return Vma(start, start + size, "r-xp", 0x1000 if inode else 0, "fe:00" if inode else "00:00", inode, path)


def test_a_mapping_is_pending_until_its_table_is_built(machine: Machine) -> None:
    machine.image(1, 2)
    assert machine.maps.update(PID, [code(0x70000, 1)])
    assert machine.kernel.rule(PID, 0x70010) == RULE_PENDING
    assert machine.maps.pending == 1
    assert machine.maps.build_next()
    assert machine.kernel.rule(PID, 0x70010) == encode(Cfa.RSP, 2)
    assert machine.kernel.rule(PID, 0x70080) == RULE_NONE
    assert machine.kernel.rule(PID, 0x80000) is None
    assert not machine.maps.build_next()


def test_one_table_serves_all_mappings_and_processes(machine: Machine) -> None:
    machine.image(1, 2)
    machine.maps.update(PID, [code(0x70000, 1), code(0x90000, 1)])
    machine.maps.build_all()
    rows = machine.maps.used[0]
    machine.maps.update(PID + 1, [code(0x20000, 1)])
    for pid, start in ((PID, 0x70000), (PID, 0x90000), (PID + 1, 0x20000)):
        assert machine.kernel.rule(pid, start) == encode(Cfa.RSP, 2)
    assert machine.maps.used[0] == rows


def test_rules_of_what_has_no_table(machine: Machine) -> None:
    machine.file(1, b"no ELF image")
    machine.memory = {0x20000: b"\x90" + PERF_TRAMPOLINE}
    vdso, uprobes = code(0x40000, 0, path=b"[vdso]", size=0x3000), code(0x50000, 0, path=b"[uprobes]")
    machine.memory[0x40000] = small_elf(section((0x1000, 16, b"\x0e\x20")))
    machine.maps.update(PID, [code(0x10000, 0, path=b""), code(0x20000, 0, path=b""), code(0x30000, 1), vdso, uprobes])
    machine.maps.build_all()
    assert machine.kernel.rule(PID, 0x10000) == RULE_FRAME_POINTER
    assert machine.kernel.rule(PID, 0x20000) == RULE_PERF_TRAMPOLINE
    assert machine.kernel.rule(PID, 0x30000) == RULE_FRAME_POINTER
    assert machine.kernel.rule(PID, 0x50000) is None
    assert PROCESS.unpack(machine.kernel.processes[PID])[2] == 0x50000
    assert machine.maps.losses == {"images without unwind information": 1}
    reports = {report.name: report for report in machine.maps.images()}
    assert reports[b"/lib/x.so"].state is ImageState.NO_TABLE
    assert reports[b"/lib/x.so"].detail == "not a 64-bit little-endian ELF image"
    assert reports[b"[vdso]"].state is ImageState.READY


def test_a_refresh_leaves_the_old_mappings_to_walks_in_progress(machine: Machine) -> None:
    for inode in (1, 2):
        machine.image(inode, inode)
    machine.maps.update(PID, [code(0x70000, 1)])
    machine.maps.build_all()
    old = machine.kernel.processes[PID]
    before = machine.kernel.records(old)
    for step in range(20):
        machine.maps.update(PID, [code(0x70000, 1), code(0x80000 + 0x1000 * step, 2)])
        assert machine.kernel.records(old) == before
    machine.now += GRACE_SECONDS
    machine.maps.build_all()
    assert machine.kernel.rule(PID, 0x80000 + 0x1000 * 19) == encode(Cfa.RSP, 2)
    assert machine.kernel.rule(PID, 0x80000) is None


def test_an_update_that_changes_nothing_takes_no_room(machine: Machine) -> None:
    machine.image(1, 2)
    machine.maps.update(PID, [code(0x70000, 1)])
    machine.maps.build_all()
    entry = machine.kernel.processes[PID]
    for _ in range(1000):
        assert machine.maps.update(PID, [code(0x70000, 1)])
    assert machine.kernel.processes[PID] == entry
    assert machine.maps.used[2] == 1


def test_without_room_for_mappings_the_old_ones_stay(tmp_path: Path) -> None:
    machine = Machine(tmp_path, UnwindSizes(rows=100, pages=100, mappings=3, processes=4))
    machine.image(1, 2)
    machine.maps.update(PID, [code(0x70000, 1)])
    machine.maps.build_all()
    assert machine.maps.update(PID, [code(0x10000, 1)])
    assert not machine.maps.update(PID, [code(0x20000, 1)])
    assert machine.kernel.rule(PID, 0x10000) == encode(Cfa.RSP, 2)
    assert machine.maps.losses == {"updates of mappings without room": 1}
    machine.now += GRACE_SECONDS
    assert machine.maps.update(PID, [code(0x20000, 1)])
    assert machine.kernel.rule(PID, 0x20000) == encode(Cfa.RSP, 2)


def test_the_row_limit_holds_and_is_counted(tmp_path: Path) -> None:
    machine = Machine(tmp_path, UnwindSizes(rows=30, pages=100, mappings=100, processes=4))
    machine.image(1, 2, functions=10)
    machine.image(2, 3, functions=10)
    machine.maps.update(PID, [code(0x70000, 1), code(0x80000, 2)])
    machine.maps.build_all()
    states = sorted(report.state.name for report in machine.maps.images())
    assert states == ["FULL", "READY"]
    assert machine.maps.losses == {"images without room for their unwind table": 1}
    full = 0x80000 if machine.kernel.rule(PID, 0x70000) != RULE_PENDING else 0x70000
    assert machine.kernel.rule(PID, full) == RULE_PENDING


def test_room_of_unmapped_images_is_used_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path, UnwindSizes(rows=30, pages=100, mappings=100, processes=4))
    for inode in range(1, 6):
        machine.image(inode, inode, functions=10)
        machine.maps.update(PID, [code(0x70000, inode)])
        machine.maps.build_next()
        if machine.kernel.rule(PID, 0x70000) == RULE_PENDING:  # its room is still left to walks in progress
            assert not machine.maps.build_next()
            machine.now += GRACE_SECONDS
            assert machine.maps.build_next()
        assert machine.kernel.rule(PID, 0x70000) == encode(Cfa.RSP, inode)


def test_a_file_that_takes_a_number_over_gets_its_own_table(machine: Machine) -> None:
    machine.image(1, 2)
    machine.maps.update(PID, [code(0x70000, 1)])
    machine.maps.build_all()
    machine.maps.update(PID, [])
    machine.image(1, 5)
    machine.maps.update(PID, [code(0x70000, 1)])
    machine.maps.build_all()
    assert machine.kernel.rule(PID, 0x70000) == encode(Cfa.RSP, 5)
    machine.maps.update(PID, [])
    machine.maps.update(PID, [code(0x70000, 1)])
    assert machine.kernel.rule(PID, 0x70000) == encode(Cfa.RSP, 5)
    assert machine.maps.pending == 0


def test_the_hottest_table_comes_first_then_the_smallest_file(machine: Machine) -> None:
    for inode, functions in ((1, 3), (2, 1), (3, 5)):
        machine.image(inode, inode, functions)
    machine.maps.update(PID, [code(0x10000, 1), code(0x20000, 2), code(0x30000, 3)])
    machine.maps.heat(PID, [0x30010, 0x90000])
    order = []
    while machine.maps.build_next():
        order.append([s for s in (0x10000, 0x20000, 0x30000) if machine.kernel.rule(PID, s) != RULE_PENDING])
    assert order == [[0x30000], [0x20000, 0x30000], [0x10000, 0x20000, 0x30000]]


def test_what_cannot_be_opened_falls_back_to_frame_pointers(machine: Machine) -> None:
    machine.maps.update(PID, [code(0x70000, 99)])
    assert machine.kernel.rule(PID, 0x70000) == RULE_FRAME_POINTER
    assert machine.maps.losses == {"images that cannot be opened": 1}


def test_more_mappings_than_the_search_reaches(tmp_path: Path) -> None:
    machine = Machine(tmp_path, UnwindSizes(rows=100, pages=100, mappings=2 * MAX_MAPPINGS, processes=4))
    machine.image(1, 2)
    jit = [code(0x100000 + 0x2000 * i, 0, path=b"") for i in range(MAX_MAPPINGS + 10)]
    machine.maps.update(PID, [*jit, code(0x70000000, 1)])
    machine.maps.build_all()
    assert machine.kernel.rule(PID, 0x70000000) == encode(Cfa.RSP, 2)
    assert len(machine.kernel.records(machine.kernel.processes[PID])) == MAX_MAPPINGS
    assert machine.maps.losses["mappings beyond 1,024"] >= 11


def test_a_full_process_map_is_counted(machine: Machine) -> None:
    machine.image(1, 2)
    results = [machine.maps.update(pid, [code(0x70000, 1)]) for pid in range(1, 6)]
    assert results == [True] * 4 + [False]
    assert machine.maps.losses == {"processes without room": 1}
    machine.maps.forget(1)
    assert machine.maps.update(5, [code(0x70000, 1)])


def test_descriptors_are_closed(machine: Machine) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for inode in range(1, 9):
        machine.image(inode, 1)
    machine.maps.update(PID, [code(0x10000 * inode, inode) for inode in range(1, 9)])
    for _ in range(4):
        machine.maps.build_next()
    machine.maps.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_updates_and_builds_run_side_by_side(machine: Machine) -> None:
    for inode in range(1, 9):
        machine.image(inode, inode)
    machine.now = 0.0
    stop = threading.Event()

    def build() -> None:
        while not stop.is_set():
            machine.maps.build_all()

    builder = threading.Thread(target=build)
    builder.start()
    for step in range(200):
        machine.now += GRACE_SECONDS
        machine.maps.update(PID, [code(0x10000 * inode, inode) for inode in range(1, 2 + step % 8)])
    stop.set()
    builder.join()
    machine.maps.update(PID, [code(0x10000 * inode, inode) for inode in range(1, 9)])
    machine.maps.build_all()
    assert [machine.kernel.rule(PID, 0x10000 * inode) for inode in range(1, 9)] == [
        encode(Cfa.RSP, inode) for inode in range(1, 9)
    ]


@pytest.mark.parametrize("counts", [[3, 3, 4], [10], [1] * 10])
def test_space_comes_back_whole(counts: list[int]) -> None:
    now = [0.0]
    space = Space(10, lambda: now[0])
    taken = [(space.take(count), count) for count in counts]
    assert space.take(1) is None
    assert space.used == 10
    for start, count in taken:
        assert start is not None
        space.give(start, count)
    assert (space.take(1), space.used) == (None, 0)
    now[0] = GRACE_SECONDS
    assert space.take(10) == 0
