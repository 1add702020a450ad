"""The target programs tell the truth: parsable, deterministic, consistent in itself and with the kernel's counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bpf.harness import Json, Target, plain_name, totals_by_function, wait_for
from tests.targets.build import TARGETS, MissingCompiler, build, command

# Programs that are never quiet: they have no phases, or their truth depends on time.
BUSY = {*("heap_churn", "heartbeat", "hot", "hot_leak", "mix", "touch", "leaky-server", "zoo", "random_vm", "handover")}
BUSY |= {"fixed-server"}
# The new image of execer answers the first `g` with a ready line.
PHASED = sorted({*TARGETS, "grow"} - BUSY - {"execer"})
ALLOCATORS = ("libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2")

Start = Callable[..., Target]


@pytest.fixture(scope="module")
def targets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("targets")


@pytest.fixture
def start(targets_dir: Path) -> Iterator[Start]:
    with ExitStack() as running:

        def start_one(name: str, *arguments: str | int, env: dict[str, str] | None = None) -> Target:
            try:
                return running.enter_context(Target(command(name, targets_dir, *arguments), env))
            except MissingCompiler as error:
                pytest.skip(str(error))

        yield start_one


def _check_consistent(truth: Json) -> None:
    assert truth["stacks"]
    for name, tally in truth["stacks"].items():
        assert tally["bytes"] == tally["allocated_bytes"] - tally["freed_bytes"] >= 0, name
        assert tally["count"] == tally["allocated_count"] - tally["freed_count"] >= 0, name
        assert 0 <= tally.get("resident_bytes", 0) <= tally["bytes"] + tally["count"] * 4096, name
    assert set(truth["rss_pages"]) == {"anon", "file", "shmem"}


@pytest.mark.parametrize("name", PHASED)
def test_truth_is_consistent_and_deterministic(start: Start, name: str) -> None:
    first, second = start(name), start(name)
    for phase in (1, 2):
        truth, again = first.go(), second.go()
        assert truth["phase"] == phase
        _check_consistent(truth)
        assert truth["stacks"] == again["stacks"]
    assert first.quit() == second.quit() == 0


@pytest.mark.parametrize("name", PHASED)
def test_every_phase_allocates(start: Start, name: str) -> None:
    target = start(name)
    allocated = [sum(tally["allocated_bytes"] for tally in target.go()["stacks"].values()) for _ in range(2)]
    assert allocated[0] > 0
    assert allocated[1] == allocated[0] if name == "free_old" else allocated[1] > allocated[0]


@pytest.mark.parametrize("name", PHASED)
def test_is_quiet_while_it_waits(start: Start, name: str) -> None:
    target = start(name)
    for _ in range(2):
        wait_for(target.is_waiting, f"{name} blocked in read(0)")
        before = _switches_and_faults(target.pid)
        assert _switches_and_faults(target.pid) == before
        target.go()


def _switches_and_faults(pid: int) -> list[str]:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return [fields[0], *fields[7:9], fields[11]]  # state, minor faults, ..., user time


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_is_built_once(targets_dir: Path, name: str) -> None:
    try:
        program = build(name, targets_dir)
    except MissingCompiler as error:
        pytest.skip(str(error))
    made = program.stat().st_mtime_ns
    assert build(name, targets_dir) == program
    assert program.stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("name", "slack"), [("direct_mmap", 4), ("direct_brk", 4), ("big", 4)], ids=lambda value: str(value)
)
def test_resident_truth_is_what_the_kernel_counts(start: Start, name: str, slack: int) -> None:
    # What is more are pages of the program itself: stack, bookkeeping, page tables' first touch of libc's data.
    target = start(name)
    before = target.go()
    after = target.go()
    for member, kinds in (("anon", ("anon", "heap")), ("file", ("file",)), ("shmem", ("shmem",))):
        expected = _resident_pages(after, kinds) - _resident_pages(before, kinds)
        growth = after["rss_pages"][member] - before["rss_pages"][member]
        assert 0 <= growth - expected <= slack, member


def _resident_pages(truth: Json, kinds: tuple[str, ...]) -> int:
    tallies = [tally for tally in truth["stacks"].values() if tally["kind"] in kinds]
    return sum(int(tally.get("resident_bytes", 0)) for tally in tallies) // 4096


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("name", ["leak_malloc", "leak_new"])
def test_truth_does_not_depend_on_the_allocator(start: Start, name: str, allocator: str) -> None:
    fails = 0 if "mimalloc" in allocator else 1  # mimalloc's operator new is written in C and aborts
    arguments = (500, 150, fails) if name == "leak_new" else (500, 150)
    own = start(name, *arguments)
    preloaded = start(name, *arguments, env={"LD_PRELOAD": allocator})
    if allocator not in Path(f"/proc/{preloaded.pid}/maps").read_text():
        pytest.skip(f"{allocator} is not installed")
    assert own.go()["stacks"] == preloaded.go()["stacks"]


def test_cache_and_churn_level_off(start: Start) -> None:
    for name, function in (("cache", "cache_store"), ("churn", "churn_one")):
        target = start(name)
        phases = [target.go()["stacks"][function]["bytes"] for _ in range(3)]
        assert phases[0] == phases[1] == phases[2] > 0


def test_execer_keeps_its_pid_and_starts_anew(start: Start) -> None:
    target = start("execer")
    answer = target.go()
    assert answer["ready"]
    assert answer["pid"] == target.pid
    truth = target.go()
    _check_consistent(truth)
    assert truth["stacks"]["leak_after_exec"]["count"] > 0
    assert truth["stacks"]["leak_before_exec"]["allocated_count"] == 0


@pytest.mark.parametrize(
    ("mode", "function"),
    [("plugin", "leak_in_plugin"), ("reopen", "leak_in_plugin"), ("allocator", "leak_by_loaded_allocator")],
)
def test_dlopener_leaks_in_each_mode(start: Start, mode: str, function: str) -> None:
    target = start("dlopener", mode)
    before = Path(f"/proc/{target.pid}/maps").read_text()
    truth = target.go()
    if "cannot open shared object" in truth.get("error", ""):
        pytest.skip(truth["error"])
    assert truth["stacks"][function]["count"] == 1000
    assert target.go()["stacks"][function]["count"] == 2000
    library = "libjemalloc" if mode == "allocator" else "libplugin"
    assert library not in before
    assert library in Path(f"/proc/{target.pid}/maps").read_text()


def test_malloc_address_has_a_symbol_that_is_no_allocator(start: Start) -> None:
    target = start("malloc_address")
    assert target.go()["stacks"]["leak_by_malloc_address"]["count"] > 0
    image = Path(f"/proc/{target.pid}/maps").read_text().split("-", 1)[0]
    assert int(image, 16) == 0x400000


def test_hot_counts_and_corrupts_nothing(start: Start) -> None:
    target = start("hot", 2)
    first = target.command("c")["pairs"]
    wait_for(lambda: target.command("c")["pairs"] > first, "more pairs")
    assert target.command("c")["corrupt"] == 0
    assert target.quit() == 0


@pytest.mark.parametrize("pace", ["sleep", "busy"])
def test_heartbeat_measures_between_begin_and_end(start: Start, pace: str) -> None:
    target = start("heartbeat", pace)
    assert target.command("b") == {"begun": 1}
    wait_for(lambda: _beats(target) > 100, "100 beats")
    measured = target.command("e")
    assert measured["phase"] == 1
    assert measured["longest_gap_ns"] > 0
    assert target.quit() == 0


def _beats(target: Target) -> int:
    return int(target.command("e")["beats"])


def test_leaky_server_leaks_sessions_only(start: Start) -> None:
    target = start("leaky-server", "--json")
    wait_for(lambda: target.go()["stacks"]["session_create"]["count"] > 100, "sessions")
    truth = target.go()
    _check_consistent(truth)
    assert truth["stacks"]["session_create"]["freed_count"] > 0
    assert truth["stacks"]["render_response"]["count"] == 0
    assert target.quit() == 0


def test_fixed_server_keeps_the_latest_sessions_only(start: Start) -> None:
    target = start("fixed-server", "--json")
    wait_for(lambda: target.go()["stacks"]["session_create"]["allocated_count"] > 300, "sessions")
    truth = target.go()
    _check_consistent(truth)
    assert truth["stacks"]["session_create"]["count"] <= 65
    assert target.quit() == 0


def test_leaky_server_ends_by_itself(targets_dir: Path) -> None:
    with Target(command("leaky-server", targets_dir, "--json", 1)) as target:
        wait_for(lambda: target.state() == "Z", "end after a second")
        assert target.quit() == 0


def test_grow_grows_by_itself_at_a_rate(start: Start) -> None:
    target = start("grow", 0, 2000)
    wait_for(lambda: target.go()["stacks"]["append_row"]["count"] > 100, "rows")
    assert target.quit() == 0


def test_end_of_input_ends_a_target(start: Start) -> None:
    target = start("leak_malloc")
    assert "error" in target.command("x")
    target.close_input()
    assert target.quit() == 0


def test_totals_go_to_the_innermost_known_function() -> None:
    def stack(functions: list[str], size: int, kind: str = "malloc") -> Json:
        frames = [{"function": function} for function in functions]
        counts = {"bytes": size, "count": 1, "allocated_bytes": size, "freed_bytes": 0}
        return {"kind": kind, "frames": frames, **counts}

    report = {
        "stacks": [
            stack(["operator new", "a::leak(int)", "main"], 10),
            stack(["malloc", "leak.part.0", "outer"], 5),
            stack(["malloc", "outer"], 7),
            stack(["leak"], 100, kind="fault"),
        ]
    }
    sums = totals_by_function(report, ["leak", "outer", "absent"], kind="malloc")
    assert (sums["leak"]["bytes"], sums["leak"]["stacks"]) == (15, 2)
    assert sums["outer"]["bytes"] == 7
    assert sums["absent"]["stacks"] == 0
    assert plain_name("ns::f<int>(int) [clone .cold]") == "f<int>"
