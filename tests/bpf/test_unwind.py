"""The kernel's stacks against gdb's, on programs built without frame pointers. Larger samples: unwind_harness.py."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.unwind_harness import (
    COMPLETE,
    HIDDEN,
    NO_TABLE,
    THROUGH_SIGNAL,
    Comparison,
    UnwindProbe,
    check,
    collect,
    mapped_file,
    running,
    symbol_offset,
)
from tracer.bpf_source import bpf_directory
from tracer.unwind import mappings, rules

HERE = Path(__file__).resolve().parent / "unwind_targets"
FLAGS = ("-O2", "-fomit-frame-pointer", "-pthread", "-Wall", "-Wextra", "-Werror")
needs_gdb = pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("unwind")
    built = {}
    for source, compiler in (("mix.c", "gcc"), ("mix.cpp", "g++")):
        if shutil.which(compiler) is None:
            pytest.skip(f"needs {compiler}")
        built[source] = directory / source.replace(".", "_")
        subprocess.run([compiler, *FLAGS, "-o", built[source], HERE / source], check=True)
    return built


def assert_equal(result: Comparison, at_least: int) -> None:
    assert result.samples >= at_least, result
    assert result.exact == result.samples, result.mismatches[:3]
    assert all(status & COMPLETE for status in result.statuses), str(result)


@needs_gdb
@pytest.mark.parametrize(
    ("source", "threads", "mode", "depth"),
    [
        ("mix.c", 1, "mix", 10),
        ("mix.c", 4, "mix", 10),
        ("mix.c", 1, "deep", 100),
        ("mix.cpp", 1, "mix", 15),
        ("mix.cpp", 4, "mix", 15),
        ("mix.cpp", 1, "throw", 15),
    ],
)
def test_stacks_at_malloc_equal_gdbs(
    programs: dict[str, Path], source: str, threads: int, mode: str, depth: int
) -> None:
    with running([str(programs[source]), str(threads), mode]) as pid:
        result = check(pid, "malloc", 60)
    assert_equal(result, 50)
    assert max(result.depths) >= depth
    assert result.distinct > 5


@needs_gdb
def test_stacks_lead_out_of_a_signal_handler(programs: dict[str, Path]) -> None:
    with running([str(programs["mix.c"]), "1", "signal"]) as pid:
        result = check(pid, "malloc", 40)
    assert_equal(result, 30)
    assert set(result.statuses) == {COMPLETE | THROUGH_SIGNAL}


@needs_gdb
@pytest.mark.parametrize("event", ["mmap", "rss"])
def test_stacks_at_system_calls_and_page_faults_equal_gdbs(programs: dict[str, Path], event: str) -> None:
    with running([str(programs["mix.c"]), "2", "map"]) as pid:
        result = check(pid, event, 60)
    assert_equal(result, 50)


@needs_gdb
def test_stacks_of_a_stripped_interpreter_equal_gdbs() -> None:
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("needs /usr/bin/python3")
    with running([str(python), str(HERE / "mix.py")]) as pid:
        result = check(pid, "malloc", 60)
    assert_equal(result, 50)


@needs_gdb
def test_stacks_of_redis_under_load_equal_gdbs() -> None:
    server, load = shutil.which("redis-server"), shutil.which("redis-benchmark")
    if server is None or load is None:
        pytest.skip("needs redis-server and redis-benchmark")
    port = str(_free_port())
    with (
        running([server, "--port", port, "--save", ""]) as pid,
        _load([load, "-p", port, "-l", "-q", "-t", "set,hset"]),
    ):
        allocator = "libjemalloc" if b"libjemalloc" in Path(f"/proc/{pid}/maps").read_bytes() else "libc.so"
        result = check(pid, "malloc", 60, image=allocator)
    assert_equal(result, 50)


@pytest.mark.parametrize("told", [True, False])
def test_a_return_address_that_a_return_probe_hides_is_found_again(programs: dict[str, Path], told: bool) -> None:
    with running([str(programs["mix.c"]), "1", "calloc"]) as pid, UnwindProbe(pid, one_in=1, gap_ns=0) as probe:
        libc = mapped_file(pid, b"libc.so")
        calloc = symbol_offset(libc, "calloc")
        if told:
            probe.attach_uprobe(libc, calloc, "on_call")
        probe.attach_uprobe(libc, calloc, "on_return", on_return=True)
        probe.wait_for_trampoline()
        probe.attach_tracepoint("kmem/rss_stat")
        samples = collect(probe, 300)
    statuses = Counter(s.status for s in samples)
    assert len(samples) >= 300
    if told:
        assert set(statuses) == {COMPLETE}
    else:
        assert statuses[HIDDEN] > 100


def test_a_stack_that_needs_a_missing_table_says_so_until_it_is_built(programs: dict[str, Path]) -> None:
    with (
        running([str(programs["mix.c"]), "1", "mix"]) as pid,
        UnwindProbe(pid, one_in=1, gap_ns=0, build=False) as probe,
    ):
        libc = mapped_file(pid, b"libc.so")
        probe.attach_uprobe(libc, symbol_offset(libc, "malloc"))
        before = collect(probe, 50)
        assert {s.status for s in before} == {NO_TABLE}
        builder = threading.Thread(target=probe.maps.build_all)
        builder.start()
        builder.join()
        after = collect(probe, 50)
        assert {s.status for s in after} == {COMPLETE}
        assert probe.maps.pending == 0


def test_layouts_and_rules_are_those_of_the_header() -> None:
    header = (bpf_directory() / "unwind.h").read_text()
    for enum, prefix, values in (("unwind_cfa", "UNWIND_", rules.Cfa), ("unwind_rbp", "UNWIND_RBP_", rules.Rbp)):
        body = header.split(f"enum {enum} {{")[1].split("}")[0]
        names = [line.split(",")[0].strip() for line in body.splitlines() if line.strip().startswith("UNWIND_")]
        assert names == [f"{prefix}{value.name}" for value in values]
        assert [value.value for value in values] == list(range(len(names)))
    assert mappings.MAPPING.size == 32
    assert mappings.PROCESS.size == struct.calcsize("IIQ")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _load(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()
