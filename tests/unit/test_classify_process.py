"""Real processes: one that has every kind of memory, and programs that people run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bpf.harness import Json, Target, wait_for
from tests.targets.build import MissingCompiler, command
from tracer.model.class_names import ClassRange
from tracer.model.classes import Row
from tracer.procfs.classify import classify_process, dominant_classes
from tracer.procfs.maps import read_maps
from tracer.procfs.memory import MemoryReader
from tracer.procfs.pagemap import Residency
from tracer.procfs.smaps import read_smaps
from tracer.procfs.threads import parse_stack_pointer, read_threads

PAGE = 4096


@pytest.fixture(scope="module")
def targets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("targets")


@pytest.fixture(scope="module")
def zoo(targets_dir: Path) -> Iterator[Target]:
    with started(targets_dir) as target:
        yield target


def started(targets_dir: Path, *before: str) -> Target:
    try:
        return Target([*before, *command("zoo", targets_dir)])
    except MissingCompiler as error:
        pytest.skip(str(error))


def rows_of(pid: int) -> list[Row]:
    return [(usage.vma, usage.flags) for usage in read_smaps(pid)]


def classified(pid: int) -> list[ClassRange]:
    rows = rows_of(pid)
    ranges = classify_process(pid, rows)
    assert sum(r.size for r in ranges) == sum(vma.size for vma, _ in rows)
    return ranges


def wrong(ranges: list[ClassRange], truth: Json) -> list[str]:
    """What has another class, or is another's, than the target says."""
    found: list[str] = []
    for expected in truth["ranges"]:
        inside = [r for r in ranges if r.start < expected["end"] and r.end > expected["start"]]
        seen = {(r.name, r.detail if expected["detail"] != "*" else "*") for r in inside}
        if seen != {(expected["class"], expected["detail"])}:
            found.append(f"{expected['what']}: {seen}, not {expected['class']} {expected['detail']!r}")
    return found


def test_every_kind_of_memory_has_its_class(zoo: Target) -> None:
    truth = zoo.command("m")
    assert {r["class"] for r in truth["ranges"]} == {
        *("text", "rodata", "relro", "data", "bss", "heap", "stack", "thread stack", "malloc arena", "malloc mmapped"),
        *("file", "shared memory", "jit", "guard", "reserve", "kernel", "anonymous"),
    }
    assert wrong(classified(zoo.pid), truth) == []


def test_neighbours_of_one_vma_are_told_apart(zoo: Target) -> None:
    rows, truth = rows_of(zoo.pid), zoo.command("m")
    ranges = {r["what"]: r for r in truth["ranges"]}
    pairs = [("memory below a chunk", "chunk amid other memory")]
    if "guard of the upper stack" in ranges:  # Linux 6.13
        pairs.append(("lower of two stacks that touch", "upper of two stacks that touch"))
    if "memory behind the bss" in ranges:
        pairs.append(("zeroed variables", "memory behind the bss"))
    for one, other in pairs:
        homes = [
            vma.start for name in (one, other) for vma, _ in rows if vma.start <= ranges[name]["end"] - PAGE < vma.end
        ]
        assert homes[0] == homes[1], f"{one} and {other}: the target is to have them in one VMA"


def test_the_stack_of_a_thread_that_never_waits(targets_dir: Path) -> None:
    with started(targets_dir) as target:
        assert target.command("s")["threads"] == len(read_threads(target.pid))
        try:
            truth = target.command("m")
            assert any(r["what"] == "stack of a thread that runs" for r in truth["ranges"])
            assert wrong(classified(target.pid), truth) == []
        finally:
            target.command("x")


def test_a_heap_of_two_vmas(zoo: Target) -> None:
    child = zoo.command("f")
    heaps = [vma for vma in read_maps(child["child"]) if vma.path == b"[heap]"]
    assert len(heaps) > 1
    assert wrong(classified(child["child"]), child) == []


def test_a_heap_that_begins_where_the_bss_ends(targets_dir: Path) -> None:
    if shutil.which("setarch") is None:
        pytest.skip("setarch (util-linux) is not installed")
    with started(targets_dir, "setarch", "-R") as target:
        truth = target.command("m")
        assert wrong(classified(target.pid), truth) == []
        assert "memory behind the bss" not in {r["what"] for r in truth["ranges"]}, "the heap is there"


def test_a_program_whose_file_is_gone(targets_dir: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to open the file of a mapping")
    try:
        (built,) = command("zoo", targets_dir)
    except MissingCompiler as error:
        pytest.skip(str(error))
    copy = Path(shutil.copy(built, tmp_path / "zoo"))
    with Target([str(copy)]) as target:
        copy.unlink()
        ranges = classified(target.pid)
        truth = target.command("m")
        for expected in truth["ranges"]:
            if expected["detail"] == "zoo" and expected["class"] != "file":
                assert wrong(ranges, {"ranges": [{**expected, "detail": "*"}]}) == []


def test_the_target_is_left_as_it_is(zoo: Target) -> None:
    """Nothing that is not resident is read, and nothing waits for us."""
    wait_for(zoo.is_waiting, "the target is blocked in read(0)")
    rows = rows_of(zoo.pid)
    before = faults(zoo.pid), [usage.rss for usage in read_smaps(zoo.pid)]
    classify_process(zoo.pid, rows)
    assert (faults(zoo.pid), [usage.rss for usage in read_smaps(zoo.pid)]) == before


def faults(pid: int) -> list[bytes]:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return [fields[0], *fields[7:11]]


def test_a_process_that_has_ended(zoo: Target) -> None:
    rows = rows_of(zoo.pid)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    ranges = classify_process(gone.pid, rows)
    assert sum(r.size for r in ranges) == sum(vma.size for vma, _ in rows)
    assert {"heap", "stack", "text", "file"} <= {r.name for r in ranges}, "what the lines of maps tell"
    assert dominant_classes(rows, ranges).keys() == {vma.start for vma, _ in rows}


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def run(running: ExitStack, *argv: str) -> int:
    program = shutil.which(argv[0])
    if program is None:
        pytest.skip(f"{argv[0]} is not installed")
    null = subprocess.DEVNULL
    process = subprocess.Popen([program, *argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=null)
    running.callback(process.communicate)
    running.callback(process.send_signal, signal.SIGKILL)
    assert process.stdout
    for line in process.stdout:
        if b"ready" in line.lower():
            return process.pid
    raise AssertionError(f"{argv[0]} ended")


def unknown_share(pid: int) -> tuple[float, Counter[tuple[str, str]]]:
    """Which share of what is resident is called anonymous, without a word about it; and all classes' resident bytes."""
    resident: Counter[tuple[str, str]] = Counter()
    with Residency(pid) as residency:
        for range_ in classified(pid):
            resident[(range_.name, range_.detail)] += residency.resident_bytes(range_.start, range_.end)
    return resident[("anonymous", "")] / resident.total(), resident


PYTHON = """
import threading
wait = threading.Event()
for i in range(8):
    threading.Thread(target=wait.wait, daemon=True).start()
kept = [{"number": i} for i in range(100000)]
print("ready", flush=True)
input()
"""


def test_python(running: ExitStack) -> None:
    share, resident = unknown_share(run(running, sys.executable, "-c", PYTHON))
    assert share < 0.02
    assert resident[("anonymous", "python heap")] > 10 << 20
    assert sum(name == "thread stack" for name, _ in resident) == 8


def test_redis(running: ExitStack, tmp_path: Path) -> None:
    pid = run(running, "redis-server", "--port", "0", "--unixsocket", str(tmp_path / "socket"), "--save", "")
    share, resident = unknown_share(pid)
    assert share < 0.13  # of jemalloc's memory
    assert sum(name == "thread stack" for name, _ in resident) >= 3


def test_node(running: ExitStack) -> None:
    source = (
        "const kept = []; for (let i = 0; i < 1e5; i++) kept.push({i}); console.log('ready'); process.stdin.resume()"
    )
    share, resident = unknown_share(run(running, "node", "-e", source))
    assert share <= 0.58
    assert sum(name == "thread stack" for name, _ in resident) >= 5
    assert resident[("malloc arena", "")] == 0 and any(name == "malloc arena" for name, _ in resident)


def test_java(running: ExitStack, tmp_path: Path) -> None:
    (tmp_path / "Ready.java").write_text(
        "public class Ready { public static void main(String[] a) throws Exception {"
        ' byte[][] kept = new byte[100][100000]; System.out.println("ready"); System.in.read(kept[0]); } }'
    )
    pid = run(running, "java", "-Xmx512m", str(tmp_path / "Ready.java"))
    share, resident = unknown_share(pid)
    assert share <= 0.54
    assert resident[("anonymous", "java heap")] >= 10 << 20


def test_many_reads_are_as_single_ones(zoo: Target) -> None:
    vmas = read_maps(zoo.pid)
    with Residency(zoo.pid) as residency, MemoryReader(zoo.pid, residency) as memory:
        addresses = [address for vma in vmas for address in range(vma.start, min(vma.end, vma.start + 9 * PAGE), PAGE)]
        addresses += [address + 4090 for address in addresses[::7]] + [0, 1 << 62, (1 << 64) - PAGE, addresses[0]]
        # Memory that may not be read comes amid memory that may.
        addresses.sort(key=lambda address: address * 2654435761 % (1 << 32))
        for size in (1, 16, PAGE):
            assert memory.read_many(addresses, size) == [memory(address, size) for address in addresses]
        assert memory.read_many([], 16) == []
        assert memory.read_many(addresses[:2], 0) == memory.read_many(addresses[:2], 2 * PAGE) == [None, None]
    assert memory.read_many(addresses[:2], 16) == [None, None], "closed"


def test_guard_markers(zoo: Target) -> None:
    marked = [r for r in zoo.command("m")["ranges"] if r["what"] == "guard of the upper stack"]
    with Residency(zoo.pid) as residency:
        if not marked or not residency.has_guards:
            pytest.skip("this kernel has no guard markers, or does not show them (Linux 6.16)")
        (guard,) = marked
        around = residency.guards(guard["start"] - PAGE, guard["end"] + PAGE)
        assert around == [(guard["start"], guard["end"])]
        assert residency.guards(guard["end"], guard["end"] + PAGE) == []
        low, high = guard["start"] - (1 << 20), guard["end"]
        assert [end - start for start, end in residency.guards(low, high)] == [16 * PAGE, 16 * PAGE]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"0 0x0 0x7f12 0x1 0x0 0x0 0x0 0x7ffc00001000 0x7f0000000000\n", 0x7FFC00001000),
        (b"-1 0x7ffc00002000 0x7f0000000000\n", 0x7FFC00002000),
        (b"running\n", None),
        (b"", None),
        (b"0 x y\n", None),
        (b"0 0x0 0x1\n", None),
    ],
)
def test_stack_pointers(line: bytes, expected: int | None) -> None:
    assert parse_stack_pointer(line) == expected


def test_threads(zoo: Target) -> None:
    threads = read_threads(zoo.pid)
    assert threads[0].tid == zoo.pid and threads[0].name == "zoo"
    assert {"waiter", "[a]\x1b b", "lower", "upper", "own-stack"} >= {thread.name for thread in threads[1:]}
    assert all(thread.local_tid == thread.tid for thread in threads)
    assert read_threads(1 << 30) == []
