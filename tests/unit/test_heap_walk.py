"""Walks over real processes' heaps equal what malloc itself says, and what malloc_trim then really returns.

The system's glibc, and those that MEMTRACE_GLIBCS names (see tests/targets/glibcs.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bpf.harness import Json, Target, wait_for
from tests.targets.build import MissingCompiler, command
from tests.targets.glibcs import Glibc, other_glibcs, system_glibc
from tracer.heap.glibc import walk
from tracer.heap.heap_walk import HeapWalk, Refused
from tracer.procfs.maps import read_maps
from tracer.procfs.pagemap import Residency

PAGE = 4096
GLIBCS = [system_glibc(), *other_glibcs()]
Start = Callable[..., Target]

# What each target leaves behind: blocks of each size class, of all states, in one arena and several.
CASES: tuple[tuple[str, tuple[str | int, ...]], ...] = (
    ("frag_half", ()),
    ("frag_half", (60_000, 40)),
    ("frag_half", (20_000, 1_000)),
    ("frag_page", ()),
    ("frag_top", ()),
    ("frag_arenas", ()),
    ("frag_mixed", (1, 4_000)),
    ("frag_mixed", (5, 4_000)),
    ("frag_mixed", (3, 4_000, "foreign")),
    ("frag_mixed", (3, 4_000, "blocked")),
)


@pytest.fixture(scope="module")
def targets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("targets")


@pytest.fixture
def start(targets_dir: Path) -> Iterator[Start]:
    with ExitStack() as running:

        def start_one(name: str, *arguments: str | int, glibc: Glibc | None = None) -> Target:
            try:
                argv = (glibc or system_glibc()).command(name, targets_dir, *arguments)
            except MissingCompiler as error:
                pytest.skip(str(error))
            return running.enter_context(Target(argv))

        yield start_one


def walked(pid: int) -> HeapWalk:
    found = walk(pid)
    assert isinstance(found, HeapWalk), found
    return found


def mallinfo_of(heap: HeapWalk) -> Json:
    """The walk in mallinfo2's terms (malloc/malloc.c, int_mallinfo)."""
    use = heap.total
    return {
        "arena": use.system,
        "ordblks": use.free_chunks + len(heap.arenas),
        "hblks": heap.mmapped.count,
        "hblkhd": heap.mmapped.size,
        "uordblks": use.in_use,
        "fordblks": use.free + use.fast + use.top,
        "fsmblks": use.fast,
        "keepcost": heap.arenas[0].use.top,
    }


def trimmed_bytes(answer: Json) -> int:
    return int(answer["before"]["rss_pages"]["anon"] - answer["after"]["rss_pages"]["anon"]) * PAGE


@pytest.mark.parametrize("glibc", GLIBCS, ids=lambda glibc: glibc.name)
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=lambda value: str(value))
def test_the_walk_is_what_malloc_says_and_what_a_trim_returns(
    start: Start, name: str, arguments: Sequence[str | int], glibc: Glibc
) -> None:
    target = start(name, *arguments, glibc=glibc)
    for _ in range(2):
        truth = target.go()
        heap = walked(target.pid)
        said = {field: value for field, value in truth["mallinfo"].items() if field in mallinfo_of(heap)}
        assert mallinfo_of(heap) == said
        assert not heap.changed
        assert set(heap.state_of(truth["live"])) == {"in use"}
        assert set(heap.state_of(truth["freed"])) <= {"freed"}
        held = heap.total.live + heap.mmapped.size
        asked = sum(tally["bytes"] for tally in truth["stacks"].values())
        # Rounding up to 16, the tables of empty caches, and whole pages of mapped blocks.
        assert asked <= held <= asked + 16 * heap.total.chunks + 8192 * (1 + heap.mmapped.count)
        answer = target.command("t")
        assert trimmed_bytes(answer) == pytest.approx(heap.total.returnable, rel=0.01, abs=2 * PAGE)
        assert walked(target.pid).total.returnable <= 2 * PAGE
    assert target.quit() == 0


def test_another_glibc_was_there_to_test() -> None:
    if len(GLIBCS) == 1:
        pytest.skip("MEMTRACE_GLIBCS names no other glibc (scripts/bench/glibcs fetches some)")


@pytest.mark.parametrize("arguments", [(), (3, 2_000, "foreign")], ids=str)
def test_a_static_stripped_program_is_walked_too(start: Start, arguments: Sequence[str | int]) -> None:
    target = start("frag_mixed_stripped", *arguments)
    truth = target.go()
    heap = walked(target.pid)
    assert mallinfo_of(heap).items() <= truth["mallinfo"].items()
    assert trimmed_bytes(target.command("t")) == pytest.approx(heap.total.returnable, rel=0.01)


def test_what_each_target_shows_is_told_apart(start: Start) -> None:
    def use_of(name: str, *arguments: str | int) -> Json:
        target = start(name, *arguments)
        target.go()
        heap = walked(target.pid)
        use = heap.total
        shares = {
            key: getattr(use, key) / use.resident for key in ("live", "free_resident", "top_resident", "returnable")
        }
        return {**shares, "arenas": len(heap.arenas)}

    half, page, top, arenas = (use_of(name) for name in ("frag_half", "frag_page", "frag_top", "frag_arenas"))
    assert half["free_resident"] == pytest.approx(0.5, abs=0.01)
    assert page["free_resident"] > 0.9
    assert page["returnable"] < 0.01
    assert top["top_resident"] > 0.99
    assert top["returnable"] > 0.99
    assert arenas["arenas"] == 5
    assert 0.2 < arenas["returnable"] < arenas["free_resident"] == pytest.approx(0.5, abs=0.01)


def test_ranges_add_up_to_the_resident_memory_of_each_vma(start: Start) -> None:
    target = start("frag_mixed", 3, 4_000)
    target.go()
    target.command("t")
    heap = walked(target.pid)
    vmas = read_maps(target.pid)
    with Residency(target.pid) as residency:
        rss = {vma.start: residency.resident_bytes(vma.start, vma.end) for vma in vmas}
    found = {vma.start: heap.within(vma.start, vma.end) for vma in vmas}
    assert all(found[vma.start].total <= rss[vma.start] for vma in vmas)
    for vma in vmas:
        of_heap = vma.path == b"[heap]" or any(arena.address & -PAGE == vma.start for arena in heap.arenas[1:])
        if of_heap:
            assert found[vma.start].total == rss[vma.start]
    assert sum(use.total - use.mapped for use in found.values()) == heap.total.resident
    assert sum(use.mapped for use in found.values()) == heap.mmapped.resident > 0
    assert sum(use.kept for use in found.values()) == heap.total.kept


def test_a_heap_under_load_is_walked_or_refused_with_a_reason(start: Start) -> None:
    target = start("heap_churn", 2, 5_000)
    live = target.command("c")["live"]
    walks = [walk(target.pid) for _ in range(10)]
    assert target.command("c")["operations"] > 0
    done = [found for found in walks if isinstance(found, HeapWalk)]
    assert all(found.kind in ("changing", "too-large") for found in walks if isinstance(found, Refused))
    assert done
    for heap in done:
        use = heap.total
        assert use.system == use.live + use.free + use.fast + use.cached + use.top + use.overhead
        assert heap.within(0, 1 << 64).total - heap.mmapped.resident == use.resident
        assert heap.changed
        assert all(heap.are_live(live))


def test_walking_leaves_the_process_as_it_was(start: Start) -> None:
    target = start("frag_mixed", 4, 2_000)
    target.go()
    wait_for(target.is_waiting, "the target to wait")
    before = _memory_of(target.pid)
    walked(target.pid)
    assert _memory_of(target.pid) == before


def _memory_of(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    faults = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[7:11]
    return [*faults, *(line for line in lines if line.startswith(("Vm", "Rss", "voluntary", "nonvoluntary")))]


def test_a_heap_without_blocks_is_walked(start: Start) -> None:
    target = start("frag_half")
    heap = walked(target.pid)
    assert len(heap.arenas) == 1
    assert heap.total.system > 0
    assert heap.total.free_chunks == 0
    assert heap.within(0, 1 << 64).total == heap.total.resident


def test_python_is_walked() -> None:
    blocks = "kept = [bytes(600 + i % 900) for i in range(9000)]; del kept[::2]"
    script = f"import sys; {blocks}; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        heap = walked(process.pid)
        assert heap.total.live > 2 << 20
        assert heap.total.kept > 1 << 20
        process.kill()


def test_other_allocators_are_refused(targets_dir: Path) -> None:
    try:
        argv = command("leak_malloc_musl_static", targets_dir)
    except MissingCompiler as error:
        pytest.skip(str(error))
    with Target(argv) as target:
        target.go()
        found = walk(target.pid)
    assert isinstance(found, Refused)
    assert found.kind == "no-glibc-heap"


def test_processes_that_are_gone_or_have_no_memory_are_refused() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    zombie = walk(child.pid)
    child.wait()
    gone = walk(child.pid)
    kernel_thread = walk(2)
    for found in (zombie, gone, kernel_thread):
        assert isinstance(found, Refused)
        assert found.kind in ("unreadable", "no-glibc-heap")
        assert found.reason
